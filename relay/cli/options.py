"""The flags that several commands share, and what they become in a request."""

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager

from relay.cli.client import Fields, Relay, connect
from relay.cli.outcome import misused
from relay.cli.output import Output
from relay.cli.shell import Shell
from relay.domain.duration import parse_duration

_IDENTIFIER = re.compile(r"[A-Za-z0-9._-]+")


def add_connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the relay")
    group.add_argument("--url", help="where the relay listens (default: QSTASH_URL)")
    group.add_argument("--token", help="the token to present (default: QSTASH_TOKEN)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


@contextmanager
def opened(args: argparse.Namespace, shell: Shell) -> Iterator[tuple[Relay, Output]]:
    """The relay a command talks to, until it is done, and the output it prints to."""
    relay = connect(args.url, args.token, shell.environment)
    try:
        yield relay, Output(shell, as_json=args.json)
    finally:
        relay.close()


def identifier(text: str) -> str:
    """An id that stays one path segment: an empty one, or dots alone, would name the whole collection."""
    if _IDENTIFIER.fullmatch(text) is None or not text.strip("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not an id")
    return text


def filled(text: str) -> str:
    """A filter's value: an empty one could be taken for no filter at all."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def duration_ms(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of entries")
    return int(text)


def positive(text: str) -> int:
    number = count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


#: Filter flags and the query parameters they become; each may be given several times, any value will do.
_FILTERS = {
    "destination": ("url", "URL", "sent to exactly this URL"),
    "host": ("host", "HOST", "sent to this host"),
    "path": ("path", "PATH", "sent to this path, which begins with a slash"),
    "label": ("label", "LABEL", "carrying this label"),
    "schedule": ("scheduleId", "ID", "made by this schedule"),
    "message": ("messageId", "ID", "this message"),
    "state": ("state", "STATE", "in this state"),
    "status": ("responseStatus", "STATUS", "whose last answer had this status"),
}


def add_filters(parser: argparse.ArgumentParser, *names: str, before: bool = True) -> None:
    group = parser.add_argument_group(
        "filters", "Different filters must all hold; of the values of one filter, one must."
    )
    for name in names:
        _, metavar, meaning = _FILTERS[name]
        group.add_argument(f"--{name}", action="append", type=filled, metavar=metavar, help=meaning)
    group.add_argument("--since", type=duration_ms, metavar="10m", help="not older than this")
    if before:
        group.add_argument("--before", type=duration_ms, metavar="10m", help="at least this old")
    parser.set_defaults(filters=names)


def selected(args: argparse.Namespace, now: int) -> Fields:
    """The filters that were given, as query parameters."""
    fields = [(_FILTERS[name][0], value) for name in args.filters for value in getattr(args, name) or ()]
    if args.since is not None:
        fields.append(("fromDate", str(now - args.since)))
    if getattr(args, "before", None) is not None:
        fields.append(("toDate", str(now - args.before)))
    return fields


def add_bulk(parser: argparse.ArgumentParser, metavar: str) -> None:
    """Ids, or filters, or --all: what a command that changes many things at once is pointed at."""
    parser.add_argument("ids", nargs="*", type=identifier, metavar=metavar)
    parser.add_argument("--all", action="store_true", help="everything there is")
    parser.add_argument(
        "--count", type=positive, metavar="N", help="with --all or filters: at most this many"
    )
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")


def bulk_selection(args: argparse.Namespace, now: int) -> Fields | None:
    """The filters of a bulk command, none for everything; None when it was given ids.

    `Failure` when it is not clear what is meant.
    """
    fields = selected(args, now)
    ways = [name for name, given in (("ids", args.ids), ("--all", args.all), ("filters", fields)) if given]
    if not ways:
        raise misused("which ones? Give ids, filters, or --all")
    if len(ways) > 1:
        raise misused(f"{' and '.join(ways)} exclude each other")
    if args.ids:
        if args.count is not None:
            raise misused("--count goes with --all or filters, not with ids")
        return None
    return fields


def require_terminal(shell: Shell) -> None:
    """`Failure` when there is nobody to ask."""
    if not shell.stdin.isatty():
        raise misused("there is no terminal to ask on; pass --yes to go ahead")


def confirm(shell: Shell, question: str) -> bool:
    """Whether the person says yes."""
    require_terminal(shell)
    print(f"{question} [y/N] ", end="", file=shell.stderr, flush=True)
    return shell.stdin.readline().strip().lower() in (b"y", b"yes")


def add_message(parser: argparse.ArgumentParser) -> None:
    """What is sent and on what terms: the flags a publish and a schedule have in common."""
    parser.add_argument(
        "--body",
        default="",
        metavar="TEXT",
        help="the body: text, @file for a file's bytes, - for standard input",
    )
    parser.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="a header for the destination; one that begins with Upstash- or Relay- is a setting of the message",
    )
    parser.add_argument("--content-type", metavar="TYPE", help="the media type of the body")
    parser.add_argument("--method", help="GET, POST, PUT, PATCH or DELETE (default: POST)")
    parser.add_argument("--delay", metavar="10s", help="wait this long before the first attempt")
    parser.add_argument("--retries", metavar="N", help="attempts after the first (default: 3)")
    parser.add_argument(
        "--retry-delay", metavar="EXPR", help="ms between attempts, such as 'pow(2, retried) * 1000'"
    )
    parser.add_argument("--timeout", metavar="30s", help="how long one attempt may take")
    parser.add_argument("--callback", metavar="URL", help="where the outcome of every attempt is reported")
    parser.add_argument(
        "--failure-callback", metavar="URL", help="where it is reported that the message has failed for good"
    )
    parser.add_argument("--label", action="append", default=[], type=filled, help="a label to find it by")
    parser.add_argument("--queue", type=identifier, metavar="NAME", help="deliver in the order of this queue")
    parser.add_argument("--flow-key", metavar="KEY", help="hold it to the limits of this flow-control key")
    parser.add_argument(
        "--flow-limits", metavar="LIMITS", help="the key's limits: 'parallelism=3, rate=100, period=1m'"
    )
    parser.add_argument(
        "--signature", metavar="SCHEME", help="signed by qstash, standard or both (default: the account's)"
    )


def message_headers(args: argparse.Namespace) -> list[tuple[str, str]]:
    """The request headers the flags of `add_message` stand for. The relay itself judges their values."""
    given = [
        ("Content-Type", args.content_type),
        ("Upstash-Method", args.method),
        ("Upstash-Delay", args.delay),
        ("Upstash-Retries", args.retries),
        ("Upstash-Retry-Delay", args.retry_delay),
        ("Upstash-Timeout", args.timeout),
        ("Upstash-Callback", args.callback),
        ("Upstash-Failure-Callback", args.failure_callback),
        ("Upstash-Label", ",".join(args.label) or None),
        ("Upstash-Flow-Control-Key", args.flow_key),
        ("Upstash-Flow-Control-Value", args.flow_limits),
        ("Relay-Signature", args.signature),
    ]
    return [(name, value) for name, value in given if value is not None] + [_header(h) for h in args.header]


def _header(text: str) -> tuple[str, str]:
    """What makes the relay pass the header on, or, by the name of a setting, the setting it is."""
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise misused(f"{text!r} is not a header such as 'Name: value'")
    setting = name.lower().startswith(("upstash-", "relay-"))
    return name if setting else f"Upstash-Forward-{name}", value.strip()


def message_body(args: argparse.Namespace, shell: Shell) -> bytes:
    text: str = args.body
    if text == "-":
        return shell.stdin.read()
    if text.startswith("@"):
        try:
            with open(text[1:], "rb") as file:
                return file.read()
        except OSError as problem:
            raise misused(f"cannot read {text[1:]}: {problem.strerror}") from None
    return text.encode("utf-8", "surrogateescape")

"""`relay flow-control`: how many attempts at once, and how many in a period."""

import argparse
from collections.abc import Callable

from relay.cli.client import Fields, segment
from relay.cli.commands import TALK_TO_A_RELAY, Commands
from relay.cli.document import Document
from relay.cli.each import change_each, each
from relay.cli.options import add_connection, duration_ms, filled, opened, positive
from relay.cli.outcome import OK, misused
from relay.cli.output import Output, printable
from relay.cli.shell import Shell


def register(commands: Commands) -> None:
    actions = Commands(
        commands.add("flow-control", "hold deliveries to a number at once and a rate", group=TALK_TO_A_RELAY),
        "ACTION",
    )
    listing = actions.add("list", "list flow-control keys", _list)
    listing.add_argument("--search", type=filled, metavar="TEXT", help="whose name contains this")
    add_connection(listing)
    _add_keys(actions.add("get", "show flow-control keys", _get))
    for name, summary, past, suffix in (
        ("pause", "start nothing more, until resumed", "paused", "/pause"),
        ("resume", "let what waits go on, in order", "resumed", "/resume"),
        ("reset", "begin a new period now, with nothing counted in it", "reset", "/resetRate"),
    ):
        _add_keys(actions.add(name, summary, _changing(past, suffix)))
    pin = actions.add(
        "pin",
        "set limits that messages cannot change",
        _pin,
        details="example:\n  relay flow-control pin customer-17 --parallelism 2 --rate 100 --period 1m",
    )
    pin.add_argument("--parallelism", type=positive, metavar="N", help="attempts at once")
    pin.add_argument("--rate", type=positive, metavar="N", help="attempts in a period")
    pin.add_argument("--period", type=duration_ms, metavar="1m", help="how long a period is")
    _add_keys(pin)
    unpin = actions.add(
        "unpin",
        "let messages change limits again; until one does, the pinned ones hold",
        _unpin,
        details="Without --parallelism or --rate both are unpinned.",
    )
    unpin.add_argument("--parallelism", action="store_true", help="unpin the number of attempts at once")
    unpin.add_argument("--rate", action="store_true", help="unpin the rate and its period")
    _add_keys(unpin)


def _add_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", nargs="+", type=_key, metavar="KEY")
    add_connection(parser)


def _key(text: str) -> str:
    """One that stays one segment of a path."""
    if not text.strip("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not a key")
    return text


def _list(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        keys = relay.array("/v2/flowControl", [("search", args.search)] if args.search else ())
        output.document(keys)
        output.table(
            ("key", "state", "in flight", "waiting", "started", "pinned"),
            [
                (
                    key["flowControlKey"],
                    _state(key),
                    _of(key["parallelismCount"], key["parallelismMax"]),
                    str(key["waitListSize"]),
                    _rate(key),
                    _pinned(key),
                )
                for key in keys
            ],
        )
        return OK


def _get(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        documents: list[Document] = []

        def get(name: str) -> None:
            key = relay.get(_path(name))
            if documents:
                output.line("")
            _show(output, key)
            documents.append(key)

        return each(args.keys, get, output, lambda missing: documents)


def _changing(past: str, suffix: str) -> Callable[[argparse.Namespace, Shell], int]:
    def change(args: argparse.Namespace, shell: Shell) -> int:
        return _change(args, shell, past, suffix, ())

    return change


def _pin(args: argparse.Namespace, shell: Shell) -> int:
    query = [("parallelism", args.parallelism), ("rate", args.rate)]
    if args.period is not None:
        query.append(("period", args.period // 1000))
    given = [(name, str(value)) for name, value in query if value is not None]
    if not given:
        raise misused("which limits? Give --parallelism, --rate or --period")
    return _change(args, shell, "pinned", "/pin", given)


def _unpin(args: argparse.Namespace, shell: Shell) -> int:
    both = not (args.parallelism or args.rate)
    query = [("parallelism", args.parallelism or both), ("rate", args.rate or both)]
    return _change(args, shell, "unpinned", "/unpin", [(name, "true") for name, given in query if given])


def _change(args: argparse.Namespace, shell: Shell, past: str, suffix: str, query: Fields) -> int:
    with opened(args, shell) as (relay, output):
        return change_each(
            args.keys, past, lambda key: relay.act("POST", _path(key) + suffix, query=query), output
        )


def _path(key: str) -> str:
    return f"/v2/flowControl/{segment(key)}"


def _show(output: Output, key: Document) -> None:
    output.details(
        [
            ("key", printable(key["flowControlKey"])),
            ("state", _state(key)),
            ("in flight", _of(key["parallelismCount"], key["parallelismMax"])),
            ("waiting", str(key["waitListSize"])),
            ("started", _rate(key)),
            ("period began", output.moment(key["ratePeriodStart"] * 1000) if key["ratePeriodStart"] else ""),
            ("pinned", _pinned(key)),
        ]
    )


def _state(key: Document) -> str:
    return "paused" if key["isPaused"] else "active"


def _of(count: int, limit: int) -> str:
    return f"{count} of {limit}" if limit else str(count)


def _rate(key: Document) -> str:
    """Starts in this period; nothing where they are not limited."""
    return f"{_of(key['rateCount'], key['rateMax'])} in {key['ratePeriod']} s" if key["rateMax"] else ""


def _pinned(key: Document) -> str:
    pins = (("parallelism", key["isPinnedParallelism"]), ("rate", key["isPinnedRate"]))
    return ", ".join(name for name, pinned in pins if pinned)

"""`relay logs`: what has happened to messages, and what is happening."""

import argparse
from collections.abc import Iterable
from typing import NoReturn

from relay.cli.client import Relay
from relay.cli.commands import TALK_TO_A_RELAY, Commands
from relay.cli.document import Document
from relay.cli.follow import Follower
from relay.cli.options import add_connection, add_filters, count, opened, selected
from relay.cli.outcome import OK, Failure
from relay.cli.output import Output, printable, relative
from relay.cli.shell import Shell

_SHOWN = 50
_POLL_S = 1.0
#: While the relay is away: as quick as a restart, and no burden for a longer absence.
_AWAY_S = (0.5, 1.0, 2.0, 5.0)
_STATE_WIDTH = len("CANCEL_REQUESTED")


def register(commands: Commands) -> None:
    parser = commands.add(
        "logs",
        "show what happened to messages, or follow it",
        _logs,
        group=TALK_TO_A_RELAY,
        details="One line for each change of state, the latest at the end.\n\n"
        "states: CREATED, ACTIVE, DELIVERED, ERROR, RETRY, FAILED, CANCEL_REQUESTED, CANCELED;\n"
        "IN_PROGRESS means ACTIVE, ERROR or RETRY",
    )
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help="go on with what happens from now on, through restarts of the relay; with --json one object a line",
    )
    parser.add_argument(
        "-n",
        "--count",
        type=count,
        default=_SHOWN,
        metavar="N",
        help=f"the latest N entries (default: {_SHOWN})",
    )
    add_filters(parser, "message", "state", "label", "destination", "host", "path", "schedule", before=False)
    add_connection(parser)


def _logs(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        query = selected(args, shell.now())
        # Who follows needs the latest entry even when none is to be shown: what comes after it is new.
        entries, more = relay.listed("/v2/events", "events", query, max(args.count, int(args.follow)))
        newest = entries[0] if entries else None
        shown = entries[: args.count][::-1]
        if args.follow:
            for entry in shown:
                output.record(entry)
        # Of a message the last line speaks of what comes next, if no filter hides later ones.
        newest_of = {} if args.state else {entry["messageId"]: n for n, entry in enumerate(shown)}
        for n, entry in enumerate(shown):
            latest = newest_of.get(entry["messageId"]) == n
            output.line(_line(entry, output, shell.now() if latest else None))
        if args.follow:
            later = [(name, value) for name, value in query if name != "fromDate"]
            now = shell.now() if relay.at is None else relay.at
            _follow(Follower(relay, later, newest, now), relay, output, shell)
        output.document(shown)
        if not entries and args.count and not args.json:
            output.note("there is nothing in the log" + (" that matches" if query else ""))
        if more and args.count == _SHOWN:
            output.note(f"these are the latest {_SHOWN}; --count shows more")
        return OK


def _follow(follower: Follower, relay: Relay, output: Output, shell: Shell) -> NoReturn:
    """Until the person interrupts it, or a `Failure` that waiting does not mend."""
    failures = 0
    while True:
        try:
            for entry in follower.poll():
                output.record(entry)
                coming = entry.get("nextDeliveryTime", 0) > shell.now()
                output.line(_line(entry, output, shell.now() if coming else None))
            if failures:
                output.note(f"{relay.url} is back")
            failures = 0
        except Failure as failure:
            if not failure.passing:
                raise
            if not failures:
                output.note(f"{failure}; waiting for it")
            failures += 1
        output.flush()
        shell.pause(_AWAY_S[min(failures, len(_AWAY_S)) - 1] if failures else _POLL_S)


def _line(entry: Document, output: Output, now: int | None) -> str:
    """`now` None: the entry is not the latest of its message, or may not be."""
    parts = [
        output.local(entry["time"]).isoformat(timespec="milliseconds"),
        output.state(entry["state"], _STATE_WIDTH),
        printable(entry["messageId"]),
        printable(entry["url"]),
        printable(", ".join([*_reasons(entry), *_planned(entry, output, now)])),
    ]
    return "  ".join(parts).rstrip()


def _reasons(entry: Document) -> Iterable[str]:
    status, error = entry.get("responseStatus"), entry.get("error")
    if status:
        yield f"answered {status}"
    # Where there is no more to say than the status, the API says it in a sentence.
    if error and error != f"the destination answered with status {status}":
        yield error


def _planned(entry: Document, output: Output, now: int | None) -> Iterable[str]:
    """When the next attempt was to be, and seen from `now` only if it has not been made since."""
    due_at = entry.get("nextDeliveryTime", 0)
    if due_at <= entry["time"]:
        return
    if now is None:
        yield f"next attempt planned for {output.local(due_at).isoformat(timespec='seconds')}"
    elif due_at >= now:
        yield f"next attempt {relative(due_at, now)}"
    else:
        yield f"next attempt was due {relative(due_at, now)}"

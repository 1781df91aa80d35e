"""`relay messages`: look at messages and cancel them."""

import argparse

from relay.cli.client import Fields, Relay, segment
from relay.cli.commands import TALK_TO_A_RELAY, Commands
from relay.cli.document import Document
from relay.cli.each import each
from relay.cli.options import (
    add_bulk,
    add_connection,
    add_filters,
    bulk_selection,
    confirm,
    identifier,
    opened,
)
from relay.cli.outcome import INTERRUPTED, OK
from relay.cli.output import Output
from relay.cli.shell import Shell
from relay.cli.show import show_message
from relay.cli.standing import standing

#: The most the API cancels in one call that has a count.
_MOST_AT_ONCE = 500


def register(commands: Commands) -> None:
    actions = Commands(
        commands.add("messages", "look at messages and cancel them", group=TALK_TO_A_RELAY), "ACTION"
    )
    get = actions.add("get", "show messages", _get)
    get.add_argument("ids", nargs="+", type=identifier, metavar="ID")
    add_connection(get)
    cancel = actions.add(
        "cancel",
        "stop messages that have not been delivered yet",
        _cancel,
        details="A delivery in progress is let finish; if it fails, it is not tried again.",
    )
    add_bulk(cancel, "ID")
    add_filters(cancel, "destination", "host", "path", "label", "schedule")
    add_connection(cancel)


def _get(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        documents: list[Document] = []

        def get(id: str) -> None:
            document = relay.get(f"/v2/messages/{segment(id)}")
            if documents:
                output.line("")
            if not output.as_json:
                show_message(output, document, standing(relay, document, output, shell.now()))
            documents.append(document)

        return each(args.ids, get, output, lambda missing: documents)


def _cancel(args: argparse.Namespace, shell: Shell) -> int:
    selection = bulk_selection(args, shell.now())
    with opened(args, shell) as (relay, output):
        if selection is None:
            return _cancel_ids(args.ids, relay, output)
        which = "every undelivered message that matches" if selection else "every undelivered message"
        if not args.yes and not confirm(shell, f"Cancel {which}?"):
            return INTERRUPTED
        cancelled = _cancel_selected(selection, args.count, relay)
        output.document({"cancelled": cancelled, "notFound": []})
        output.line(f"{cancelled} cancelled")
        return OK


def _cancel_selected(selection: Fields, count: int | None, relay: Relay) -> int:
    """How many were cancelled. Without `count` the API cancels all there is at once, otherwise up to a limit."""
    if count is None:
        return int(relay.call("DELETE", "/v2/messages", query=selection)["cancelled"])
    left = count
    while left > 0:
        size = min(left, _MOST_AT_ONCE)
        query = [*selection, ("count", str(size))]
        cancelled = int(relay.call("DELETE", "/v2/messages", query=query)["cancelled"])
        left -= cancelled
        if cancelled < size:
            break
    return count - left


def _cancel_ids(ids: list[str], relay: Relay, output: Output) -> int:
    cancelled = []

    def cancel(id: str) -> None:
        relay.act("DELETE", f"/v2/messages/{segment(id)}")
        output.line(f"{id}  cancelled")
        cancelled.append(id)

    return each(ids, cancel, output, lambda missing: {"cancelled": len(cancelled), "notFound": missing})

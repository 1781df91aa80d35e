"""`relay dlq`: what failed for good: look at it, send it again, or let it go."""

import argparse
from collections.abc import Callable

from relay.cli.client import PAGE, Fields, Relay, segment
from relay.cli.commands import OPERATE, Commands
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
    positive,
    require_terminal,
    selected,
)
from relay.cli.outcome import INTERRUPTED, NOT_FOUND, OK, Failure
from relay.cli.shell import Shell
from relay.cli.show import failed_at, reason, show_dead_letter

_FILTERS = ("destination", "label", "schedule", "message", "status")


def register(commands: Commands) -> None:
    actions = Commands(
        commands.add("dlq", "look at dead letters, send them again or delete them", group=OPERATE), "ACTION"
    )
    listing = actions.add("list", "list dead letters, the latest first", _list)
    listing.add_argument(
        "--count", type=positive, default=PAGE, metavar="N", help=f"at most (default: {PAGE})"
    )
    add_filters(listing, *_FILTERS)
    add_connection(listing)
    get = actions.add("get", "show dead letters", _get)
    get.add_argument("ids", nargs="+", type=identifier, metavar="ID")
    add_connection(get)
    retry = actions.add(
        "retry",
        "publish dead letters again, each as a new message",
        _retry,
        details="A dead letter that is sent again leaves the queue.",
    )
    delete = actions.add("delete", "forget dead letters", _delete)
    for parser in (retry, delete):
        add_bulk(parser, "ID")
        add_filters(parser, *_FILTERS)
        add_connection(parser)


def _list(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        query = [*selected(args, shell.now()), ("order", "latestFirst")]
        letters, more = relay.listed("/v2/dlq", "messages", query, args.count)
        output.document(letters)
        output.table(
            ("dead letter", "failed", "why", "destination"),
            [
                (
                    letter["dlqId"],
                    output.when(failed_at(letter)),
                    reason(letter),
                    letter["url"],
                )
                for letter in letters
            ],
        )
        if more:
            output.note(f"there are more; --count shows more than {args.count}")
        if letters and not args.json:
            output.note("`relay dlq get ID` shows all of one, `relay dlq retry ID` sends it again")
        return OK


def _get(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        documents: list[Document] = []

        def get(id: str) -> None:
            document = relay.get(f"/v2/dlq/{segment(id)}")
            if documents:
                output.line("")
            show_dead_letter(output, document)
            documents.append(document)

        return each(args.ids, get, output, lambda missing: documents)


def _retry(args: argparse.Namespace, shell: Shell) -> int:
    selection = bulk_selection(args, shell.now())
    with opened(args, shell) as (relay, output):
        responses: list[Document] = []
        if selection is None:

            def retry(id: str) -> None:
                document = relay.call("POST", f"/v2/dlq/retry/{segment(id)}")
                output.line(f"{id}  sent again as {document['messageId']}")
                responses.append(document)

            return each(
                args.ids, retry, output, lambda missing: {"responses": responses, "notFound": missing}
            )

        def retried(document: Document) -> int:
            some = document.objects("responses")
            responses.extend(some)
            for response in some:
                output.line(f"sent again as {response['messageId']}")
            return len(some)

        if not _agreed("Send {} again?", selection, args, shell, relay):
            return INTERRUPTED
        try:
            _in_bites("POST", "/v2/dlq/retry", selection, args.count, relay, retried)
        finally:
            output.document({"responses": responses, "notFound": []})
            output.line(f"{len(responses)} sent again")
        return OK


def _delete(args: argparse.Namespace, shell: Shell) -> int:
    selection = bulk_selection(args, shell.now())
    with opened(args, shell) as (relay, output):
        deletions: list[int] = []
        if selection is None:

            def delete(id: str) -> None:
                relay.act("DELETE", f"/v2/dlq/{segment(id)}")
                output.line(f"{id}  deleted")
                deletions.append(1)

            return each(
                args.ids, delete, output, lambda missing: {"deleted": sum(deletions), "notFound": missing}
            )

        def deleted(document: Document) -> int:
            deletions.append(document["deleted"])
            return deletions[-1]

        if not _agreed("Delete {}?", selection, args, shell, relay):
            return INTERRUPTED
        try:
            _in_bites("DELETE", "/v2/dlq", selection, args.count, relay, deleted)
        finally:
            output.document({"deleted": sum(deletions), "notFound": []})
            output.line(f"{sum(deletions)} deleted")
        return OK


def _agreed(question: str, selection: Fields, args: argparse.Namespace, shell: Shell, relay: Relay) -> bool:
    """Whether the person says yes, having been told how many dead letters it is about; `Failure` when none."""
    if args.yes:
        return True
    require_terminal(shell)
    letters, more = relay.listed("/v2/dlq", "messages", selection, min(args.count or PAGE, PAGE))
    if not letters:
        raise Failure("there are no such dead letters", NOT_FOUND)
    if not more:
        number = str(len(letters))
    elif args.count is None:
        number = f"more than {PAGE}"
    else:
        number = str(args.count) if args.count <= PAGE else f"up to {args.count}"
    return confirm(shell, question.format(f"{number} dead letter{'' if number == '1' else 's'}"))


def _in_bites(
    method: str,
    path: str,
    selection: Fields,
    count: int | None,
    relay: Relay,
    handled: Callable[[Document], int],
) -> None:
    """As many requests as it takes, since the API handles a page of dead letters at a time.

    `handled` takes each answer and says how many dead letters it was about. Only what had failed before the first
    request is touched: messages sent again may fail again meanwhile, and would keep this going for ever.
    """
    newest = relay.get("/v2/dlq", [*selection, ("order", "latestFirst"), ("count", "1")]).objects("messages")
    if not newest:
        return
    bounded = [field for field in selection if field[0] != "toDate"] + [("toDate", str(failed_at(newest[0])))]
    left = count
    cursor = ""
    while True:
        size = PAGE if left is None else min(left, PAGE)
        query = [*bounded, ("count", str(size))]
        document = relay.call(method, path, query=[*query, ("cursor", cursor)] if cursor else query)
        number = handled(document)
        left = None if left is None else left - number
        cursor = document.get("cursor", "")
        if not cursor or left == 0:
            return

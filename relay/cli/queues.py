"""`relay queues`: messages that are handed out in order, a few at a time."""

import argparse
import json
from collections.abc import Callable

from relay.cli.client import Relay, segment
from relay.cli.commands import TALK_TO_A_RELAY, Commands
from relay.cli.document import Document
from relay.cli.each import change_each, each
from relay.cli.options import add_connection, confirm, identifier, opened, positive, require_terminal
from relay.cli.outcome import INTERRUPTED, NOT_FOUND, OK, Failure
from relay.cli.output import Output
from relay.cli.shell import Shell


def register(commands: Commands) -> None:
    actions = Commands(
        commands.add("queues", "deliver messages in order, a few at a time", group=TALK_TO_A_RELAY), "ACTION"
    )
    add_connection(actions.add("list", "list all queues", _list))
    get = actions.add("get", "show queues", _get)
    get.add_argument("names", nargs="+", type=identifier, metavar="NAME")
    add_connection(get)
    put = actions.add(
        "set",
        "make a queue, or change one",
        _set,
        details="What is not given stays as it is. A queue also comes into being with its first message, one\n"
        "message at a time.",
    )
    put.add_argument("name", type=identifier, metavar="NAME")
    put.add_argument(
        "--parallelism", type=positive, metavar="N", help="messages at a time (of a new queue: 1)"
    )
    add_connection(put)
    for name, summary, past in (
        ("pause", "hold what has not begun, until resumed", "paused"),
        ("resume", "go on where the queue was paused", "resumed"),
    ):
        parser = actions.add(name, summary, _changing(past, f"/{name}"))
        parser.add_argument("names", nargs="+", type=identifier, metavar="NAME")
        add_connection(parser)
    delete = actions.add(
        "delete",
        "delete queues and cancel the messages in them",
        _delete,
        details="A delivery in progress is let finish; if it fails, it is not tried again.",
    )
    delete.add_argument("names", nargs="+", type=identifier, metavar="NAME")
    delete.add_argument("--yes", "-y", action="store_true", help="do not ask")
    add_connection(delete)


def _list(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        queues = relay.array("/v2/queues")
        output.document(queues)
        output.table(
            ("queue", "state", "parallelism", "unfinished", "changed"),
            [
                (
                    queue["name"],
                    _state(queue),
                    str(queue["parallelism"]),
                    str(queue["lag"]),
                    output.when(queue["updatedAt"]),
                )
                for queue in queues
            ],
        )
        return OK


def _get(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        documents: list[Document] = []

        def get(name: str) -> None:
            queue = _queue(relay, name)
            if documents:
                output.line("")
            _show(output, queue)
            documents.append(queue)

        return each(args.names, get, output, lambda missing: documents)


def _set(args: argparse.Namespace, shell: Shell) -> int:
    wanted = {"queueName": args.name}
    if args.parallelism is not None:
        wanted["parallelism"] = args.parallelism
    with opened(args, shell) as (relay, output):
        relay.act("POST", "/v2/queues", body=json.dumps(wanted).encode())
        queue = _queue(relay, args.name)
        output.document(queue)
        _show(output, queue)
        return OK


def _changing(past: str, suffix: str) -> Callable[[argparse.Namespace, Shell], int]:
    def change(args: argparse.Namespace, shell: Shell) -> int:
        with opened(args, shell) as (relay, output):
            return change_each(
                args.names,
                past,
                lambda name: relay.act("POST", f"/v2/queues/{segment(name)}{suffix}"),
                output,
            )

    return change


def _delete(args: argparse.Namespace, shell: Shell) -> int:
    if not args.yes:
        require_terminal(shell)
    with opened(args, shell) as (relay, output):
        if not args.yes:
            lag = sum(_lag(relay, name) for name in args.names)
            which = " and ".join(args.names)
            if not confirm(shell, f"Delete {which} and cancel what is unfinished of {lag} messages?"):
                return INTERRUPTED
        return change_each(
            args.names, "deleted", lambda name: relay.act("DELETE", f"/v2/queues/{segment(name)}"), output
        )


def _lag(relay: Relay, name: str) -> int:
    try:
        return int(_queue(relay, name)["lag"])
    except Failure as failure:
        if failure.code != NOT_FOUND:
            raise
        return 0


def _queue(relay: Relay, name: str) -> Document:
    return relay.get(f"/v2/queues/{segment(name)}")


def _show(output: Output, queue: Document) -> None:
    output.details(
        [
            ("queue", queue["name"]),
            ("state", _state(queue)),
            ("parallelism", str(queue["parallelism"])),
            ("unfinished", str(queue["lag"])),
            ("created", output.moment(queue["createdAt"])),
            ("changed", output.moment(queue["updatedAt"])),
        ]
    )


def _state(queue: Document) -> str:
    return "paused" if queue["paused"] else "active"

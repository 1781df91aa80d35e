"""`relay url-groups`: names for several destinations at once."""

import argparse
import json
import re
from collections.abc import Sequence

from relay.cli.client import segment
from relay.cli.commands import TALK_TO_A_RELAY, Commands
from relay.cli.document import Document
from relay.cli.each import change_each, each
from relay.cli.options import add_connection, identifier, opened
from relay.cli.outcome import OK
from relay.cli.output import Output
from relay.cli.shell import Shell

#: Schedules that are told by their ids.
_FEW = 5

_NAMED = re.compile(r"([A-Za-z0-9._-]+)=(https?:.*)", re.DOTALL)


def register(commands: Commands) -> None:
    actions = Commands(
        commands.add("url-groups", "send to several destinations by one name", group=TALK_TO_A_RELAY),
        "ACTION",
    )
    add_connection(actions.add("list", "list all URL groups", _list))
    get = actions.add("get", "show URL groups", _get)
    get.add_argument("names", nargs="+", type=identifier, metavar="NAME")
    add_connection(get)
    add = actions.add(
        "add",
        "add endpoints to a URL group, which is made if there is none",
        _add,
        details="example:\n"
        "  relay url-groups add orders https://a.example/hook billing=https://b.example/hook\n\n"
        "An endpoint of a name that the group has already gets the new URL.",
    )
    add.add_argument("name", type=identifier, metavar="NAME")
    add.add_argument("endpoints", nargs="+", type=_endpoint, metavar="[NAME=]URL")
    add_connection(add)
    remove = actions.add("remove", "take endpoints out of a URL group, which ends with its last one", _remove)
    remove.add_argument("name", type=identifier, metavar="NAME")
    remove.add_argument("endpoints", nargs="+", type=_reference, metavar="NAME|URL")
    add_connection(remove)
    delete = actions.add("delete", "delete URL groups; messages already sent to them go on", _delete)
    delete.add_argument("names", nargs="+", type=identifier, metavar="NAME")
    add_connection(delete)


def _endpoint(text: str) -> dict[str, str]:
    named = _NAMED.fullmatch(text)
    return {"url": text} if named is None else {"url": named[2], "name": named[1]}


def _reference(text: str) -> dict[str, str]:
    if not text:
        raise argparse.ArgumentTypeError("it must not be empty")
    return {"url": text} if ":" in text else {"name": text}


def _list(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        groups = relay.array("/v2/topics")
        output.document(groups)
        output.table(
            ("URL group", "changed", "endpoints"),
            [
                (
                    group["name"],
                    output.when(group["updatedAt"]),
                    ", ".join(_endpoint_text(endpoint) for endpoint in group.objects("endpoints")),
                )
                for group in groups
            ],
        )
        return OK


def _get(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        documents: list[Document] = []

        def get(name: str) -> None:
            group = relay.get(f"/v2/topics/{segment(name)}")
            if documents:
                output.line("")
            _show(output, group)
            documents.append(group)

        return each(args.names, get, output, lambda missing: documents)


def _add(args: argparse.Namespace, shell: Shell) -> int:
    return _change(args, shell, "POST")


def _remove(args: argparse.Namespace, shell: Shell) -> int:
    return _change(args, shell, "DELETE")


def _change(args: argparse.Namespace, shell: Shell, method: str) -> int:
    with opened(args, shell) as (relay, output):
        body = json.dumps({"endpoints": args.endpoints}).encode()
        relay.act(method, f"/v2/topics/{segment(args.name)}/endpoints", body=body)
        done = {"POST": "added", "DELETE": "removed"}[method]
        output.document({done: args.endpoints})
        for endpoint in args.endpoints:
            output.line(f"{_endpoint_text(Document(endpoint))}  {done}")
        return OK


def _delete(args: argparse.Namespace, shell: Shell) -> int:
    with opened(args, shell) as (relay, output):
        schedules = relay.array("/v2/schedules")

        def delete(name: str) -> None:
            relay.act("DELETE", f"/v2/topics/{segment(name)}")
            ids = [schedule["scheduleId"] for schedule in schedules if schedule["destination"] == name]
            if ids:
                output.note(f"nothing comes of {_some(ids)} while there is no URL group {name}")

        return change_each(args.names, "deleted", delete, output)


def _some(schedules: Sequence[str]) -> str:
    """Few by their ids, many by their number."""
    if len(schedules) == 1:
        return f"schedule {schedules[0]}"
    if len(schedules) <= _FEW:
        return f"schedules {', '.join(schedules)}"
    return f"{len(schedules)} schedules"


def _show(output: Output, group: Document) -> None:
    output.details(
        [
            ("URL group", group["name"]),
            ("created", output.moment(group["createdAt"])),
            ("changed", output.moment(group["updatedAt"])),
            *(("endpoint", _endpoint_text(endpoint)) for endpoint in group.objects("endpoints")),
            *(
                ("header", f"{name}: {value}")
                for name, values in group.get("headers", {}).items()
                for value in values
            ),
        ]
    )


def _endpoint_text(endpoint: Document) -> str:
    """As `add` takes it."""
    name, url = endpoint.get("name"), endpoint.get("url", "")
    return f"{name}={url}" if name and url else name or url

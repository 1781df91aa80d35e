"""`relay keys`: the two keys that receivers verify deliveries with."""

import argparse

from relay.cli.commands import OPERATE, Commands
from relay.cli.options import add_connection, opened
from relay.cli.outcome import OK
from relay.cli.shell import Shell


def register(commands: Commands) -> None:
    actions = Commands(commands.add("keys", "show or rotate the signing keys", group=OPERATE), "ACTION")
    add_connection(actions.add("show", "print the keys as receivers want them in their environment", _show))
    add_connection(
        actions.add(
            "rotate",
            "retire the current key",
            _rotate,
            details="The next key becomes the current one and a new next key is made. Receivers that know both\n"
            "keys go on verifying; give them the new pair before you rotate again.",
        )
    )


def _show(args: argparse.Namespace, shell: Shell) -> int:
    return _print(args, shell, "GET", "/v2/keys")


def _rotate(args: argparse.Namespace, shell: Shell) -> int:
    return _print(args, shell, "POST", "/v2/keys/rotate")


def _print(args: argparse.Namespace, shell: Shell, method: str, path: str) -> int:
    with opened(args, shell) as (relay, output):
        document = relay.call(method, path)
        output.document(document)
        output.line(f"QSTASH_CURRENT_SIGNING_KEY={document['current']}")
        output.line(f"QSTASH_NEXT_SIGNING_KEY={document['next']}")
        return OK

"""`relay keys`: what receivers verify deliveries with."""

import argparse
from typing import Any

from relay.cli.commands import OPERATE, Commands
from relay.cli.options import add_connection, confirm, opened
from relay.cli.outcome import INTERRUPTED, OK
from relay.cli.output import Output
from relay.cli.shell import Shell


def register(commands: Commands) -> None:
    actions = Commands(commands.add("keys", "show or rotate the signing keys", group=OPERATE), "ACTION")
    add_connection(
        actions.add(
            "show",
            "print the keys as receivers want them in their environment",
            _show,
            details="The secrets and public keys of Standard Webhooks follow from the signing keys, and rotate\n"
            "with them. A receiver needs those of one scheme.",
        )
    )
    rotate = actions.add(
        "rotate",
        "retire the current key",
        _rotate,
        details="The next key becomes the current one and a new next key is made. Receivers that know both\n"
        "keys go on verifying; give them the new pair before you rotate again.",
    )
    rotate.add_argument("--yes", "-y", action="store_true", help="do not ask")
    add_connection(rotate)


def _show(args: argparse.Namespace, shell: Shell) -> int:
    return _print(args, shell, "GET", "/v2/keys")


def _rotate(args: argparse.Namespace, shell: Shell) -> int:
    if not args.yes and not confirm(shell, "Retire the current key? Receivers must know the next one."):
        return INTERRUPTED
    code = _print(args, shell, "POST", "/v2/keys/rotate")
    if not args.json:
        Output(shell).note("give receivers this pair before you rotate again")
    return code


def _print(args: argparse.Namespace, shell: Shell, method: str, path: str) -> int:
    with opened(args, shell) as (relay, output):
        pair: dict[str, Any] = relay.call(method, path)
        current, next_ = _standard(pair["current"]), _standard(pair["next"])
        output.document(pair | {"standard": {"current": current, "next": next_}})
        output.line(f"QSTASH_CURRENT_SIGNING_KEY={pair['current']}")
        output.line(f"QSTASH_NEXT_SIGNING_KEY={pair['next']}")
        for name, keys in (("CURRENT", current), ("NEXT", next_)):
            output.line(f"WEBHOOK_{name}_SECRET={keys['secret']}")
        for name, keys in (("CURRENT", current), ("NEXT", next_)):
            if "publicKey" in keys:
                output.line(f"WEBHOOK_{name}_PUBLIC_KEY={keys['publicKey']}")
            else:
                output.line(f"# WEBHOOK_{name}_PUBLIC_KEY: {keys['problem']}")
        return OK


def _standard(key: str) -> dict[str, str]:
    """What receivers of Standard Webhooks get for a signing key; in place of a public key, why there is none."""
    # Not above: other commands do without it.
    from signing import Ed25519MissingError, PrivateKey, webhook_secret

    keys = {"secret": webhook_secret(key)}
    try:
        return keys | {"publicKey": PrivateKey.derived(key).public}
    except (ValueError, Ed25519MissingError) as problem:
        return keys | {"problem": str(problem)}

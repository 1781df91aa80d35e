"""`relay tokens`: who may speak for an account."""

import argparse
from typing import TYPE_CHECKING, Any

from relay.cli.administration import BESIDE, add_database, administer, say_where
from relay.cli.commands import OPERATE, Commands
from relay.cli.each import each
from relay.cli.options import confirm, duration_ms, identifier
from relay.cli.outcome import INTERRUPTED, OK
from relay.cli.output import Output
from relay.cli.shell import Shell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from relay.domain.tenant import Tenant, Token
    from storage.protocol import Accounts


def register(commands: Commands) -> None:
    actions = Commands(commands.add("tokens", "make, list and revoke tokens", group=OPERATE), "ACTION")
    create = actions.add(
        "create",
        "make a token for an account",
        _create,
        details=f"It is shown once: only a hash of it is stored.\n\n{BESIDE}",
    )
    create.add_argument("tenant", metavar="TENANT", help="whom it speaks for")
    create.add_argument(
        "--read-only",
        action="store_true",
        help="may read everything but the signing keys, and change nothing",
    )
    create.add_argument(
        "--expires-in", type=duration_ms, metavar="90d", help="stops working then (default: never)"
    )
    create.add_argument("--label", default="", metavar="TEXT", help="what it is for, shown in the list")
    listing = actions.add("list", "list the tokens of an account, or of all", _list, details=BESIDE)
    listing.add_argument("tenant", metavar="TENANT", nargs="?")
    revoke = actions.add(
        "revoke",
        "let tokens speak for nobody any more",
        _revoke,
        details="A token of the relay's own configuration comes back with its next start, unless it is taken\n"
        f"out of there.\n\n{BESIDE}",
    )
    revoke.add_argument(
        "ids", nargs="+", type=identifier, metavar="TOKEN", help="an id that relay tokens list shows"
    )
    revoke.add_argument("--yes", "-y", action="store_true", help="do not ask before an account's last token")
    for parser in (create, listing, revoke):
        add_database(parser)


def _create(args: argparse.Namespace, shell: Shell) -> int:
    from relay import tenancy
    from relay.ids import random_name

    async def program(accounts: "Accounts", now: int) -> "tuple[str, Token]":
        return await tenancy.issue(
            accounts,
            args.tenant,
            read_only=args.read_only,
            label=args.label,
            expires_in_ms=args.expires_in,
            now=now,
            fresh_name=random_name,
        )

    secret, token = administer(args, shell, program)
    output = Output(shell, as_json=args.json)
    output.document({**_document(args.tenant, token), "token": secret})
    output.line(f"QSTASH_TOKEN={secret}")
    output.note(f"this is {tenancy.token_id(token)}; only a hash of it is stored, it is not shown again")
    say_where(args, shell, output)
    return OK


def _list(args: argparse.Namespace, shell: Shell) -> int:
    from relay import tenancy

    async def program(accounts: "Accounts", now: int) -> "tuple[Sequence[tuple[Tenant, Token]], int]":
        return await tenancy.tokens(accounts, args.tenant), now

    found, now = administer(args, shell, program)
    output = Output(shell, as_json=args.json)
    output.document([_document(tenant.user_id, token) for tenant, token in found])
    output.table(
        ("token", "tenant", "may", "made", "expires", "label"),
        [
            (
                tenancy.token_id(token),
                tenant.user_id,
                "read" if token.read_only else "read and write",
                output.moment(token.created_at) + ("" if token.issued else " by the relay"),
                _expiry(token, now, output),
                token.label,
            )
            for tenant, token in found
        ],
    )
    return OK


def _revoke(args: argparse.Namespace, shell: Shell) -> int:
    from relay import tenancy

    async def warning(accounts: "Accounts", now: int) -> "Sequence[str]":
        return await tenancy.silenced(accounts, args.ids, now=now)

    output = Output(shell, as_json=args.json)
    silenced = administer(args, shell, warning)
    for name in silenced:
        output.note(f"{name} is left without a token that may write; relay tokens create {name} makes one")
    if silenced and not args.yes and not confirm(shell, "Revoke all the same?"):
        return INTERRUPTED
    revoked: list[str] = []

    def revoke(id: str) -> None:
        async def program(accounts: "Accounts", now: int) -> "tuple[Tenant, Token]":
            return await tenancy.revoke(accounts, id)

        tenant, token = administer(args, shell, program)
        revoked.append(id)
        output.line(f"{id} speaks for {tenant.user_id} no longer")
        if not token.issued:
            output.note(
                f"{id} was made by a start of the relay; one that is configured comes back with the next"
            )

    try:
        return each(args.ids, revoke, output, lambda missing: {"revoked": revoked, "notFound": missing})
    finally:
        if revoked:
            say_where(args, shell, output)


def _expiry(token: "Token", now: int, output: Output) -> str:
    if token.expires_at is None:
        return "never"
    return output.moment(token.expires_at) + (" EXPIRED" if token.expires_at <= now else "")


def _document(tenant: str, token: "Token") -> dict[str, Any]:
    """What does not apply is left out."""
    from relay import tenancy

    document: dict[str, Any] = {
        "tokenId": tenancy.token_id(token),
        "tenant": tenant,
        "readOnly": token.read_only,
        "createdAt": token.created_at,
        "byCommand": token.issued,
    }
    if token.expires_at is not None:
        document["expiresAt"] = token.expires_at
    if token.label:
        document["label"] = token.label
    return document

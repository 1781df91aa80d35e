"""`relay tenants`: the isolated accounts of one relay."""

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from relay.cli.administration import BESIDE, add_database, administer, say_where
from relay.cli.commands import OPERATE, Commands
from relay.cli.outcome import OK, misused
from relay.cli.output import Output
from relay.cli.shell import Shell
from relay.domain.duration import format_duration

if TYPE_CHECKING:
    from relay.domain.tenant import Tenant, TenantLimits
    from storage.protocol import Accounts

#: Flags of `set`, by the field they change.
_LIMITS = {
    "max_message_bytes": (
        "64KiB",
        "bytes of one message body, at most what RELAY_MAX_IN_FLIGHT_BYTES says; beyond it: 413",
    ),
    "max_retries": ("5", "retries a message may ask for; beyond it: 412"),
    "max_parallelism": (
        "50",
        "deliveries in flight at once, on all nodes together; what is due beyond it waits",
    ),
    "log_retention_ms": ("3d", "how long history and finished messages stay readable (at least 10m)"),
    "dlq_retention_ms": ("30d", "how long dead letters stay"),
}

#: The relay's own setting, where that has another name: there it is what one node has room for.
_SETTINGS = {"max_parallelism": "max_in_flight"}

#: The rule first.
_SCHEMES = ("qstash", "standard", "both")


def register(commands: Commands) -> None:
    actions = Commands(
        commands.add("tenants", "make accounts, set their limits, disable them", group=OPERATE), "ACTION"
    )
    create = actions.add(
        "create",
        "make an account with signing keys of its own",
        _create,
        details=f"It has no token yet: relay tokens create NAME makes one.\n\n{BESIDE}",
    )
    listing = actions.add("list", "list the accounts", _list, details=BESIDE)
    show = actions.add("show", "show what is different about an account", _show, details=BESIDE)
    change = actions.add(
        "set",
        "set limits of an account, and how its deliveries are signed",
        _set,
        details="They count for what is asked for from then on; what was accepted before goes on, but for\n"
        "--max-parallelism: that holds, seconds later, for all that is not in flight yet. The word default\n"
        f"takes a limit back: then the relay's own counts.\n\n{BESIDE}",
    )
    for parser in (create, change):
        for field, (example, meaning) in _LIMITS.items():
            parser.add_argument(
                _flag(field),
                dest=field,
                type=_reader(field),
                default=argparse.SUPPRESS,
                metavar=example,
                help=meaning,
            )
    change.add_argument(
        "--signature",
        choices=_SCHEMES,
        help="sign by QStash, Standard Webhooks or both where a message does not say (default: qstash); receivers"
        " that check the URL need qstash or both",
    )
    disable = actions.add(
        "disable",
        "let an account do nothing until it is enabled",
        _disable,
        details="Its tokens are refused with 403, nothing of it is sent and none of its schedules fires. What is\n"
        f"in flight is finished. Nothing is deleted: what waits, waits.\n\n{BESIDE}",
    )
    enable = actions.add(
        "enable",
        "let a disabled account go on",
        _enable,
        details="What has been waiting goes on after as long as the account was disabled, an hour at the latest.\n"
        f"Ticks of schedules that have passed are not caught up.\n\n{BESIDE}",
    )
    for parser in (create, show, change, disable, enable):
        parser.add_argument("name", metavar="NAME", help="what the account is called")
    for parser in (create, listing, show, change, disable, enable):
        add_database(parser)


def _create(args: argparse.Namespace, shell: Shell) -> int:
    from relay import tenancy
    from signing import generate_key

    async def program(accounts: "Accounts", now: int) -> "Tenant":
        tenant = await tenancy.create(accounts, args.name, now=now, fresh_key=generate_key)
        values = _given(args)
        return await tenancy.change_limits(accounts, args.name, values, now=now) if values else tenant

    tenant = administer(args, shell, program)
    output = Output(shell, as_json=args.json)
    output.document(
        {**_document(tenant), "currentSigningKey": tenant.current_key, "nextSigningKey": tenant.next_key}
    )
    output.line(f"QSTASH_CURRENT_SIGNING_KEY={tenant.current_key}")
    output.line(f"QSTASH_NEXT_SIGNING_KEY={tenant.next_key}")
    output.note(f"{tenant.user_id} has no token yet: relay tokens create {tenant.user_id} makes one")
    say_where(args, shell, output)
    return OK


def _list(args: argparse.Namespace, shell: Shell) -> int:
    async def program(accounts: "Accounts", now: int) -> "list[Tenant]":
        return list(await accounts.tenants())

    tenants = administer(args, shell, program)
    output = Output(shell, as_json=args.json)
    output.document([_document(tenant) for tenant in tenants])
    output.table(
        ("tenant", "disabled", "signature", "limits"),
        [
            (
                tenant.user_id,
                output.moment(tenant.disabled_at),
                _signature(tenant) or "",
                ", ".join(f"{flag} {value}" for flag, value in _spelled(tenant.limits)),
            )
            for tenant in tenants
        ],
    )
    return OK


def _show(args: argparse.Namespace, shell: Shell) -> int:
    from relay import tenancy

    async def program(accounts: "Accounts", now: int) -> "Tenant":
        return await tenancy.named(accounts, args.name)

    _tell(administer(args, shell, program), Output(shell, as_json=args.json))
    return OK


def _set(args: argparse.Namespace, shell: Shell) -> int:
    from relay import tenancy

    values = _given(args)
    if not values and args.signature is None:
        raise misused(f"set what? Give {', '.join(map(_flag, _LIMITS))} or --signature")

    async def program(accounts: "Accounts", now: int) -> "Tenant":
        if args.signature is not None:
            await tenancy.change_signature(accounts, args.name, args.signature)
        return await tenancy.change_limits(accounts, args.name, values, now=now)

    output = Output(shell, as_json=args.json)
    _tell(administer(args, shell, program), output)
    say_where(args, shell, output)
    return OK


def _disable(args: argparse.Namespace, shell: Shell) -> int:
    from relay import tenancy

    async def program(accounts: "Accounts", now: int) -> "Tenant":
        await tenancy.disable(accounts, args.name, now=now)
        return await tenancy.named(accounts, args.name)

    output = Output(shell, as_json=args.json)
    _tell(administer(args, shell, program), output)
    say_where(args, shell, output)
    return OK


def _enable(args: argparse.Namespace, shell: Shell) -> int:
    from relay import tenancy

    async def program(accounts: "Accounts", now: int) -> "Tenant":
        await tenancy.enable(accounts, args.name)
        return await tenancy.named(accounts, args.name)

    output = Output(shell, as_json=args.json)
    _tell(administer(args, shell, program), output)
    say_where(args, shell, output)
    return OK


def _given(args: argparse.Namespace) -> "dict[str, int | None]":
    """The limits that the flags name."""
    return {field: getattr(args, field) for field in _LIMITS if hasattr(args, field)}


def _tell(tenant: "Tenant", output: Output) -> None:
    output.document(_document(tenant))
    output.details(
        [
            ("tenant", tenant.user_id),
            ("disabled", output.moment(tenant.disabled_at)),
            ("signature", _signature(tenant) or ""),
            *((flag.removeprefix("--"), value) for flag, value in _spelled(tenant.limits)),
        ]
    )


def _document(tenant: "Tenant") -> dict[str, Any]:
    """Limits that are the relay's own, and what does not apply, are left out."""
    document: dict[str, Any] = {"tenant": tenant.user_id}
    if tenant.disabled_at is not None:
        document["disabledAt"] = tenant.disabled_at
    signature = _signature(tenant)
    if signature is not None:
        document["signature"] = signature
    limits = {_camel(field): getattr(tenant.limits, field) for field in _LIMITS}
    return {**document, "limits": {name: value for name, value in limits.items() if value is not None}}


def _signature(tenant: "Tenant") -> str | None:
    """How it signs, when that is not the rule."""
    scheme = tenant.signed_by.value
    return None if scheme == _SCHEMES[0] else scheme


def _spelled(limits: "TenantLimits") -> Iterator[tuple[str, str]]:
    """The limits that differ from the relay's, by flag."""
    for field in _LIMITS:
        value = getattr(limits, field)
        if value is not None:
            yield _flag(field), format_duration(value) if field.endswith("_ms") else str(value)


def _reader(field: str) -> Callable[[str], int | None]:
    """Reads what the relay's own setting is read from; `default` takes the limit back."""

    def read(text: str) -> int | None:
        from relay.config import parsed

        try:
            return None if text == "default" else int(parsed(_SETTINGS.get(field, field), text))
        except ValueError as problem:
            raise argparse.ArgumentTypeError(f"{problem}, or default") from None

    return read


def _flag(field: str) -> str:
    return "--" + field.removesuffix("_ms").replace("_", "-")


def _camel(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)

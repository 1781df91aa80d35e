"""What the commands that open the database themselves have in common."""

import argparse
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from relay.cli.outcome import NOT_FOUND, REFUSED, Failure
from relay.cli.output import Output
from relay.cli.shell import Shell

if TYPE_CHECKING:
    from storage.protocol import Accounts

T = TypeVar("T")

#: Of every command's help.
BESIDE = (
    "Works on the database itself, needs no token, and may be used while relays run on it: they notice within\n"
    "two seconds, on every node."
)


def add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database",
        metavar="URL",
        help="the relay's database (default: RELAY_DATABASE_URL, or else sqlite:///relay.db)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def administer(
    args: argparse.Namespace, shell: Shell, program: "Callable[[Accounts, int], Coroutine[Any, Any, T]]"
) -> T:
    """What the program makes of the accounts and of the time; `Failure` with the reason when there is one."""
    from relay import main
    from relay.domain.errors import NotFound, RelayError

    try:
        return main.administer(shell.environment, _flags(args), program)
    except NotFound as problem:
        raise Failure(str(problem), NOT_FOUND) from None
    except (RelayError, *main.PROBLEMS) as problem:
        raise Failure(str(problem), REFUSED) from None


def say_where(args: argparse.Namespace, shell: Shell, output: Output) -> None:
    """Name the database that was changed: after a move it may not be the one that was meant."""
    from relay import main

    by_default = args.database is None and not shell.environment.get("RELAY_DATABASE_URL")
    output.note(
        f"changed {main.database(shell.environment, _flags(args))}"
        + (", the default: RELAY_DATABASE_URL is not set" if by_default else "")
    )


def _flags(args: argparse.Namespace) -> dict[str, str]:
    return {} if args.database is None else {"database_url": args.database}

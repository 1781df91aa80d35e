"""`relay dev` and `relay serve`: the commands that are a relay; and `relay migrate`, for its database."""

import argparse

from relay.cli.commands import RUN_THE_RELAY, Commands
from relay.cli.shell import Shell

_FLAGS = ("host", "port", "workers", "database_url", "migrate")


def register(commands: Commands) -> None:
    dev = commands.add(
        "dev",
        "start a relay for development",
        _dev,
        group=RUN_THE_RELAY,
        details="It needs no configuration: it knows the published development tokens, may call this machine and\n"
        "private networks, keeps its messages in a temporary place unless --database names one, and prints\n"
        "the environment its clients need. Never let it be reached from outside.",
    )
    serve = commands.add(
        "serve",
        "start a relay for production",
        _serve,
        group=RUN_THE_RELAY,
        details="Configured by RELAY_ variables in the environment; flags win. The first start makes a token and\n"
        "signing keys, unless the environment has them, and prints them once.",
    )
    migrate = commands.add(
        "migrate",
        "bring the database of a relay up to date",
        _migrate,
        group=RUN_THE_RELAY,
        details="A start does so by itself, unless told not to. Relays of the version before may go on meanwhile.",
    )
    serve.add_argument(
        "--no-migrate",
        dest="migrate",
        action="store_const",
        const="no",
        help="refuse to start on a database that is not up to date, instead of bringing it up to date",
    )
    for parser in (dev, serve):
        parser.add_argument("--host", help="the address to listen on (default: 127.0.0.1)")
        parser.add_argument("--port", help="the port to listen on, 0 for any free one (default: 8080)")
    for parser, database in ((dev, "temporary"), *((one, "sqlite:///relay.db") for one in (serve, migrate))):
        parser.add_argument(
            "--database",
            dest="database_url",
            metavar="URL",
            help=f"where messages live (default: {database})",
        )
    serve.add_argument(
        "--workers", help="processes that share the port, one for each core; needs PostgreSQL (default: 1)"
    )


def _dev(args: argparse.Namespace, shell: Shell) -> int:
    from relay.main import main

    return main("dev", _given(args))


def _serve(args: argparse.Namespace, shell: Shell) -> int:
    from relay.main import main

    return main("serve", _given(args))


def _migrate(args: argparse.Namespace, shell: Shell) -> int:
    from relay.main import migrate

    return migrate(_given(args))


def _given(args: argparse.Namespace) -> dict[str, str]:
    return {name: value for name in _FLAGS if (value := getattr(args, name, None)) is not None}

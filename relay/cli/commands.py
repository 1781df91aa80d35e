"""The tree of commands: every file of commands adds its own, and the overview is made of what was added."""

import argparse
from collections.abc import Callable
from typing import Any

from relay.cli.outcome import LEGEND
from relay.cli.shell import Shell

#: What a command does; returns the exit code or raises `Failure`.
Run = Callable[[argparse.Namespace, Shell], int]

#: The groups of the overview, in its order.
RUN_THE_RELAY = "run the relay"
TALK_TO_A_RELAY = "talk to a relay"
OPERATE = "operate"

_ENVIRONMENT = """\
environment of the commands that talk to a relay:
  QSTASH_URL    where it listens, for example http://127.0.0.1:8080
  QSTASH_TOKEN  the token it knows you by"""


class Commands:
    """The commands below one parser; `metavar` is what its usage calls them."""

    def __init__(self, parser: argparse.ArgumentParser, metavar: str, *, overview: bool = False) -> None:
        # An overview is written by `describe`: argparse knows no groups of subcommands.
        listing: dict[str, Any] = (
            {"help": argparse.SUPPRESS} if overview else {"title": f"{metavar} is one of"}
        )
        self._choice = parser.add_subparsers(metavar=metavar, required=True, prog=parser.prog, **listing)
        self._overview = overview
        self._groups: dict[str, list[tuple[str, str]]] = {}

    def add(
        self, name: str, summary: str, run: Run | None = None, *, group: str = "", details: str = ""
    ) -> argparse.ArgumentParser:
        """A command, or without `run` the parent of further ones. `details` follow the summary in its own help."""
        self._groups.setdefault(group, []).append((name, summary))
        settings: dict[str, Any] = {} if self._overview else {"help": summary}
        parser: argparse.ArgumentParser = self._choice.add_parser(
            name,
            description=f"{summary[0].upper()}{summary[1:]}.\n\n{details}".rstrip(),
            epilog=LEGEND if run is not None and group != RUN_THE_RELAY else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )
        if run is not None:
            parser.set_defaults(run=run, parser=parser)
        return parser

    def describe(self) -> str:
        """The overview of all groups."""
        width = max(len(name) for commands in self._groups.values() for name, _ in commands)
        sections = []
        for group in (RUN_THE_RELAY, TALK_TO_A_RELAY, OPERATE):
            listed = [f"  {name:<{width}}  {summary}" for name, summary in self._groups[group]]
            sections.append("\n".join([f"{group}:", *listed]))
        return "\n\n".join([*sections, "`relay COMMAND --help` says more about each.", _ENVIRONMENT, LEGEND])

"""`relay copy`: a relay's whole state, from one database to another."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from relay.cli.commands import OPERATE, Commands
from relay.cli.output import Output
from relay.cli.shell import Shell

Progress = Callable[[str, int, int], None]


def register(commands: Commands) -> None:
    parser = commands.add(
        "copy",
        "carry everything from one database to another",
        _copy,
        group=OPERATE,
        details="Stop every relay on both databases first. The target must be empty. A copy that was interrupted\n"
        "goes on where it was when the same command is given again; until it is complete, no relay starts\n"
        "on the target. The source is left as it was. In the end the rows of each table are counted on\n"
        "both sides: exit code 1 when a count differs.",
    )
    parser.add_argument(
        "--from", dest="source", metavar="URL", required=True, help="such as sqlite:///relay.db"
    )
    parser.add_argument(
        "--to", dest="target", metavar="URL", required=True, help="such as postgresql://user@host/relay"
    )
    parser.add_argument("--json", action="store_true", help="print the counts as one JSON document")


def _copy(args: argparse.Namespace, shell: Shell) -> int:
    from relay.main import copy

    output = Output(shell, as_json=args.json)

    def show(copied: Any) -> None:
        output.document([{"table": one.table, "source": one.source, "target": one.target} for one in copied])
        output.table(
            ("table", "source", "target", ""),
            [
                (one.table, str(one.source), str(one.target), "" if one.source == one.target else "DIFFERS")
                for one in copied
            ],
        )

    with _progress(shell) as progress:
        return copy(args.source, args.target, progress=progress, show=show)


@contextmanager
def _progress(shell: Shell) -> Iterator[Progress]:
    """A bar for each table where a person watches; nothing elsewhere."""
    if not shell.stderr.isatty():
        yield lambda table, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=shell.stderr)) as bars:
        tasks: dict[str, Any] = {}

        def progress(table: str, done: int, total: int) -> None:
            if table not in tasks:
                tasks[table] = bars.add_task(table, total=total)
            bars.update(tasks[table], completed=done)

        yield progress

"""`relay copy`: a relay's whole state, from one database to another."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from relay.cli.commands import OPERATE, Commands
from relay.cli.outcome import INTERRUPTED, OK
from relay.cli.output import Output
from relay.cli.shell import Shell

Progress = Callable[[str, int, int], None]

#: Where nobody watches a bar, a line is written at least this often.
_SILENCE_MS = 5_000


def register(commands: Commands) -> None:
    parser = commands.add(
        "copy",
        "carry everything from one database to another",
        _copy,
        group=OPERATE,
        details="Stop every relay on both databases first. The target must be empty. A copy that was interrupted\n"
        "(exit code 130) goes on where it was when the same command is given again, or starts over if its\n"
        "source has changed since; until it is complete, no relay starts on the target. The source is left\n"
        "as it was: never start a relay on it again, which would deliver a second time what it holds. In the\n"
        "end the rows of each table are counted on both sides: exit code 1 when a count differs, or when the\n"
        "copy cannot be made. In a URL, the password is percent-encoded, or left out and given in PGPASSWORD.",
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
    reached = ""

    def show(copied: Any) -> None:
        nonlocal reached
        reached = ""
        output.document([{"table": one.table, "source": one.source, "target": one.target} for one in copied])
        output.table(
            ("table", "source", "target", ""),
            [
                (one.table, str(one.source), str(one.target), "" if one.source == one.target else "DIFFERS")
                for one in copied
            ],
        )

    with _progress(shell, output) as progress:

        def remember(table: str, done: int, total: int) -> None:
            nonlocal reached
            reached = f"at {done} of {total} rows of {table}"
            progress(table, done, total)

        code = copy(
            args.source,
            args.target,
            progress=remember,
            starting_over=lambda: output.note(
                "the source has changed since the copy was interrupted: starting over"
            ),
            show=show,
        )
    if code == OK:
        output.note(
            "the copy is complete: start relays on it, and never again on the source (see RELAY_DATABASE_URL)"
        )
    elif code == INTERRUPTED and reached:
        output.note(f"interrupted {reached}; the same command, given again, goes on there")
    elif code == INTERRUPTED:
        output.note("interrupted before anything was copied")
    elif reached:
        # The reason has been said.
        output.note(f"it was {reached}")
    return code


@contextmanager
def _progress(shell: Shell, output: Output) -> Iterator[Progress]:
    """A bar for each table where a person watches; elsewhere a line for each that has rows, and now and then."""
    if not shell.stderr.isatty():
        yield _Lines(shell, output)
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


class _Lines:
    def __init__(self, shell: Shell, output: Output) -> None:
        self._now = shell.now
        self._output = output
        self._said_at = shell.now()

    def __call__(self, table: str, done: int, total: int) -> None:
        if (done >= total > 0) or self._now() - self._said_at >= _SILENCE_MS:
            self._said_at = self._now()
            self._output.note(f"{table}: {done} of {total}")

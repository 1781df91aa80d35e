"""What a command prints: tables and lines for people, one JSON document for programs.

What destinations and publishers sent is shown to people with its control characters spelled out: an error text
must not be able to steer a terminal.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from relay.cli.shell import Shell

_SECOND_MS = 1000
#: Up to which distance a time is told in which unit; beyond the last in days.
_UNITS = ((60, 1, "s"), (3_600, 60, "m"), (172_800, 3_600, "h"))

_COLOURS = {
    "DELIVERED": "32",
    "FAILED": "31",
    "ERROR": "31",
    "RETRY": "33",
    "CANCELED": "33",
    "CANCEL_REQUESTED": "33",
}


class Output:
    """One command's output: with `as_json` the documents alone, otherwise everything else."""

    def __init__(self, shell: Shell, *, as_json: bool = False) -> None:
        self._shell = shell
        self.as_json = as_json
        self._terminal = shell.stdout.isatty()

    def document(self, document: object) -> None:
        """For programs: one JSON document, indented where a person reads it."""
        if self.as_json:
            self._write(json.dumps(document, indent=2 if self._terminal else None))

    def record(self, entry: object) -> None:
        """For programs: one of many documents, each on its own line."""
        if self.as_json:
            self._write(json.dumps(entry))

    def line(self, text: str) -> None:
        """For people."""
        if not self.as_json:
            self._write(text)

    def note(self, text: str) -> None:
        """Beside the output, on standard error: for people, whatever the output is for."""
        print(f"relay: {printable(text)}", file=self._shell.stderr, flush=True)

    def details(self, rows: Iterable[tuple[str, str]]) -> None:
        """A name and a value a line; empty values are left out."""
        shown = [(name, value) for name, value in rows if value]
        width = max(len(name) for name, _ in shown)
        for name, value in shown:
            self.line(f"{name:<{width}}  {printable(value)}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if self.as_json:
            return
        if not rows and self._terminal:
            self.note("there are none")
            return
        cells = [[printable(cell) for cell in row] for row in rows]
        if self._terminal:
            self._rich_table(columns, cells)
        else:
            self._plain_table([[column.upper() for column in columns], *cells])

    def _plain_table(self, rows: Sequence[Sequence[str]]) -> None:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            self._write(
                "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            )

    def _rich_table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column)
        # The widest columns give way first, so that ids stay whole next to long URLs.
        for row in rows:
            table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
        Console(file=self._shell.stdout).print(table)

    def state(self, state: str, width: int = 0) -> str:
        """A state of the log, coloured on a terminal."""
        padded = f"{printable(state):<{width}}"
        colour = _COLOURS.get(state)
        if colour is None or not self._terminal or self._shell.environment.get("NO_COLOR"):
            return padded
        return f"\x1b[{colour}m{padded}\x1b[0m"

    def moment(self, at: int | None) -> str:
        """An instant in local time and as seen from now: `2026-11-22T03:38:12+01:00 (in 5 m)`."""
        if at is None:
            return ""
        return f"{self.local(at).isoformat(timespec='seconds')} ({relative(at, self._shell.now())})"

    def when(self, at: int | None) -> str:
        """An instant in a table: on a terminal, which is narrow, only as seen from now."""
        return relative(at, self._shell.now()) if at is not None and self._terminal else self.moment(at)

    def local(self, at: int) -> datetime:
        return datetime.fromtimestamp(at / 1000, self._shell.zone).astimezone(self._shell.zone)

    def flush(self) -> None:
        self._shell.stdout.flush()

    def _write(self, text: str) -> None:
        print(text, file=self._shell.stdout)


def relative(at: int, now: int) -> str:
    """How far an instant is from another, both Unix ms, rounded to the nearest.

    >>> relative(61_000, 0), relative(1_980, 0), relative(0, 499)
    ('in 1 m', 'in 2 s', 'now')
    """
    distance_s = (abs(at - now) + _SECOND_MS // 2) // _SECOND_MS
    if distance_s == 0:
        return "now"
    size, unit = next(((size, unit) for below, size, unit in _UNITS if distance_s < below), (86_400, "d"))
    count = f"{(distance_s + size // 2) // size} {unit}"
    return f"in {count}" if at > now else f"{count} ago"


def printable(text: str) -> str:
    r"""The text on one line, with what would steer a terminal spelled out.

    >>> print(printable("a\x1b[2J\nb"))
    a\x1b[2J\nb
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

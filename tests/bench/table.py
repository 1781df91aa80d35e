"""How results are summed up and printed."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One number to remember, and what it should be."""

    what: str
    value: str
    aim: str = ""


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (min-max)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of values in rising order."""
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, min(len(ordered), int(rank)) - 1)]


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: the first column is text, the others are numbers."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    print(f"\n{title}")
    for line in lines:
        first, *rest = (
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  " + "  ".join((first, *rest)).rstrip(), flush=True)


def conclude(findings: Iterable[Finding]) -> None:
    """Print the numbers to remember."""
    print()
    for finding in findings:
        aim = f"   (aim: {finding.aim})" if finding.aim else ""
        print(f"=> {finding.what}: {finding.value}{aim}", flush=True)

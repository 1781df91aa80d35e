"""SQL in steps, so that one function serves a blocking connection and an awaiting one.

A script is a generator: it yields one `Query` after the other, is sent the rows of each, and returns its result.
Whoever runs it decides how to wait and owns the transaction; a script never commits. Parameters are written
`?1`, `?2`, which both dialects can be given (`$1` is a textual step away). A query that must lock what it reads
ends with `/*FOR UPDATE*/`: a comment where there is only one writer, uncovered where there are many.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

from relay.domain.errors import Unavailable
from storage.codec import Row

T = TypeVar("T")

#: Rows in one statement: few sizes, so that every text stays prepared.
CHUNKS = (64, 16, 4, 1)


class Collision(Unavailable):
    """What a transaction had looked up was gone when it came to lock it: repeated, it goes through."""

    def __init__(self) -> None:
        super().__init__("the database was asked for what is being deleted", retry_after_s=1)


class Query(NamedTuple):
    """One statement and what is bound to it."""

    text: str
    parameters: Sequence[Any] = ()


Script = Generator[Query, Sequence[Row], T]


class Parameters:
    """Collects values while a text is put together: `f"host = {bind(host)}"`."""

    def __init__(self, values: Sequence[Any] = ()) -> None:
        self.values: list[Any] = list(values)

    def __call__(self, value: object) -> str:
        self.values.append(value)
        return f"?{len(self.values)}"

    def several(self, values: Iterable[object]) -> str:
        """`(?1, ?2, ...)`, for IN."""
        return f"({', '.join(self(value) for value in values)})"


class Bulk:
    """A statement around a list of rows: `before` VALUES `row`, `row`, ... `after`.

    One statement for 64 rows lets go of the interpreter's lock twice where 64 statements do so 128 times, and
    each time it may have to wait for a busy event loop to give it back.

    `row` has a `?` for each value and may hold constants. It pays: binding a None (or bytes) costs these drivers
    about 1 us, since they look for an adapter first, and a NULL in the text nothing.
    """

    def __init__(self, before: str, row: str, after: str = "") -> None:
        self._texts = {size: f"{before} VALUES {', '.join([row] * size)}{after}" for size in CHUNKS}

    def queries(self, rows: Sequence[Row]) -> Iterator[Query]:
        """The statements that cover all rows, in order."""
        start = 0
        for size in CHUNKS:
            while len(rows) - start >= size:
                chunk = rows[start : start + size]
                start += size
                yield Query(self._texts[size], list(chain.from_iterable(chunk)))


def most(mark: str) -> str:
    """A bound number of rows, for LIMIT. Recent SQLite plans by the value of a bare `?` there, and so prepares the
    statement anew whenever it is run, which costs more than to run it; what it has to compute it leaves alone."""
    return f"CAST({mark} AS bigint)"


def marks(count: int) -> str:
    """`(?, ?, ...)`"""
    return f"({', '.join('?' * count)})"


def write(bulk: Bulk, rows: Sequence[Row]) -> Script[None]:
    """Run a bulk statement over the rows, however many."""
    yield from bulk.queries(rows)


def read(bulk: Bulk, rows: Sequence[Row]) -> Script[Sequence[Row]]:
    """Run a bulk query over the rows; everything it answers."""
    found: list[Row] = []
    for query in bulk.queries(rows):
        found += yield query
    return found


def slices(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]

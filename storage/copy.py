"""A relay's whole state, carried from one database to another.

The target carries a note for as long as it is not complete: no relay starts on it, and the same copy, begun again,
goes on where it was killed. Rows keep their keys, so that whatever is written twice is written once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from msgspec import Struct

from storage.protocol import CannotOpen, Storage
from storage.sql.transfer import UNFINISHED

_ROWS = 1_000


class CannotCopy(Exception):  # noqa: N818 - what happened, in the words of the one who reads it
    """Why nothing (more) was copied, as one sentence."""


class Copied(Struct, frozen=True, kw_only=True):
    """Rows of one table, in both databases, after the copy."""

    table: str
    source: int
    target: int


async def copy(
    source: Storage, target: Storage, *, name: str, progress: Callable[[str, int, int], None]
) -> Sequence[Copied]:
    """Copy all rows; what both databases hold in the end.

    `name` tells this source from others. `progress` hears of the table, the rows of it that were dealt with, and
    of how many. Raises `CannotCopy` when either database is in use, the target holds anything else than an earlier
    part of this copy, or the source is itself only part of one.
    """
    note = f"{name} with {await _marks(source)}"
    begun = await _check(source, target, note)
    await target.put_setting(UNFINISHED, note)
    try:
        # Whoever starts from now on finds the note, and whoever started before it is found here.
        await _refuse_used(source, target)
    except CannotCopy:
        await target.put_setting(UNFINISHED, begun)
        raise
    for table in source.tables:
        total, done = await source.count_rows(table), 0
        after = await target.last_row(table)
        if after is not None:
            done = await target.count_rows(table)
        progress(table, done, total)
        while (page := await source.read_rows(table, after=after, limit=_ROWS)).end is not None:
            await target.write_rows(table, page.rows)
            after, done = page.end, done + len(page.rows)
            progress(table, done, total)
    copied = [
        Copied(table=table, source=await source.count_rows(table), target=await target.count_rows(table))
        for table in source.tables
    ]
    if all(one.source == one.target for one in copied):
        await target.put_setting(UNFINISHED, "")
    return copied


class Settings(Protocol):
    """Where the note is."""

    async def setting(self, name: str) -> str | None: ...


async def refuse_unfinished(storage: Settings) -> None:
    """Raises `CannotOpen` for the target of a copy that is not complete."""
    if await storage.setting(UNFINISHED):
        raise CannotOpen("the database holds an unfinished copy: end it by running relay copy again")


async def _refuse_used(source: Storage, target: Storage) -> None:
    for role, storage in (("source", source), ("target", target)):
        if others := await storage.other_users():
            users = "a relay or another copy" if others == 1 else f"{others} relays or copies"
            raise CannotCopy(
                f"the {role} is in use by {users}: stop it first (what was killed counts for half a minute)"
            )


async def _check(source: Storage, target: Storage, note: str) -> str:
    """What the target's note says before this copy."""
    await _refuse_used(source, target)
    if await source.setting(UNFINISHED):
        raise CannotCopy("the source is itself an unfinished copy")
    begun = await target.setting(UNFINISHED)
    if begun and begun != note:
        raise CannotCopy(f"the target holds an unfinished copy of something else: {begun}, this is {note}")
    if not begun:
        for table in target.tables:
            if await target.count_rows(table):
                raise CannotCopy(
                    f"the target is not empty: its table {table} has rows (a complete copy is not repeated)"
                )
    return begun or ""


async def _marks(source: Storage) -> str:
    """What a relay that runs on the source between two parts of a copy would change."""
    events = await source.count_rows("events")
    latest = await source.last_row("events") or ("none",)
    return f"{events} events up to {latest[-1]}"

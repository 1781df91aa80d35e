"""A relay's whole state, carried from one database to another.

The target carries a note for as long as it is not complete: no relay starts on it, and the same copy, begun again,
goes on where it was killed, or starts over when its source has changed since. Rows keep their keys, so that what is
written twice is written once.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, Protocol

from msgspec import Struct

from relay.domain.errors import Unavailable
from storage.protocol import CannotOpen, Storage
from storage.sql.transfer import UNFINISHED

_ROWS = 1_000

#: Tables whose rows people change, all of them small.
_CHANGED_IN_PLACE = ("tenants", "tokens", "settings", "schedules", "url_groups", "gates")

#: In the note: between the name of the source and what it held.
_WITH = " with "


class CannotCopy(Exception):  # noqa: N818 - what happened, in the words of the one who reads it
    """Why nothing (more) was copied, as one sentence."""


class Copied(Struct, frozen=True, kw_only=True):
    """Rows of one table, in both databases, after the copy."""

    table: str
    source: int
    target: int


async def copy(
    source: Storage,
    target: Storage,
    *,
    name: str,
    progress: Callable[[str, int, int], None],
    starting_over: Callable[[], None],
) -> Sequence[Copied]:
    """Copy all rows; what both databases hold in the end.

    `name` tells this source from others. `progress` hears of the table, the rows of it that were dealt with, and
    of how many; `starting_over`, before, that an earlier part of this copy is of no use any more. Raises
    `CannotCopy` when either database is in use, unavailable, or has more than this relay knows of, when the target
    holds anything else than an earlier part of this copy, and when the source is itself only part of one or changes
    while it is copied.
    """
    try:
        return await _copy(source, target, name, progress, starting_over)
    except Unavailable as problem:
        raise CannotCopy(
            f"{await _away(source, target)} is unavailable ({problem}); what was copied stays, and the same"
            " command, given again, goes on with it"
        ) from problem


async def _copy(
    source: Storage,
    target: Storage,
    name: str,
    progress: Callable[[str, int, int], None],
    starting_over: Callable[[], None],
) -> Sequence[Copied]:
    await _check_schemas(source, target)
    await _check_users(source, target)
    if await source.setting(UNFINISHED):
        raise CannotCopy("the source is itself an unfinished copy")
    marks = await _marks(source)
    if not await _goes_on(target, name, marks):
        # Killed before the new note, it is still the old one, and all of this happens again.
        starting_over()
        await target.clear()
    await target.put_setting(UNFINISHED, _note(name, marks))
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
    # Nothing keeps a relay from starting, or migrating, meanwhile.
    await _check_schemas(source, target)
    if await _marks(source) != marks:
        raise CannotCopy(
            "the source was used while it was copied: stop every relay on it and give the same command again, which"
            " then starts over"
        )
    if all(one.source == one.target for one in copied):
        await target.put_setting(UNFINISHED, "")
    return copied


class Settings(Protocol):
    """Where the note is."""

    async def setting(self, name: str) -> str | None: ...


async def _away(*databases: Storage) -> str:
    """Which of the source and the target it was."""
    for role, storage in zip(("the source", "the target"), databases, strict=True):
        try:
            await storage.setting(UNFINISHED)
        except Unavailable:
            return role
    return "one of the databases"


async def refuse_unfinished(storage: Settings) -> None:
    """Raises `CannotOpen` for the target of a copy that is not complete."""
    if note := await storage.setting(UNFINISHED):
        raise CannotOpen(
            f"the database holds an unfinished copy of {_source_of(note)}: give the same relay copy again to end it"
        )


async def _check_schemas(source: Storage, target: Storage) -> None:
    """What a newer relay has added, this one would leave behind without a word."""
    for role, storage in (("source", source), ("target", target)):
        if versions := await storage.unknown_migrations():
            raise CannotCopy(
                f"the {role} was migrated by a newer relay (to schema version {versions[-1]}): copy with that one"
            )


async def _check_users(source: Storage, target: Storage) -> None:
    for role, storage in (("source", source), ("target", target)):
        if others := await storage.other_users():
            users = "a relay or another copy" if others == 1 else f"{others} relays or copies"
            raise CannotCopy(
                f"the {role} is in use by {users}: stop it first (what was killed counts for half a minute)"
            )


async def _goes_on(target: Storage, name: str, marks: str) -> bool:
    """Whether what the target holds, if anything, is the beginning of this copy, whose source has not changed."""
    begun = await target.setting(UNFINISHED)
    if begun:
        if _source_of(begun) != name:
            raise CannotCopy(
                f"the target holds an unfinished copy of {_source_of(begun)}, and this is {name}:"
                f" end that one, or to copy here, {target.emptied_by}"
            )
        return begun == _note(name, marks)
    for table in target.tables:
        if await target.count_rows(table):
            raise CannotCopy(
                f"the target is not empty: its table {table} has rows (a complete copy is not repeated);"
                f" to copy here, {target.emptied_by}"
            )
    return True


def _note(name: str, marks: str) -> str:
    return f"{name}{_WITH}{marks}"


def _source_of(note: str) -> str:
    return note.rpartition(_WITH)[0]


async def _marks(source: Storage) -> str:
    """What a relay that runs on the source between two parts of a copy, or a command, would change."""
    events = await source.count_rows("events")
    latest = await source.last_row("events") or ("none",)
    return f"{events} events up to {latest[-1]} and {await _digest(source)}"


async def _digest(source: Storage) -> str:
    """Of what is changed in place, and leaves no event."""
    digest = sha256()
    for table in _CHANGED_IN_PLACE:
        after: Sequence[Any] | None = None
        while (page := await source.read_rows(table, after=after, limit=_ROWS)).end is not None:
            digest.update(repr(page.rows).encode())
            after = page.end
    return digest.hexdigest()[:16]

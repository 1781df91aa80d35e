"""Numbered .sql files, each applied once, in one transaction with the note that it was."""

from collections.abc import Collection, Sequence
from importlib.resources import files

from msgspec import Struct

from storage.protocol import CannotOpen


class Migration(Struct, frozen=True, kw_only=True):
    """`text` holds statements separated by semicolons."""

    version: int
    name: str
    text: str


def migrations_of(package: str) -> Sequence[Migration]:
    """The files `0001_name.sql` inside an importable package's `migrations` directory, in order."""
    found = sorted(
        (entry for entry in files(package).joinpath("migrations").iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    return [
        Migration(version=int(entry.name[:4]), name=entry.name[5:-4], text=entry.read_text("utf-8"))
        for entry in found
    ]


def missing(known: Sequence[Migration], applied: Collection[int]) -> Sequence[Migration]:
    """Those still to be applied. Raises `CannotOpen` for a database that a newer relay has migrated."""
    newest, latest = max(applied, default=0), known[-1].version
    if newest > latest:
        raise CannotOpen(
            f"the database has schema version {newest}, this relay knows versions up to {latest}: "
            "start the newer relay that migrated it, or restore a backup from before"
        )
    return [migration for migration in known if migration.version not in applied]

"""Numbered .sql files, each applied once, in one transaction with the note that it was.

Versions are changed one process at a time, and changed back when the new one does not please: a relay must be able
to run, and to start, on a schema that a newer one has migrated. The number tells whether it can. Within a thousand
(0001 to 0999, 1000 to 1999, ...) a migration only adds what whoever knows nothing of it may ignore: a table, an
index, a column that may be NULL or has a default. One that an older relay cannot live with gets the first number of
the next thousand, 1001 for example, and relays that know none of that thousand refuse to start.
"""

from collections.abc import Collection, Sequence
from importlib.resources import files

from msgspec import Struct

from storage.protocol import CannotOpen

#: Within as many numbers, migrations only add.
_THOUSAND = 1_000


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
    """Those still to be applied. Raises `CannotOpen` for a database that this relay cannot live with."""
    newest, latest = max(applied, default=0), known[-1].version
    if newest // _THOUSAND > latest // _THOUSAND:
        raise CannotOpen(
            f"the database has schema version {newest}, and this relay, which knows versions up to {latest}, cannot"
            " work with it: start the version of the relay that migrated it, or a newer one"
        )
    return [migration for migration in known if migration.version not in applied]


def unknown(known: Sequence[Migration], applied: Collection[int]) -> Sequence[int]:
    """The versions that a newer relay has applied, in order."""
    return sorted(set(applied) - {migration.version for migration in known})

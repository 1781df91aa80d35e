"""The SQLite library: which one, how connections are set up, and what its errors mean."""

import contextlib
import re
import sqlite3
from pathlib import Path
from typing import Any, TypeVar

from relay.domain.errors import Unavailable
from storage.protocol import CannotOpen, Rejected, Unstorable
from storage.sql.script import Script

try:
    # Bundles a current SQLite, where the interpreter's own is whatever the system had.
    from pysqlite3 import dbapi2
except ImportError:
    dbapi2 = sqlite3

T = TypeVar("T")

#: pysqlite3's classes are of the same shape, but not subclasses of the standard library's.
Connection = sqlite3.Connection

Error: type[Exception] = dbapi2.Error
Warning_: type[Exception] = dbapi2.Warning
#: They tell of the values in a statement, and not of the statement.
_ABOUT_VALUES: tuple[type[Exception], ...] = (dbapi2.IntegrityError, dbapi2.DataError)

#: STRICT tables and RETURNING.
_OLDEST = (3, 38, 0)
#: Below it, two connections that write or checkpoint at the same instant can corrupt a WAL.
_SOUND = (3, 51, 3)

#: "RELY", in the file's header.
APPLICATION_ID = 0x52454C59

#: How long a statement waits for a lock that another process holds: publishers are to get their 503 soon, a command
#: has time.
_BUSY_MS = 1_500
_BUSY_BESIDE_MS = 10_000

_BUSY, _LOCKED, _NOMEM, _READONLY, _INTERRUPT, _IOERR = 5, 6, 7, 8, 9, 10
_CORRUPT, _FULL, _CANTOPEN, _PROTOCOL, _NOTADB = 11, 13, 14, 15, 26

_REASONS = {
    _BUSY: "the database is locked by another process",
    _LOCKED: "the database is locked",
    _NOMEM: "the database is out of memory",
    _READONLY: "the database is read-only",
    _INTERRUPT: "the database took too long to answer",
    _IOERR: "the disk does not answer as it should",
    _CORRUPT: "the database file is damaged",
    _FULL: "the disk is full",
    _CANTOPEN: "the database file cannot be opened",
    _PROTOCOL: "the database is locked by another process",
    _NOTADB: "the database file is not a database",
}

#: SQLITE_READONLY_DBMOVED, which SQLite itself finds out about without a write-ahead log only.
_MOVED = _READONLY | 4 << 8
_IS_MOVED = "the database file was moved, removed or replaced: put it back, or restart the relay"


def version() -> tuple[int, ...]:
    """The SQLite in use, such as (3, 51, 3)."""
    return tuple(int(part) for part in re.findall(r"\d+", dbapi2.sqlite_version))


def version_problem(version: tuple[int, ...]) -> str | None:
    """A sentence for the operator when this SQLite is usable but not sound. Raises `CannotOpen` for one too old."""
    text = ".".join(map(str, version))
    if version < _OLDEST:
        raise CannotOpen(f"SQLite {text} is too old: 3.38 or newer is needed (pip install pysqlite3)")
    if version < _SOUND:
        return (
            f"SQLite {text} can corrupt a database in rare cases: use 3.51.3 or newer (pip install pysqlite3)"
        )
    return None


def file_at(path: Path) -> tuple[int, int]:
    """What tells the file that is there now from every other one."""
    status = path.stat()
    return status.st_dev, status.st_ino


def check_file(path: Path, file: tuple[int, int]) -> None:
    """Raises an error of the driver when another file, or none, is at the path: what is committed to one without a
    name is there for nobody."""
    with contextlib.suppress(OSError):
        if file_at(path) == file:
            return
    moved = dbapi2.OperationalError("the file is not where it was")
    moved.sqlite_errorcode = _MOVED
    raise moved


def connect_writer(path: Path, *, create: bool = False) -> Connection:
    """The one connection that writes and checkpoints. Without `create`, a file that is gone is not made anew."""
    connection = _connect(path, "rwc" if create else "rw")
    try:
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise CannotOpen(f"{path} is on a file system that cannot hold a write-ahead log")
        for pragma in (
            "synchronous = FULL",
            # 16 MB of log: fewer, larger checkpoints cost less, and reading it after a crash takes under a second.
            "wal_autocheckpoint = 4000",
            "journal_size_limit = 67108864",
            "cache_size = -32768",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> Connection:
    """A connection that can neither write nor checkpoint."""
    connection = _connect(path, "rw")
    try:
        for pragma in ("query_only = ON", "wal_autocheckpoint = 0", "cache_size = -4096"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_beside(path: Path) -> Connection:
    """A connection that writes now and then, beside the one of a relay, and leaves checkpoints to that."""
    connection = _connect(path, "rw")
    try:
        for pragma in ("wal_autocheckpoint = 0", "synchronous = FULL", f"busy_timeout = {_BUSY_BESIDE_MS}"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def run(connection: Connection, script: Script[T]) -> T:
    """Run a script to its end, inside whatever transaction there is."""
    try:
        query = next(script)
        while True:
            query = script.send(connection.execute(query.text, query.parameters).fetchall())
    except StopIteration as stop:
        result: T = stop.value
        return result


def code_of(error: BaseException) -> int:
    """The primary result code of a driver error; 0 for anything else."""
    code: Any = getattr(error, "sqlite_errorcode", 0)
    return int(code) & 0xFF


def is_full(error: BaseException) -> bool:
    """No room: what only removes may still go through."""
    return code_of(error) == _FULL


def is_foreign(error: BaseException) -> bool:
    """The file is something else than a SQLite database."""
    return code_of(error) == _NOTADB


def is_lasting(error: BaseException) -> bool:
    """The connection itself may be unusable after this: open another."""
    return code_of(error) not in (_BUSY, _LOCKED, _FULL, _INTERRUPT)


def unavailable(error: BaseException) -> Unavailable | None:
    """The error as the state of the whole database, if that is what it tells; None when one statement was wrong."""
    code = getattr(error, "sqlite_errorcode", 0)
    reason = _IS_MOVED if code == _MOVED else _REASONS.get(code_of(error))
    return None if reason is None else Unavailable(reason, retry_after_s=2)


def translated(error: Exception) -> Exception:
    """What a caller may see instead of a driver's error: each its own, since raising one writes on it."""
    if not isinstance(error, (Error, Warning_)):
        return error
    meaning = Unstorable if isinstance(error, _ABOUT_VALUES) else Rejected
    return unavailable(error) or meaning(str(error))


def _connect(path: Path, mode: str) -> Connection:
    connection: Connection = dbapi2.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_MS / 1000,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    return connection

"""The embedded backend: one SQLite file, one process."""

from storage.sqlite.storage import SqliteStorage, open_sqlite

__all__ = ["SqliteStorage", "open_sqlite"]

"""The embedded backend: one SQLite file, one process."""

from storage.sqlite.accounts import SqliteAccounts, open_accounts
from storage.sqlite.storage import SqliteStorage, file_of, open_sqlite

__all__ = ["SqliteAccounts", "SqliteStorage", "file_of", "open_accounts", "open_sqlite"]

"""The embedded backend: one SQLite file, one process."""

from storage.sqlite.accounts import SqliteAccounts, open_accounts
from storage.sqlite.storage import SqliteStorage, open_sqlite

__all__ = ["SqliteAccounts", "SqliteStorage", "open_accounts", "open_sqlite"]

"""Every backend, one contract: each test of this directory that asks for `storage` runs against all of them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from storage.postgres import open_postgres
from storage.protocol import Storage
from storage.sqlite import open_sqlite
from tests import pooler, postgres_server

#: Opens one database, and the same one again after it was closed.
Open = Callable[[], Awaitable[Storage]]


def _sqlite(directory: Path) -> Open:
    return partial(open_sqlite, f"sqlite:///{directory}/relay.db")


def _postgres(directory: Path) -> Open:
    return partial(open_postgres, postgres_server.url())


def _pooled(directory: Path) -> Open:
    return partial(open_postgres, pooler.url())


#: From an empty directory to the way to open a fresh database that belongs to it.
BACKENDS: dict[str, Callable[[Path], Open]] = {"sqlite": _sqlite, "postgres": _postgres}

#: PostgreSQL again, through a pooler: for the part of the contract that has a bit of everything.
POOLED = {"pooled": _pooled}
_POOLED_MODULES = ("test_work",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "open_storage" in metafunc.fixturenames:
        pooled = metafunc.module.__name__.endswith(_POOLED_MODULES)
        metafunc.parametrize("open_storage", [*BACKENDS, *(POOLED if pooled else ())], indirect=True)


@pytest.fixture
def open_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens this test's database."""
    yield {**BACKENDS, **POOLED}[request.param](tmp_path)
    if request.param in POOLED:
        assert pooler.shared().left_behind() == []


class Opened:
    """The database of a test, which can be closed and opened again."""

    def __init__(self, open_storage: Open) -> None:
        self._open = open_storage
        self._storage: Storage | None = None

    async def open(self) -> Storage:
        await self.close()
        self._storage = await self._open()
        return self._storage

    async def close(self) -> None:
        if self._storage is not None:
            await self._storage.close()
            self._storage = None


@pytest.fixture
async def opened(open_storage: Open) -> AsyncIterator[Opened]:
    opened = Opened(open_storage)
    yield opened
    await opened.close()


@pytest.fixture
async def storage(opened: Opened) -> Storage:
    """An empty database."""
    return await opened.open()


@pytest.fixture
def reopen(opened: Opened) -> Callable[[], Awaitable[Storage]]:
    """Close `storage` and open its database again."""
    return opened.open

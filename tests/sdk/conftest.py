"""One relay, one pair of clients a session; an endpoint of its own for every test."""

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
import pytest_asyncio
from qstash import AsyncQStash

from tests.live import Live, a_relay
from tests.sdk.clients import DEFAULT_USER, KINDS, Clients
from tests.sdk.endpoint import Endpoint, an_endpoint
from tests.sdk.ticking import Ticking, ticking_schedules


@pytest.fixture(scope="session")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with a_relay(directory=tmp_path_factory.mktemp("relay")) as live:
        yield live


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def clients(relay: Live) -> AsyncIterator[Clients]:
    clients = Clients(relay.url)
    yield clients
    await clients.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session", autouse=True)
async def ticking(clients: Clients) -> AsyncIterator[Ticking]:
    async with ticking_schedules(clients) as ticking:
        yield ticking


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the two clients speaks."""
    return str(request.param)


@pytest.fixture
def client(clients: Clients, relay: Live, kind: str) -> AsyncQStash:
    """A client that was given what the relay printed at its start."""
    return clients.of(kind, relay.token)


@pytest_asyncio.fixture(loop_scope="session")
async def endpoint() -> AsyncIterator[Endpoint]:
    async with an_endpoint(DEFAULT_USER.receiver) as endpoint:
        yield endpoint


@pytest.fixture
def label() -> str:
    """A label that nothing else has."""
    return f"label-{uuid4().hex}"

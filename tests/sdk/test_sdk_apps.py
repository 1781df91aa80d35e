"""Two small applications as people write them for QStash, moved to a relay by their environment alone.

The README tells how; what it says is what happens here.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientConnectorError, ClientSession
from qstash import AsyncQStash
from qstash.log import LogState

from tests.live import a_relay
from tests.sdk.asking import eventually, history_until, states
from tests.sdk.clients import TEST_USER_1, Clients
from tests.sdk.nodejs import NODE

pytestmark = pytest.mark.asyncio(loop_scope="session")

_APPS = Path(__file__).parent / "apps"
_PATIENCE_S = 30

Environment = Mapping[str, str]


class Program(NamedTuple):
    """An application: its directory under `apps`, its source, and how it is started on a port."""

    name: str
    source: str
    command: Callable[[int], list[str]]


EXPRESS = Program("express", "app.js", lambda port: [str(NODE), "app.js"])
FASTAPI = Program(
    "fastapi", "app.py", lambda port: [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
)


@contextmanager
def told_by_four_variables(directory: Path) -> Iterator[Environment]:
    """What the relay printed at its start."""
    with a_relay(directory=directory) as relay:
        yield relay.environment


@contextmanager
def told_by_the_url_alone(directory: Path) -> Iterator[Environment]:
    """Token and keys stay those the application has already: the relay was given them."""
    settings = {
        "RELAY_TOKEN": TEST_USER_1.token,
        "RELAY_CURRENT_SIGNING_KEY": TEST_USER_1.current_key,
        "RELAY_NEXT_SIGNING_KEY": TEST_USER_1.next_key,
        "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
    }
    with a_relay(mode="serve", directory=directory, environment=settings) as relay:
        assert relay.environment == {}
        yield {
            "QSTASH_URL": relay.url,
            "QSTASH_TOKEN": TEST_USER_1.token,
            "QSTASH_CURRENT_SIGNING_KEY": TEST_USER_1.current_key,
            "QSTASH_NEXT_SIGNING_KEY": TEST_USER_1.next_key,
        }


class App:
    """A running application."""

    def __init__(self, url: str, session: ClientSession) -> None:
        self._url = url
        self._session = session

    async def post(self, path: str, body: object) -> tuple[int, Any]:
        async with self._session.post(self._url + path, json=body) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text())

    async def order(self, order_id: str) -> Any:
        async with self._session.get(f"{self._url}/orders/{order_id}") as response:
            return await response.json()

    async def wait_until_up(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                assert process.poll() is None, log.read_text()
                try:
                    async with self._session.get(self._url):
                        return
                except ClientConnectorError:
                    await asyncio.sleep(0.02)


@contextmanager
def a_process(
    program: Program, environment: Environment, port: int, log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    with (
        log.open("wb") as output,
        subprocess.Popen(
            program.command(port),
            cwd=_APPS / program.name,
            env={"PATH": os.defpath, "HOME": os.devnull, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def running(program: Program, environment: Environment, port: int, log: Path) -> AsyncIterator[App]:
    url = f"http://127.0.0.1:{port}"
    with a_process(program, {**environment, "APP_URL": url}, port, log) as process:
        async with ClientSession() as session:
            app = App(url, session)
            await app.wait_until_up(process, log)
            yield app


@asynccontextmanager
async def a_client(environment: Environment) -> AsyncIterator[AsyncQStash]:
    """The one who looks at what the application has done."""
    clients = Clients(environment["QSTASH_URL"])
    yield clients.of("async", environment["QSTASH_TOKEN"])
    await clients.close()


@pytest.mark.parametrize("move", [told_by_four_variables, told_by_the_url_alone])
@pytest.mark.parametrize("program", [EXPRESS, FASTAPI], ids=lambda program: program.name)
async def test_an_application_for_qstash_works_with_a_relay_by_its_environment_alone(
    program: Program,
    move: Callable[[Path], AbstractContextManager[Environment]],
    tmp_path: Path,
    unused_tcp_port: int,
) -> None:
    source = (_APPS / program.name / program.source).read_text()
    assert "relay" not in source.lower()
    with move(tmp_path) as environment:
        log = tmp_path / "app.log"
        async with (
            running(program, environment, unused_tcp_port, log) as app,
            a_client(environment) as client,
        ):
            status, answer = await app.post("/orders", {"id": "1", "card": "full"})
            assert status == 202, log.read_text()
            order = await eventually(lambda: app.order("1"), lambda order: order["state"] != "ordered")
            assert order == {"state": "paid", "message": answer["messageId"]}
            rows = await history_until(client, answer["messageId"], LogState.DELIVERED)
            assert states(rows) == ["CREATED", "ACTIVE", "DELIVERED"]
            # Ordered twice, paid once.
            assert await app.post("/orders", {"id": "1", "card": "full"}) == (202, answer)

            status, answer = await app.post("/orders", {"id": "2", "card": "empty"})
            assert status == 202
            order = await eventually(lambda: app.order("2"), lambda order: order["state"] != "ordered")
            letter = await client.dlq.get(order["deadLetter"])
            assert order == {"state": "unpaid", "status": 402, "deadLetter": letter.dlq_id}
            assert (letter.message_id, letter.max_retries) == (answer["messageId"], 1)

            # Nobody else may say that something was paid.
            status, _ = await app.post("/jobs/pay", {"id": "2", "card": "full"})
            assert (status, (await app.order("2"))["state"]) == (401, "unpaid")

"""The composition root: what stops a start, and one relay wired together."""

import asyncio
import json
import logging
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.accounts import development
from relay.clock import SystemClock
from relay.config import Config, ConfigError
from relay.main import Relay, main, open_storage
from storage.protocol import Storage
from tests.engine.stepped import Lines

TOKEN = "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0="


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """`main` takes the root logger over; other tests get it back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await open_storage(f"sqlite:///{tmp_path}/relay.db")
    yield opened
    await opened.close()


def test_a_wrong_setting_ends_the_start_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("dev", {"port": "99999"}) == 1
    assert capsys.readouterr().err == "relay: --port: a port is a number from 0 to 65535\n"


@pytest.mark.parametrize("url", ["mysql://host/db", "relay.db", ""])
async def test_a_database_nobody_knows_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="database"):
        await open_storage(url)


def test_a_file_that_is_no_database_ends_the_start_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "relay.db"
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 100)
    assert main("serve", {"database_url": f"sqlite:///{path}", "port": "0"}) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("relay: ")
    assert str(path) in line


async def test_a_relay_starts_delivers_counts_and_stops(storage: Storage) -> None:
    clock, lines = SystemClock(), Lines()
    await development(storage, now=clock.now())
    relay = Relay(Config(port=0), storage, clock=clock, log=lines)
    url = await relay.start()

    def call(path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> bytes:
        request = urllib.request.Request(
            url + path, method=method, headers={"Authorization": f"Bearer {TOKEN}", **(headers or {})}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            body: bytes = answer.read()
            return body

    try:
        async with asyncio.timeout(20):
            while await relay.problems():
                await asyncio.sleep(0)
            for delay in ("1h", "2h"):
                answer = await asyncio.to_thread(
                    call,
                    "/v2/publish/http://example.invalid/",
                    method="POST",
                    headers={"Upstash-Delay": delay},
                )
                assert json.loads(answer)["messageId"].startswith("msg_")
            text = (await asyncio.to_thread(call, "/metrics")).decode()
    finally:
        await relay.stop()
    assert "\nrelay_messages_published_total 2.0\n" in text
    assert "\nrelay_messages_live 2.0\n" in text
    assert "\nrelay_oldest_due_seconds 0.0\n" in text
    assert await relay.problems() == ["the relay is shutting down"]


async def test_a_relay_refuses_to_call_what_is_not_public(storage: Storage) -> None:
    clock, lines = SystemClock(), Lines()
    await development(storage, now=clock.now())
    relay = Relay(Config(port=0), storage, clock=clock, log=lines)
    url = await relay.start()

    def publish() -> int:
        request = urllib.request.Request(
            f"{url}/v2/publish/{url}/healthz",
            method="POST",
            headers={"Authorization": f"Bearer {TOKEN}", "Upstash-Retries": "0"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            status: int = answer.status
            return status

    try:
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(publish) == 200
            while not lines.named("delivery.attempted"):
                await asyncio.sleep(0)
    finally:
        await relay.stop()
    (line,) = lines.named("delivery.attempted")
    assert line["outcome"] == "failed"
    assert "127.0.0.1 is not a public address" in str(line["error"])

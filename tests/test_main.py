"""The composition root: what stops a start, and one relay wired together."""

import asyncio
import json
import logging
import resource
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.accounts import Credentials, development
from relay.clock import SystemClock
from relay.config import Config, ConfigError
from relay.main import Relay, greet, main, open_storage, url_of, warn_of_few_open_files
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


def test_a_start_that_finds_its_port_taken_leaves_no_database_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main("serve", {"port": port, "database_url": f"sqlite:///{tmp_path}/relay.db"}) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_port_in_use_ends_the_start_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main("dev", {"port": str(port)}) == 1
    assert capsys.readouterr().err == (
        f"relay: 127.0.0.1:{port} is in use by another program; choose another with --port or RELAY_PORT\n"
    )


@pytest.mark.parametrize("host", ["nonsense.invalid", "192.0.2.1", "a..b"])
def test_a_host_that_is_another_machine_ends_the_start_with_one_sentence(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("dev", {"host": host, "port": "0"}) == 1
    assert capsys.readouterr().err == f'relay: RELAY_HOST: "{host}" is not an address of this machine\n'


@pytest.mark.parametrize("url", ["mysql://host/db", "relay.db", "sqlite://relay.db", ""])
async def test_a_database_nobody_knows_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="database"):
        await open_storage(url)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("192.0.2.1", "http://192.0.2.1:8080"),
    ],
)
def test_a_relay_on_every_address_tells_the_one_that_its_machine_reaches_it_at(host: str, url: str) -> None:
    assert url_of(host, 8080) == url


@pytest.mark.parametrize(
    ("host", "exposed"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("laptop.lan", True)],
)
async def test_a_development_relay_that_others_can_reach_warns_that_its_tokens_are_published(
    storage: Storage, capsys: pytest.CaptureFixture[str], host: str, exposed: bool
) -> None:
    credentials = Credentials(token=TOKEN, current_key="a", next_key="b")
    await greet("dev", "http://127.0.0.1:8080", host, credentials, storage, SystemClock())
    said = capsys.readouterr()
    assert "export QSTASH_URL=http://127.0.0.1:8080\n" in said.out
    assert said.err.startswith(f"WARNING: this development relay listens on {host}") == exposed
    assert ("published" in said.err) == exposed


def test_a_postgres_that_is_not_there_ends_the_start_naming_it_and_the_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = "postgresql://relay:secret@127.0.0.1:1/relay"
    assert main("serve", {"database_url": url, "port": "0"}) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("relay: 127.0.0.1:1/relay: the database cannot be reached")
    assert line.endswith(" (set by RELAY_DATABASE_URL or --database)")


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

    def publish(destination: str) -> tuple[int, bytes]:
        request = urllib.request.Request(
            f"{url}/v2/publish/{destination}",
            method="POST",
            headers={"Authorization": f"Bearer {TOKEN}", "Upstash-Retries": "0"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read()

    try:
        async with asyncio.timeout(20):
            status, body = await asyncio.to_thread(publish, f"{url}/healthz")
            problem = "127.0.0.1 is not a public address; add it to RELAY_ALLOW_NETWORKS to allow it"
            assert (status, json.loads(body)) == (400, {"error": f"destination: {problem}"})
            # A name is judged by what it leads to.
            status, _ = await asyncio.to_thread(publish, url.replace("127.0.0.1", "localhost"))
            assert status == 200
            while not lines.named("delivery.attempted"):
                await asyncio.sleep(0)
    finally:
        await relay.stop()
    (line,) = lines.named("delivery.attempted")
    assert line["outcome"] == "failed"
    assert {level for level, event, _ in lines.all if event == "delivery.attempted"} == {"warning"}
    assert "is not a public address" in str(line["error"])


async def test_a_relay_that_may_open_too_few_files_says_so_when_it_starts() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lines = Lines()
    warn_of_few_open_files(Config(max_in_flight=limit - 256), lines)
    assert lines.named("relay.few_open_files") == []
    warn_of_few_open_files(Config(max_in_flight=limit - 255), lines)
    (line,) = lines.named("relay.few_open_files")
    assert (line["limit"], line["needed"]) == (limit, limit + 1)

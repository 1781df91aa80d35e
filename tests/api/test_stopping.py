"""A relay that was told to stop: nothing is written any more, and no connection is kept."""

import asyncio
from ipaddress import ip_network
from pathlib import Path

import pytest

from relay.accounts import development
from relay.clock import SystemClock
from relay.config import Config
from relay.main import Relay, open_storage
from tests.api.rig import AUTHORIZATION, Recorder, Rig, next_reply, until

DEVELOPMENT = "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0="
WRITES = [
    ("POST", "/v2/publish/https://example.com"),
    ("POST", "/v2/batch"),
    ("DELETE", "/v2/messages"),
    ("POST", "/v2/schedules/https://example.com"),
    ("POST", "/v2/topics/group/endpoints"),
    ("POST", "/v2/dlq/retry"),
    ("POST", "/v2/keys/rotate"),
]


@pytest.fixture(params=[True, False], ids=["lane", "router"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def asking(method: str, target: str, authorization: str = AUTHORIZATION) -> bytes:
    return (
        f"{method} {target} HTTP/1.1\r\nHost: relay\r\nAuthorization: {authorization}\r\n"
        "Content-Length: 0\r\n\r\n"
    ).encode()


A_PUBLISH = asking(*WRITES[0])


@pytest.mark.parametrize(("method", "target"), WRITES)
async def test_what_would_be_written_is_turned_away(rig: Rig, method: str, target: str) -> None:
    rig.stopping = True
    reader, writer = await rig.connect()
    writer.write(asking(method, target) * 2)
    reply = await next_reply(reader)
    assert (reply.status, reply.error) == (503, "the relay is stopping")
    assert (reply.headers["Retry-After"], reply.headers["Connection"]) == ("1", "close")
    assert await reader.read() == b""
    assert rig.publisher.calls == []
    writer.close()


@pytest.mark.parametrize(
    ("target", "status"), [("/v2/keys", 200), ("/healthz", 200), ("/v2/messages/msg_1", 404)]
)
async def test_what_is_read_is_the_last_of_its_connection(rig: Rig, target: str, status: int) -> None:
    rig.stopping = True
    reader, writer = await rig.connect()
    writer.write(asking("GET", target))
    reply = await next_reply(reader)
    assert (reply.status, reply.headers["Connection"]) == (status, "close")
    assert await reader.read() == b""
    writer.close()


async def test_a_publish_that_was_under_way_is_the_last_of_its_connection(rig: Rig) -> None:
    rig.publisher.gate.clear()
    reader, writer = await rig.connect()
    writer.write(A_PUBLISH)
    await until(lambda: len(rig.publisher.calls) == 1)
    rig.stopping = True
    rig.publisher.gate.set()
    reply = await next_reply(reader)
    assert (reply.status, reply.headers["Connection"]) == (200, "close")
    assert await reader.read() == b""
    writer.close()


async def test_whoever_asks_nothing_is_hung_up_on_and_whoever_has_begun_is_heard(rig: Rig) -> None:
    assert rig.runner is not None
    rig.publisher.gate.clear()
    fresh, kept, begun, asked = [await rig.connect() for _ in range(4)]
    kept[1].write(asking("GET", "/v2/keys"))
    assert (await next_reply(kept[0])).status == 200
    asked[1].write(A_PUBLISH)
    begun[1].write(A_PUBLISH[:30])
    await until(lambda: len(rig.publisher.calls) == 1)
    assert (await rig.call("GET", "/healthz")).status == 200

    rig.stopping = True
    await rig.runner.hang_up_idle()
    assert (await fresh[0].read(), await kept[0].read()) == (b"", b"")
    await until(lambda: rig.connections == 2)
    begun[1].write(A_PUBLISH[30:])
    assert (await next_reply(begun[0])).status == 503
    rig.publisher.gate.set()
    assert (await next_reply(asked[0])).status == 200
    for _, writer in (fresh, kept, begun, asked):
        writer.close()


async def test_a_relay_that_waits_for_its_deliveries_takes_no_more(tmp_path: Path) -> None:
    called, go_on = asyncio.Event(), asyncio.Event()

    async def endpoint(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        called.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(endpoint, "127.0.0.1", 0)
    storage = await open_storage(f"sqlite:///{tmp_path}/relay.db")
    clock = SystemClock()
    await development(storage, now=clock.now())
    config = Config(port=0, allow_networks=(ip_network("127.0.0.0/8"),))
    relay = Relay(config, storage, clock=clock, log=Recorder())
    port = int((await relay.start()).rpartition(":")[2])
    there = f"/v2/publish/http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    publish = asking("POST", there, f"Bearer {DEVELOPMENT}")
    async with asyncio.timeout(30):
        kept_reader, kept = await asyncio.open_connection("127.0.0.1", port)
        begun_reader, begun = await asyncio.open_connection("127.0.0.1", port)
        begun.write(publish[:30])
        kept.write(publish)
        assert (await next_reply(kept_reader)).status == 200
        await called.wait()

        stopping = asyncio.ensure_future(relay.stop())
        assert await kept_reader.read() == b""
        begun.write(publish[30:])
        assert (await next_reply(begun_reader)).status == 503
        assert not stopping.done()
        go_on.set()
        await stopping
    kept.close()
    begun.close()
    assert (await storage.stats()).live == 0
    await storage.close()
    server.close()

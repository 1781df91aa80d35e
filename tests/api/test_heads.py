"""What a client is given before anybody knows who it is: time and bytes for a head, time between requests."""

import asyncio
from pathlib import Path

import pytest

from relay.api.connection import Bounds
from tests.api.rig import AUTHORIZATION, Reply, Rig, next_reply, running, until
from tests.api.specification import Specification

LINE = b"POST /v2/publish/https://example.com HTTP/1.1\r\n"
FIELDS = f"Host: relay\r\nAuthorization: {AUTHORIZATION}\r\n".encode()
HEAD = LINE + FIELDS
A_PUBLISH = HEAD + b"Content-Length: 2\r\n\r\nhi"
A_LOOK = b"GET /v2/keys HTTP/1.1\r\n" + FIELDS + b"\r\n"
SOON = 0.05


@pytest.fixture(params=[True, False], ids=["lane", "router"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


async def the_last(reader: asyncio.StreamReader) -> Reply:
    """The next answer, after which the connection ends."""
    reply = await next_reply(reader)
    assert reply.headers["Connection"] == "close"
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    return reply


# --- time


async def test_a_connection_that_never_asks_is_closed(
    path: Path, specification: Specification, lane: bool
) -> None:
    async with running(path, specification, lane=lane, bounds=Bounds(head_s=SOON)) as rig:
        reader, writer = await rig.connect()
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        await until(lambda: rig.connections == 0)
        writer.close()


@pytest.mark.parametrize("before", [b"", A_PUBLISH, A_LOOK], ids=["first", "publish", "look"])
@pytest.mark.parametrize("begun", [b"P", b"\r\n", HEAD], ids=["letter", "blank", "headers"])
async def test_half_a_head_is_waited_for_until_its_time_is_up(
    path: Path, specification: Specification, lane: bool, before: bytes, begun: bytes
) -> None:
    async with running(path, specification, lane=lane, bounds=Bounds(head_s=SOON)) as rig:
        reader, writer = await rig.connect()
        if before:
            writer.write(before)
            assert (await next_reply(reader)).status == 200
        writer.write(begun)
        reply = await the_last(reader)
        assert (reply.status, reply.error) == (408, "no complete head came within 0.05 s")
        assert reply.headers["X-Request-Id"].startswith("req_")
        writer.close()


async def test_a_head_that_comes_drop_by_drop_gets_no_more_time(
    path: Path, specification: Specification, lane: bool
) -> None:
    async with running(path, specification, lane=lane, bounds=Bounds(head_s=0.1)) as rig:
        reader, writer = await rig.connect()
        writer.write(HEAD + b"X: ")
        answer = asyncio.ensure_future(next_reply(reader))
        drops = 0
        while not answer.done():
            writer.write(b"x")
            drops += 1
            await asyncio.wait({answer}, timeout=0.005)
        assert (await answer).status == 408
        assert drops > 2
        writer.close()


@pytest.mark.parametrize("request_", [A_PUBLISH, A_LOOK], ids=["publish", "look"])
async def test_a_connection_that_asks_nothing_more_is_closed_without_a_word(
    path: Path, specification: Specification, lane: bool, request_: bytes
) -> None:
    async with running(path, specification, lane=lane, bounds=Bounds(idle_s=SOON)) as rig:
        reader, writer = await rig.connect()
        for _ in range(2):
            writer.write(request_)
            assert (await next_reply(reader)).status == 200
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_waits_for_its_answer_is_not_idle(
    path: Path, specification: Specification, lane: bool
) -> None:
    bounds = Bounds(head_s=SOON, idle_s=SOON)
    async with running(path, specification, lane=lane, bounds=bounds) as rig:
        rig.publisher.gate.clear()
        reader, writer = await rig.connect()
        writer.write(A_PUBLISH)
        await until(lambda: len(rig.publisher.calls) == 1)
        for _ in range(2):
            idle_reader, idle_writer = await rig.connect()
            assert await idle_reader.read() == b""
            idle_writer.close()
        rig.publisher.gate.set()
        assert (await next_reply(reader)).status == 200
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


async def test_a_head_in_pieces_is_as_good_as_any(rig: Rig) -> None:
    reader, writer = await rig.connect()
    for _ in range(3):
        for piece in (LINE, FIELDS, b"Content-Length: 2\r\n\r\n", b"hi"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert (await next_reply(reader)).status == 200
    writer.close()


# --- bytes


async def test_a_head_without_end_is_refused_at_the_limit(
    path: Path, specification: Specification, lane: bool
) -> None:
    async with running(path, specification, lane=lane, bounds=Bounds(head_bytes=1_000)) as rig:
        reader, writer = await rig.connect()
        writer.write((HEAD + b"X: " + b"x" * 1_000)[:1_001])
        reply = await the_last(reader)
        assert reply.status == 431
        assert reply.error == "the request line and the headers are longer than the limit of 1000 bytes"
        assert reply.headers["X-Request-Id"].startswith("req_")
        await until(lambda: rig.connections == 0)
        writer.close()


async def test_a_head_is_held_to_the_limit_however_it_comes(
    path: Path, specification: Specification, lane: bool
) -> None:
    too_long = HEAD + b"X: " + b"x" * 1_000 + b"\r\nContent-Length: 0\r\n\r\n"
    async with running(path, specification, lane=lane, bounds=Bounds(head_bytes=1_000)) as rig:
        for pieces in ((too_long,), (too_long[:900], too_long[900:]), (too_long + A_PUBLISH,)):
            reader, writer = await rig.connect()
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            assert (await the_last(reader)).status == 431
            writer.close()
        assert rig.publisher.calls == []


async def test_a_head_that_is_too_long_takes_nothing_from_those_before(
    path: Path, specification: Specification, lane: bool
) -> None:
    async with running(path, specification, lane=lane, bounds=Bounds(head_bytes=1_000)) as rig:
        reader, writer = await rig.connect()
        writer.write(A_PUBLISH + A_LOOK + HEAD + b"X: " + b"x" * 1_000 + b"\r\n\r\n")
        assert [(await next_reply(reader)).status for _ in range(2)] == [200, 200]
        assert (await the_last(reader)).status == 431
        writer.close()


async def test_bodies_and_further_requests_are_not_part_of_a_head(
    path: Path, specification: Specification, lane: bool
) -> None:
    bounds = Bounds(head_bytes=300)
    async with running(path, specification, lane=lane, bounds=bounds) as rig:
        reader, writer = await rig.connect()
        for size in (40_000, 400_000):
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
            assert (await next_reply(reader)).status == 200
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_000 + b"0\r\n\r\n")
        assert (await next_reply(reader)).status == 200
        writer.write(A_PUBLISH * 20)
        assert [(await next_reply(reader)).status for _ in range(20)] == [200] * 20
        writer.close()


async def test_trailers_without_end_are_refused_at_the_limit(
    path: Path, specification: Specification, lane: bool
) -> None:
    async with running(path, specification, lane=lane, bounds=Bounds(head_bytes=1_000)) as rig:
        rig.publisher.gate.clear()
        reader, writer = await rig.connect()
        writer.write(A_PUBLISH)
        await until(lambda: len(rig.publisher.calls) == 1)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        await writer.drain()
        for _ in range(1_001):
            writer.write(b"X: x\r\n")
            await writer.drain()
        rig.publisher.gate.set()
        assert (await next_reply(reader)).status == 200
        assert len(rig.publisher.calls) == 1
        writer.close()


@pytest.mark.parametrize(
    ("head", "status", "error"),
    [
        (
            b"POST /v2/publish/https://example.com/" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
            414,
            "the request line is longer than the limit of 36864 bytes",
        ),
        (
            HEAD + b"X: " + b"a" * 33_000 + b"\r\n\r\n",
            431,
            "a header is longer than the limit of 32768 bytes",
        ),
        (HEAD + b"a" * 33_000 + b": X\r\n\r\n", 431, "a header is longer than the limit of 32768 bytes"),
        (HEAD + b"X: x\r\n" * 300 + b"\r\n", 431, "there are more than 256 headers"),
        (
            HEAD + (b"X: " + b"a" * 32_000 + b"\r\n") * 5 + b"\r\n",
            431,
            "the request line and the headers are longer than the limit of 131072 bytes",
        ),
    ],
    ids=["line", "value", "name", "count", "all"],
)
async def test_what_is_too_long_is_named(rig: Rig, head: bytes, status: int, error: str) -> None:
    reader, writer = await rig.connect()
    writer.write(head)
    reply = await next_reply(reader)
    assert (reply.status, reply.error) == (status, error)
    assert reply.headers["X-Request-Id"].startswith("req_")
    writer.close()


async def test_a_request_for_an_upgrade_is_the_last_of_its_connection(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(A_LOOK[:-2] + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n" + A_LOOK)
    assert (await the_last(reader)).status == 200
    writer.close()

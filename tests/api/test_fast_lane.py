"""The fast lane: what a connection goes through when publishes are answered before there is a router."""

import asyncio
import gc
import logging
import socket
import struct
from pathlib import Path

import pytest

from tests.api.rig import AUTHORIZATION, READ_ONLY, TOKEN, Rig, next_reply, running, until
from tests.api.specification import Specification


def a_publish(name: str, body: bytes = b"hello", *, version: str = "1.1", headers: str = "") -> bytes:
    head = (
        f"POST /v2/publish/https://example.com/{name} HTTP/{version}\r\nHost: relay\r\n"
        f"Authorization: {AUTHORIZATION}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


A_LOOK = f"GET /v2/keys HTTP/1.1\r\nHost: relay\r\nAuthorization: {AUTHORIZATION}\r\n\r\n".encode()


@pytest.fixture(params=[True, False], ids=["lane", "router"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_pipelined_publishes_are_answered_in_their_order(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(b"".join(a_publish(str(number)) for number in range(300)))
    for number in range(300):
        reply = await next_reply(reader)
        assert reply.json["url"] == f"https://example.com/{number}"
    writer.close()


async def test_publishes_and_other_requests_share_a_connection(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(a_publish("1") + A_LOOK + a_publish("2") + A_LOOK + a_publish("3", b"x" * 100_000))
    members = [set((await next_reply(reader)).json) for _ in range(5)]
    published, keys = {"messageId", "url"}, {"current", "next"}
    assert members == [published, keys, published, keys, published]
    writer.close()


async def test_a_body_may_come_in_pieces(rig: Rig) -> None:
    reader, writer = await rig.connect()
    request = a_publish("pieces", b"0123456789")
    for index in range(len(request)):
        writer.write(request[index : index + 1])
        await writer.drain()
        await asyncio.sleep(0)
    reply = await next_reply(reader)
    assert (await rig.show(reply.json["messageId"]))["body"] == "0123456789"
    writer.close()


async def test_a_client_that_leaves_before_its_answer_has_still_published(rig: Rig) -> None:
    rig.publisher.gate.clear()
    _, writer = await rig.connect()
    writer.write(a_publish("left"))
    await until(lambda: len(rig.publisher.calls) == 1)
    writer.close()
    await writer.wait_closed()
    rig.publisher.gate.set()
    assert (await rig.call("GET", "/v2/keys")).status == 200
    assert rig.log.lines == []


async def test_the_connection_of_an_old_client_is_closed_after_the_answer(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(a_publish("old", version="1.0"))
    assert (await next_reply(reader)).status == 200
    assert await reader.read() == b""
    writer.close()


async def test_a_request_to_close_is_heeded(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(a_publish("last", headers="Connection: close\r\n"))
    assert (await next_reply(reader)).status == 200
    assert await reader.read() == b""
    writer.close()


async def test_garbage_after_a_publish_ends_the_connection(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(a_publish("good"))
    assert (await next_reply(reader)).status == 200
    writer.write(b"garbage\r\n\r\n")
    assert (await next_reply(reader)).status == 400
    assert await reader.read() == b""
    writer.close()


async def test_both_roads_say_the_same(tmp_path: Path, specification: Specification) -> None:
    answers = []
    for lane in (True, False):
        async with running(tmp_path / f"{lane}.db", specification, lane=lane) as rig:
            said = []
            for target, headers, token in (
                ("https://example.com", {}, TOKEN),
                ("https://example.com", {"Upstash-Deduplication-Id": "a"}, TOKEN),
                ("https://example.com", {"Upstash-Deduplication-Id": "a"}, TOKEN),
                ("https://example.com", {"Upstash-Delay": "soon"}, TOKEN),
                ("https://example.com", {"Upstash-Retries": "1000000"}, TOKEN),
                ("nowhere", {}, TOKEN),
                ("https://example.com", {}, READ_ONLY),
                ("https://example.com", {}, None),
                (f"https://example.com?qstash_token={TOKEN}", {}, None),
            ):
                reply = await rig.call("POST", f"/v2/publish/{target}", headers=headers, token=token)
                names = {name for name in reply.headers if name != "Server"}
                shown = {**reply.json, "messageId": "messageId" in reply.json}
                said.append((reply.status, shown, names))
            assert rig.by_lane == (len(said) if lane else 0)
            answers.append(said)
    assert answers[0] == answers[1]
    assert {status for status, _, _ in answers[0]} == {200, 202, 400, 401, 403, 412}


async def test_a_publish_under_way_is_answered_when_the_relay_stops(
    tmp_path: Path, specification: Specification, lane: bool
) -> None:
    async with running(tmp_path / "relay.db", specification, lane=lane) as rig:
        rig.publisher.gate.clear()
        reader, writer = await rig.connect()
        idle_reader, idle_writer = await rig.connect()
        writer.write(a_publish("last"))
        await until(lambda: len(rig.publisher.calls) == 1)
        asyncio.get_running_loop().call_later(0.05, rig.publisher.gate.set)
    assert (await next_reply(reader)).status == 200
    assert await reader.read() == b""
    assert await idle_reader.read() == b""
    writer.close()
    idle_writer.close()


@pytest.mark.parametrize("resets", [True, False])
async def test_a_client_that_does_not_read_is_not_answered_without_end(
    rig: Rig, resets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rig.publisher.gate.clear()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, ("127.0.0.1", rig.port))
    # Each answer repeats the URL: these are far more bytes than the buffers between the two ends hold.
    request = a_publish("x" * 8_000, b"")
    sending = loop.create_task(loop.sock_sendall(connection, request * 3_000))
    await until(lambda: len(rig.publisher.calls) == 1)
    rig.publisher.gate.set()
    seen = 0
    with caplog.at_level(logging.WARNING):
        while seen != len(rig.publisher.calls):
            seen = len(rig.publisher.calls)
            for _ in range(20):
                assert (await rig.call("GET", "/v2/keys")).status == 200
        assert seen < 3_000
        sending.cancel()
        if resets:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        await until(lambda: rig.connections == 1)
        gc.collect()
    assert [record.getMessage() for record in caplog.records] == []
    assert rig.log.lines == []

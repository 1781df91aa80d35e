"""Whatever an endpoint does becomes an `Attempt`, and the same one that `ClientSession` would have come to."""

import asyncio
import gzip
import socket
import zlib
from collections.abc import AsyncIterator

import pytest
from msgspec import Struct

from relay.clock import FakeClock
from relay.engine.egress import Egress
from relay.engine.sender import Sender
from tests.chaos_server import (
    Caller,
    ChaosServer,
    Script,
    an_answer,
    answering,
    answering_once,
    hanging_after,
    resetting_after,
)
from tests.engine.sending import LOOPBACK, PATIENT_MS, SHORT_MS, a_request
from tests.engine.stock_sender import StockSender

MAX_BODY = 10_000


class Case(Struct, frozen=True):
    """What the server does, and what comes of it. `error` is the lean sender's sentence."""

    script: Script
    status: int | None = 200
    body: bytes = b""
    error: str | None = None
    timeout_ms: int = PATIENT_MS


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


async def resetting_on_connect(caller: Caller) -> None:
    caller.reset()


async def dripping(caller: Caller) -> None:
    """A byte of body every now and then, without end."""
    await caller.request()
    caller.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        caller.write(b"x")
        await asyncio.sleep(0.005)


async def taking_its_time(caller: Caller) -> None:
    await caller.request()
    for part in (b"HTTP/1.1 200 OK\r\nContent-", b"Length: 4\r\n", b"\r\n", b"la", b"te"):
        await asyncio.sleep(0.01)
        caller.write(part)
    await caller.gone()


async def flooding(caller: Caller) -> None:
    await caller.request()
    caller.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        caller.write(chunked(b"x" * 1_000))
        await caller.drain()


async def answering_in_pieces(caller: Caller) -> None:
    """Every byte in a segment of its own."""
    await caller.request()
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"he", b"llo") + b"0\r\n\r\n"
    for byte in answer:
        caller.write(bytes([byte]))
        await caller.drain()
    await caller.gone()


HEAD_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HEAD_OF_10 = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
HEAD_UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"

CASES = {
    "a body with a length": Case(answering(an_answer(200, b"fine")), 200, b"fine"),
    "no body": Case(answering(an_answer(200, b"")), 200),
    "an error": Case(answering(an_answer(500, b"oops")), 500, b"oops"),
    "a redirect": Case(answering(an_answer(302, b"", "Location: /elsewhere")), 302),
    "a status nobody knows": Case(answering(an_answer(799, b"?")), 799, b"?"),
    "no content": Case(answering(b"HTTP/1.1 204 No Content\r\n\r\n"), 204),
    "not modified": Case(answering(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"), 304),
    "chunks": Case(answering(HEAD_CHUNKED + chunked(b"he", b"llo") + b"0\r\n\r\n"), 200, b"hello"),
    "chunks and trailers": Case(
        answering(HEAD_CHUNKED + chunked(b"hello") + b"0\r\nChecksum: 1\r\n\r\n"), 200, b"hello"
    ),
    "one byte at a time": Case(answering_in_pieces, 200, b"hello"),
    "a slow answer": Case(taking_its_time, 200, b"late"),
    "a body until the end of the connection": Case(answering_once(HEAD_UNTIL_CLOSE + b"all"), 200, b"all"),
    "HTTP/1.0": Case(answering_once(b"HTTP/1.0 200 OK\r\n\r\nold"), 200, b"old"),
    "an announced close": Case(answering_once(an_answer(201, b"bye", "Connection: close")), 201, b"bye"),
    "100 Continue first": Case(answering(b"HTTP/1.1 100 Continue\r\n\r\n" + an_answer()), 200, b"ok"),
    "103 Early Hints first": Case(
        answering(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + an_answer()), 200, b"ok"
    ),
    "gzip that nobody asked for": Case(
        answering(an_answer(200, gzip.compress(b"text"), "Content-Encoding: gzip")), 200, b"text"
    ),
    "deflate": Case(
        answering(an_answer(200, zlib.compress(b"text"), "Content-Encoding: deflate")), 200, b"text"
    ),
    "raw deflate": Case(
        answering(an_answer(200, zlib.compress(b"text", wbits=-15), "Content-Encoding: deflate")),
        200,
        b"text",
    ),
    "a body at the bound": Case(answering(an_answer(200, b"x" * MAX_BODY)), 200, b"x" * MAX_BODY),
    "a body beyond the bound": Case(answering(an_answer(200, b"x" * (MAX_BODY + 1))), 200, b"x" * MAX_BODY),
    "a body without end": Case(flooding, 200, b"x" * MAX_BODY),
    "a header that is not ASCII": Case(answering(an_answer(200, b"", "X-Name: gr\u00fc\u00df")), 200),
    "many headers": Case(answering(an_answer(200, b"", *(f"X-{n}: {n}" for n in range(100)))), 200),
    "a reset on connect": Case(
        resetting_on_connect, None, error="the connection was reset before any answer"
    ),
    "a reset instead of an answer": Case(
        resetting_after(), None, error="the connection was reset before any answer"
    ),
    "a close instead of an answer": Case(
        answering_once(), None, error="the connection was closed before any answer"
    ),
    "a reset in the head": Case(
        resetting_after(b"HTTP/1.1 200 OK\r\nContent-"),
        None,
        error="the connection was reset in the middle of the answer's head",
    ),
    "a close in the head": Case(
        answering_once(b"HTTP/1.1 200 OK\r\nContent-"),
        None,
        error="the connection was closed in the middle of the answer's head",
    ),
    "a close after an interim answer": Case(
        answering_once(b"HTTP/1.1 100 Continue\r\n\r\n"),
        None,
        error="the connection was closed in the middle of the answer's head",
    ),
    "a reset in the body": Case(
        resetting_after(HEAD_OF_10 + b"12345"),
        200,
        b"12345",
        "the connection was reset in the middle of the answer's body",
    ),
    "a close in the body": Case(
        answering_once(HEAD_OF_10 + b"12345"),
        200,
        b"12345",
        "the connection was closed in the middle of the answer's body",
    ),
    "a close between chunks": Case(
        answering_once(HEAD_CHUNKED + chunked(b"12345")),
        200,
        b"12345",
        "the connection was closed in the middle of the answer's body",
    ),
    "another protocol": Case(
        answering(b"SSH-2.0-OpenSSH_9.9\r\n"),
        None,
        error="the answer is not valid HTTP: Bad status line",
    ),
    "two lengths": Case(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        None,
        error="the answer is not valid HTTP: Duplicate Content-Length",
    ),
    "a header line too long": Case(
        answering(an_answer(200, b"", "X: " + "x" * 20_000)),
        None,
        error="the answer is not valid HTTP: Got more than 16384 bytes",
    ),
    "silence": Case(hanging_after(), None, error="no answer within 250 ms", timeout_ms=SHORT_MS),
    "silence in the head": Case(
        hanging_after(b"HTTP/1.1 200"), None, error="no answer within 250 ms", timeout_ms=SHORT_MS
    ),
    "silence in the body": Case(
        hanging_after(HEAD_OF_10 + b"12345"),
        200,
        b"12345",
        "the answer was not complete within 250 ms",
        timeout_ms=SHORT_MS,
    ),
}


@pytest.fixture(params=[Sender, StockSender])
async def sender(request: pytest.FixtureRequest) -> AsyncIterator[Sender | StockSender]:
    sender: Sender | StockSender = request.param(
        egress=LOOPBACK, clock=FakeClock(), max_response_bytes=MAX_BODY
    )
    yield sender
    await sender.close()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_what_the_endpoint_does_becomes_an_attempt(sender: Sender | StockSender, case: Case) -> None:
    async with ChaosServer(case.script) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=case.timeout_ms)
        assert server.connections == 1
    assert attempt.status == case.status
    assert attempt.body == case.body
    if isinstance(sender, Sender):
        assert (attempt.error or "").startswith(case.error or "")
    assert (attempt.error is None) == (case.error is None)
    assert attempt.succeeded == (case.error is None and case.status in (200, 201, 204))


async def test_a_body_that_only_drips_is_given_up_at_the_deadline(sender: Sender | StockSender) -> None:
    async with ChaosServer(dripping) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=SHORT_MS)
    assert attempt.status == 200
    assert set(attempt.body) == {ord("x")}
    assert len(attempt.body) < 100
    assert attempt.error is not None
    if isinstance(sender, Sender):
        assert attempt.error == "the answer was not complete within 250 ms"


async def test_the_request_arrives_as_it_was_built(sender: Sender | StockSender) -> None:
    async with ChaosServer(answering()) as server:
        request = a_request(
            server.url("/a%20b//c?x=%zz&y"), body=b"\x00\xff", headers=(("X-Note", "gr\u00fc\u00df"),)
        )
        await sender.send(request, timeout_ms=PATIENT_MS)
    [received] = server.requests
    assert received.line == "POST /a%20b//c?x=%zz&y HTTP/1.1"
    assert received.body == b"\x00\xff"
    assert received.headers["host"] == f"127.0.0.1:{server.port}"
    assert received.headers["upstash-signature"] == "signed"
    assert received.headers["x-note"].encode("latin-1").decode() == "gr\u00fc\u00df"


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "POST"])
async def test_every_method_carries_its_body(sender: Sender | StockSender, method: str) -> None:
    async with ChaosServer(answering()) as server:
        attempt = await sender.send(a_request(server.url(), method=method), timeout_ms=PATIENT_MS)
    assert attempt.succeeded
    assert [(request.line, request.body) for request in server.requests] == [
        (f"{method} / HTTP/1.1", b"hello")
    ]


async def test_response_headers_are_kept_in_order_with_repeats(sender: Sender | StockSender) -> None:
    answer = an_answer(200, b"", "X-B: 1", "Set-Cookie: a=1", "x-a:  2 ", "Set-Cookie: b=2")
    async with ChaosServer(answering(answer)) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert attempt.headers == (
        ("X-B", "1"),
        ("Set-Cookie", "a=1"),
        ("x-a", "2"),
        ("Set-Cookie", "b=2"),
        ("Content-Length", "0"),
    )


async def test_nobody_listening_is_a_refused_connection(sender: Sender | StockSender) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        attempt = await sender.send(a_request(f"http://127.0.0.1:{port}/"), timeout_ms=PATIENT_MS)
    assert attempt.status is None
    assert attempt.error is not None
    if isinstance(sender, Sender):
        assert attempt.error == f"127.0.0.1:{port} refused the connection"


@pytest.mark.parametrize("kind", [Sender, StockSender])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_address_that_may_not_be_called_is_not_connected_to(
    kind: type[Sender | StockSender], scheme: str
) -> None:
    async with ChaosServer(answering()) as server:
        sender = kind(egress=Egress(), clock=FakeClock())
        attempt = await sender.send(a_request(f"{scheme}://127.0.0.1:{server.port}/"), timeout_ms=PATIENT_MS)
        await sender.close()
        assert server.connections == 0
    assert attempt.status is None
    assert attempt.error is not None
    if isinstance(sender, Sender):
        assert (
            attempt.error == "127.0.0.1 is not a public address; add it to RELAY_ALLOW_NETWORKS to allow it"
        )


async def test_what_cannot_be_built_is_an_attempt_that_says_why(sender: Sender | StockSender) -> None:
    attempt = await sender.send(a_request("ftp://example.com/"), timeout_ms=PATIENT_MS)
    assert attempt.status is None
    assert attempt.error == 'url: "ftp://example.com/" does not begin with http:// or https://'

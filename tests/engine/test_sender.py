"""The lean sender: which connection carries a request, when it is sent again, what is left of a bad answer."""

import asyncio
import zlib

import pytest

from relay.clock import FakeClock
from relay.engine.sender import Sender
from relay.wire.outbound import Outgoing, Peer
from tests.chaos_server import (
    Caller,
    ChaosServer,
    an_answer,
    answering,
    answering_once,
    hanging_after,
    resetting_after,
)
from tests.engine.sending import LOOPBACK, PATIENT_MS, SHORT_MS, a_request, a_sender

HEAD_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# --- one connection, many requests


async def test_attempts_one_after_the_other_share_a_connection() -> None:
    async with a_sender() as sender, ChaosServer(answering()) as server:
        attempts = [await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS) for _ in range(5)]
        assert server.connections == 1
    assert all(attempt.succeeded and attempt.body == b"ok" for attempt in attempts)


async def test_attempts_at_the_same_time_do_not_share_a_connection() -> None:
    async def both_at_once(caller: Caller) -> None:
        await caller.request()
        await meeting.wait()
        caller.write(an_answer())
        await caller.gone()

    meeting = asyncio.Barrier(2)
    async with a_sender() as sender, ChaosServer(both_at_once) as server:
        attempts = await asyncio.gather(
            *(sender.send(a_request(server.url()), timeout_ms=PATIENT_MS) for _ in range(2))
        )
        assert server.connections == 2
    assert all(attempt.succeeded for attempt in attempts)


@pytest.mark.parametrize(
    "answer",
    [
        an_answer(200, b"ok", "Connection: close"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        an_answer() + b"more than was promised",
        an_answer() + an_answer(),
        an_answer() + b"HTTP/1.1 2",
        HEAD_CHUNKED + b"2\r\nok\r\n0\r\n\r\ngarbage",
        HEAD_CHUNKED + b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nX-",
        HEAD_CHUNKED + b"2\r\nok\r\n0\r\n\r\n" + an_answer(200, b""),
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok" * 2,
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nokgarbage",
    ],
    ids=[
        "announced close",
        "HTTP/1.0",
        "garbage",
        "a second answer",
        "a part of one",
        "garbage after chunks",
        "a part of an answer after chunks",
        "a second answer after chunks",
        "a second answer, bare line feeds",
        "garbage, bare line feeds",
    ],
)
async def test_a_connection_that_is_not_clean_carries_no_other_request(answer: bytes) -> None:
    async with a_sender() as sender, ChaosServer(answering(answer)) as server:
        for _ in range(2):
            attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
            assert (attempt.status, attempt.body, attempt.error) in (
                (200, b"ok", None),
                # Where line ends are not as they should be, head and garbage cannot be told apart in time.
                (None, b"", "the answer is not valid HTTP: Bad status line"),
            )
        assert server.connections == 2


async def test_a_body_behind_an_answer_that_has_none_is_ignored() -> None:
    """Frameworks let people write `return {}, 204`; the status is still what counts."""
    answer = b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n{}"
    async with a_sender() as sender, ChaosServer(answering(answer)) as server:
        for _ in range(2):
            attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
            assert attempt.succeeded
            assert (attempt.status, attempt.body) == (204, b"")
        assert server.connections == 2


async def test_an_answer_before_the_request_is_through_leaves_no_connection() -> None:
    async def refusing_at_once(caller: Caller) -> None:
        await caller.reader.readuntil(b"\r\n\r\n")
        caller.write(an_answer(413, b"too large"))
        await caller.gone()

    async with a_sender() as sender, ChaosServer(refusing_at_once) as server:
        request = a_request(server.url(), body=b"x" * (32 << 20))
        for _ in range(2):
            attempt = await sender.send(request, timeout_ms=PATIENT_MS)
            assert (attempt.status, attempt.body, attempt.error) == (413, b"too large", None)
        assert server.connections == 2


async def test_a_large_body_arrives_whole() -> None:
    body = bytes(range(256)) * (1 << 15)
    async with a_sender() as sender, ChaosServer(answering()) as server:
        attempt = await sender.send(a_request(server.url(), body=body), timeout_ms=PATIENT_MS)
    assert attempt.succeeded
    assert [request.body for request in server.requests] == [body]


async def test_a_late_answer_reaches_nobody() -> None:
    async def answering_the_first_too_late(caller: Caller) -> None:
        await caller.request()
        if caller.number == 1:
            await given_up.wait()
        caller.write(an_answer(200, f"answer {caller.number}".encode()))
        await caller.gone()

    given_up = asyncio.Event()
    async with a_sender() as sender, ChaosServer(answering_the_first_too_late) as server:
        first = await sender.send(a_request(server.url()), timeout_ms=SHORT_MS)
        given_up.set()
        second = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert first.error == f"no answer within {SHORT_MS} ms"
    assert second.body == b"answer 2"


async def test_an_answer_to_no_question_is_not_taken_for_the_next() -> None:
    async def babbling(caller: Caller) -> None:
        await caller.request()
        caller.write(an_answer(200, b"first"))
        await asked_once.wait()
        caller.write(an_answer(200, b"unasked"))
        await caller.gone()
        dropped.set()

    asked_once, dropped = asyncio.Event(), asyncio.Event()
    async with a_sender() as sender, ChaosServer(babbling) as server:
        assert (await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)).body == b"first"
        asked_once.set()
        await asyncio.wait_for(dropped.wait(), 10)
        assert (await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)).body == b"first"
        assert server.connections == 2


async def test_a_connection_is_closed_when_it_has_rested_long_enough() -> None:
    async def answering_until_gone(caller: Caller) -> None:
        await caller.request()
        caller.write(an_answer())
        await caller.gone()
        closed.set()

    closed = asyncio.Event()
    async with a_sender(idle_ms=10) as sender, ChaosServer(answering_until_gone) as server:
        await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
        await asyncio.wait_for(closed.wait(), 10)


async def test_each_connection_rests_its_own_time() -> None:
    async def telling(caller: Caller) -> None:
        await caller.request()
        await asyncio.sleep(0.02 if caller.number == 2 else 0)
        caller.write(an_answer())
        await caller.gone()
        closed.put_nowait(caller.number)

    closed: asyncio.Queue[int] = asyncio.Queue()
    async with a_sender(idle_ms=60) as sender, ChaosServer(telling) as server:
        await asyncio.gather(*(sender.send(a_request(server.url()), timeout_ms=PATIENT_MS) for _ in range(2)))
        assert {await asyncio.wait_for(closed.get(), 10) for _ in range(2)} == {1, 2}


async def test_neither_rest_nor_deadline_of_an_earlier_attempt_end_a_later_one() -> None:
    async def slow_the_second_time(caller: Caller) -> None:
        await caller.request()
        caller.write(an_answer())
        await caller.request()
        await asyncio.sleep(SHORT_MS * 2 / 1000)
        caller.write(an_answer(200, b"second"))
        await caller.gone()

    async with a_sender(idle_ms=SHORT_MS) as sender, ChaosServer(slow_the_second_time) as server:
        await sender.send(a_request(server.url()), timeout_ms=SHORT_MS)
        assert (await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)).body == b"second"
        assert server.connections == 1


async def test_more_connections_than_allowed_do_not_rest() -> None:
    async def telling_when_closed(caller: Caller) -> None:
        await caller.request()
        await meeting.wait()
        caller.write(an_answer())
        await caller.gone()
        closed.put_nowait(caller.number)

    meeting = asyncio.Barrier(5)
    closed: asyncio.Queue[int] = asyncio.Queue()
    async with a_sender(max_idle=2) as sender, ChaosServer(telling_when_closed) as server:
        await asyncio.gather(*(sender.send(a_request(server.url()), timeout_ms=PATIENT_MS) for _ in range(5)))
        gone = {await asyncio.wait_for(closed.get(), 10) for _ in range(3)}
        assert len(gone) == 3
        assert closed.empty()


async def test_the_connection_that_has_rested_longest_makes_room_for_another() -> None:
    async with (
        a_sender(max_idle=1) as sender,
        ChaosServer(answering()) as one,
        ChaosServer(answering()) as two,
    ):
        for server in (one, two, two, one):
            assert (await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)).succeeded
        assert (one.connections, two.connections) == (2, 1)


async def test_of_several_resting_connections_the_last_used_is_used_first() -> None:
    async def telling_its_number(caller: Caller) -> None:
        while await caller.request() is not None:
            if len(server.requests) <= 2:
                await meeting.wait()
            caller.write(an_answer(200, str(caller.number).encode()))
            await caller.drain()

    meeting = asyncio.Barrier(2)
    async with a_sender() as sender, ChaosServer(telling_its_number) as server:

        async def number() -> bytes:
            return (await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)).body

        assert set(await asyncio.gather(number(), number())) == {b"1", b"2"}
        last = await number()
        assert [await number() for _ in range(5)] == [last] * 5


# --- the second sending that costs nothing


async def closing_at_the_second_request(caller: Caller) -> None:
    await caller.request()
    caller.write(an_answer())
    await caller.reader.read(1)


async def resetting_at_the_second_request(caller: Caller) -> None:
    await caller.request()
    caller.write(an_answer())
    await caller.reader.read(1)
    caller.reset()


async def announcing_a_timeout_at_the_second_request(caller: Caller) -> None:
    await caller.request()
    caller.write(an_answer())
    await caller.reader.read(1)
    caller.write(an_answer(408, b"", "Connection: close"))


@pytest.mark.parametrize(
    "script",
    [
        answering_once(an_answer()),
        closing_at_the_second_request,
        resetting_at_the_second_request,
        announcing_a_timeout_at_the_second_request,
    ],
)
async def test_two_hundred_posts_at_the_idle_close_all_succeed(script: object) -> None:
    async with a_sender() as sender, ChaosServer(script) as server:  # type: ignore[arg-type]
        for number in range(200):
            attempt = await sender.send(a_request(server.url(f"/{number}")), timeout_ms=PATIENT_MS)
            assert attempt.succeeded, attempt
    assert [request.line for request in server.requests] == [f"POST /{n} HTTP/1.1" for n in range(200)]


async def test_a_new_connection_that_drops_the_request_is_a_failed_attempt() -> None:
    async with a_sender() as sender, ChaosServer(resetting_after()) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
        assert attempt.error == "the connection was reset before any answer"
        assert server.connections == 1


async def test_a_request_is_sent_again_only_once() -> None:
    async def answering_only_the_very_first(caller: Caller) -> None:
        await caller.request()
        if caller.number == 1:
            caller.write(an_answer())
            await caller.reader.read(1)

    async with a_sender() as sender, ChaosServer(answering_only_the_very_first) as server:
        assert (await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)).succeeded
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
        assert attempt.error == "the connection was closed before any answer"
        assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 2", "the connection was closed in the middle of the answer's head"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            "the connection was closed in the middle of the answer's body",
        ),
    ],
)
async def test_a_request_that_was_being_answered_is_not_sent_again(answer: bytes, error: str) -> None:
    async def breaking_the_second(caller: Caller) -> None:
        await caller.request()
        caller.write(an_answer())
        await caller.request()
        caller.write(answer)

    async with a_sender() as sender, ChaosServer(breaking_the_second) as server:
        assert (await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)).succeeded
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
        assert attempt.error == error
        assert server.connections == 1


async def test_silence_on_a_used_connection_is_a_timeout_and_not_sent_again() -> None:
    async def answering_the_first_only(caller: Caller) -> None:
        await caller.request()
        caller.write(an_answer())
        await caller.request()
        await caller.gone()

    async with a_sender() as sender, ChaosServer(answering_the_first_only) as server:
        assert (await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)).succeeded
        attempt = await sender.send(a_request(server.url()), timeout_ms=SHORT_MS)
        assert attempt.error == f"no answer within {SHORT_MS} ms"
        assert server.connections == 1


async def test_a_408_on_a_new_connection_is_an_answer() -> None:
    answer = an_answer(408, b"slow", "Connection: close")
    async with a_sender() as sender, ChaosServer(answering_once(answer)) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
        assert (attempt.status, attempt.body) == (408, b"slow")
        assert server.connections == 1


# --- what is left of a bad answer


@pytest.mark.parametrize(
    ("answer", "status", "body", "error"),
    [
        (
            HEAD_CHUNKED + b"3\r\n123\r\nzz\r\n",
            200,
            b"123",
            "the answer's body is not valid HTTP: Invalid character in chunk size",
        ),
        (
            HEAD_CHUNKED + b"2\r\n123\r\n",
            200,
            b"12",
            "the answer's body is not valid HTTP: Expected LF after chunk data",
        ),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000,
            None,
            b"",
            "the answer's head is larger than 65536 bytes",
        ),
        (
            an_answer(200, b"ok", *(f"X-{n}: " + "x" * 1_000 for n in range(70))),
            None,
            b"",
            "the answer's head is larger than 65536 bytes",
        ),
        (
            an_answer(200, b"ok", *(f"X-{n}: n" for n in range(300))),
            None,
            b"",
            "the answer is not valid HTTP: Too many headers received",
        ),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tls\r\nConnection: upgrade\r\n\r\n\x16\x03",
            101,
            b"",
            None,
        ),
    ],
    ids=["chunk size", "chunk end", "interim answers", "large head", "many fields", "another protocol"],
)
async def test_a_bad_answer_says_what_is_wrong_and_keeps_what_came_before(
    answer: bytes, status: int | None, body: bytes, error: str | None
) -> None:
    async with a_sender() as sender, ChaosServer(answering(answer)) as server:
        for _ in range(2):
            attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
            assert not attempt.succeeded
            assert (attempt.status, attempt.body) == (status, body)
            assert (attempt.error or "").startswith(error or "")
            assert (attempt.error is None) == (error is None)
        assert server.connections == 2


async def test_a_reset_is_not_the_regular_end_of_a_body() -> None:
    """Where only the end of the connection ends the body, a reset is all that tells half of it from the whole."""
    async with (
        a_sender() as sender,
        ChaosServer(resetting_after(b"HTTP/1.1 200 OK\r\n\r\n12345")) as server,
    ):
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert (attempt.status, attempt.body) == (200, b"12345")
    assert attempt.error == "the connection was reset in the middle of the answer's body"


async def test_a_head_cut_anywhere_is_read_all_the_same() -> None:
    answer = an_answer(200, b"a\r\n\r\nb", "X-A: 1")

    async def cut(caller: Caller) -> None:
        while (received := await caller.request()) is not None:
            at = int(received.body)
            caller.write(answer[:at])
            await caller.drain()
            await asyncio.sleep(0.001)
            caller.write(answer[at:])

    async with a_sender() as sender, ChaosServer(cut) as server:
        for at in range(1, len(answer)):
            attempt = await sender.send(a_request(server.url(), body=str(at).encode()), timeout_ms=PATIENT_MS)
            assert (attempt.status, attempt.body, attempt.error) == (200, b"a\r\n\r\nb", None)


async def test_a_compressed_body_is_unpacked_no_further_than_the_bound() -> None:
    bomb = zlib.compress(b"\0" * (64 << 20))
    assert len(bomb) < 100_000
    answer = an_answer(200, bomb, "Content-Encoding: deflate")
    async with a_sender(max_response_bytes=100_000) as sender, ChaosServer(answering(answer)) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert attempt.succeeded
    assert attempt.body == b"\0" * 100_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "rot13"])
async def test_a_body_that_cannot_be_unpacked_is_kept_as_it_came(encoding: str) -> None:
    answer = an_answer(200, b"\x78not compressed", f"Content-Encoding: {encoding}")
    async with a_sender() as sender, ChaosServer(answering(answer)) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert attempt.succeeded
    assert attempt.body == b"\x78not compressed"


async def test_header_bytes_that_are_not_utf_8_become_text() -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Latin: gr\xfc\xdf\r\nContent-Length: 0\r\n\r\n"
    async with a_sender() as sender, ChaosServer(answering(answer)) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert attempt.headers[0] == ("X-Latin", "gr\u00fc\u00df")
    assert "".join(name + value for name, value in attempt.headers).encode()


async def test_thousands_of_tiny_chunks_are_kept_in_no_more_than_their_bytes() -> None:
    answer = HEAD_CHUNKED + b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n"
    async with a_sender(max_response_bytes=150_000) as sender, ChaosServer(answering(answer)) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert attempt.succeeded
    assert attempt.body == b"x" * 150_000


# --- time, and the end


async def test_an_attempt_knows_when_it_began_and_ended() -> None:
    async def taking_five_seconds(caller: Caller) -> None:
        await caller.request()
        clock.advance(5_000)
        caller.write(an_answer())
        await caller.gone()

    clock = FakeClock(1_000)
    async with a_sender(clock=clock) as sender, ChaosServer(taking_five_seconds) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert (attempt.started_at, attempt.ended_at) == (1_000, 6_000)


async def test_an_attempt_does_not_end_before_it_began() -> None:
    async def while_the_clock_is_set_back(caller: Caller) -> None:
        await caller.request()
        clock.advance(-5_000)
        caller.write(an_answer())
        await caller.gone()

    clock = FakeClock(10_000)
    async with a_sender(clock=clock) as sender, ChaosServer(while_the_clock_is_set_back) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert (attempt.started_at, attempt.ended_at) == (10_000, 10_000)


async def test_connecting_has_a_shorter_deadline_of_its_own() -> None:
    """A server that accepts and never shakes hands: TLS is part of connecting."""
    async with a_sender(connect_timeout_ms=50) as sender, ChaosServer(hanging_after()) as server:
        attempt = await sender.send(a_request(f"https://127.0.0.1:{server.port}/"), timeout_ms=PATIENT_MS)
        assert attempt.error == f"no connection to 127.0.0.1:{server.port} within 50 ms"


async def test_without_time_nothing_is_sent() -> None:
    async with a_sender() as sender, ChaosServer(answering()) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=0)
        assert attempt.error == f"no connection to 127.0.0.1:{server.port} within 0 ms"
        assert server.connections == 0


async def test_connecting_is_part_of_the_attempt() -> None:
    async with a_sender() as sender, ChaosServer(hanging_after()) as server:
        attempt = await sender.send(a_request(f"https://127.0.0.1:{server.port}/"), timeout_ms=50)
        assert attempt.error == f"no connection to 127.0.0.1:{server.port} within 50 ms"


async def test_a_cancelled_attempt_drops_its_connection() -> None:
    async def telling(caller: Caller) -> None:
        await caller.request()
        asked.set()
        await caller.gone()
        dropped.set()

    asked, dropped = asyncio.Event(), asyncio.Event()
    async with a_sender() as sender, ChaosServer(telling) as server:
        attempt = asyncio.create_task(sender.send(a_request(server.url()), timeout_ms=PATIENT_MS))
        await asked.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await asyncio.wait_for(dropped.wait(), 10)


async def test_closing_ends_what_is_in_flight_with_an_error() -> None:
    async def telling(caller: Caller) -> None:
        await caller.request()
        asked.set()
        await caller.gone()

    asked = asyncio.Event()
    sender = Sender(egress=LOOPBACK, clock=FakeClock())
    async with ChaosServer(telling) as server:
        attempt = asyncio.create_task(sender.send(a_request(server.url()), timeout_ms=PATIENT_MS))
        await asked.wait()
        await sender.close()
        assert (await attempt).error == "the connection was closed before any answer"
        after = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
        assert after.error is not None
        assert "Connector is closed" in after.error


async def test_an_octal_or_short_ipv4_address_is_not_guessed_at() -> None:
    async with a_sender() as sender:
        for host in ("127.1", "2130706433", "0177.0.0.1"):
            attempt = await sender.send(a_request(f"http://{host}/"), timeout_ms=PATIENT_MS)
            assert attempt.error == f"{host} is not a canonical IPv4 address"


async def test_an_impossible_peer_is_an_error_like_any_other() -> None:
    async with a_sender() as sender:
        for host in ("a" * 64 + ".example", "a..b", "\u00fc"):
            outgoing = Outgoing(peer=Peer(host, 80, False), head=b"GET / HTTP/1.1\r\n\r\n")
            attempt = await sender.send(outgoing, timeout_ms=PATIENT_MS)
            assert attempt.status is None
            assert attempt.error is not None

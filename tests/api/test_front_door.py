"""Whatever comes over the wire: paths, methods, targets, bodies and things that are no HTTP at all."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.api.app import NOT_OFFERED, OPEN_ROUTES
from relay.api.bodies import Bodies
from tests.api.rig import TOKEN, Reply, Rig, next_reply, running, until
from tests.api.specification import Specification

MIB = 1 << 20
HEAD = b"POST /v2/publish/https://example.com HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %b\r\n" % (
    TOKEN.encode()
)


@pytest.fixture(params=[True, False], ids=["lane", "router"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --- targets


@pytest.mark.parametrize(
    ("target", "url"),
    [
        (b"https://example.com", "https://example.com"),
        (b"https://example.com//a//b", "https://example.com//a//b"),
        (b"https:/example.com/x", "https://example.com/x"),
        (b"https%3A%2F%2Fexample.com%2Fa%3Fb%3Dc", "https://example.com/a?b=c"),
        (b"https://example.com/a%2Fb%20c", "https://example.com/a%2Fb%20c"),
        (b"https://example.com/?q=1?2&r=%26&r", "https://example.com/?q=1?2&r=%26&r"),
        (
            b"https://example.com/?u=https://other.example//x",
            "https://example.com/?u=https://other.example//x",
        ),
        (b"https://example.com/a/../b/./c", "https://example.com/a/../b/./c"),
        (b"https://example.com/x#fragment", "https://example.com/x"),
        (b"HTTPS://Example.COM/X", "https://Example.COM/X"),
        (b"https://example.com/%E2%98%83", "https://example.com/%E2%98%83"),
        (b"https%3A//b%C3%BCcher.example/", "https://xn--bcher-kva.example/"),
        (b"https://example.com/%0A%00", "https://example.com/%0A%00"),
        (b"https://example.com/?", "https://example.com/?"),
        (b"https://example.com/?&&", "https://example.com/?&&"),
        (b"http://[::1]:8080/", "http://[::1]:8080/"),
        (b"http://user:secret@example.com/", "http://user:secret@example.com/"),
        (b"http://example.com/%zz%", "http://example.com/%zz%"),
    ],
)
async def test_a_destination_is_taken_as_it_came(rig: Rig, target: bytes, url: str) -> None:
    reply = await rig.raw_call("POST", b"/v2/publish/" + target)
    assert (reply.status, reply.json.get("url")) == (200, url)
    assert (await rig.show(reply.json["messageId"]))["url"] == url


async def test_the_absolute_form_of_a_target_is_understood(rig: Rig) -> None:
    reply = await rig.raw_call("POST", b"http://relay:80/v2/publish/https://example.com/abs")
    assert reply.json["url"] == "https://example.com/abs"


@pytest.mark.parametrize(
    "target",
    [
        b"/v2/%70ublish/https://example.com",
        b"/v2/publish/../keys",
        b"/v2/publish/http://[::1",
        b"/v2/publish/http://example.com:99999/",
        b"/v2/publish/%ff%fe",
        b"/v2/publish/https://example.com/?upstash-retries=%ff",
        b"/v2/publish/https://example.com/\xc3\xa9",
        b"/v2/publish/https://example.com/\xff",
        b"/v2/publish/https://example.com/a b",
        b"/v2/publish/https://example.com/a\tb",
        b"/v2/publish/https://example.com/a\x00b",
        b"*",
        b"relay:443",
        b"http://[::1/v2/keys",
    ],
)
async def test_a_target_that_makes_no_sense_is_a_bad_request(rig: Rig, target: bytes) -> None:
    reply = await rig.raw_call("POST", target)
    assert reply.status == 400
    assert reply.error
    assert rig.publisher.calls == []


async def test_a_very_long_destination_is_refused_by_its_name(rig: Rig) -> None:
    reply = await rig.raw_call("POST", b"/v2/publish/https://example.com/" + b"a" * 9_000)
    assert reply.status == 400
    assert "destination" in reply.error


# --- paths and methods


@pytest.mark.parametrize(
    "path",
    ["/", "/v2", "/v2/", "/v1/publish/x", "/v2//messages", "/v2/nothing", "/favicon.ico", "/v2%2Fkeys"],
)
@pytest.mark.parametrize("token", [TOKEN, None])
async def test_an_unknown_path_is_not_found(rig: Rig, path: str, token: str | None) -> None:
    reply = await rig.call("GET", path, token=token)
    assert reply.status == 404
    assert reply.error.endswith("not found")


async def test_a_base_url_that_ends_in_v2_is_told_so(rig: Rig) -> None:
    reply = await rig.call("POST", "/v2/v2/publish/https://example.com")
    assert reply.status == 404
    assert reply.error.endswith(" not found; the URL of a relay (QSTASH_URL) ends without /v2")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v2/publish/https://example.com", "POST"),
        ("GET", "/v2/messages", "DELETE"),
        ("PUT", "/v2/messages/msg_1", "DELETE, GET"),
        ("HEAD", "/v2/keys", "GET"),
        ("OPTIONS", "/v2/dlq/retry", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("OPTIONS", "/docs", "GET, HEAD"),
        ("PATCH", "/v2/schedules/some-id", "DELETE, GET, POST"),
        ("TRACE", "/v2/batch", "POST"),
        ("DELETE", "/v2/schedules/", "GET, POST"),
    ],
)
async def test_another_method_is_refused_with_those_that_are_allowed(
    rig: Rig, method: str, path: str, allow: str
) -> None:
    reply = await rig.call(method, path)
    assert reply.status == 405
    assert reply.headers["Allow"] == allow


def told(reply: Reply) -> Iterator[tuple[str, str]]:
    """The headers that two answers to the same question have in common; the length of nothing may be left out."""
    for name, value in reply.headers.items():
        if name.lower() not in ("x-request-id", "date") and (name, value) != ("Content-Length", "0"):
            yield name, value


@pytest.mark.parametrize(
    "path", [*(path for path, _ in OPEN_ROUTES if "{" not in path), "/docs/start.js", "/docs/none"]
)
async def test_a_path_without_a_token_answers_head_as_get_without_the_body(rig: Rig, path: str) -> None:
    for headers in ({}, {"Accept-Encoding": "gzip"}, {"If-None-Match": "*"}):
        whole = await rig.call("GET", path, token=None, headers=headers)
        head = await rig.call("HEAD", path, token=None, headers=headers)
        assert (head.status, head.body) == (whole.status, b"")
        assert [*told(head)] == [*told(whole)]


async def test_a_relay_that_is_not_ready_says_so_to_head(rig: Rig) -> None:
    rig.problems.append("storage does not answer")
    assert (await rig.call("HEAD", "/readyz", token=None)).status == 503


async def test_a_connection_goes_on_after_a_head(rig: Rig) -> None:
    reader, writer = await rig.connect()
    for _ in range(2):
        writer.write(
            b"HEAD /metrics HTTP/1.1\r\nHost: relay\r\n\r\nGET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"
        )
        head = await next_reply(reader, "HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, "24")
        assert (await next_reply(reader)).json == {"status": "ok"}
    writer.close()


@pytest.mark.parametrize("path", NOT_OFFERED)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
async def test_what_this_version_does_not_have_says_so(rig: Rig, method: str, path: str) -> None:
    for target in (path, f"{path}/", f"{path}/some-name/https://example.com//x?y=z"):
        reply = await rig.call(method, target)
        assert reply.status == 400
        assert reply.error.startswith(f"{path} is not offered")


async def test_a_hosted_language_model_is_not_promised_for_later(rig: Rig) -> None:
    reply = await rig.call("POST", "/llm/v1/chat/completions", body=b"{}")
    assert reply.status == 400
    assert reply.error == (
        "/llm/v1 is not offered: Relay hosts no language model, publish to the URL of a provider"
    )


async def test_a_trailing_slash_names_the_same_collection(rig: Rig) -> None:
    for path in ("/v2/keys", "/v2/dlq", "/v2/events", "/v2/logs", "/v2/schedules", "/v2/topics"):
        plain, slashed = await rig.call("GET", path), await rig.call("GET", path + "/")
        assert plain.status == 200
        assert slashed == plain._replace(headers=slashed.headers)


async def test_every_answer_has_a_request_id_of_its_own(rig: Rig) -> None:
    replies = [
        await rig.call("GET", "/v2/keys"),
        await rig.call("GET", "/v2/keys", token=None),
        await rig.call("GET", "/v2/nothing"),
        await rig.call("PUT", "/v2/keys"),
        await rig.call("GET", "/v2/queues"),
        await rig.call("GET", "/healthz"),
    ]
    ids = [reply.headers["X-Request-Id"] for reply in replies]
    assert len(set(ids)) == len(ids)
    assert all(request_id.startswith("req_") for request_id in ids)


@pytest.mark.parametrize(
    "request_line",
    [
        b"\x16\x03\x01\x02\x00",
        b"BREW /v2/batch HTTP/1.1\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_answered_and_its_bytes_logged_nowhere(
    rig: Rig, caplog: pytest.LogCaptureFixture, request_line: bytes
) -> None:
    reader, writer = await rig.connect()
    writer.write(request_line + b"\r\n\r\n")
    reply = await next_reply(reader)
    assert await reader.read() == b""
    writer.close()
    assert reply.status == 400
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.error.startswith("not a valid HTTP request")
    assert rig.refusals == [{"request_id": reply.headers["X-Request-Id"], "status": 400, "rule": "head"}]
    assert caplog.records == []


async def test_header_bytes_that_are_not_utf8_are_carried_along(rig: Rig) -> None:
    reply = await rig.raw_call(
        "POST",
        b"/v2/publish/https://example.com",
        headers=[(b"Upstash-Forward-X", b"caf\xe9"), (b"User-Agent", b"\xff")],
    )
    assert reply.status == 200
    assert (await rig.show(reply.json["messageId"]))["header"] == {"X": ["caf\ufffd"]}


async def test_header_bytes_that_are_not_utf8_are_no_setting(rig: Rig) -> None:
    reply = await rig.raw_call(
        "POST", b"/v2/publish/https://example.com", headers=[(b"Upstash-Delay", b"\xff\xfe")]
    )
    assert reply.status == 400
    assert "Upstash-Delay" in reply.error


# --- bodies


async def in_chunks(size: int, piece: bytes = b"x" * 65_536) -> AsyncIterator[bytes]:
    while size > 0:
        yield piece[:size]
        size -= len(piece)


async def test_a_body_may_be_as_long_as_the_limit(rig: Rig) -> None:
    assert (await rig.call("POST", "/v2/publish/https://example.com", body=b"x" * MIB)).status == 200
    chunked = await rig.call("POST", "/v2/publish/https://example.com", body=in_chunks(MIB))
    assert chunked.status == 200
    assert len((await rig.show(chunked.json["messageId"]))["body"]) == MIB


async def test_an_empty_chunked_body_is_an_empty_body(rig: Rig) -> None:
    reply = await rig.call("POST", "/v2/publish/https://example.com", body=in_chunks(0))
    assert "body" not in await rig.show(reply.json["messageId"])


async def test_a_longer_body_is_refused_and_the_connection_lives(rig: Rig) -> None:
    reader, writer = await rig.connect()
    for declared in (b"Content-Length: %d\r\n\r\n" % (MIB + 1), b"Transfer-Encoding: chunked\r\n\r\n"):
        writer.write(HEAD + declared)
        if b"chunked" in declared:
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (MIB + 1, b"x" * (MIB + 1)))
        else:
            writer.write(b"x" * (MIB + 1))
        assert (await next_reply(reader)).status == 413
    writer.write(HEAD + b"Content-Length: 2\r\n\r\nok")
    assert (await next_reply(reader)).status == 200
    writer.close()
    assert rig.services.bodies.held_bytes == 0


async def test_a_body_without_end_is_refused_at_the_limit(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(20):
        writer.write(b"10000\r\n%b\r\n" % (b"x" * 65_536))
    reply = await next_reply(reader)
    assert reply.status == 413
    assert "limit of 1048576 bytes" in reply.error
    writer.close()


async def test_a_client_that_leaves_in_the_middle_of_a_body_leaves_nothing(rig: Rig) -> None:
    for declared in (b"Content-Length: 100\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"):
        _, writer = await rig.connect()
        writer.write(HEAD + declared)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert (await rig.call("GET", "/v2/keys")).status == 200
    assert rig.publisher.calls == []
    assert {line["rule"] for line in rig.refusals} <= {"body stalled"}


async def test_a_broken_chunk_is_a_bad_request(rig: Rig) -> None:
    reader, writer = await rig.connect()
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab\r\nzzz\r\n\r\n")
    assert (await next_reply(reader)).status in (400, 408)
    writer.close()
    assert rig.publisher.calls == []
    assert len(rig.refusals) == 1


async def test_a_sender_who_falls_silent_is_given_up(tmp_path: Path, specification: Specification) -> None:
    async with running(
        tmp_path / "relay.db", specification, bodies=Bodies(idle_s=0.05), lane=False, max_closing_s=0.1
    ) as rig:
        reader, writer = await rig.connect()
        writer.write(HEAD + b"Content-Length: 100\r\n\r\nabc")
        assert (await next_reply(reader)).status == 408
        writer.close()
        assert rig.services.bodies.held_bytes == 0


async def test_a_sender_who_falls_silent_in_the_fast_lane_is_cut_off(
    tmp_path: Path, specification: Specification
) -> None:
    async with running(tmp_path / "relay.db", specification, bodies=Bodies(idle_s=0.05)) as rig:
        reader, writer = await rig.connect()
        writer.write(HEAD + b"Content-Length: 100\r\n\r\nabc")
        assert await reader.read() == b""
        writer.close()
        assert rig.publisher.calls == []


async def test_bodies_beyond_the_common_budget_are_turned_away(
    tmp_path: Path, specification: Specification
) -> None:
    async with running(
        tmp_path / "relay.db", specification, bodies=Bodies(budget_bytes=100), lane=False
    ) as rig:
        _, first = await rig.connect()
        first.write(HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 60)
        await until(lambda: rig.services.bodies.held_bytes == 60)
        refused = await rig.call("POST", "/v2/publish/https://example.com", body=b"x" * 41)
        assert refused.status == 503
        assert refused.headers["Retry-After"] == "1"
        accepted = await rig.call("POST", "/v2/publish/https://example.com", body=b"x" * 40)
        assert accepted.status == 200
        first.close()
        await until(lambda: rig.services.bodies.held_bytes == 0)
        assert (await rig.call("POST", "/v2/publish/https://example.com", body=b"x" * 100)).status == 200


@pytest.mark.parametrize("expect", [b"100-continue", b"100-Continue"])
async def test_a_client_that_asks_is_told_to_go_on(rig: Rig, expect: bytes) -> None:
    reader, writer = await rig.connect()
    writer.write(HEAD + b"Expect: %b\r\nContent-Length: 5\r\n\r\n" % expect)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hello")
    assert (await next_reply(reader)).status == 200
    writer.close()


async def test_a_body_that_will_be_refused_is_not_asked_for(rig: Rig) -> None:
    too_long = HEAD + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (MIB + 1)
    for request, expected in (
        (too_long, 413),
        (too_long.replace(TOKEN.encode(), b"unknown"), 401),
        (too_long.replace(b"/v2/publish/", b"/v2/workflows/q/"), 400),
    ):
        reader, writer = await rig.connect()
        writer.write(request)
        assert (await next_reply(reader)).status == expected
        writer.close()


async def test_an_expectation_nobody_knows_is_passed_over(rig: Rig) -> None:
    reply = await rig.raw_call(
        "POST", b"/v2/publish/https://example.com", headers=[(b"Expect", b"the unexpected")], body=b"a"
    )
    assert reply.status == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", b"/nothing", 404), ("PUT", b"/v2/keys", 405)])
async def test_an_expectation_nobody_knows_is_passed_over_where_nothing_is(
    rig: Rig, method: str, path: bytes, status: int
) -> None:
    for expectation in (b"the unexpected", b"\xff\xfe", b""):
        reply = await rig.raw_call(method, path, headers=[(b"Expect", expectation)])
        assert reply.status == status
        assert reply.error


async def test_an_upgrade_is_not_taken_up(rig: Rig) -> None:
    reply = await rig.raw_call(
        "GET", b"/v2/keys", headers=[(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")]
    )
    assert reply.status == 200

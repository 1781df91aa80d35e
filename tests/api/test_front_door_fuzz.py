"""Whatever a client sends, the answer is a 2xx or a 4xx, it is JSON, and the log tells which rule said no."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.api.bodies import Bodies
from relay.api.connection import Bounds
from relay.wire.settings import SETTINGS, Door
from tests.api.rig import TOKEN, Reply, Rig, next_reply, running, until
from tests.api.specification import Specification

#: One relay answers all examples; that it survives them is part of the test.
hostile = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

PATHS = [
    b"/v2/publish/",
    b"/v2/publish/https://example.com/",
    b"/v2/schedules/",
    b"/v2/schedules/https://example.com/",
    b"/v2/messages",
    b"/v2/messages/",
    b"/v2/dlq",
    b"/v2/dlq/",
    b"/v2/dlq/retry",
    b"/v2/dlq/retry/",
    b"/v2/events",
    b"/v2/logs",
    b"/v2/topics",
    b"/v2/topics/",
    b"/v2/topics/group",
    b"/v2/topics/group/endpoints",
    b"/v2/keys",
    b"/v2/keys/rotate",
    b"/v2/batch",
    b"/v2/schedules/a/pause",
    b"/v2/enqueue/",
    b"/v2/enqueue/q/https://example.com/",
    b"/v2/queues",
    b"/v2/queues/",
    b"/v2/queues/q/pause",
    b"/v2/flowControl",
    b"/v2/flowControl/",
    b"/v2/flowControl/a/pin",
    b"/v2/globalParallelism",
    b"/v2/trigger",
    b"/docs",
    b"/docs/",
    b"/openapi.yaml",
    b"/healthz",
    b"/v2/",
    b"/",
    b"",
]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
HEADERS = [
    *(setting.name.encode() for setting in SETTINGS),
    *(
        setting.name.replace("Upstash", prefix, 1).encode()
        for setting in SETTINGS
        for prefix in ("Upstash-Callback", "Upstash-Failure-Callback", "Upstash-Callback-Callback")
        if Door.CALLBACK in setting.doors
    ),
    b"Upstash-Forward-X",
    b"Upstash-Forward-",
    b"Upstash-Callback-Forward-X",
    b"Upstash-",
    b"Relay-",
    b"Content-Type",
    b"Content-Encoding",
    b"X-Forwarded-For",
    b"Forwarded",
    b"Cookie",
    b"Expect",
    b"If-None-Match",
    b"Accept-Encoding",
    b"Connection",
    b"Upgrade",
]
PARAMETERS = [
    "messageId",
    "messageIds",
    "dlqIds",
    "url",
    "host",
    "path",
    "label",
    "state",
    "scheduleId",
    "topicName",
    "queueName",
    "flowControlKey",
    "callerIp",
    "responseStatus",
    "fromDate",
    "toDate",
    "count",
    "cursor",
    "order",
    "upstash-retries",
    "upstash-cron",
    "qstash_token",
]

#: Bytes of a request line: anything but what ends the line or one of its parts.
of_a_target = st.binary(max_size=40).map(lambda raw: raw.translate(None, b"\r\n "))
of_a_value = st.one_of(
    st.binary(max_size=30).map(lambda raw: raw.translate(None, b"\r\n")),
    st.from_regex(r"[0-9a-z*/,@.+()-]{0,20}", fullmatch=True).map(str.encode),
    st.integers(-(10**40), 10**40).map(lambda number: str(number).encode()),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def dumps_any(value: object) -> bytes:
    return json.dumps(value).encode()


def require_sane(reply: Reply, rig: Rig) -> None:
    """And take note of what the log said about it."""
    assert 200 <= reply.status < 500, reply
    assert reply.status == 200 or reply.body == b"" or json.loads(reply.body) is not None
    told = [(line["request_id"], line["status"]) for line in rig.refusals if line["rule"]]
    assert told == ([(reply.headers["X-Request-Id"], reply.status)] if reply.status >= 400 else [])
    rig.log.lines.clear()
    rig.clock.advance(1_000)


@hostile
@given(
    method=st.sampled_from(METHODS),
    path=st.sampled_from(PATHS),
    rest=of_a_target,
    headers=st.lists(st.tuples(st.sampled_from(HEADERS), of_a_value), max_size=3),
    body=st.binary(max_size=50),
)
async def test_arbitrary_requests(
    rig: Rig,
    method: str,
    path: bytes,
    rest: bytes,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    target = (path + rest) or b"/"
    require_sane(await rig.raw_call(method, target, headers=headers, body=body), rig)


@hostile
@given(name=st.sampled_from(HEADERS), value=of_a_value, road=st.sampled_from(["publish", "schedules"]))
async def test_arbitrary_settings(rig: Rig, name: bytes, value: bytes, road: str) -> None:
    headers = [(name, value)]
    if road == "schedules" and name != b"Upstash-Cron":
        headers.append((b"Upstash-Cron", b"* * * * *"))
    reply = await rig.raw_call("POST", f"/v2/{road}/https://example.com".encode(), headers=headers)
    require_sane(reply, rig)
    if reply.status == 200:
        shown = b"/v2/schedules" if road == "schedules" or name == b"Upstash-Cron" else b"/v2/events?count=1"
        require_sane(await rig.raw_call("GET", shown), rig)


@hostile
@given(
    method=st.sampled_from(["GET", "DELETE", "POST"]),
    path=st.sampled_from(["/v2/messages", "/v2/dlq", "/v2/dlq/retry", "/v2/events", "/v2/logs"]),
    parameters=st.lists(
        st.tuples(
            st.sampled_from(PARAMETERS),
            st.text(max_size=20) | st.integers(-1, 10**20).map(str) | st.just("1-1"),
        ),
        max_size=4,
    ),
)
async def test_arbitrary_filters(rig: Rig, method: str, path: str, parameters: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={quote(value, safe='', errors='replace')}" for name, value in parameters)
    require_sane(await rig.raw_call(method, f"{path}?{query}".encode()), rig)


@hostile
@given(
    path=st.sampled_from(["/v2/messages", "/v2/dlq"]),
    body=st.binary(max_size=60) | json_values.map(dumps_any),
)
async def test_arbitrary_bodies_of_filters(rig: Rig, path: str, body: bytes) -> None:
    require_sane(await rig.raw_call("DELETE", path.encode(), body=body), rig)


batch_items = st.fixed_dictionaries(
    {"destination": st.text(max_size=20) | st.sampled_from(["https://example.com", "https://a.b/?c=d"])},
    optional={
        "headers": st.dictionaries(
            st.sampled_from([name.decode() for name in HEADERS]) | st.text(max_size=10),
            st.text(max_size=20),
            max_size=3,
        ),
        "body": st.text(max_size=20) | st.none(),
        "queue": st.text(max_size=5) | st.none(),
    },
)


@hostile
@given(
    body=st.lists(batch_items, max_size=3).map(dumps_any)
    | json_values.map(dumps_any)
    | st.binary(max_size=60)
)
async def test_arbitrary_batches(rig: Rig, body: bytes) -> None:
    require_sane(await rig.raw_call("POST", b"/v2/batch", body=body), rig)


endpoints = st.fixed_dictionaries(
    {},
    optional={
        "url": st.text(max_size=20) | st.sampled_from(["https://a.b", "https://c.d/?e=f"]),
        "name": st.text(max_size=20) | st.none(),
    },
)
group_bodies = st.fixed_dictionaries(
    {},
    optional={
        "endpoints": st.lists(endpoints, max_size=3) | json_values,
        "headers": st.dictionaries(
            st.sampled_from([name.decode() for name in HEADERS]) | st.text(max_size=10),
            st.text(max_size=20) | st.lists(st.text(max_size=20), max_size=2),
            max_size=3,
        )
        | json_values,
    },
)


@hostile
@given(
    method=st.sampled_from(["POST", "DELETE", "PATCH"]),
    path=st.sampled_from(["/v2/topics/group", "/v2/topics/group/endpoints"]),
    body=group_bodies.map(dumps_any) | st.binary(max_size=60),
)
async def test_arbitrary_url_groups(rig: Rig, method: str, path: str, body: bytes) -> None:
    require_sane(await rig.raw_call(method, path.encode(), body=body), rig)
    require_sane(await rig.raw_call("GET", b"/v2/topics"), rig)
    require_sane(await rig.raw_call("POST", b"/v2/publish/group"), rig)


@hostile
@given(authorization=st.binary(max_size=40).map(lambda raw: raw.translate(None, b"\r\n")), query=of_a_target)
async def test_arbitrary_tokens(rig: Rig, authorization: bytes, query: bytes) -> None:
    reader, writer = await rig.connect()
    writer.write(
        b"GET /v2/keys?qstash_token=%b HTTP/1.1\r\nHost: a\r\nAuthorization: %b\r\n\r\n"
        % (query, authorization)
    )
    reply = await next_reply(reader)
    writer.close()
    require_sane(reply, rig)
    assert reply.status in (400, 401)
    assert TOKEN not in reply.body.decode()


of_a_head = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        b"/v2/keys",
        b"/v2/publish/https://example.com",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"Host: a\r\n",
        b"Authorization: Bearer " + TOKEN.encode() + b"\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 1\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b": ",
        b"abc",
    ]
)


@pytest.fixture
async def hasty(tmp_path: Path, specification: Specification) -> AsyncIterator[Rig]:
    """A relay that waits for nobody."""
    async with running(
        tmp_path / "hasty.db",
        specification,
        bodies=Bodies(idle_s=0.02),
        bounds=Bounds(head_s=0.02, idle_s=0.02),
        max_closing_s=0.02,
    ) as rig:
        yield rig


@settings(hostile, max_examples=150)
@given(sent=st.lists(of_a_head | st.binary(max_size=20), max_size=12).map(b"".join))
async def test_arbitrary_bytes(hasty: Rig, sent: bytes) -> None:
    """Whoever says this has every request answered, and then is hung up on; nothing stays behind."""
    reader, writer = await hasty.connect()
    writer.write(sent)
    answered = b""
    # What was sent after the last word of the relay is answered by a reset.
    with suppress(ConnectionResetError):
        async with asyncio.timeout(20):
            while piece := await reader.read(65_536):
                answered += piece
    writer.close()
    statuses = [int(line[9:12]) for line in answered.split(b"\r\n") if line.startswith(b"HTTP/1.")]
    assert all(status == 100 or 200 <= status < 300 or 400 <= status < 500 for status in statuses), answered
    assert [line["status"] for line in hasty.refusals if line["status"] in statuses] == [
        status for status in statuses if status >= 400
    ]
    hasty.log.lines.clear()
    hasty.clock.advance(1_000)
    await until(lambda: hasty.connections == 0)
    assert hasty.services.bodies.held_bytes == 0


@hostile
@given(
    method=st.sampled_from(METHODS),
    path=st.sampled_from(PATHS[:-1]),
    rest=of_a_target,
    headers=st.lists(st.tuples(st.sampled_from(HEADERS), of_a_value), max_size=3),
    body=st.binary(max_size=50),
)
async def test_a_connection_stays_in_step_whatever_was_asked_before(
    rig: Rig, method: str, path: bytes, rest: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    reader, writer = await rig.connect()
    fields = [
        (b"Host", b"relay"),
        (b"Authorization", b"Bearer " + TOKEN.encode()),
        (b"Content-Length", str(len(body)).encode()),
        *headers,
    ]
    head = b"".join(b"%s: %s\r\n" % field for field in fields)
    writer.write(b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method.encode(), path + rest, head, body))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
    reply = await next_reply(reader, method)
    while reply.status == 100:
        reply = await next_reply(reader, method)
    require_sane(reply, rig)
    if reply.headers.get("Connection") == "close":
        # A head that cannot be read does not say HEAD either.
        assert await reader.read() == b"" or method == "HEAD"
    else:
        health = await next_reply(reader)
        assert (health.status, health.json) == (200, {"status": "ok"})
    writer.close()

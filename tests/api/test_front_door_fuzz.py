"""Whatever a client sends, the answer is a 2xx or a 4xx, and it is JSON."""

import json
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.rig import TOKEN, Reply, Rig, next_reply

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
    b"/v2/keys",
    b"/v2/keys/rotate",
    b"/v2/batch",
    b"/v2/",
    b"/",
    b"",
]
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
HEADERS = [
    b"Upstash-Method",
    b"Upstash-Timeout",
    b"Upstash-Retries",
    b"Upstash-Retry-Delay",
    b"Upstash-Delay",
    b"Upstash-Not-Before",
    b"Upstash-Deduplication-Id",
    b"Upstash-Content-Based-Deduplication",
    b"Upstash-Label",
    b"Upstash-Redact-Fields",
    b"Upstash-Header-Forward",
    b"Upstash-Cron",
    b"Upstash-Schedule-Id",
    b"Relay-Schedule-Catch-Up",
    b"Relay-Schedule-Overlap",
    b"Upstash-Forward-X",
    b"Upstash-Forward-",
    b"Upstash-Callback",
    b"Upstash-",
    b"Content-Type",
    b"X-Forwarded-For",
    b"Cookie",
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
    assert 200 <= reply.status < 500, reply
    assert reply.status == 200 or reply.body == b"" or json.loads(reply.body) is not None
    assert rig.log.lines == []


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
    assert reply.status in (400, 401)
    assert TOKEN not in reply.body.decode()

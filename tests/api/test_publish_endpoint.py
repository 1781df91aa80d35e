"""POST /v2/publish/{destination}: what a publisher is told, and what is kept of what was sent."""

import hashlib
from base64 import b64decode
from pathlib import Path
from urllib.parse import quote

import pytest

from relay.domain.errors import Unavailable
from relay.domain.tenant import Limits
from tests.api.rig import READ_ONLY, TOKEN, Rig, running
from tests.api.specification import Specification


@pytest.fixture(params=[True, False], ids=["lane", "router"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_a_small_publish_takes_the_fast_lane_where_there_is_one(rig: Rig, lane: bool) -> None:
    await rig.publish()
    await rig.publish()
    assert rig.by_lane == (2 if lane else 0)


async def test_a_publish_is_answered_with_its_id_and_its_destination(rig: Rig) -> None:
    reply = await rig.call("POST", "/v2/publish/https://example.com/hook", body=b"hello")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/json"
    assert set(reply.json) == {"messageId", "url"}
    assert reply.json["messageId"].startswith("msg_")
    assert reply.json["url"] == "https://example.com/hook"


async def test_a_published_message_is_kept_as_it_was_sent(rig: Rig) -> None:
    message_id = await rig.publish(
        "https://example.com/hook?a=b",
        body=b'{"order": 17}',
        headers={
            "Content-Type": "application/json",
            "Upstash-Method": "put",
            "Upstash-Retries": "7",
            "Upstash-Retry-Delay": "1000 * (1 + retried)",
            "Upstash-Timeout": "30s",
            "Upstash-Label": "orders, eu",
            "Upstash-Forward-test-header": "test-value",
            "Upstash-Telemetry-Sdk": "tests",
            "X-Other": "not forwarded",
        },
    )
    assert await rig.show(message_id) == {
        "messageId": message_id,
        "url": "https://example.com/hook?a=b",
        "method": "PUT",
        "header": {"Content-Type": ["application/json"], "Test-Header": ["test-value"]},
        "body": '{"order": 17}',
        "maxRetries": 7,
        "notBefore": rig.clock.now(),
        "createdAt": rig.clock.now(),
        "callerIP": "127.0.0.1",
        "label": "orders",
        "labels": ["orders", "eu"],
        "retryDelayExpression": "1000 * (1 + retried)",
    }


async def test_what_was_not_given_is_absent(rig: Rig) -> None:
    message_id = await rig.publish(body=b"")
    assert await rig.show(message_id) == {
        "messageId": message_id,
        "url": "https://example.com/hook",
        "method": "POST",
        "header": {},
        "maxRetries": 3,
        "notBefore": rig.clock.now(),
        "createdAt": rig.clock.now(),
        "callerIP": "127.0.0.1",
    }


@pytest.mark.parametrize(
    "body", [b"\x00", b"\xff\xfe binary \x80", bytes(range(256)), b"\r\n", "snowman \u2603".encode()]
)
async def test_any_bytes_are_a_body(rig: Rig, body: bytes) -> None:
    shown = await rig.show(await rig.publish(body=body))
    if "bodyBase64" in shown:
        assert "body" not in shown
        assert b64decode(shown["bodyBase64"]) == body
        with pytest.raises(UnicodeDecodeError):
            body.decode()
    else:
        assert shown["body"].encode() == body


async def test_a_compressed_body_is_kept_as_it_was_sent(rig: Rig) -> None:
    body = b"\x1f\x8b\x08\x00 not even valid gzip"
    shown = await rig.show(await rig.publish(body=body, headers={"Content-Encoding": "gzip"}))
    assert b64decode(shown["bodyBase64"]) == body
    assert shown["header"] == {}


async def test_a_delay_moves_the_due_time(rig: Rig) -> None:
    shown = await rig.show(await rig.publish(headers={"Upstash-Delay": "1h30m3s"}))
    assert shown["notBefore"] == rig.clock.now() + 5_403_000
    assert shown["createdAt"] == rig.clock.now()


async def test_not_before_is_in_seconds_and_wins_over_a_delay(rig: Rig) -> None:
    at_s = rig.clock.now() // 1000 + 60
    shown = await rig.show(
        await rig.publish(headers={"Upstash-Not-Before": str(at_s), "Upstash-Delay": "5s"})
    )
    assert shown["notBefore"] == at_s * 1000


async def test_not_before_in_the_past_means_now(rig: Rig) -> None:
    shown = await rig.show(await rig.publish(headers={"Upstash-Not-Before": "1"}))
    assert shown["notBefore"] == rig.clock.now()


async def test_settings_may_come_as_query_parameters(rig: Rig) -> None:
    message_id = await rig.publish(
        "https://example.com/?x=1&upstash-retries=1&y=%2F&Upstash-Delay=5s&upstash-forward-a=b%20c&z"
    )
    shown = await rig.show(message_id)
    assert shown["url"] == "https://example.com/?x=1&y=%2F&z"
    assert shown["maxRetries"] == 1
    assert shown["notBefore"] == rig.clock.now() + 5_000
    assert shown["header"] == {"A": ["b c"]}


async def test_a_header_wins_over_a_query_parameter(rig: Rig) -> None:
    message_id = await rig.publish("https://example.com/?upstash-retries=1", headers={"Upstash-Retries": "2"})
    assert (await rig.show(message_id))["maxRetries"] == 2


async def test_a_token_in_the_query_never_reaches_the_destination(rig: Rig) -> None:
    reply = await rig.call(
        "POST", f"/v2/publish/https://example.com/?a=1&qstash_token={TOKEN}&b=2", token=None
    )
    assert reply.json["url"] == "https://example.com/?a=1&b=2"


async def test_header_forwarding_keeps_the_token_and_the_settings_back(rig: Rig) -> None:
    message_id = await rig.publish(
        headers={"Upstash-Header-Forward": "true", "X-Own": "1", "Upstash-Label": "a"}
    )
    header = (await rig.show(message_id))["header"]
    assert header == {"X-Own": ["1"]}


async def test_header_forwarding_passes_on_an_authorization_that_is_not_the_relays(rig: Rig) -> None:
    reply = await rig.call(
        "POST",
        f"/v2/publish/https://example.com/?qstash_token={TOKEN}",
        headers={"Authorization": "Bearer of-the-webhook-sender", "Upstash-Header-Forward": "true"},
        token=None,
    )
    shown = await rig.show(reply.json["messageId"])
    assert shown["header"] == {"Authorization": ["Bearer of-the-webhook-sender"]}


async def test_the_redacted_parts_are_shown_as_hashes(rig: Rig) -> None:
    message_id = await rig.publish(
        body=b"secret",
        headers={
            "Upstash-Redact-Fields": "body, header[X-Key]",
            "Upstash-Forward-X-Key": "hush",
            "Upstash-Forward-X-Open": "seen",
        },
    )
    shown = await rig.show(message_id)
    assert shown["body"] == "REDACTED:" + hashlib.sha256(b"secret").hexdigest()
    assert shown["header"] == {
        "X-Key": ["REDACTED:" + hashlib.sha256(b"hush").hexdigest()],
        "X-Open": ["seen"],
    }


async def test_a_duplicate_is_accepted_and_answered_with_the_first_message(rig: Rig) -> None:
    target = "/v2/publish/https://example.com/hook"
    headers = {"Upstash-Deduplication-Id": "once"}
    first = await rig.call("POST", target, headers=headers)
    again = await rig.call("POST", target, headers=headers)
    assert first.status == 200
    assert "deduplicated" not in first.json
    assert again.status == 202
    assert again.json == {**first.json, "deduplicated": True}
    rig.clock.advance(10 * 60_000 + 1)
    later = await rig.call("POST", target, headers=headers)
    assert later.status == 200
    assert later.json["messageId"] != first.json["messageId"]


async def test_equal_content_is_a_duplicate_when_asked_for(rig: Rig) -> None:
    target = "/v2/publish/https://example.com/hook"
    headers = {"Upstash-Content-Based-Deduplication": "True"}
    first = await rig.call("POST", target, body=b"a", headers=headers)
    same = await rig.call("POST", target, body=b"a", headers=headers)
    other = await rig.call("POST", target, body=b"b", headers=headers)
    assert [first.status, same.status, other.status] == [200, 202, 200]
    assert same.json["messageId"] == first.json["messageId"]


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Upstash-Delay", "soon", 400),
        ("Upstash-Delay", "4000d", 412),
        ("Upstash-Timeout", "0", 400),
        ("Upstash-Timeout", "13h", 412),
        ("Upstash-Not-Before", "tomorrow", 400),
        ("Upstash-Not-Before", "99999999999", 412),
        ("Upstash-Retries", "-1", 400),
        ("Upstash-Retries", "1000000", 412),
        ("Upstash-Retry-Delay", "retried +", 400),
        ("Upstash-Retry-Delay", "__import__('os')", 400),
        ("Upstash-Method", "BREW", 400),
        ("Upstash-Content-Based-Deduplication", "maybe", 400),
        ("Upstash-Redact-Fields", "everything", 400),
        ("Upstash-Label", ",".join(map(str, range(21))), 412),
        ("Upstash-Schedule-Id", "mine", 400),
        ("Upstash-Callback", "example.com/back", 400),
        ("Upstash-Callback-Retries", "1", 400),
        ("Upstash-Failure-Callback", "a-group", 400),
        ("Upstash-Flow-Control-Key", "key", 400),
        ("Upstash-Flow-Control-Value", "rate=1", 400),
        ("Upstash-Queue-Name", "queue", 400),
        ("Upstash-Workflow-Init", "true", 400),
        ("Relay-Unheard-Of", "1", 400),
    ],
)
async def test_a_value_that_cannot_be_accepted_is_refused_by_its_name(
    rig: Rig, name: str, value: str, status: int
) -> None:
    reply = await rig.call("POST", "/v2/publish/https://example.com", headers={name: value})
    assert reply.status == status
    assert name in reply.error
    assert rig.publisher.calls == []


@pytest.mark.parametrize(("name", "value"), [("Upstash-Delay", "soon"), ("Upstash-Callback", "a.b/c")])
async def test_a_query_parameter_that_cannot_be_accepted_is_refused_by_its_name(
    rig: Rig, name: str, value: str
) -> None:
    reply = await rig.call("POST", f"/v2/publish/https://example.com?{name.lower()}={quote(value, safe='')}")
    assert reply.status == 400
    assert name in reply.error
    assert rig.publisher.calls == []


@pytest.mark.parametrize(
    "destination",
    ["", "?", "ftp://example.com", "api/llm", "http://", "https://a b", "example.com/", "a group"],
)
async def test_a_destination_that_cannot_be_reached_is_refused(rig: Rig, destination: str) -> None:
    reply = await rig.call("POST", f"/v2/publish/{destination.replace(' ', '%20')}")
    assert reply.status == 400
    assert "destination" in reply.error


@pytest.mark.parametrize(
    ("destination", "status"), [("a-group", 404), ("https", 404), ("example.com", 400), ("127.0.0.1", 400)]
)
async def test_what_could_be_a_url_group_and_is_none_is_not_found_or_a_url_without_its_beginning(
    rig: Rig, destination: str, status: int
) -> None:
    reply = await rig.call("POST", f"/v2/publish/{destination}")
    assert reply.status == status
    assert reply.error == (
        f'destination: "{destination}" has no http:// or https://, and a URL group of that name was not found'
    )


async def test_nothing_is_accepted_while_storage_cannot_commit(rig: Rig) -> None:
    rig.publisher.fault = Unavailable("the disk is full", retry_after_s=2)
    reply = await rig.call("POST", "/v2/publish/https://example.com")
    assert reply.status == 503
    assert reply.headers["Retry-After"] == "2"
    assert reply.error == "the disk is full"


async def test_a_bug_is_a_500_that_the_log_knows_by_its_request_id(rig: Rig) -> None:
    bug = RuntimeError("bug")
    rig.publisher.fault = bug
    reply = await rig.raw_call("POST", b"/v2/publish/https://example.com")
    rig.violations.clear()  # no bug is described
    assert reply.status == 500
    (event, fields), *others = rig.log.lines
    assert others == []
    assert event == "request.failed"
    assert fields["exc"] is bug
    assert fields["request_id"] == reply.headers["X-Request-Id"]
    assert str(fields["request_id"]) in reply.error


async def test_a_read_only_token_may_not_publish(rig: Rig) -> None:
    reply = await rig.call("POST", "/v2/publish/https://example.com", token=READ_ONLY)
    assert reply.status == 403
    assert rig.publisher.calls == []


async def test_a_publish_with_a_cron_makes_a_schedule(rig: Rig) -> None:
    reply = await rig.call(
        "POST", "/v2/publish/https://example.com/hook", headers={"Upstash-Cron": "* * * * *"}
    )
    assert reply.status == 200
    assert set(reply.json) == {"scheduleId"}
    (schedule,) = (await rig.call("GET", "/v2/schedules")).json
    assert schedule["scheduleId"] == reply.json["scheduleId"]
    assert rig.publisher.calls == []


async def test_a_cron_may_come_as_a_query_parameter(rig: Rig) -> None:
    reply = await rig.call("POST", "/v2/publish/https://example.com/?upstash-cron=0+*+*+*+*")
    (schedule,) = (await rig.call("GET", "/v2/schedules")).json
    assert schedule["scheduleId"] == reply.json["scheduleId"]
    assert schedule["cron"] == "0 * * * *"
    assert schedule["destination"] == "https://example.com/"


async def test_the_size_limit_is_a_setting(tmp_path: Path, specification: Specification) -> None:
    async with running(tmp_path / "relay.db", specification, limits=Limits(max_message_bytes=3)) as rig:
        assert (await rig.call("POST", "/v2/publish/https://example.com", body=b"abc")).status == 200
        refused = await rig.call("POST", "/v2/publish/https://example.com", body=b"abcd")
        assert refused.status == 413
        assert refused.error == "the message body is larger than the limit of 3 bytes"

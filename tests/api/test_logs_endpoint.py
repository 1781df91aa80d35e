"""/v2/events and /v2/logs: what happened, newest first, one entry for every change of state."""

import hashlib
from base64 import b64decode
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.api.rig import READ_ONLY, Rig, running
from tests.api.specification import Specification


async def events(rig: Rig, query: str = "") -> list[Any]:
    reply = await rig.call("GET", f"/v2/events?{query}")
    assert reply.status == 200, reply.body
    listed = reply.json["events"]
    assert isinstance(listed, list)
    return listed


def states(entries: list[Any]) -> list[str]:
    return [entry["state"] for entry in entries]


async def test_nothing_has_happened_at_first(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/events")).json == {"events": []}
    assert (await rig.call("GET", "/v2/logs")).json == {"logs": [], "events": []}


async def test_the_way_of_a_message_is_told_newest_first(rig: Rig) -> None:
    message_id = await rig.publish()
    await rig.attempt(500)
    rig.clock.advance(86_400_000)
    await rig.attempt(200)
    told = await events(rig, f"messageId={message_id}")
    assert states(told) == ["DELIVERED", "ACTIVE", "RETRY", "ERROR", "ACTIVE", "CREATED"]
    assert [entry["time"] for entry in told] == sorted((entry["time"] for entry in told), reverse=True)
    earliest = await events(rig, f"messageId={message_id}&order=earliestFirst")
    assert earliest == told[::-1]


async def test_both_paths_tell_the_same(rig: Rig) -> None:
    await rig.publish()
    told = await events(rig)
    assert (await rig.call("GET", "/v2/logs")).json == {"logs": told, "events": told}


async def test_every_entry_shows_its_message(rig: Rig) -> None:
    await rig.publish(
        "https://example.com/?a=b",
        body=b"\xffbinary",
        headers={
            "Upstash-Forward-X": "y",
            "Upstash-Label": "a,b",
            "Upstash-Timeout": "5s",
            "Upstash-Retry-Delay": "1000",
        },
    )
    await rig.attempt(500)
    told = await events(rig)
    assert states(told) == ["RETRY", "ERROR", "ACTIVE", "CREATED"]
    for entry in told:
        assert entry["url"] == "https://example.com/?a=b"
        assert entry["method"] == "POST"
        assert entry["header"] == {"X": ["y"]}
        assert b64decode(entry["body"]) == b"\xffbinary"
        assert (entry["timeout"], entry["maxRetries"]) == (5_000, 3)
        assert (entry["label"], entry["labels"]) == ("a", ["a", "b"])
        assert entry["retryDelayExpr"] == entry["retryDelayExpression"] == "1000"


async def test_only_a_failed_attempt_shows_its_response(rig: Rig) -> None:
    await rig.publish()
    await rig.attempt(503, headers=(("retry-after", "1"),), body=b"busy")
    told = {entry["state"]: entry for entry in await events(rig)}
    error = told.pop("ERROR")
    assert error["responseStatus"] == 503
    assert error["responseHeaders"] == error["responseHeader"] == {"Retry-After": ["1"]}
    assert b64decode(error["responseBody"]) == b"busy"
    assert "503" in error["error"]
    for entry in told.values():
        members = {"responseStatus", "responseHeaders", "responseHeader", "responseBody", "error"}
        assert not members & set(entry)


async def test_an_attempt_without_a_response_says_why(rig: Rig) -> None:
    await rig.publish()
    await rig.attempt(None, error="connection refused")
    (error,) = await events(rig, "state=ERROR")
    assert error["error"] == "connection refused"
    assert "responseStatus" not in error


async def test_the_next_delivery_is_told_where_there_is_one(rig: Rig) -> None:
    await rig.publish(headers={"Upstash-Delay": "5s", "Upstash-Retry-Delay": "7000"})
    (created,) = await events(rig)
    assert created["nextDeliveryTime"] == rig.clock.now() + 5_000
    rig.clock.advance(5_000)
    await rig.attempt(500)
    (retry,) = await events(rig, "state=RETRY")
    assert retry["nextDeliveryTime"] == retry["time"] + 7_000
    await rig.publish()
    (undelayed, _) = await events(rig, "state=CREATED")
    assert "nextDeliveryTime" not in undelayed


async def test_redacted_parts_are_not_told(rig: Rig) -> None:
    await rig.publish(
        body=b"secret",
        headers={"Upstash-Redact-Fields": "body, headers", "Upstash-Forward-X": "hush"},
    )
    reply = await rig.call("GET", "/v2/logs")
    assert b"hush" not in reply.body
    assert b"secret" not in reply.body
    (entry,) = reply.json["logs"]
    assert entry["body"] == "REDACTED:" + hashlib.sha256(b"secret").hexdigest()


async def test_a_delivered_message_has_one_entry_that_says_so(rig: Rig) -> None:
    message_id = await rig.publish()
    await rig.attempt(200)
    assert states(await events(rig, f"messageId={message_id}&state=DELIVERED")) == ["DELIVERED"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("state=CREATED", ["CREATED", "CREATED"]),
        ("state=created,failed", ["FAILED", "CREATED", "CREATED"]),
        ("state=IN_PROGRESS", ["ERROR", "ACTIVE"]),
        ("state=CANCELED", ["CANCELED"]),
        ("state=CANCELLED&state=CANCEL_REQUESTED", ["CANCELED", "CANCEL_REQUESTED"]),
        ("state=RETRY", []),
    ],
)
async def test_states_can_be_filtered(rig: Rig, query: str, expected: list[str]) -> None:
    await rig.publish(headers={"Upstash-Retries": "0"})
    await rig.attempt(500)
    await rig.publish(headers={"Upstash-Delay": "1h"})
    await rig.call("DELETE", "/v2/messages")
    assert sorted(states(await events(rig, query))) == sorted(expected)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("label=orders", [0]),
        ("label=orders,eu", [0, 2]),
        ("label=nothing", []),
        ("url=https://example.com/a", [0]),
        ("url=https://example.com/a&url=https://example.org/b", [0, 1]),
        ("host=example.com", [0, 2]),
        ("host=example.com&path=/c", [2]),
        ("path=/nothing", []),
        ("callerIp=127.0.0.1", [0, 1, 2]),
        ("callerIP=10.0.0.1", []),
        ("scheduleId=scd_1", []),
        ("topicName=t", []),
        ("queueName=q", []),
        ("flowControlKey=k", []),
        ("fromDate=1800000001000", [1, 2]),
        ("fromDate=1800000001000&toDate=1800000001000", [1]),
        ("toDate=1799999999999", []),
    ],
)
async def test_filters_are_joined_and_their_values_are_alternatives(
    rig: Rig, query: str, expected: list[int]
) -> None:
    ids = []
    for destination, label in (
        ("https://example.com/a", "orders"),
        ("https://example.org/b", "us"),
        ("https://example.com/c", "eu"),
    ):
        ids.append(await rig.publish(destination, headers={"Upstash-Label": label}))
        rig.clock.advance(1_000)
    told = await events(rig, f"order=earliestFirst&{query}")
    assert [entry["messageId"] for entry in told] == [ids[index] for index in expected]


async def test_message_ids_are_a_filter_like_others(rig: Rig) -> None:
    a, b, c = [await rig.publish(headers={"Upstash-Label": label}) for label in ("a", "b", "c")]
    told = await events(rig, f"messageIds={a},{b}&messageIds={c}&label=b&label=c")
    assert [entry["messageId"] for entry in told] == [c, b]
    assert await events(rig, "messageIds=nonsense") == []


async def test_pages_join_to_the_whole_log(rig: Rig) -> None:
    for _ in range(2):
        await rig.publish()
        await rig.attempt(500)
    whole = await events(rig)
    assert len(whole) == 8
    for count in (1, 2, 3, 7, 8, 9):
        for order, expected in (("latestFirst", whole), ("earliestFirst", whole[::-1])):
            pages = await rig.pages("events", f"/v2/events?count={count}&order={order}")
            assert max(map(len, pages)) <= count
            assert list(chain(*pages)) == expected


@pytest.mark.parametrize("order", ["latestFirst", "earliestFirst"])
async def test_a_search_without_an_index_is_answered_in_short_pages_that_join(
    tmp_path: Path, specification: Specification, order: str
) -> None:
    async with running(tmp_path / "relay.db", specification, walk=3) as rig:
        for host in "aabbbbbbbaab":
            await rig.publish(f"https://{host}.example/")
        pages = await rig.pages("events", f"/v2/events?host=a.example&order={order}")
    assert [entry["url"] for entry in chain(*pages)] == ["https://a.example/"] * 4
    assert [] in pages
    assert max(map(len, pages)) <= 3


async def test_a_log_without_matches_has_no_cursor(rig: Rig) -> None:
    await rig.publish()
    assert (await rig.call("GET", "/v2/events?label=unused&count=1")).json == {"events": []}


async def test_a_page_has_a_hundred_entries_unless_asked_otherwise(rig: Rig) -> None:
    for _ in range(150):
        await rig.publish()
    page = (await rig.call("GET", "/v2/events")).json
    assert len(page["events"]) == 100
    assert len((await rig.call("GET", f"/v2/events?cursor={page['cursor']}")).json["events"]) == 50
    whole = (await rig.call("GET", "/v2/events?count=1000")).json
    assert len({entry["messageId"] for entry in whole["events"]}) == 150
    assert "cursor" not in whole


async def test_a_page_of_large_bodies_is_shorter_and_goes_on(rig: Rig) -> None:
    for _ in range(120):
        await rig.publish(body=b"x" * (1 << 20))
    sizes = [len(page) for page in await rig.pages("events", "/v2/events?count=1000")]
    assert sum(sizes) == 120
    assert max(sizes) < 20


async def test_work_that_was_handed_back_unsent_leaves_no_entry(rig: Rig) -> None:
    await rig.publish()
    await rig.hand_back()
    assert "RELEASED" not in states(await events(rig))
    assert "cursor" not in (await rig.call("GET", "/v2/events?count=3")).json


@pytest.mark.parametrize(
    "query",
    [
        "labeel=a",
        "dlqIds=1-1",
        "responseStatus=1",
        "count=0",
        "count=1001",
        "count=x",
        "cursor=nonsense",
        "order=sideways",
        "state=ASLEEP",
        "fromDate=now",
        "path=a",
    ],
)
@pytest.mark.parametrize("path", ["/v2/events", "/v2/logs"])
async def test_a_filter_that_is_unknown_or_wrong_is_refused_by_its_name(
    rig: Rig, path: str, query: str
) -> None:
    reply = await rig.call("GET", f"{path}?{query}")
    assert reply.status == 400
    assert query.partition("=")[0] in reply.error


async def test_a_read_only_token_may_read_the_log(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/events", token=READ_ONLY)).status == 200
    assert (await rig.call("GET", "/v2/logs", token=READ_ONLY)).status == 200

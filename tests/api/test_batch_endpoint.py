"""POST /v2/batch: items stand for themselves, and what is accepted is accepted together."""

import json
from pathlib import Path

import pytest

from relay.api.publish import MAX_BATCH_ITEMS
from relay.domain.errors import Unavailable
from relay.domain.tenant import Limits
from tests.api.rig import READ_ONLY, Rig, running
from tests.api.specification import Specification

URL = "https://example.com/hook"


async def test_items_are_answered_in_their_order(rig: Rig) -> None:
    items = [{"destination": f"{URL}/{number}"} for number in range(3)]
    reply = await rig.call_json("POST", "/v2/batch", items)
    assert reply.status == 200
    assert [entry["url"] for entry in reply.json] == [f"{URL}/{number}" for number in range(3)]
    assert all(set(entry) == {"messageId", "url"} for entry in reply.json)
    for entry in reply.json:
        assert (await rig.show(entry["messageId"]))["url"] == entry["url"]


async def test_the_items_of_a_batch_are_published_in_one_step(rig: Rig) -> None:
    await rig.call_json(
        "POST", "/v2/batch", [{"destination": URL}, {"destination": "?"}, {"destination": URL}]
    )
    (messages,) = rig.publisher.calls
    assert len(messages) == 2


async def test_an_item_says_what_the_headers_of_a_publish_say(rig: Rig) -> None:
    item = {
        "destination": f"{URL}?a=b&upstash-retries=9",
        "headers": {
            "content-type": "text/plain",
            "UPSTASH-RETRIES": "1",
            "upstash-forward-test-header": "value",
            "Upstash-Delay": "5s",
        },
        "body": "snowman \u2603",
        "queue": None,
    }
    (entry,) = (await rig.call_json("POST", "/v2/batch", [item])).json
    shown = await rig.show(entry["messageId"])
    assert shown["url"] == f"{URL}?a=b&upstash-retries=9"
    assert shown["header"] == {"Content-Type": ["text/plain"], "Test-Header": ["value"]}
    assert shown["body"] == "snowman \u2603"
    assert shown["maxRetries"] == 1
    assert shown["notBefore"] == rig.clock.now() + 5_000
    assert shown["callerIP"] == "127.0.0.1"


@pytest.mark.parametrize("item", [{"destination": URL}, {"destination": URL, "headers": None, "body": None}])
async def test_what_an_item_does_not_give_is_absent(rig: Rig, item: object) -> None:
    (entry,) = (await rig.call_json("POST", "/v2/batch", [item])).json
    shown = await rig.show(entry["messageId"])
    assert shown["header"] == {}
    assert "body" not in shown


async def test_settings_of_the_request_do_not_apply_to_its_items(rig: Rig) -> None:
    reply = await rig.call(
        "POST",
        "/v2/batch?upstash-delay=1h",
        body=json.dumps([{"destination": URL}]).encode(),
        headers={"Upstash-Retries": "7", "Upstash-Forward-X": "y"},
    )
    shown = await rig.show(reply.json[0]["messageId"])
    assert (shown["maxRetries"], shown["header"], shown["notBefore"]) == (3, {}, rig.clock.now())


async def test_a_refused_item_has_its_error_in_its_place(rig: Rig) -> None:
    items = [
        {"destination": "example.com"},
        {"destination": URL},
        {"destination": URL, "headers": {"Upstash-Delay": "soon"}},
        {"destination": URL, "headers": {"Upstash-Retries": "1000000"}},
        {"destination": URL, "headers": {"Upstash-Forward-X": "a\r\nEvil: b"}},
        {"destination": URL, "headers": {"Upstash Delay": "5s"}},
        {"destination": URL, "headers": {"Upstash-Cron": "* * * * *"}},
        {"destination": URL, "queue": "a queue"},
        {"destination": "a-group"},
        {"destination": "api/llm"},
        {"destination": ""},
        {"destination": f"{URL}/\u0000"},
        {"destination": URL},
    ]
    reply = await rig.call_json("POST", "/v2/batch", items)
    assert reply.status == 200
    named = [entry.get("error", "").partition(":")[0] for entry in reply.json]
    assert named == [
        "destination",
        "",
        "Upstash-Delay",
        "Upstash-Retries",
        "Upstash-Forward-X",
        'header "Upstash Delay"',
        "Upstash-Cron",
        "queue",
        "destination",
        "destination",
        "destination",
        "destination",
        "",
    ]
    assert [set(entry) for entry in reply.json].count({"error"}) == len(items) - 2


@pytest.mark.parametrize(
    ("first", "status"),
    [
        ({"destination": URL, "headers": {"Upstash-Delay": "soon"}}, 400),
        ({"destination": URL, "headers": {"Upstash-Retries": "1000000"}}, 412),
        ({"destination": URL, "queue": ""}, 400),
    ],
)
async def test_when_nothing_can_be_accepted_the_first_error_is_the_answer(
    rig: Rig, first: object, status: int
) -> None:
    reply = await rig.call_json("POST", "/v2/batch", [first, {"destination": "?"}])
    assert reply.status == status
    assert "destination" not in reply.error
    assert rig.publisher.calls == []


async def test_an_item_may_be_too_large_by_itself(tmp_path: Path, specification: Specification) -> None:
    limits = Limits(max_message_bytes=10)
    async with running(tmp_path / "relay.db", specification, limits=limits) as rig:
        large, small = {"destination": URL, "body": "x" * 11}, {"destination": URL, "body": "x" * 10}
        mixed = await rig.call_json("POST", "/v2/batch", [large, small])
        assert mixed.status == 200
        assert "larger than the limit of 10 bytes" in mixed.json[0]["error"]
        assert (await rig.call_json("POST", "/v2/batch", [large])).status == 413


async def test_a_batch_may_be_too_large_as_a_whole(tmp_path: Path, specification: Specification) -> None:
    limits = Limits(max_batch_bytes=100)
    async with running(tmp_path / "relay.db", specification, limits=limits) as rig:
        reply = await rig.call_json("POST", "/v2/batch", [{"destination": URL, "body": "x" * 100}])
        assert reply.status == 413
        assert reply.error == "the batch is larger than the limit of 100 bytes"


async def test_a_batch_may_be_larger_than_a_message(rig: Rig) -> None:
    items = [{"destination": URL, "body": "x" * 1_000_000}] * 5
    reply = await rig.call_json("POST", "/v2/batch", items)
    assert reply.status == 200
    assert len(reply.json) == 5


async def test_an_empty_batch_publishes_nothing(rig: Rig) -> None:
    reply = await rig.call("POST", "/v2/batch", body=b"[]")
    assert (reply.status, reply.json) == (200, [])
    assert rig.publisher.calls == []


async def test_a_batch_of_many_items_is_answered_item_by_item(rig: Rig) -> None:
    items = [{"destination": URL if number % 2 else "?"} for number in range(301)]
    reply = await rig.call_json("POST", "/v2/batch", items)
    assert [set(entry) == {"error"} for entry in reply.json] == [number % 2 == 0 for number in range(301)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"[",
        b'["https://example.com"]',
        b'[{"body":"a"}]',
        b'[{"destination":null}]',
        b'[{"destination":"https://example.com","body":{}}]',
        b'[{"destination":"https://example.com","headers":{"a":1}}]',
        b'[{"destination":"https://example.com","headers":[]}]',
        b'[{"destination":"https://example.com","method":"GET"}]',
        b'[{"destination":"https://example.com"}] trailing',
        b'[{"destination":"\xff"}]',
        b'[{"destination":"https://example.com","body":"\\ud800"}]',
        b"[" * 100_000,
        b"[" + b",".join([b'{"destination":"https://a.b"}'] * (MAX_BATCH_ITEMS + 1)) + b"]",
    ],
)
async def test_what_is_no_batch_is_refused_as_a_whole(rig: Rig, body: bytes) -> None:
    reply = await rig.call("POST", "/v2/batch", body=body)
    assert reply.status == 400
    assert reply.error.startswith("body: is not a batch: ")
    assert rig.publisher.calls == []


@pytest.mark.parametrize(
    ("body", "flaw"),
    [
        (b'[{"destination": "\\ud800"}]', "surrogate"),
        (b'[{"destination": "https://example.com", "body": "x\\udc00"}]', "surrogate"),
        (b'[{"destination": "\xff"}]', "it is not UTF-8"),
        (b'[{"destination": "https', "unexpected end of data"),
    ],
)
async def test_what_is_wrong_with_the_json_of_a_batch_is_told(rig: Rig, body: bytes, flaw: str) -> None:
    reply = await rig.call("POST", "/v2/batch", body=body)
    assert reply.status == 400
    assert flaw in reply.error


async def test_duplicates_are_marked_item_by_item(rig: Rig) -> None:
    once = {"destination": URL, "headers": {"Upstash-Deduplication-Id": "once"}}
    reply = await rig.call_json("POST", "/v2/batch", [once, {"destination": URL}, once])
    assert reply.status == 200
    first, other, again = reply.json
    assert "deduplicated" not in first
    assert "deduplicated" not in other
    assert again == {**first, "deduplicated": True}


async def test_a_batch_that_cannot_be_stored_is_not_accepted(rig: Rig) -> None:
    rig.publisher.fault = Unavailable("the database is locked")
    reply = await rig.call_json("POST", "/v2/batch", [{"destination": URL}])
    assert reply.status == 503


async def test_a_read_only_token_may_not_publish_a_batch(rig: Rig) -> None:
    assert (await rig.call_json("POST", "/v2/batch", [], token=READ_ONLY)).status == 403

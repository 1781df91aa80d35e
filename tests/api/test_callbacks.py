"""Callbacks as the API shows them: on the message that has them, and as the messages they are."""

import json
from base64 import b64decode
from typing import Any

import pytest

from tests.api.rig import READ_ONLY, Rig

URL = "https://example.com/callback"
FAILED = "https://example.com/failed"

SETTINGS = {
    "Upstash-Callback": URL,
    "Upstash-Callback-Forward-X-A": "1",
    "Upstash-Failure-Callback": FAILED,
    "Upstash-Failure-Callback-Forward-x-b": "2",
}
SHOWN = {
    "callback": URL,
    "callbackHeader": {"X-A": ["1"]},
    "failureCallback": FAILED,
    "failureCallbackHeader": {"X-B": ["2"]},
}


async def reports_to(rig: Rig, url: str) -> list[dict[str, Any]]:
    """The callbacks that were sent there, oldest first, as they are shown."""
    listed = (await rig.call("GET", f"/v2/events?url={url}&state=CREATED&order=earliestFirst")).json
    return [await rig.show(entry["messageId"]) for entry in listed["events"]]


def held_to_specification(rig: Rig, report: dict[str, Any]) -> dict[str, Any]:
    told = json.loads(report["body"])
    assert rig.specification.agrees({"$ref": "#/components/schemas/Report"}, told), told
    assert isinstance(told, dict)
    return told


async def test_a_message_shows_its_callbacks_everywhere(rig: Rig) -> None:
    message_id = await rig.publish(headers={**SETTINGS, "Upstash-Retries": "0"})
    shown = await rig.show(message_id)
    assert SHOWN.items() <= shown.items()
    await rig.attempt(500)
    (entry,) = (await rig.call("GET", f"/v2/dlq?messageId={message_id}")).json["messages"]
    assert SHOWN.items() <= entry.items()
    for event in (await rig.call("GET", f"/v2/events?messageId={message_id}")).json["events"]:
        assert (event["callback"], event["callbackHeaders"]) == (URL, {"X-A": ["1"]})
        assert (event["failureCallback"], event["failureCallbackHeaders"]) == (FAILED, {"X-B": ["2"]})


async def test_a_callback_without_headers_shows_only_its_url(rig: Rig) -> None:
    shown = await rig.show(await rig.publish(headers={"Upstash-Callback": URL}))
    assert shown["callback"] == URL
    assert not {"callbackHeader", "failureCallback", "failureCallbackHeader"} & set(shown)


async def test_every_attempt_is_reported_and_the_last_failure_once_more(rig: Rig) -> None:
    message_id = await rig.publish(
        headers={**SETTINGS, "Upstash-Retries": "1", "Upstash-Retry-Delay": "100000"}
    )
    await rig.attempt(500, headers=(("a", "b"),), body=b"first")
    assert await rig.attempt(200) == 1
    rig.clock.advance(100_000)
    await rig.attempt(404, body=b"second")
    reports = [held_to_specification(rig, report) for report in await reports_to(rig, URL)]
    (failure,) = [held_to_specification(rig, report) for report in await reports_to(rig, FAILED)]
    assert [(told["status"], told.get("retried"), b64decode(told["body"])) for told in reports] == [
        (500, None, b"first"),
        (404, 1, b"second"),
    ]
    assert reports[0]["header"] == {"A": ["b"]}
    assert (failure["sourceMessageId"], failure["maxRetries"], failure["status"]) == (message_id, 1, 404)
    assert (await rig.call("GET", f"/v2/dlq/{failure['dlqId']}")).json["messageId"] == message_id


async def test_a_callback_is_shown_like_any_message(rig: Rig) -> None:
    message_id = await rig.publish(
        headers={**SETTINGS, "Upstash-Retries": "2", "Upstash-Label": "a", "Upstash-Method": "PUT"}
    )
    await rig.attempt(200)
    (report,) = await reports_to(rig, URL)
    told = held_to_specification(rig, report)
    assert report == {
        "messageId": report["messageId"],
        "url": URL,
        "method": "POST",
        "header": {"Content-Type": ["application/json"], "X-A": ["1"]},
        "body": report["body"],
        "sourceMessageId": message_id,
        "maxRetries": 2,
        "notBefore": rig.clock.now(),
        "createdAt": rig.clock.now(),
    }
    assert (told["method"], b64decode(told["sourceBody"]), told["callerIP"]) == ("PUT", b"hello", "127.0.0.1")


async def test_a_callback_that_fails_is_a_dead_letter_of_its_own_that_can_be_retried(rig: Rig) -> None:
    await rig.publish(headers={"Upstash-Callback": URL, "Upstash-Callback-Retries": "0"})
    await rig.attempt(200)
    await rig.attempt(500)
    (entry,) = (await rig.call("GET", "/v2/dlq")).json["messages"]
    assert (entry["url"], entry["responseStatus"]) == (URL, 500)
    assert (await rig.call("POST", f"/v2/dlq/retry/{entry['dlqId']}")).status == 201
    assert await rig.attempt(200) == 1
    assert await rig.attempt(200) == 0


async def test_a_retry_of_a_dead_letter_calls_back_where_it_says_or_where_it_did(rig: Rig) -> None:
    _, first = await rig.dead_letter(headers={"Upstash-Failure-Callback": FAILED})
    _, second = await rig.dead_letter(headers={"Upstash-Failure-Callback": FAILED})
    await rig.call("DELETE", "/v2/messages")
    elsewhere = "https://example.com/elsewhere"
    headers = {"Upstash-Failure-Callback": elsewhere, "Upstash-Failure-Callback-Retries": "7"}
    assert (await rig.call("POST", f"/v2/dlq/retry/{first}", headers=headers)).status == 201
    assert (await rig.call("POST", f"/v2/dlq/retry?dlqIds={second}")).status == 201
    await rig.attempt(500)
    (report,) = await reports_to(rig, elsewhere)
    assert report["maxRetries"] == 7
    assert len(await reports_to(rig, FAILED)) == 3


async def test_items_of_a_batch_have_callbacks_of_their_own(rig: Rig) -> None:
    items = [
        {"destination": "https://a.example", "headers": {"upstash-callback": URL}},
        {"destination": "https://b.example", "headers": {"Upstash-Callback": "nowhere"}},
        {"destination": "https://c.example"},
    ]
    answers = (await rig.call_json("POST", "/v2/batch", items)).json
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert answers[1]["error"].startswith("Upstash-Callback: ")
    await rig.attempt(200)
    (report,) = await reports_to(rig, URL)
    assert held_to_specification(rig, report)["sourceMessageId"] == answers[0]["messageId"]


async def test_a_schedule_gives_its_callbacks_to_its_messages(rig: Rig) -> None:
    schedule_id = await rig.schedule(headers=SETTINGS)
    assert SHOWN.items() <= (await rig.show_schedule(schedule_id)).items()
    await rig.fire(schedule_id)
    await rig.attempt(200)
    (report,) = await reports_to(rig, URL)
    assert held_to_specification(rig, report)["scheduleId"] == schedule_id
    assert "scheduleId" not in report


@pytest.mark.parametrize("fields", ["body", "header", "header[X-Secret]"])
async def test_what_a_message_hides_no_callback_shows(rig: Rig, fields: str) -> None:
    secret = {"Upstash-Forward-X-Secret": "swordfish"} if fields != "body" else {}
    await rig.publish(
        body=b"swordfish" if fields == "body" else b"",
        headers={
            **secret,
            "Upstash-Redact-Fields": fields,
            "Upstash-Callback": URL,
            "Upstash-Callback-Retries": "0",
        },
    )
    await rig.attempt(200)
    await rig.attempt(500)
    for path in ("/v2/events", "/v2/dlq"):
        reply = await rig.call("GET", path, token=READ_ONLY)
        assert b"swordfish" not in reply.body
        assert b"c3dvcmRmaXNo" not in reply.body
        shown = next(iter(reply.json.values()))
        assert any(entry["url"] == URL and entry["body"].startswith("REDACTED:") for entry in shown)


async def test_a_canceled_message_calls_nobody_back_and_is_counted_once(rig: Rig) -> None:
    message_id = await rig.publish(headers={**SETTINGS, "Upstash-Delay": "1h"})
    assert (await rig.call("DELETE", "/v2/messages")).json == {"cancelled": 1}
    assert (await rig.call("DELETE", "/v2/messages")).json == {"cancelled": 0}
    assert await rig.attempt(200) == 0
    assert (await rig.call("DELETE", f"/v2/messages/{message_id}")).status == 404


async def test_settings_of_a_callback_may_come_as_query_parameters(rig: Rig) -> None:
    shown = await rig.show(
        await rig.publish(
            "https://example.com/?upstash-callback=https%3A%2F%2Fa.example&upstash-callback-forward-y=z"
        )
    )
    assert (shown["url"], shown["callback"]) == ("https://example.com/", "https://a.example")
    assert shown["callbackHeader"] == {"Y": ["z"]}

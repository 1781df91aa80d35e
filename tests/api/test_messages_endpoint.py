"""/v2/messages: look at one, cancel one, cancel many."""

import json

import pytest

from tests.api.rig import Rig


async def states_of(rig: Rig, message_id: str) -> list[str]:
    """What the log knows of a message, oldest first."""
    reply = await rig.call("GET", f"/v2/events?messageId={message_id}&order=earliestFirst")
    return [entry["state"] for entry in reply.json["events"]]


@pytest.mark.parametrize(
    "message_id", ["msg_0000000000001", "msg_", "nonsense", "%2F", "%ff", "scd_1", "%E2%98%83"]
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_unknown_message_is_not_found(rig: Rig, method: str, message_id: str) -> None:
    reply = await rig.call(method, f"/v2/messages/{message_id}")
    assert reply.status == 404
    assert "message " in reply.error


async def test_a_delivered_message_can_still_be_read(rig: Rig) -> None:
    message_id = await rig.publish()
    await rig.attempt(200)
    rig.clock.advance(60_000)
    assert (await rig.show(message_id))["messageId"] == message_id


async def test_a_waiting_message_is_cancelled(rig: Rig) -> None:
    message_id = await rig.publish(headers={"Upstash-Delay": "1h"})
    reply = await rig.call("DELETE", f"/v2/messages/{message_id}")
    assert (reply.status, reply.json) == (200, {"cancelled": 1})
    assert await states_of(rig, message_id) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
    rig.clock.advance(3_600_000)
    assert await rig.attempt() == 0


async def test_a_message_is_cancelled_once(rig: Rig) -> None:
    message_id = await rig.publish(headers={"Upstash-Delay": "1h"})
    await rig.call("DELETE", f"/v2/messages/{message_id}")
    assert (await rig.call("DELETE", f"/v2/messages/{message_id}")).status == 404


async def test_a_message_between_two_retries_is_cancelled(rig: Rig) -> None:
    message_id = await rig.publish()
    await rig.attempt(500)
    reply = await rig.call("DELETE", f"/v2/messages/{message_id}")
    assert reply.json == {"cancelled": 1}
    rig.clock.advance(86_400_000)
    assert await rig.attempt() == 0


@pytest.mark.parametrize("status", [200, 404])
async def test_a_finished_message_cannot_be_cancelled(rig: Rig, status: int) -> None:
    message_id = await rig.publish(headers={"Upstash-Retries": "0"})
    await rig.attempt(status)
    assert (await rig.call("DELETE", f"/v2/messages/{message_id}")).status == 404


async def test_without_a_filter_everything_is_cancelled(rig: Rig) -> None:
    for target in ("/v2/messages", "/v2/messages/"):
        for _ in range(3):
            await rig.publish(headers={"Upstash-Delay": "1h"})
        assert (await rig.call("DELETE", target)).json == {"cancelled": 3}
        assert (await rig.call("DELETE", target)).json == {"cancelled": 0}


async def test_count_bounds_a_call_and_the_oldest_go_first(rig: Rig) -> None:
    ids = [await rig.publish(headers={"Upstash-Delay": "1h"}) for _ in range(3)]
    assert (await rig.call("DELETE", "/v2/messages?count=2")).json == {"cancelled": 2}
    assert (await rig.call("DELETE", f"/v2/messages/{ids[0]}")).status == 404
    assert (await rig.call("DELETE", f"/v2/messages/{ids[2]}")).status == 200


async def test_ids_may_be_repeated_or_separated_by_commas(rig: Rig) -> None:
    a, b, c, d = [await rig.publish(headers={"Upstash-Delay": "1h"}) for _ in range(4)]
    reply = await rig.call("DELETE", f"/v2/messages?messageIds={a},{b}&messageIds={c}")
    assert reply.json == {"cancelled": 3}
    assert (await rig.call("DELETE", f"/v2/messages/{d}")).status == 200


async def test_ids_that_are_unknown_or_finished_count_nothing(rig: Rig) -> None:
    waiting = await rig.publish(headers={"Upstash-Delay": "1h"})
    await rig.publish()
    await rig.attempt(200)
    reply = await rig.call("DELETE", f"/v2/messages?messageIds={waiting},msg_0000000000001,nonsense")
    assert reply.json == {"cancelled": 1}


async def test_filters_come_as_a_body_too_and_the_query_wins(rig: Rig) -> None:
    a = await rig.publish(headers={"Upstash-Delay": "1h"})
    b = await rig.publish(headers={"Upstash-Delay": "1h"})
    assert (await rig.call_json("DELETE", "/v2/messages", {"messageIds": [a]})).json == {"cancelled": 1}
    reply = await rig.call_json("DELETE", f"/v2/messages?messageIds={b}", {"messageIds": [a]})
    assert reply.json == {"cancelled": 1}


@pytest.mark.parametrize("body", [{"messageIds": []}, {"messageIds": ["nonsense"]}])
async def test_a_list_without_a_known_id_cancels_nothing(rig: Rig, body: object) -> None:
    await rig.publish(headers={"Upstash-Delay": "1h"})
    assert (await rig.call_json("DELETE", "/v2/messages", body)).json == {"cancelled": 0}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("label=orders", 2),
        ("label=orders&label=eu", 3),
        ("label=orders,eu", 3),
        ("label=nothing", 0),
        ("url=https://example.com/a%3Fq%3D1,2", 1),
        ("url=https://example.com/a?q=1,2,https://example.org/b", 2),
        ("url=https://example.com/a", 0),
        ("host=EXAMPLE.com", 2),
        ("host=example.com&label=eu", 1),
        ("path=/b", 2),
        ("path=/a&host=example.org", 0),
        ("callerIp=127.0.0.1", 3),
        ("callerIP=10.0.0.1", 0),
        ("scheduleId=scd_1", 0),
        ("queueName=q", 0),
        ("topicName=t", 0),
        ("flowControlKey=k", 0),
        ("fromDate=1800000000000&toDate=1800000000000", 3),
        ("toDate=1799999999999", 0),
    ],
)
async def test_filters_are_joined_and_their_values_are_alternatives(
    rig: Rig, filters: str, expected: int
) -> None:
    for destination, label in (
        ("https://example.com/a?q=1,2", "orders"),
        ("https://example.org/b", "orders, us"),
        ("https://example.com/b", "eu"),
    ):
        await rig.publish(destination, headers={"Upstash-Delay": "1h", "Upstash-Label": label})
    assert (await rig.call("DELETE", f"/v2/messages?{filters}")).json == {"cancelled": expected}


@pytest.mark.parametrize(
    "query",
    [
        "labeel=orders",
        "messageId=msg_1",
        "state=CREATED",
        "count=0",
        "count=501",
        "count=many",
        "label=",
        "cursor=1",
    ],
)
async def test_a_filter_that_is_unknown_or_wrong_cancels_nothing(rig: Rig, query: str) -> None:
    message_id = await rig.publish(headers={"Upstash-Delay": "1h"})
    reply = await rig.call("DELETE", f"/v2/messages?{query}")
    assert reply.status == 400
    assert query.partition("=")[0] in reply.error
    assert (await rig.call("DELETE", f"/v2/messages/{message_id}")).status == 200


@pytest.mark.parametrize(
    "body", [b"[]", b"nonsense", b'"all"', b'{"labeel":"a"}', b'{"messageIds":[{}]}', b"{", b"\xff", b"1"]
)
async def test_a_body_that_says_nothing_known_cancels_nothing(rig: Rig, body: bytes) -> None:
    message_id = await rig.publish(headers={"Upstash-Delay": "1h"})
    reply = await rig.call("DELETE", "/v2/messages", body=body)
    assert reply.status == 400
    assert (await rig.call("DELETE", f"/v2/messages/{message_id}")).status == 200


@pytest.mark.parametrize("body", [b"", b"{}", b"  ", json.dumps({"count": 500}).encode()])
async def test_a_body_without_a_filter_means_everything(rig: Rig, body: bytes) -> None:
    await rig.publish(headers={"Upstash-Delay": "1h"})
    assert (await rig.call("DELETE", "/v2/messages", body=body)).json == {"cancelled": 1}


async def test_a_body_of_filters_is_bounded(rig: Rig) -> None:
    reply = await rig.call("DELETE", "/v2/messages", body=b" " * ((1 << 20) + 1))
    assert reply.status == 413
    assert reply.error == "the request body is larger than the limit of 1048576 bytes"

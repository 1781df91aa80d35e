"""Batches of the official SDK: every item a message of its own, with its own settings and its own fate."""

import json

import pytest
from qstash import AsyncQStash
from qstash.log import LogState
from qstash.message import BatchRequest, BatchResponse

from tests.sdk.asking import eventually, history_until, now_ms, refused
from tests.sdk.endpoint import Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def batch(client: AsyncQStash, *messages: BatchRequest) -> list[BatchResponse]:
    answers = []
    for answer in await client.message.batch(list(messages)):
        assert isinstance(answer, BatchResponse)
        answers.append(answer)
    return answers


async def test_items_are_answered_in_order_and_arrive_with_their_own_settings(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    answers = await batch(
        client,
        {"url": f"{endpoint.url}/1", "body": "one", "headers": {"X-Item": "größe"}, "content_type": "text/x"},
        {"url": f"{endpoint.url}/2", "body": "two", "method": "PUT", "label": label},
        {"url": f"{endpoint.url}/3?a=b", "retries": 9},
        {"url": f"{endpoint.url}/4", "body": "later", "delay": "1h"},
    )
    await endpoint.delivery(2)
    arrived = {delivery.headers["Upstash-Message-Id"]: delivery for delivery in endpoint.deliveries}
    first, second, third, fourth = (answer.message_id for answer in answers)
    assert [arrived[id].target for id in (first, second, third)] == ["/hook/1", "/hook/2", "/hook/3?a=b"]
    assert [arrived[id].method for id in (first, second, third)] == ["POST", "PUT", "POST"]
    assert [arrived[id].body for id in (first, second, third)] == [b"one", b"two", b""]
    assert (arrived[first].headers["X-Item"], arrived[first].headers["Content-Type"]) == ("größe", "text/x")
    # The outer request is JSON; its items are not.
    assert "Content-Type" not in arrived[second].headers
    assert (await client.message.get(second)).label == label
    assert (await client.message.get(third)).max_retries == 9
    assert (await client.message.get(fourth)).not_before > now_ms() + 3_500_000
    assert await client.message.cancel_many([fourth]) == 1


async def test_a_json_batch_arrives_as_json(client: AsyncQStash, endpoint: Endpoint) -> None:
    bodies: list[object] = [{"number": 1}, ["ä", None], "text", 4]
    await client.message.batch_json([{"url": endpoint.url, "body": body} for body in bodies])
    await endpoint.delivery(3)
    arrived = [json.loads(delivery.body) for delivery in endpoint.deliveries]
    assert sorted(arrived, key=repr) == sorted(bodies, key=repr)
    assert {delivery.headers["Content-Type"] for delivery in endpoint.deliveries} == {"application/json"}


async def test_the_second_item_of_a_deduplication_id_is_answered_with_the_first(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    first, second = await batch(
        client,
        {"url": endpoint.url, "body": "first", "deduplication_id": label},
        {"url": endpoint.url, "body": "second", "deduplication_id": label},
    )
    assert (first.deduplicated, second.deduplicated) == (False, True)
    assert first.message_id == second.message_id
    await history_until(client, first.message_id, LogState.DELIVERED)
    assert [delivery.body for delivery in endpoint.deliveries] == [b"first"]


async def test_an_item_that_is_refused_does_not_hold_back_the_others(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    # The SDK has no place for the error of an item: it misses the message id.
    with pytest.raises(KeyError, match="messageId"):
        await batch(
            client,
            {"url": endpoint.url, "body": "good"},
            {"url": endpoint.url, "body": "bad", "delay": "soon"},
            {"url": endpoint.url, "body": "good too"},
        )
    await endpoint.delivery(1)
    assert {delivery.body for delivery in endpoint.deliveries} == {b"good", b"good too"}


async def test_a_batch_of_which_nothing_can_be_accepted_is_refused_for_its_first_item(
    client: AsyncQStash,
) -> None:
    with refused(400, "Upstash-Delay"):
        await batch(client, {"url": "https://example.com", "delay": "soon"}, {"url": "example.com"})


async def test_a_large_batch_arrives_completely(client: AsyncQStash, endpoint: Endpoint, label: str) -> None:
    messages: list[BatchRequest] = [
        {"url": endpoint.url, "body": str(number), "label": label} for number in range(200)
    ]
    answers = await batch(client, *messages)
    assert len({answer.message_id for answer in answers}) == 200
    await endpoint.delivery(199)
    page = await eventually(
        lambda: client.log.list(filter={"label": label, "state": LogState.DELIVERED}, count=1000),
        lambda page: len(page.logs) >= 200,
    )
    assert {row.message_id for row in page.logs} == {answer.message_id for answer in answers}
    assert sorted(int(delivery.body) for delivery in endpoint.deliveries) == list(range(200))

"""Dead letters through the official SDK: found by every filter, paged, deleted, and sent again."""

import asyncio
import base64
from typing import Any

import pytest
from qstash import AsyncQStash
from qstash.dlq import DlqFilter, DlqMessage
from qstash.log import LogState

from tests.sdk.asking import dead_letter, eventually, history_until, now_ms, publish, refused
from tests.sdk.endpoint import Answer, Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNKNOWN = "1725323658779-0"


async def a_dead_letter(client: AsyncQStash, endpoint: Endpoint, **arguments: Any) -> DlqMessage:
    endpoint.answers(Answer(status=404, body=b"404 Not Found", headers={"X-Reason": "gone"}))
    message_id = await publish(client, **{"url": endpoint.url, "retries": 0, **arguments})
    return await dead_letter(client, message_id)


async def test_a_dead_letter_is_the_message_with_its_last_answer(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    letter = await a_dead_letter(
        client, endpoint, body="dead", headers={"X-A": "b"}, method="PUT", label=label, retry_delay="1000"
    )
    message = await client.message.get(letter.message_id)
    for name in (
        "message_id", "url", "url_group", "endpoint", "queue", "body", "body_base64", "method", "headers",
        "callback_headers", "failure_callback_headers", "max_retries", "retry_delay_expression", "not_before",
        "created_at", "callback", "failure_callback", "schedule_id", "caller_ip", "flow_control", "label",
    ):  # fmt: skip
        assert getattr(letter, name) == getattr(message, name), name
    assert (letter.body, letter.label, letter.method) == ("dead", label, "PUT")
    assert letter.response_status == 404
    assert letter.response_body == "404 Not Found"
    assert letter.response_body_base64 is None
    assert (letter.response_headers or {})["X-Reason"] == ["gone"]
    assert await client.dlq.get(letter.dlq_id) == letter


async def test_an_answer_that_is_not_text_is_shown_in_base64(client: AsyncQStash, endpoint: Endpoint) -> None:
    endpoint.answers(Answer(status=500, body=b"\xff\0"))
    message_id = await publish(client, url=endpoint.url, retries=0)
    letter = await dead_letter(client, message_id)
    assert (letter.response_body, letter.response_body_base64) == (None, base64.b64encode(b"\xff\0").decode())


async def test_a_deleted_dead_letter_is_gone(client: AsyncQStash, endpoint: Endpoint) -> None:
    letter = await a_dead_letter(client, endpoint)
    await client.dlq.delete(letter.dlq_id)
    for gone in (letter.dlq_id, UNKNOWN, "nonsense"):
        with refused(404, gone):
            await client.dlq.delete(gone)
        with refused(404, gone):
            await client.dlq.get(gone)
    assert (await client.dlq.list(filter={"message_id": letter.message_id})).messages == []


async def test_deleting_many_counts_those_that_were_there(client: AsyncQStash, endpoint: Endpoint) -> None:
    letters = [await a_dead_letter(client, endpoint) for _ in range(3)]
    ids = [letter.dlq_id for letter in letters]
    assert await client.dlq.delete_many([*ids[:2], UNKNOWN, "nonsense"]) == 2
    assert await client.dlq.delete_many(ids[:2]) == 0
    assert await client.dlq.delete_many([]) == 0
    assert (await client.dlq.get(ids[2])).message_id == letters[2].message_id


async def test_every_filter_finds_what_it_names_and_leaves_out_the_rest(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    before = now_ms()
    first = await a_dead_letter(client, endpoint, label=label, url=f"{endpoint.url}?first")
    between = now_ms()
    await eventually(lambda: asyncio.sleep(0, now_ms()), lambda now: now > between)
    endpoint.answers(Answer(status=418))
    second = await dead_letter(
        client, await publish(client, url=f"{endpoint.url}?second", retries=0, label=label)
    )

    async def found(wanted: DlqFilter) -> list[str]:
        page = await client.dlq.list(filter=wanted)
        assert page.cursor is None
        return [letter.dlq_id for letter in page.messages]

    both = [first.dlq_id, second.dlq_id]
    assert await found({"label": label}) == both
    assert await found({"message_id": second.message_id}) == both[1:]
    assert await found({"url": f"{endpoint.url}?first"}) == both[:1]
    assert await found({"label": label, "response_status": 418}) == both[1:]
    assert await found({"label": label, "from_time": before, "to_time": between}) == both[:1]
    assert await found({"label": label, "from_time": between + 1}) == both[1:]
    assert await found({"label": label, "to_time": before - 1}) == []
    assert await found({"label": label, "caller_ip": "127.0.0.1"}) == both
    assert await found({"label": label, "caller_ip": "192.0.2.1"}) == []
    assert await found({"label": label, "schedule_id": "scd_none"}) == []
    assert await found({"label": label, "queue": "none"}) == []
    assert await found({"label": label, "url_group": "none"}) == []
    assert await found({"label": f"{label},other"}) == both


async def test_pages_follow_each_other_without_gaps_and_end_without_a_cursor(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    letters = [await a_dead_letter(client, endpoint, label=label) for _ in range(5)]
    found: list[str] = []
    sizes: list[int] = []
    cursor: str | None = None
    while cursor or not found:
        page = await client.dlq.list(cursor=cursor, count=2, filter={"label": label})
        found += [letter.dlq_id for letter in page.messages]
        sizes.append(len(page.messages))
        cursor = page.cursor
    assert found == [letter.dlq_id for letter in letters]
    assert sizes == [2, 2, 1]


async def test_a_dead_letter_that_is_sent_again_arrives_as_a_new_message_and_leaves(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    letter = await a_dead_letter(
        client, endpoint, body="a secret", headers={"X-A": "b"}, redact={"body": True, "header": True}
    )
    endpoint.answers(Answer())
    # The Python SDK has no method for it.
    answer = await client.http.request(path=f"/v2/dlq/retry/{letter.dlq_id}", method="POST")
    assert answer["messageId"] != letter.message_id
    await history_until(client, answer["messageId"], LogState.DELIVERED)
    first, again = endpoint.deliveries
    assert (again.body, again.headers["X-A"]) == (b"a secret", "b")
    assert again.headers["Upstash-Message-Id"] == answer["messageId"]
    assert again.headers["Upstash-Retried"] == "0"
    assert first.headers["Upstash-Message-Id"] == letter.message_id
    with refused(404):
        await client.dlq.get(letter.dlq_id)
    with refused(404):
        await client.dlq.delete(letter.dlq_id)


async def test_a_count_beyond_the_page_limit_is_refused(client: AsyncQStash) -> None:
    with refused(400, "count"):
        await client.dlq.list(count=101)
    with refused(400, "cursor"):
        await client.dlq.list(cursor="nonsense")

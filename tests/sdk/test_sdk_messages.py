"""Messages in the eyes of the official SDK: looked at, and cancelled in every state."""

import asyncio
import base64

import pytest
from qstash import AsyncQStash
from qstash.log import LogState

from tests.sdk.asking import history, history_until, now_ms, publish, refused, states
from tests.sdk.clients import TEST_USER_1, Clients
from tests.sdk.endpoint import Answer, Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNKNOWN = "msg_1m80qw0zx0001"


async def test_a_message_shows_everything_it_was_published_with(client: AsyncQStash, label: str) -> None:
    published_at = now_ms()
    message_id = await publish(
        client,
        url="https://example.com/123/?asdasd=ooo",
        body='{"ex_key": "ex_value"}',
        content_type="application/json",
        method="PATCH",
        headers={"test-header": "test-value"},
        retries=11,
        retry_delay="max(1000, pow(2, retried) * 100)",
        delay="1h",
        label=label,
    )
    message = await client.message.get(message_id)
    assert message.message_id == message_id
    assert message.url == "https://example.com/123/?asdasd=ooo"
    assert message.method == "PATCH"
    assert message.body == '{"ex_key": "ex_value"}'
    assert message.headers == {"Content-Type": ["application/json"], "Test-Header": ["test-value"]}
    assert message.max_retries == 11
    assert message.retry_delay_expression == "max(1000, pow(2, retried) * 100)"
    assert published_at <= message.created_at <= now_ms()
    assert message.not_before == message.created_at + 3_600_000
    assert message.label == label
    assert message.caller_ip == "127.0.0.1"
    await client.message.cancel(message_id)


async def test_what_a_message_does_not_have_is_absent(client: AsyncQStash, endpoint: Endpoint) -> None:
    message = await client.message.get(await publish(client, url=endpoint.url))
    assert (message.body, message.body_base64) == (None, None)
    assert (message.url_group, message.endpoint, message.queue, message.schedule_id) == (None,) * 4
    assert (message.callback, message.failure_callback) == (None, None)
    assert (message.callback_headers, message.failure_callback_headers) == (None, None)
    assert (message.flow_control, message.label, message.retry_delay_expression) == (None, None, None)
    assert (message.method, message.max_retries, message.not_before) == ("POST", 3, message.created_at)


async def test_a_body_that_is_not_text_is_shown_in_base64(client: AsyncQStash, endpoint: Endpoint) -> None:
    message = await client.message.get(await publish(client, url=endpoint.url, body=b"\xff\0"))
    assert (message.body, message.body_base64) == (None, base64.b64encode(b"\xff\0").decode())


async def test_a_delivered_message_can_still_be_read(client: AsyncQStash, endpoint: Endpoint) -> None:
    message_id = await publish(client, url=endpoint.url, body="read me")
    await history_until(client, message_id, LogState.DELIVERED)
    assert (await client.message.get(message_id)).body == "read me"


@pytest.mark.parametrize("message_id", [UNKNOWN, "msg_", "nonsense", "msg_%2F%00"])
async def test_an_unknown_message_is_not_found(client: AsyncQStash, message_id: str) -> None:
    with refused(404, "message"):
        await client.message.get(message_id)
    with refused(404, "message"):
        await client.message.cancel(message_id)


# --- cancelling


async def test_a_cancelled_message_never_arrives(client: AsyncQStash, endpoint: Endpoint) -> None:
    message_id = await publish(client, url=endpoint.url, body="cancelled", delay=1)
    await client.message.cancel(message_id)
    assert states(await history(client, message_id)) == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]
    with refused(404, message_id):
        await client.message.cancel(message_id)
    # Due later than the cancelled one: when it is here, the other would have been.
    await publish(client, url=endpoint.url, body="the next one", delay=1)
    assert (await endpoint.delivery()).body == b"the next one"
    assert len(endpoint.deliveries) == 1


async def test_a_message_waiting_for_a_retry_can_be_cancelled(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    endpoint.answers(Answer(status=503, headers={"Retry-After": "1h"}))
    message_id = await publish(client, url=endpoint.url)
    await history_until(client, message_id, LogState.RETRY)
    await client.message.cancel(message_id)
    assert states(await history(client, message_id)) == [
        "CREATED", "ACTIVE", "ERROR", "RETRY", "CANCEL_REQUESTED", "CANCELED",
    ]  # fmt: skip
    assert (await client.dlq.list(filter={"message_id": message_id})).messages == []


@pytest.mark.parametrize(
    ("status", "end"), [(200, ["DELIVERED"]), (500, ["ERROR", "CANCELED"]), (404, ["ERROR", "CANCELED"])]
)
async def test_a_message_in_flight_ends_with_its_attempt_when_it_is_cancelled(
    client: AsyncQStash, endpoint: Endpoint, status: int, end: list[str]
) -> None:
    answered = asyncio.Event()
    endpoint.answers(Answer(status=status, after=answered))
    message_id = await publish(client, url=endpoint.url, retries=0 if status == 404 else 3)
    await endpoint.delivery()
    await client.message.cancel(message_id)
    with refused(404):
        await client.message.cancel(message_id)
    answered.set()
    rows = await history_until(client, message_id, LogState(end[-1]))
    assert states(rows) == ["CREATED", "ACTIVE", "CANCEL_REQUESTED", *end]
    assert (await client.dlq.list(filter={"message_id": message_id})).messages == []
    assert len(endpoint.deliveries) == 1


async def test_cancelling_many_counts_those_that_could_be_cancelled(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    delivered = await publish(client, url=endpoint.url)
    await history_until(client, delivered, LogState.DELIVERED)
    waiting = [await publish(client, url="https://example.com", delay="1h") for _ in range(2)]
    assert await client.message.cancel_many([*waiting, delivered, UNKNOWN, "nonsense"]) == 2
    assert await client.message.cancel_many(waiting) == 0
    assert await client.message.cancel_many([]) == 0


async def test_cancelling_all_takes_everything_of_this_account_and_nothing_else(
    clients: Clients, kind: str, client: AsyncQStash
) -> None:
    other = clients.of(kind, TEST_USER_1.token)
    assert await other.message.cancel_all() == 0
    kept = await publish(client, url="https://example.com", delay="1h")
    waiting = [await publish(other, url="https://example.com", delay="1h") for _ in range(3)]
    assert await other.message.cancel_all() == 3
    assert await other.message.cancel_all() == 0
    for message_id in waiting:
        assert states(await history(other, message_id))[-1] == "CANCELED"
    assert states(await history(client, kept)) == ["CREATED"]
    assert await client.message.cancel_many([kept]) == 1

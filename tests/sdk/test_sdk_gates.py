"""Queues and flow control in the eyes of the official SDK, and of the endpoint their messages go to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from qstash import AsyncQStash
from qstash.log import LogState
from qstash.message import EnqueueResponse

from tests.sdk.asking import eventually, history_until, now_ms, publish, refused
from tests.sdk.endpoint import Answer, Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

URL = "https://example.com"


@pytest.fixture
def name() -> str:
    """Of a queue or a key that nobody else uses."""
    return f"name_{uuid4().hex}-1"


@asynccontextmanager
async def a_queue(client: AsyncQStash, name: str, parallelism: int = 1) -> AsyncIterator[str]:
    await client.queue.upsert(name, parallelism=parallelism)
    yield name
    await client.queue.delete(name)


async def enqueue(client: AsyncQStash, queue: str, url: str, body: str) -> str:
    answer = await client.message.enqueue(queue=queue, url=url, body=body)
    assert isinstance(answer, EnqueueResponse)
    return answer.message_id


# --- queues


async def test_a_queue_is_what_it_was_configured_to_be(client: AsyncQStash, name: str) -> None:
    before = now_ms()
    await client.queue.upsert(name, parallelism=2)
    queue = await client.queue.get(name)
    assert (queue.name, queue.parallelism, queue.lag, queue.paused) == (name, 2, 0, False)
    assert before <= queue.created_at <= queue.updated_at <= now_ms()
    await client.queue.upsert(name, parallelism=3, paused=True)
    again = await client.queue.get(name)
    assert (again.parallelism, again.paused, again.created_at) == (3, True, queue.created_at)
    assert name in [one.name for one in await client.queue.list()]
    await client.queue.resume(name)
    assert not (await client.queue.get(name)).paused
    await client.queue.pause(name)
    assert (await client.queue.get(name)).paused
    await client.queue.delete(name)
    await client.queue.delete(name)
    assert name not in [one.name for one in await client.queue.list()]
    with refused(404, name):
        await client.queue.get(name)


async def test_a_queue_that_cannot_be_is_refused(client: AsyncQStash, name: str) -> None:
    with refused(400, "queueName"):
        await client.queue.upsert("a queue")
    with refused(400, "parallelism"):
        await client.queue.upsert(name, parallelism=0)
    with refused(412, "parallelism"):
        await client.queue.upsert(name, parallelism=1_000_000)
    with refused(400, "queueName"):
        await client.message.enqueue(queue="a queue", url=URL)


async def test_messages_of_a_queue_arrive_one_by_one_in_order(
    client: AsyncQStash, endpoint: Endpoint, name: str
) -> None:
    async with a_queue(client, name):
        held = asyncio.Event()
        endpoint.answers(Answer(after=held), Answer(status=503, headers={"Retry-After": "1"}), Answer())
        ids = [await enqueue(client, name, endpoint.url, str(number)) for number in range(20)]
        await endpoint.delivery()
        assert len(endpoint.deliveries) == 1
        assert (await client.queue.get(name)).lag == 20
        held.set()
        await history_until(client, ids[-1], LogState.DELIVERED)
        bodies = [delivery.body.decode() for delivery in endpoint.deliveries]
        assert bodies == ["0", "1", *map(str, range(1, 20))]
        assert (await client.queue.get(name)).lag == 0
        message = await client.message.get(ids[0])
        assert message.queue == name


async def test_a_paused_queue_holds_its_messages_until_it_is_resumed(
    client: AsyncQStash, endpoint: Endpoint, name: str
) -> None:
    async with a_queue(client, name):
        await client.queue.pause(name)
        await client.message.enqueue_json(queue=name, url=endpoint.url, body={"n": 1})
        await publish(client, url=endpoint.url, body="not queued", delay=1)
        assert (await endpoint.delivery()).body == b"not queued"
        assert (await client.queue.get(name)).lag == 1
        await client.queue.resume(name)
        assert (await endpoint.delivery(1)).body == b'{"n": 1}'
        await eventually(lambda: client.queue.get(name), lambda queue: queue.lag == 0)


async def test_a_batch_and_a_schedule_may_name_queues(
    client: AsyncQStash, endpoint: Endpoint, name: str
) -> None:
    async with a_queue(client, name):
        answers = await client.message.batch(
            [{"url": endpoint.url, "queue": name, "body": str(number)} for number in range(5)]
        )
        assert len(answers) == 5
        await endpoint.delivery(4)
        assert [delivery.body for delivery in endpoint.deliveries] == [b"0", b"1", b"2", b"3", b"4"]
        schedule_id = await client.schedule.create(destination=URL, cron="@yearly", queue=name)
        assert (await client.schedule.get(schedule_id)).queue == name
        await client.schedule.delete(schedule_id)


async def test_deleting_a_queue_cancels_what_waits_in_it(client: AsyncQStash, name: str) -> None:
    async with a_queue(client, name):
        await client.queue.pause(name)
        message_id = await enqueue(client, name, URL, "never")
    await history_until(client, message_id, LogState.CANCELED)


async def test_a_queue_waits_for_the_callbacks_of_its_messages(
    client: AsyncQStash, endpoint: Endpoint, name: str
) -> None:
    async with a_queue(client, name):
        held = asyncio.Event()
        endpoint.answers(Answer(), Answer(after=held), Answer())
        first = await client.message.enqueue(
            queue=name,
            url=endpoint.url,
            body="first",
            callback=f"{endpoint.origin}/called",
            callback_headers={"Flow-Control-Key": name, "Flow-Control-Value": "parallelism=1"},
        )
        second = await enqueue(client, name, endpoint.url, "second")
        assert isinstance(first, EnqueueResponse)
        assert (await endpoint.delivery(1)).target == "/called"
        await history_until(client, first.message_id, LogState.DELIVERED)
        assert (await client.flow_control.get(name)).parallelism_count == 1
        assert (await client.queue.get(name)).lag == 2
        assert [row.state for row in (await history_until(client, second, LogState.CREATED))] == [
            LogState.CREATED
        ]
        held.set()
        assert (await endpoint.delivery(2)).body == b"second"
        await eventually(lambda: client.queue.get(name), lambda queue: queue.lag == 0)


# --- flow control


async def test_a_key_shows_its_limits_as_soon_as_it_is_used(
    client: AsyncQStash, endpoint: Endpoint, name: str
) -> None:
    key = f"{name} ü/%?#"
    await publish(
        client,
        url=endpoint.url,
        flow_control={"key": name, "parallelism": 3, "rate": 5, "period": "1m"},
    )
    found = await client.flow_control.get(name)
    assert (found.key, found.parallelism_max, found.rate_max, found.rate_period) == (name, 3, 5, 60)
    assert (found.is_paused, found.is_pinned_parallelism, found.is_pinned_rate) == (False, False, False)
    counted = await eventually(lambda: client.flow_control.get(name), lambda now: now.rate_count == 1)
    assert abs(counted.rate_period_start * 1000 - now_ms()) < 60_000
    await client.flow_control.reset_rate(name)
    assert (await client.flow_control.get(name)).rate_count == 0
    with refused(404, "flow-control key"):
        await client.flow_control.get("never-used")
    with refused(404, "flow-control key"):
        await client.flow_control.get(key.replace("/", "%2F").replace("?", "%3F").replace("#", "%23"))


async def test_what_a_message_brought_is_shown_with_it(
    client: AsyncQStash, endpoint: Endpoint, name: str
) -> None:
    message_id = await publish(client, url=endpoint.url, flow_control={"key": name, "rate": 5})
    flow = (await client.message.get(message_id)).flow_control
    assert flow is not None
    assert (flow.key, flow.parallelism, flow.rate, flow.period) == (name, None, 5, 1)


async def test_pausing_holds_and_pinning_wins_over_messages(
    client: AsyncQStash, endpoint: Endpoint, name: str
) -> None:
    await client.flow_control.pause(name)
    for number in range(3):
        await publish(
            client, url=endpoint.url, body=str(number), flow_control={"key": name, "parallelism": 9}
        )
    waiting = await client.flow_control.get(name)
    assert (waiting.is_paused, waiting.wait_list_size, waiting.parallelism_count) == (True, 3, 0)
    await client.flow_control.pin(name, {"parallelism": 1, "rate": 10, "period": 60})
    await publish(
        client, url=endpoint.url, body="3", flow_control={"key": name, "parallelism": 9, "rate": 99}
    )
    pinned = await client.flow_control.get(name)
    assert (pinned.parallelism_max, pinned.rate_max, pinned.rate_period) == (1, 10, 60)
    assert (pinned.is_pinned_parallelism, pinned.is_pinned_rate) == (True, True)
    assert endpoint.deliveries == []
    await client.flow_control.resume(name)
    await endpoint.delivery(3)
    assert [delivery.body for delivery in endpoint.deliveries] == [b"0", b"1", b"2", b"3"]
    await client.flow_control.unpin(name, {"parallelism": True})
    unpinned = await client.flow_control.get(name)
    assert (unpinned.is_pinned_parallelism, unpinned.is_pinned_rate) == (False, True)
    assert unpinned.parallelism_max == 1
    await publish(client, url=endpoint.url, flow_control={"key": name, "parallelism": 7, "rate": 7})
    changed = await client.flow_control.get(name)
    assert (changed.parallelism_max, changed.rate_max) == (7, 10)


async def test_no_more_attempts_are_made_at_once_than_a_key_allows(
    client: AsyncQStash, endpoint: Endpoint, name: str
) -> None:
    gate = asyncio.Event()
    endpoint.answers(Answer(after=gate))
    for _ in range(5):
        await publish(client, url=endpoint.url, flow_control={"key": name, "parallelism": 2})
    await endpoint.delivery(1)
    full = await eventually(lambda: client.flow_control.get(name), lambda now: now.wait_list_size == 3)
    assert full.parallelism_count == 2
    total = await client.flow_control.get_global_parallelism()
    assert total.parallelism_max == 1000
    assert total.parallelism_count >= 2
    assert len(endpoint.deliveries) == 2
    gate.set()
    await endpoint.delivery(4)
    await eventually(lambda: client.flow_control.get(name), lambda now: now.parallelism_count == 0)


async def test_a_rate_is_kept(client: AsyncQStash, endpoint: Endpoint, name: str) -> None:
    rate, windows = 20, 3
    await client.flow_control.pause(name)
    for _ in range(rate * windows):
        await publish(client, url=endpoint.url, flow_control={"key": name, "rate": rate, "period": "1s"})
    await client.flow_control.resume(name)
    await endpoint.delivery(rate * windows - 1)
    times = [delivery.at for delivery in endpoint.deliveries]
    # Windows begin with their first start, and a span of a little less than one may touch two of them.
    for earlier, later in zip(times, times[2 * rate :], strict=False):
        assert later - earlier >= 900
    assert times[-1] - times[0] >= (windows - 1) * 1000 - 100


@pytest.mark.parametrize("options", [{}, {"rate": 0}, {"parallelism": -1}, {"period": 700_000}])
async def test_a_pin_that_cannot_be_is_refused(
    client: AsyncQStash, name: str, options: dict[str, int]
) -> None:
    with refused(412 if "period" in options else 400):
        await client.flow_control.pin(name, options)  # type: ignore[arg-type]

"""What the SDK knows and this relay does not have yet is refused by its name, never passed over in silence."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from qstash import AsyncQStash

from tests.sdk.asking import refused

pytestmark = pytest.mark.asyncio(loop_scope="session")

URL = "https://example.com"

PUBLISHES: list[tuple[str, dict[str, Any]]] = [
    ("Upstash-Callback", {"callback": URL}),
    ("Upstash-Failure-Callback", {"failure_callback": URL}),
    ("Upstash-Callback-Retries", {"callback_headers": {"Retries": "1"}}),
    ("Upstash-Failure-Callback-Retries", {"failure_callback_headers": {"Retries": "1"}}),
    ("Upstash-Flow-Control-Key", {"flow_control": {"key": "k", "parallelism": 1}}),
]

CALLS: list[tuple[str, Callable[[AsyncQStash], Awaitable[object]]]] = [
    ("/v2/queues", lambda client: client.queue.upsert("q")),
    ("/v2/queues", lambda client: client.queue.get("q")),
    ("/v2/queues", lambda client: client.queue.list()),
    ("/v2/queues", lambda client: client.queue.delete("q")),
    ("/v2/queues", lambda client: client.queue.pause("q")),
    ("/v2/queues", lambda client: client.queue.resume("q")),
    ("/v2/enqueue", lambda client: client.message.enqueue(queue="q", url=URL)),
    ("/v2/enqueue", lambda client: client.message.enqueue_json(queue="q", url=URL, body={})),
    ("queue", lambda client: client.message.batch([{"url": URL, "queue": "q"}])),
    ("/v2/topics", lambda client: client.url_group.upsert_endpoints("g", [{"url": URL}])),
    ("/v2/topics", lambda client: client.url_group.remove_endpoints("g", [{"url": URL}])),
    ("/v2/topics", lambda client: client.url_group.get("g")),
    ("/v2/topics", lambda client: client.url_group.list()),
    ("/v2/topics", lambda client: client.url_group.delete("g")),
    ("URL groups", lambda client: client.message.publish(url_group="g")),
    ("URL groups", lambda client: client.message.batch([{"url_group": "g"}])),
    ("URL groups", lambda client: client.schedule.create(destination="g", cron="@daily")),
    ("/v2/flowControl", lambda client: client.flow_control.get("k")),
    ("/v2/flowControl", lambda client: client.flow_control.pause("k")),
    ("/v2/flowControl", lambda client: client.flow_control.resume("k")),
    ("/v2/flowControl", lambda client: client.flow_control.pin("k", {"parallelism": 1})),
    ("/v2/flowControl", lambda client: client.flow_control.unpin("k", {"parallelism": True})),
    ("/v2/flowControl", lambda client: client.flow_control.reset_rate("k")),
    ("/v2/globalParallelism", lambda client: client.flow_control.get_global_parallelism()),
    (
        "Upstash-Queue-Name",
        lambda client: client.schedule.create(destination=URL, cron="@daily", queue="q"),
    ),
]


@pytest.mark.parametrize(("header", "arguments"), PUBLISHES)
async def test_a_header_that_is_not_offered_is_refused_wherever_it_is_given(
    client: AsyncQStash, header: str, arguments: dict[str, Any]
) -> None:
    with refused(400, header, "is not offered by this version"):
        await client.message.publish(url=URL, **arguments)
    with refused(400, header, "is not offered by this version"):
        await client.schedule.create(destination=URL, cron="@daily", **arguments)
    with refused(400, header, "is not offered by this version"):
        await client.message.batch([{"url": URL, **arguments}])  # type: ignore[typeddict-item]


@pytest.mark.parametrize(("name", "call"), CALLS)
async def test_an_operation_that_is_not_offered_says_so(
    client: AsyncQStash, name: str, call: Callable[[AsyncQStash], Awaitable[object]]
) -> None:
    with refused(400, name, "not offered by this version"):
        await call(client)

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
]

CALLS: list[tuple[str, Callable[[AsyncQStash], Awaitable[object]]]] = [
    ("/v2/topics", lambda client: client.url_group.upsert_endpoints("g", [{"url": URL}])),
    ("/v2/topics", lambda client: client.url_group.remove_endpoints("g", [{"url": URL}])),
    ("/v2/topics", lambda client: client.url_group.get("g")),
    ("/v2/topics", lambda client: client.url_group.list()),
    ("/v2/topics", lambda client: client.url_group.delete("g")),
    ("URL groups", lambda client: client.message.publish(url_group="g")),
    ("URL groups", lambda client: client.message.batch([{"url_group": "g"}])),
    ("URL groups", lambda client: client.schedule.create(destination="g", cron="@daily")),
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

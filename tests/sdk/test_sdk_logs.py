"""The log through the official SDK: every filter, every page, every field."""

import asyncio
import base64

import pytest
from qstash import AsyncQStash
from qstash.log import Log, LogFilter, LogState

from tests.sdk.asking import eventually, history_until, now_ms, publish, refused, states
from tests.sdk.endpoint import Answer, Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_delivered_message_has_exactly_one_delivered_row(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    message_id = await publish(client, url=endpoint.url)
    wanted: LogFilter = {"message_id": message_id, "state": LogState.DELIVERED}
    page = await eventually(lambda: client.log.list(filter=wanted), lambda page: page.logs)
    (row,) = page.logs
    assert (row.message_id, row.url, row.state) == (message_id, endpoint.url, LogState.DELIVERED)


async def test_rows_carry_the_settings_of_their_message(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    published_at = now_ms()
    endpoint.answers(Answer(status=500, body=b"\xff", headers={"Retry-After": "1h", "X-A": "b"}))
    message_id = await publish(
        client,
        url=endpoint.url,
        body=b"\0\xff",
        content_type="application/x-bytes",
        method="PUT",
        retries=7,
        retry_delay="1000 * (1 + retried)",
        timeout=60,
        label=label,
    )
    rows = await history_until(client, message_id, LogState.RETRY)
    assert states(rows) == ["CREATED", "ACTIVE", "ERROR", "RETRY"]
    for row in rows:
        assert (row.message_id, row.url, row.method, row.label) == (message_id, endpoint.url, "PUT", label)
        assert row.body_base64 == base64.b64encode(b"\0\xff").decode()
        assert row.headers == {"Content-Type": ["application/x-bytes"]}
        assert (row.max_retries, row.timeout) == (7, 60_000)
        assert row.retry_delay_expression == "1000 * (1 + retried)"
        assert published_at <= row.time <= now_ms()
        assert (row.queue, row.url_group, row.endpoint, row.schedule_id, row.flow_control) == (None,) * 5
    _, _, error, retry = rows
    assert error.response_status == 500
    assert (error.response_headers or {})["X-A"] == ["b"]
    assert error.response_body == base64.b64encode(b"\xff").decode()
    assert retry.next_delivery_time == retry.time + 3_600_000
    assert [row.error for row in rows] == [None, None, error.error, None]
    await client.message.cancel(message_id)


async def test_every_filter_finds_what_it_names_and_leaves_out_the_rest(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    before = now_ms()
    first = await publish(client, url=f"{endpoint.url}?first", label=label)
    await history_until(client, first, LogState.DELIVERED)
    between = now_ms()
    await eventually(lambda: asyncio.sleep(0, now_ms()), lambda now: now > between)
    second = await publish(client, url=f"{endpoint.url}?second", label=label)
    await history_until(client, second, LogState.DELIVERED)
    waiting = await publish(client, url="https://example.com", delay="1h", label=label)

    async def found(wanted: LogFilter) -> set[str]:
        page = await client.log.list(filter=wanted)
        assert page.cursor is None
        return {row.message_id for row in page.logs}

    assert await found({"label": label}) == {first, second, waiting}
    assert await found({"label": label, "message_id": first}) == {first}
    assert await found({"message_ids": [first, waiting]}) == {first, waiting}
    assert await found({"label": label, "state": LogState.DELIVERED}) == {first, second}
    assert await found({"label": label, "state": LogState.CANCELED}) == set()
    assert await found({"url": f"{endpoint.url}?second"}) == {second}
    assert await found({"label": label, "from_time": before, "to_time": between}) == {first}
    assert await found({"label": label, "from_time": between + 1}) == {second, waiting}
    assert await found({"label": label, "to_time": before - 1}) == set()
    assert await found({"label": label, "schedule_id": "scd_none"}) == set()
    assert await found({"label": label, "queue": "none"}) == set()
    assert await found({"label": label, "url_group": "none"}) == set()
    await client.message.cancel(waiting)


async def test_in_progress_means_active_error_and_retry(client: AsyncQStash, endpoint: Endpoint) -> None:
    answered = asyncio.Event()
    endpoint.answers(Answer(status=500, headers={"Retry-After": "1h"}, after=answered))
    message_id = await publish(client, url=endpoint.url)
    await endpoint.delivery()
    wanted: LogFilter = {"message_id": message_id, "state": LogState.IN_PROGRESS}
    assert states((await client.log.list(filter=wanted)).logs) == ["ACTIVE"]
    answered.set()
    await history_until(client, message_id, LogState.RETRY)
    assert states((await client.log.list(filter=wanted)).logs) == ["RETRY", "ERROR", "ACTIVE"]
    await client.message.cancel(message_id)


async def test_pages_follow_each_other_without_gaps_and_end_without_a_cursor(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    ids = [await publish(client, url=endpoint.url, label=label) for _ in range(3)]
    for message_id in ids:
        await history_until(client, message_id, LogState.DELIVERED)
    whole = (await client.log.list(filter={"label": label})).logs
    assert len(whole) == 9
    for message_id in ids:
        assert states([row for row in whole if row.message_id == message_id]) == [
            "DELIVERED",
            "ACTIVE",
            "CREATED",
        ]
    paged: list[Log] = []
    sizes: list[int] = []
    cursor: str | None = None
    while cursor or not paged:
        page = await client.log.list(cursor=cursor, count=2, filter={"label": label})
        paged += page.logs
        sizes.append(len(page.logs))
        cursor = page.cursor
    assert paged == whole
    assert sizes == [2, 2, 2, 2, 1]


async def test_a_filter_that_matches_nothing_gives_no_rows_and_no_cursor(
    client: AsyncQStash, label: str
) -> None:
    page = await client.log.list(filter={"label": label})
    assert (page.logs, page.cursor) == ([], None)


async def test_the_documented_path_shows_the_same_under_both_names(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    message_id = await publish(client, url=endpoint.url)
    await history_until(client, message_id, LogState.DELIVERED)
    events = await client.http.request(path=f"/v2/events?messageId={message_id}", method="GET")
    logs = await client.http.request(path=f"/v2/logs?messageId={message_id}", method="GET")
    assert len(events["events"]) == 3
    assert logs == {"logs": events["events"], "events": events["events"]}


async def test_a_count_beyond_the_page_limit_is_refused(client: AsyncQStash) -> None:
    with refused(400, "count"):
        await client.log.list(count=1001)
    with refused(400, "cursor"):
        await client.log.list(cursor="nonsense")

"""Schedules through the official SDK: made, shown, replaced, paused, resumed and deleted."""

import time
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from qstash import AsyncQStash

from tests.sdk.asking import now_ms, refused
from tests.sdk.clients import TEST_USER_2, Clients

pytestmark = pytest.mark.asyncio(loop_scope="session")

URL = "https://example.com/hook?a=b"


async def test_a_schedule_shows_everything_it_was_made_with(client: AsyncQStash, label: str) -> None:
    made_at = now_ms()
    schedule_id = await client.schedule.create_json(
        destination=URL,
        cron="1 1 1 1 1",
        body={"ex_key": "ex_value"},
        headers={"test-header": "test-value", "Bypass-Tunnel-Reminder": "client-test"},
        method="PATCH",
        retries=11,
        retry_delay="7000 * retried",
        delay="1h",
        timeout=30,
        label=label,
    )
    schedule = await client.schedule.get(schedule_id)
    assert schedule.schedule_id == schedule_id
    assert schedule.schedule_id.startswith("scd_")
    assert (schedule.destination, schedule.cron, schedule.method) == (URL, "1 1 1 1 1", "PATCH")
    assert (schedule.body, schedule.body_base64) == ('{"ex_key": "ex_value"}', None)
    assert schedule.headers == {
        "Bypass-Tunnel-Reminder": ["client-test"],
        "Content-Type": ["application/json"],
        "Test-Header": ["test-value"],
    }
    assert (schedule.retries, schedule.retry_delay_expression) == (11, "7000 * retried")
    assert (schedule.delay, schedule.timeout, schedule.label) == (3600, 30, label)
    assert made_at <= schedule.created_at <= now_ms()
    assert (schedule.paused, schedule.caller_ip) == (False, "127.0.0.1")
    assert schedule.next_schedule_time is not None
    assert schedule.next_schedule_time > made_at
    next_at = datetime.fromtimestamp(schedule.next_schedule_time / 1000, UTC)
    assert (next_at.month, next_at.hour, next_at.minute, next_at.second) == (1, 1, 1, 0)
    await client.schedule.delete(schedule_id)


async def test_what_a_schedule_does_not_have_is_absent(client: AsyncQStash) -> None:
    schedule_id = await client.schedule.create(destination=URL, cron="@daily")
    schedule = await client.schedule.get(schedule_id)
    assert (schedule.body, schedule.body_base64, schedule.headers) == (None, None, None)
    assert (schedule.callback, schedule.failure_callback) == (None, None)
    assert (schedule.callback_headers, schedule.failure_callback_headers) == (None, None)
    assert (schedule.delay, schedule.timeout, schedule.queue, schedule.flow_control) == (None,) * 4
    assert (schedule.last_schedule_time, schedule.last_schedule_states, schedule.error) == (None,) * 3
    assert (schedule.label, schedule.retry_delay_expression) == (None, None)
    assert (schedule.method, schedule.retries) == ("POST", 3)
    await client.schedule.delete(schedule_id)


async def test_a_schedule_of_the_same_id_is_replaced_completely(client: AsyncQStash, label: str) -> None:
    schedule_id = await client.schedule.create(
        destination=URL, cron="1 1 1 1 1", body="old", label="old", retries=1, delay=5, schedule_id=label
    )
    assert schedule_id == label
    old = await client.schedule.get(label)
    await client.schedule.pause(label)
    again = await client.schedule.create(
        destination="https://example.com/new", cron="2 2 2 2 *", schedule_id=label
    )
    assert again == label
    new = await client.schedule.get(label)
    assert (new.destination, new.cron) == ("https://example.com/new", "2 2 2 2 *")
    assert (new.body, new.label, new.delay, new.retries) == (None, None, None, 3)
    assert new.created_at == old.created_at
    assert not new.paused
    await client.schedule.delete(label)


async def test_the_next_run_is_the_next_time_the_cron_names(client: AsyncQStash) -> None:
    schedule_id = await client.schedule.create(destination=URL, cron="*/10 * * * *")
    schedule = await client.schedule.get(schedule_id)
    assert schedule.next_schedule_time is not None
    assert schedule.next_schedule_time % 600_000 == 0
    assert 0 < schedule.next_schedule_time - now_ms() <= 600_000
    await client.schedule.delete(schedule_id)


async def test_a_cron_may_name_its_time_zone(client: AsyncQStash) -> None:
    schedule_id = await client.schedule.create(destination=URL, cron="CRON_TZ=Asia/Tokyo 0 9 * * *")
    schedule = await client.schedule.get(schedule_id)
    assert schedule.cron == "CRON_TZ=Asia/Tokyo 0 9 * * *"
    assert schedule.next_schedule_time is not None
    assert schedule.next_schedule_time % 86_400_000 == 0  # nine in Tokyo is midnight in UTC, all year
    await client.schedule.delete(schedule_id)


async def test_a_paused_schedule_has_no_next_run_until_it_is_resumed(client: AsyncQStash) -> None:
    schedule_id = await client.schedule.create(destination=URL, cron="@hourly")
    for _ in range(2):
        await client.schedule.pause(schedule_id)
        schedule = await client.schedule.get(schedule_id)
        assert (schedule.paused, schedule.next_schedule_time) == (True, None)
    for _ in range(2):
        await client.schedule.resume(schedule_id)
        schedule = await client.schedule.get(schedule_id)
        assert not schedule.paused
        assert schedule.next_schedule_time is not None
        assert schedule.next_schedule_time > time.time() * 1000
    await client.schedule.delete(schedule_id)


async def test_the_list_is_exactly_what_exists(clients: Clients, kind: str) -> None:
    client = clients.of(kind, TEST_USER_2.token)
    assert await client.schedule.list() == []
    ids = {await client.schedule.create(destination=URL, cron="@yearly") for _ in range(3)}
    listed = await client.schedule.list()
    assert {schedule.schedule_id for schedule in listed} == ids
    assert listed[0] == await client.schedule.get(listed[0].schedule_id)
    for schedule_id in ids:
        await client.schedule.delete(schedule_id)
    assert await client.schedule.list() == []


async def test_a_deleted_schedule_is_unknown_to_everything(client: AsyncQStash) -> None:
    schedule_id = await client.schedule.create(destination=URL, cron="@yearly")
    await client.schedule.delete(schedule_id)
    with refused(404, schedule_id):
        await client.schedule.get(schedule_id)
    with refused(404, schedule_id):
        await client.schedule.delete(schedule_id)
    with refused(404, schedule_id):
        await client.schedule.pause(schedule_id)
    with refused(404, schedule_id):
        await client.schedule.resume(schedule_id)


async def test_redacted_fields_of_a_schedule_are_not_shown(client: AsyncQStash) -> None:
    schedule_id = await client.schedule.create(
        destination=URL,
        cron="@yearly",
        body="a secret",
        headers={"X-A": "b"},
        redact={"body": True, "header": True},
    )
    schedule = await client.schedule.get(schedule_id)
    assert schedule.body == f"REDACTED:{sha256(b'a secret').hexdigest()}"
    assert schedule.headers == {"X-A": [f"REDACTED:{sha256(b'b').hexdigest()}"]}
    await client.schedule.delete(schedule_id)


@pytest.mark.parametrize(
    ("header", "arguments"),
    [
        ("Upstash-Cron", {"cron": "61 * * * *"}),
        ("Upstash-Cron", {"cron": "* * * *"}),
        ("Upstash-Cron", {"cron": "* * * * * *"}),
        ("Upstash-Cron", {"cron": "0 0 30 2 *"}),
        ("Upstash-Cron", {"cron": "CRON_TZ=Mars/Base * * * * *"}),
        ("Upstash-Schedule-Id", {"schedule_id": "no blanks"}),
        ("Upstash-Delay", {"delay": "soon"}),
        ("Upstash-Retries", {"retries": -1}),
        ("destination", {"destination": "example.com"}),
    ],
)
async def test_a_schedule_that_cannot_be_is_refused_by_the_name_of_its_fault(
    client: AsyncQStash, header: str, arguments: dict[str, Any]
) -> None:
    with refused(400, header):
        await client.schedule.create(**{"destination": URL, "cron": "@daily", **arguments})

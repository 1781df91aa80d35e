"""Schedules that really fire, at the next full minute.

They are made before the first test that speaks to a relay through the SDK, and looked at after the last of the
others: most of the minute has gone by then.
"""

import pytest
from qstash.log import LogState
from qstash.schedule import ScheduleState

from tests.sdk.asking import history_until, states
from tests.sdk.clients import Clients
from tests.sdk.ticking import Ticking

# One process waits for the minute; the others go on with what comes after these tests.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("ticks")]

DAY_MS = 86_400_000


async def test_a_schedule_sends_one_message_at_the_minute_its_cron_names(
    clients: Clients, kind: str, ticking: Ticking
) -> None:
    client, schedule_id = clients.of(kind, ticking.token), ticking.schedules[kind]
    endpoint = ticking.endpoints[kind]
    delivery = await endpoint.delivery(patience_s=75)
    assert ticking.tick_at <= delivery.at < ticking.tick_at + 5_000
    assert (delivery.method, delivery.target, delivery.body) == ("PUT", "/hook", b"tick")
    assert delivery.headers["X-A"] == "b"
    assert delivery.headers["Upstash-Schedule-Id"] == schedule_id
    message_id = delivery.headers["Upstash-Message-Id"]
    await history_until(client, message_id, LogState.DELIVERED)

    message = await client.message.get(message_id)
    assert (message.schedule_id, message.body, message.label) == (schedule_id, "tick", ticking.label)
    rows = (await client.log.list(filter={"schedule_id": schedule_id})).logs
    assert states(rows) == ["DELIVERED", "ACTIVE", "CREATED"]
    assert {(row.message_id, row.schedule_id) for row in rows} == {(message_id, schedule_id)}
    schedule = await client.schedule.get(schedule_id)
    assert schedule.last_schedule_time is not None
    assert schedule.next_schedule_time is not None
    assert ticking.tick_at <= schedule.last_schedule_time < ticking.tick_at + 5_000
    assert schedule.next_schedule_time - ticking.tick_at in (365 * DAY_MS, 366 * DAY_MS, 1461 * DAY_MS)
    assert schedule.last_schedule_states == {message_id: ScheduleState.SUCCESS}
    assert schedule.error is None
    assert len(endpoint.deliveries) == 1


async def test_a_paused_schedule_and_a_deleted_one_send_nothing(ticking: Ticking) -> None:
    for endpoint in ticking.endpoints.values():
        await endpoint.delivery(patience_s=75)
    assert ticking.silent.deliveries == []

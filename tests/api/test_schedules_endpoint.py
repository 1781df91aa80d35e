"""/v2/schedules: create or replace, look, pause, resume, delete."""

import asyncio
import hashlib
from base64 import b64decode
from pathlib import Path

import pytest

from relay.domain.schedule import CatchUp, Overlap
from relay.domain.tenant import Limits
from storage.protocol import ScheduleView
from tests.api.rig import FOREIGN, READ_ONLY, Rig, running
from tests.api.specification import Specification
from tests.builders import TENANT

MINUTE_MS = 60_000
#: The first instant divisible by ten minutes after the clock's beginning.
NEXT_TENTH_AT = 1_800_000_000_000 + 10 * MINUTE_MS


async def test_a_schedule_is_shown_as_it_was_made(rig: Rig) -> None:
    schedule_id = await rig.schedule(
        "https://example.com/hook?a=b",
        cron="*/10 * * * * ",
        body=b'{"order": 17}',
        headers={
            "Content-Type": "application/json",
            "Upstash-Method": "PATCH",
            "Upstash-Forward-Test-Header": "test-value",
            "Upstash-Forward-bypass-tunnel-reminder": "client-test",
            "Upstash-Retries": "1",
            "Upstash-Retry-Delay": "1000",
            "Upstash-Delay": "10s",
            "Upstash-Timeout": "20s",
            "Upstash-Label": "a,b",
        },
    )
    assert schedule_id.startswith("scd_")
    assert await rig.show_schedule(schedule_id) == {
        "scheduleId": schedule_id,
        "cron": "*/10 * * * *",
        "destination": "https://example.com/hook?a=b",
        "method": "PATCH",
        "header": {
            "Bypass-Tunnel-Reminder": ["client-test"],
            "Content-Type": ["application/json"],
            "Test-Header": ["test-value"],
        },
        "body": '{"order": 17}',
        "createdAt": rig.clock.now(),
        "retries": 1,
        "retryDelayExpression": "1000",
        "delay": 10,
        "timeout": 20,
        "label": "a",
        "labels": ["a", "b"],
        "isPaused": False,
        "callerIP": "127.0.0.1",
        "callerIp": "127.0.0.1",
        "nextScheduleTime": NEXT_TENTH_AT,
    }


async def test_what_was_not_given_is_absent(rig: Rig) -> None:
    schedule_id = await rig.schedule()
    assert set(await rig.show_schedule(schedule_id)) == {
        "scheduleId",
        "cron",
        "destination",
        "method",
        "createdAt",
        "retries",
        "isPaused",
        "callerIP",
        "callerIp",
        "nextScheduleTime",
    }


async def test_a_body_that_is_not_text_is_shown_in_base64(rig: Rig) -> None:
    schedule_id = await rig.schedule(body=b"\xff\x00")
    assert b64decode((await rig.show_schedule(schedule_id))["bodyBase64"]) == b"\xff\x00"


async def test_the_redacted_parts_of_a_schedule_are_shown_as_hashes(rig: Rig) -> None:
    schedule_id = await rig.schedule(body=b"secret", headers={"Upstash-Redact-Fields": "body"})
    expected = "REDACTED:" + hashlib.sha256(b"secret").hexdigest()
    assert (await rig.show_schedule(schedule_id))["body"] == expected


async def test_a_schedule_of_a_known_id_is_replaced_completely(rig: Rig) -> None:
    headers = {"Upstash-Schedule-Id": "my.own_id-1", "Upstash-Retries": "1", "Upstash-Label": "a"}
    assert await rig.schedule(body=b"first", headers=headers) == "my.own_id-1"
    await rig.call("PATCH", "/v2/schedules/my.own_id-1/pause")
    first = await rig.show_schedule("my.own_id-1")
    rig.clock.advance(1_000)
    await rig.schedule(
        "https://example.org/", headers={"Upstash-Schedule-Id": "my.own_id-1"}, cron="5 * * * *"
    )
    second = await rig.show_schedule("my.own_id-1")
    assert "body" not in second
    assert "labels" not in second
    assert second["createdAt"] == first["createdAt"]
    assert (second["isPaused"], second["retries"], second["cron"]) == (False, 3, "5 * * * *")
    assert second["destination"] == "https://example.org/"
    assert len((await rig.call("GET", "/v2/schedules")).json) == 1


async def test_the_list_has_exactly_what_exists(rig: Rig) -> None:
    assert (await rig.call("GET", "/v2/schedules")).json == []
    ids = [await rig.schedule() for _ in range(3)]
    assert len(set(ids)) == 3
    await rig.call("DELETE", f"/v2/schedules/{ids[1]}")
    listed = (await rig.call("GET", "/v2/schedules/")).json
    assert {schedule["scheduleId"] for schedule in listed} == {ids[0], ids[2]}
    assert await rig.show_schedule(ids[0]) in listed


async def test_what_the_relay_adds_to_the_protocol_is_kept(rig: Rig) -> None:
    async def kept(headers: dict[str, str]) -> ScheduleView:
        schedule_id = await rig.schedule(headers={**headers, "Upstash-Schedule-Id": "one"})
        view = await rig.storage.schedule(TENANT, schedule_id)
        assert view is not None
        return view

    default = (await kept({})).schedule
    assert (default.catch_up, default.overlap) == (CatchUp.LAST, Overlap.ALLOW)
    chosen = (await kept({"Relay-Schedule-Catch-Up": "all", "Relay-Schedule-Overlap": "skip"})).schedule
    assert (chosen.catch_up, chosen.overlap) == (CatchUp.ALL, Overlap.SKIP)


async def test_the_time_zone_of_a_cron_is_heeded(rig: Rig) -> None:
    utc = await rig.show_schedule(await rig.schedule(cron="0 12 * * *"))
    tokyo = await rig.show_schedule(await rig.schedule(cron="CRON_TZ=Asia/Tokyo 0 12 * * *"))
    assert tokyo["cron"] == "CRON_TZ=Asia/Tokyo 0 12 * * *"
    apart_ms = utc["nextScheduleTime"] - tokyo["nextScheduleTime"]
    assert apart_ms % (24 * 3_600_000) == 9 * 3_600_000


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "Upstash-Cron"),
        ({"Upstash-Cron": ""}, "Upstash-Cron"),
        ({"Upstash-Cron": "* * * *"}, "Upstash-Cron"),
        ({"Upstash-Cron": "* * * * * *"}, "Upstash-Cron"),
        ({"Upstash-Cron": "61 * * * *"}, "Upstash-Cron"),
        ({"Upstash-Cron": "0 0 30 2 *"}, "Upstash-Cron"),
        ({"Upstash-Cron": "CRON_TZ=Nowhere/Land * * * * *"}, "Upstash-Cron"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Schedule-Id": "a b"}, "Upstash-Schedule-Id"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Schedule-Id": ""}, "Upstash-Schedule-Id"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Not-Before": "1"}, "Upstash-Not-Before"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Deduplication-Id": "a"}, "Upstash-Deduplication-Id"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Queue-Name": "a b"}, "Upstash-Queue-Name"),
        ({"Upstash-Cron": "* * * * *", "Upstash-Callback": "a.b"}, "Upstash-Callback"),
        ({"Upstash-Cron": "* * * * *", "Relay-Schedule-Catch-Up": "some"}, "Relay-Schedule-Catch-Up"),
        ({"Upstash-Cron": "* * * * *", "Relay-Schedule-Overlap": "maybe"}, "Relay-Schedule-Overlap"),
    ],
)
async def test_a_value_that_cannot_be_accepted_is_refused_by_its_name(
    rig: Rig, headers: dict[str, str], named: str
) -> None:
    reply = await rig.call("POST", "/v2/schedules/https://example.com", headers=headers)
    assert reply.status == 400
    assert reply.error.startswith(named)
    assert (await rig.call("GET", "/v2/schedules")).json == []


@pytest.mark.parametrize("destination", ["", "example.com", "example.com/", "a-group/pause/now"])
async def test_a_destination_that_cannot_be_reached_is_refused(rig: Rig, destination: str) -> None:
    reply = await rig.call("POST", f"/v2/schedules/{destination}", headers={"Upstash-Cron": "* * * * *"})
    assert reply.status == 400
    assert "destination" in reply.error


async def test_there_may_be_only_so_many_schedules(tmp_path: Path, specification: Specification) -> None:
    async with running(tmp_path / "relay.db", specification, limits=Limits(max_schedules=1)) as rig:
        first = await rig.schedule()
        refused = await rig.call(
            "POST", "/v2/schedules/https://example.com", headers={"Upstash-Cron": "* * * * *"}
        )
        assert refused.status == 412
        assert refused.error == "schedules: there are 1 already, which is the maximum"
        assert await rig.schedule(headers={"Upstash-Schedule-Id": first}) == first
        assert await rig.schedule(token=FOREIGN)


async def test_a_body_of_a_schedule_is_bounded(rig: Rig) -> None:
    reply = await rig.call(
        "POST",
        "/v2/schedules/https://example.com",
        body=b"x" * ((1 << 20) + 1),
        headers={"Upstash-Cron": "* * * * *"},
    )
    assert reply.status == 413


@pytest.mark.parametrize("method", ["PATCH", "POST"])
async def test_a_paused_schedule_has_no_next_time_until_it_is_resumed(rig: Rig, method: str) -> None:
    schedule_id = await rig.schedule()
    for _ in range(2):
        reply = await rig.call(method, f"/v2/schedules/{schedule_id}/pause")
        assert (reply.status, reply.json) == (200, {})
        shown = await rig.show_schedule(schedule_id)
        assert shown["isPaused"] is True
        assert "nextScheduleTime" not in shown
    rig.clock.advance(25 * MINUTE_MS)
    for _ in range(2):
        reply = await rig.call(method, f"/v2/schedules/{schedule_id}/resume")
        assert (reply.status, reply.json) == (200, {})
        shown = await rig.show_schedule(schedule_id)
        assert shown["isPaused"] is False
        assert shown["nextScheduleTime"] == NEXT_TENTH_AT + 20 * MINUTE_MS


async def test_resuming_a_running_schedule_skips_nothing(rig: Rig) -> None:
    schedule_id = await rig.schedule()
    rig.clock.advance(25 * MINUTE_MS)
    await rig.call("PATCH", f"/v2/schedules/{schedule_id}/resume")
    assert (await rig.show_schedule(schedule_id))["nextScheduleTime"] == NEXT_TENTH_AT


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("PATCH", "/pause"),
        ("POST", "/pause"),
        ("PATCH", "/resume"),
        ("POST", "/resume"),
    ],
)
@pytest.mark.parametrize("schedule_id", ["scd_unknown", "example.com", "https"])
async def test_an_unknown_schedule_is_not_found(rig: Rig, method: str, path: str, schedule_id: str) -> None:
    reply = await rig.call(method, f"/v2/schedules/{schedule_id}{path}")
    assert reply.status == 404
    assert reply.error == f'schedule "{schedule_id}" not found'


@pytest.mark.parametrize("path", ["%20", "%ff", "a%2Fb", "%2F", "%00", "%E2%98%83/pause", "%ff/resume"])
async def test_an_id_that_cannot_be_is_not_found(rig: Rig, path: str) -> None:
    methods = ("PATCH", "POST") if path.endswith(("/pause", "/resume")) else ("DELETE",)
    for method in methods:
        assert (await rig.call(method, f"/v2/schedules/{path}")).status == 404


async def test_a_destination_that_ends_in_pause_is_a_destination(rig: Rig) -> None:
    for target, url in (
        ("https:/pause", "https://pause"),
        ("http:/resume", "http://resume"),
        ("https://example.com/x/pause", "https://example.com/x/pause"),
        ("https:/example.com/pause", "https://example.com/pause"),
        ("https%3A%2F%2Fexample.com%2Fresume", "https://example.com/resume"),
        ("https%3a%2F%2Fexample.com/resume", "https://example.com/resume"),
    ):
        assert (await rig.show_schedule(await rig.schedule(target)))["destination"] == url


async def test_a_schedule_is_deleted_once(rig: Rig) -> None:
    schedule_id = await rig.schedule()
    reply = await rig.call("DELETE", f"/v2/schedules/{schedule_id}")
    assert (reply.status, reply.json) == (200, {})
    assert (await rig.call("DELETE", f"/v2/schedules/{schedule_id}")).status == 404
    assert (await rig.call("GET", f"/v2/schedules/{schedule_id}")).status == 404


async def test_what_became_of_the_last_run_is_shown(rig: Rig) -> None:
    schedule_id = await rig.schedule(headers={"Upstash-Retries": "0"})
    message_id = await rig.fire(schedule_id)
    shown = await rig.show_schedule(schedule_id)
    assert shown["lastScheduleTime"] == NEXT_TENTH_AT
    assert shown["nextScheduleTime"] == NEXT_TENTH_AT + 10 * MINUTE_MS
    assert shown["lastScheduleStates"] == {message_id: "IN_PROGRESS"}
    await rig.attempt(200)
    assert (await rig.show_schedule(schedule_id))["lastScheduleStates"] == {message_id: "SUCCESS"}
    second = await rig.fire(schedule_id)
    await rig.attempt(500)
    assert (await rig.show_schedule(schedule_id))["lastScheduleStates"] == {second: "FAIL"}


async def test_a_message_names_the_schedule_it_comes_from(rig: Rig) -> None:
    schedule_id = await rig.schedule(body=b"tick")
    message_id = await rig.fire(schedule_id)
    assert message_id is not None
    shown = await rig.show(message_id)
    assert (shown["scheduleId"], shown["body"]) == (schedule_id, "tick")


async def test_a_run_that_failed_says_why(rig: Rig) -> None:
    schedule_id = await rig.schedule()
    await rig.fire(schedule_id, error="the destination is gone")
    assert (await rig.show_schedule(schedule_id))["error"] == "the destination is gone"


async def test_messages_of_a_deleted_schedule_go_on(rig: Rig) -> None:
    schedule_id = await rig.schedule()
    message_id = await rig.fire(schedule_id)
    assert message_id is not None
    await rig.call("DELETE", f"/v2/schedules/{schedule_id}")
    assert (await rig.show(message_id))["scheduleId"] == schedule_id
    assert await rig.attempt(200) == 1


async def test_a_cron_whose_zone_is_no_more_cannot_be_resumed(rig: Rig) -> None:
    schedule_id = await rig.schedule()
    await rig.spoil_cron(schedule_id)
    reply = await rig.call("PATCH", f"/v2/schedules/{schedule_id}/resume")
    assert reply.status == 400
    assert "Nowhere/Land" in reply.error


async def test_a_read_only_token_looks_at_schedules_only(rig: Rig) -> None:
    schedule_id = await rig.schedule()
    assert (await rig.show_schedule(schedule_id, token=READ_ONLY))["isPaused"] is False
    for method, path in (("PATCH", "/pause"), ("POST", "/pause"), ("DELETE", "")):
        reply = await rig.call(method, f"/v2/schedules/{schedule_id}{path}", token=READ_ONLY)
        assert reply.status == 403
    assert (await rig.show_schedule(schedule_id))["isPaused"] is False


async def test_a_schedule_deleted_while_it_is_resumed_stays_deleted(rig: Rig) -> None:
    for _ in range(10):
        schedule_id = await rig.schedule()
        resumed, deleted = await asyncio.gather(
            rig.call("PATCH", f"/v2/schedules/{schedule_id}/resume"),
            rig.call("DELETE", f"/v2/schedules/{schedule_id}"),
        )
        assert deleted.status == 200
        assert resumed.status in (200, 404)
        assert (await rig.call("GET", "/v2/schedules")).json == []

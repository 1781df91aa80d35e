import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from relay.domain.delivery import settle
from relay.domain.errors import Unavailable
from relay.domain.message import Request, TenantId
from relay.domain.publish import Draft
from relay.domain.schedule import CatchUp, Overlap, Run, RunOutcome, Schedule
from relay.domain.url_group import Endpoint, EndpointRef
from relay.engine.scheduler import Scheduler
from relay.ids import Ids, text_of
from storage.protocol import ClaimTerms, Firing, Schedules, ScheduleView, Storage
from storage.sqlite import open_sqlite
from tests.builders import NOW, OTHER_TENANT, TENANT, an_attempt, next_id
from tests.engine.stepped import Faulty, Workbench, running, storage_is_away

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
POLL = 15 * SECOND

assert NOW % MINUTE == 0
#: The first tick of every minutely schedule in this file.
FIRST = NOW + MINUTE


class Bench(Workbench):
    def __init__(
        self, storage: object, *, node: int = 0, now: int = NOW, grace_ms: int = DAY, max_bytes: int = 1000
    ) -> None:
        super().__init__(now)
        self.scheduler = Scheduler(
            cast(Schedules, storage),
            clock=self.clock,
            ids=Ids(node=node),
            log=self.lines,
            metrics=self.metrics,
            grace_ms=grace_ms,
            max_bytes=max_bytes,
            random=self.random,
        )


async def put(
    storage: Storage,
    id: str = "scd_1",
    *,
    tenant: TenantId = TENANT,
    cron: str = "* * * * *",
    next_at: int | None = FIRST,
    catch_up: CatchUp = CatchUp.LAST,
    overlap: Overlap = Overlap.ALLOW,
    delay_ms: int | None = None,
    draft: Draft | None = None,
) -> Schedule:
    stored = await storage.put_schedule(
        Schedule(
            tenant=tenant,
            id=id,
            cron=cron,
            draft=draft or Draft(request=Request(url=f"https://example.com/{id}"), delay_ms=delay_ms),
            created_at=NOW,
            revision=1,
            catch_up=catch_up,
            overlap=overlap,
            next_at=next_at,
        ),
        limit=10_000,
    )
    assert stored is not None
    return stored


async def view(storage: Storage, id: str = "scd_1") -> ScheduleView:
    found = await storage.schedule(TENANT, id)
    assert found is not None
    return found


async def runs(storage: Storage, id: str = "scd_1") -> list[Run]:
    """Oldest first."""
    return [*reversed(await storage.runs(TENANT, id, limit=1000))]


async def fired(storage: Storage, id: str = "scd_1") -> list[int]:
    return [run.tick_at for run in await runs(storage, id) if run.outcome is RunOutcome.FIRED]


async def live(storage: Storage) -> int | None:
    return (await storage.stats()).live


# --- the ordinary minute ---------------------------------------------------------------------------------------


async def test_a_tick_becomes_one_message_the_moment_it_is_due(storage: Storage) -> None:
    await put(storage)
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.step(MINUTE - 1)
        assert await fired(storage) == []
        await bench.clock.step(1)
        [run] = await runs(storage)
        await bench.clock.step(MINUTE - 1)
        assert await runs(storage) == [run]
    assert (run.tick_at, run.fired_at, run.outcome) == (FIRST, FIRST, RunOutcome.FIRED)
    [message_id] = run.message_ids
    message = await storage.message(TENANT, message_id)
    assert message is not None
    assert message.origin.schedule_id == "scd_1"
    assert message.request.url == "https://example.com/scd_1"
    assert message.not_before == FIRST
    schedule = (await view(storage)).schedule
    assert (schedule.next_at, schedule.error) == (FIRST + MINUTE, None)
    assert await live(storage) == 1
    assert bench.value('relay_schedule_runs_total{outcome="fired"}') == 1
    assert bench.value("relay_messages_published_total") == 1
    [line] = bench.lines.named("schedule.fired")
    assert line["schedule"] == "scd_1"
    assert line["messages"] == [text_of("msg_", message_id)]
    assert line["next_at"] == FIRST + MINUTE


async def test_the_delay_of_a_schedule_delays_each_message_and_not_its_ticks(storage: Storage) -> None:
    await put(storage, delay_ms=HOUR)
    bench = Bench(storage, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.step(MINUTE)
    assert await fired(storage) == [FIRST, FIRST + MINUTE]
    claimed = await storage.claim(ClaimTerms(limit=10, lease_ms=30_000), now=FIRST + HOUR - 1)
    assert (list(claimed.claims), claimed.next_due_at) == ([], FIRST + HOUR)


async def test_a_disabled_tenants_ticks_pass_without_a_message_and_are_not_caught_up(
    storage: Storage,
) -> None:
    theirs = await storage.add_tenant("acme", current_key="sig_1", next_key="sig_2", now=NOW)
    assert theirs is not None
    await put(storage, tenant=theirs.id, catch_up=CatchUp.ALL)
    await put(storage)
    await storage.put_disabled(theirs.id, at=NOW)
    bench = Bench(storage)
    async with running(bench.scheduler):
        for _ in range(3):
            await bench.clock.step(MINUTE)
        assert await fired(storage) == [FIRST, FIRST + MINUTE, FIRST + 2 * MINUTE]
        assert list(await storage.runs(theirs.id, "scd_1", limit=10)) == []
        await storage.put_disabled(theirs.id, at=None)
        await bench.clock.step(MINUTE)
        (run,) = await storage.runs(theirs.id, "scd_1", limit=10)
    assert (run.tick_at, run.outcome) == (FIRST + 3 * MINUTE, RunOutcome.FIRED)
    assert await live(storage) == 5


async def test_a_poke_makes_a_new_schedule_known_before_the_next_poll(storage: Storage) -> None:
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        await put(storage, next_at=NOW + SECOND)
        await bench.clock.after(bench.scheduler.poke)
        await bench.clock.step(SECOND)
        assert await fired(storage) == [NOW + SECOND]


async def test_a_change_nobody_told_of_is_noticed_within_fifteen_seconds(storage: Storage) -> None:
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        await put(storage, next_at=NOW + SECOND)
        await bench.clock.step(POLL)
        assert await fired(storage) == [NOW + SECOND]


async def test_it_never_sleeps_longer_than_the_poll_and_never_past_the_next_tick(storage: Storage) -> None:
    await put(storage, next_at=NOW + 40 * SECOND)
    bench = Bench(storage)
    async with running(bench.scheduler):
        for _ in range(3):
            await bench.clock.step_to_end_of_nap()
        assert await fired(storage) == [NOW + 40 * SECOND]
    assert bench.clock.naps == [15 * SECOND, 15 * SECOND, 10 * SECOND, 15 * SECOND]


async def test_progress_is_marked_whenever_storage_has_answered(storage: Storage) -> None:
    bench = Bench(storage)
    assert bench.scheduler.last_progress_at == NOW
    async with running(bench.scheduler):
        await bench.clock.step(POLL)
        assert bench.scheduler.last_progress_at == NOW + POLL


async def test_a_crowd_that_is_due_in_the_same_minute_is_fired_to_the_last(storage: Storage) -> None:
    ids = [f"scd_{number}" for number in range(250)]
    for id in ids:
        await put(storage, id)
    bench = Bench(storage, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        assert await live(storage) == 250
        assert {tuple(await fired(storage, id)) for id in ids} == {(FIRST,)}
    assert bench.value('relay_schedule_runs_total{outcome="fired"}') == 250


async def test_two_tenants_may_give_their_schedules_the_same_id(storage: Storage) -> None:
    await put(storage, tenant=TENANT)
    await put(storage, tenant=OTHER_TENANT)
    bench = Bench(storage, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.asleep()
    for tenant in (TENANT, OTHER_TENANT):
        [run] = await storage.runs(tenant, "scd_1", limit=10)
        assert await storage.message(tenant, run.message_ids[0]) is not None
    assert await live(storage) == 2


# --- downtime and clocks ---------------------------------------------------------------------------------------


async def test_after_a_restart_what_was_missed_is_fired_once_and_the_rest_recorded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/relay.db"
    before = await open_sqlite(url)
    await put(before, cron="0 * * * *", next_at=NOW + HOUR)
    first = Bench(before, now=NOW + HOUR)
    async with running(first.scheduler):
        await first.clock.asleep()
    await before.close()

    after = await open_sqlite(url)
    second = Bench(after, now=NOW + 5 * HOUR + 20 * MINUTE)
    async with running(second.scheduler):
        await second.clock.asleep()
        recorded = [(run.tick_at - NOW, run.outcome) for run in await runs(after)]
        messages = await live(after)
        next_at = (await view(after)).schedule.next_at
    await after.close()
    assert recorded == [
        (HOUR, RunOutcome.FIRED),
        (2 * HOUR, RunOutcome.SKIPPED_MISSED),
        (3 * HOUR, RunOutcome.SKIPPED_MISSED),
        (4 * HOUR, RunOutcome.SKIPPED_MISSED),
        (5 * HOUR, RunOutcome.FIRED),
    ]
    assert messages == 2
    assert next_at == NOW + 6 * HOUR
    assert second.value('relay_schedule_runs_total{outcome="skipped"}') == 3
    assert second.lines.named("schedule.fired")[0]["late_ms"] == 20 * MINUTE


async def test_catching_up_on_all_publishes_a_message_for_every_missed_tick(storage: Storage) -> None:
    await put(storage, catch_up=CatchUp.ALL)
    bench = Bench(storage, now=FIRST + 9 * MINUTE)
    async with running(bench.scheduler):
        await bench.clock.asleep()
    assert await fired(storage) == [FIRST + minute * MINUTE for minute in range(10)]
    ids = [run.message_ids for run in await runs(storage)]
    assert len(set(ids)) == 10
    assert await live(storage) == 10


async def test_what_is_older_than_the_grace_period_is_skipped_and_the_schedule_goes_on(
    storage: Storage,
) -> None:
    await put(storage, cron="0 * * * *", next_at=NOW)
    bench = Bench(storage, now=NOW + 50 * MINUTE, grace_ms=49 * MINUTE)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        assert [run.outcome for run in await runs(storage)] == [RunOutcome.SKIPPED_MISSED]
        assert await live(storage) == 0
        assert len(bench.lines.named("schedule.advanced")) == 1
        await bench.clock.step(10 * MINUTE)
        assert await fired(storage) == [NOW + HOUR]


async def test_a_clock_that_leaps_ahead_and_back_fires_no_tick_twice(storage: Storage) -> None:
    await put(storage)
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.step(MINUTE)
        await bench.clock.step(HOUR)
        ahead = await fired(storage)
        await bench.clock.asleep()
        bench.clock.advance(-HOUR)
        await bench.clock.after(bench.scheduler.poke)
        for _ in range(60):
            await bench.clock.step(MINUTE)
        assert await fired(storage) == ahead == [FIRST, FIRST + HOUR]
        await bench.clock.step(MINUTE)
        assert await fired(storage) == [FIRST, FIRST + HOUR, FIRST + HOUR + MINUTE]


async def test_a_paused_schedule_skips_silently_and_goes_on_with_the_tick_after_its_resumption(
    storage: Storage,
) -> None:
    await put(storage)
    bench = Bench(storage)
    async with running(bench.scheduler):
        await storage.pause_schedule(TENANT, "scd_1", paused=True, next_at=None)
        await bench.clock.step(HOUR)
        await storage.pause_schedule(TENANT, "scd_1", paused=False, next_at=NOW + HOUR + MINUTE)
        await bench.clock.step(MINUTE)
        assert [(run.tick_at, run.outcome) for run in await runs(storage)] == [
            (NOW + HOUR + MINUTE, RunOutcome.FIRED)
        ]


async def test_overlap_skip_waits_for_the_run_before_to_be_finished(storage: Storage) -> None:
    await put(storage, overlap=Overlap.SKIP)
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.step(MINUTE)
        await bench.clock.step(MINUTE)
        [claim] = (await storage.claim(ClaimTerms(limit=10, lease_ms=30_000), now=FIRST + MINUTE)).claims
        await storage.settle([settle(claim, an_attempt(started_at=FIRST + MINUTE), next_id=next_id)])
        await bench.clock.step(MINUTE)
        assert [(run.tick_at, run.outcome) for run in await runs(storage)] == [
            (FIRST, RunOutcome.FIRED),
            (FIRST + MINUTE, RunOutcome.SKIPPED_OVERLAP),
            (FIRST + 2 * MINUTE, RunOutcome.FIRED),
        ]


# --- races -----------------------------------------------------------------------------------------------------


async def test_two_schedulers_on_one_database_make_exactly_one_message_of_each_tick(storage: Storage) -> None:
    ids = [f"scd_{number}" for number in range(30)]
    for id in ids:
        await put(storage, id)
    one, two = Bench(storage, node=1), Bench(storage, node=2)
    async with running(one.scheduler), running(two.scheduler):
        for _ in range(5):
            await asyncio.gather(one.clock.step(MINUTE), two.clock.step(MINUTE))
    for id in ids:
        assert await fired(storage, id) == [FIRST + minute * MINUTE for minute in range(5)]
    assert await live(storage) == 5 * len(ids)
    lines = one.lines.named("schedule.fired") + two.lines.named("schedule.fired")
    assert len(lines) == 5 * len(ids)


async def test_a_firing_whose_answer_was_lost_is_not_repeated(storage: Storage) -> None:
    await put(storage)
    faulty = Faulty(storage)

    async def lose_the_answer(verb: str, *args: Any) -> None:
        if verb == "fire":
            raise Unavailable("the connection broke after the commit")

    faulty.after = lose_the_answer
    bench = Bench(faulty, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        await bench.clock.step_to_end_of_nap()
        assert await fired(storage) == [FIRST]
        assert await live(storage) == 1


@pytest.mark.parametrize("change", ["deleted", "replaced", "paused"])
async def test_a_schedule_that_changes_between_reading_and_firing_is_not_fired(
    storage: Storage, change: str
) -> None:
    await put(storage)
    faulty = Faulty(storage)

    async def change_it(verb: str, *args: Any) -> None:
        if verb == "fire" and change == "deleted":
            await storage.delete_schedule(TENANT, "scd_1")
        elif verb == "fire" and change == "replaced":
            await put(storage, cron="0 * * * *", next_at=NOW + HOUR)
        elif verb == "fire":
            await storage.pause_schedule(TENANT, "scd_1", paused=True, next_at=None)

    faulty.before = change_it
    bench = Bench(faulty, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        assert await live(storage) == 0
        assert await fired(storage) == []
        assert bench.lines.named("schedule.fired") == []


# --- poison ----------------------------------------------------------------------------------------------------


async def test_a_schedule_that_cannot_be_read_fails_visibly_and_stops_no_other(storage: Storage) -> None:
    await put(storage, "scd_bad", cron="CRON_TZ=Europe/Atlantis * * * * *", next_at=FIRST - SECOND)
    await put(storage, "scd_good")
    bench = Bench(storage, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        assert await fired(storage, "scd_good") == [FIRST]
        [failed] = await runs(storage, "scd_bad")
    assert (failed.tick_at, failed.outcome, failed.message_ids) == (FIRST - SECOND, RunOutcome.FAILED, ())
    bad = (await view(storage, "scd_bad")).schedule
    assert bad.next_at is None
    assert bad.error is not None
    assert bad.error.startswith("this schedule could not be run: ")
    assert "Europe/Atlantis" in bad.error
    assert bench.value('relay_schedule_runs_total{outcome="failed"}') == 1
    [line] = bench.lines.named("schedule.broke")
    assert (line["schedule"], line["tenant"]) == ("scd_bad", TENANT)


async def test_a_run_storage_cannot_take_fails_with_its_reason_and_the_next_tick_is_tried(
    storage: Storage,
) -> None:
    await put(storage, "scd_good")
    await put(storage, "scd_bad", delay_ms=1 << 70)
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.step(MINUTE)
        await bench.clock.step(MINUTE)
        assert await fired(storage, "scd_good") == [FIRST, FIRST + MINUTE]
    assert [(run.tick_at, run.outcome) for run in await runs(storage, "scd_bad")] == [
        (FIRST, RunOutcome.FAILED),
        (FIRST + MINUTE, RunOutcome.FAILED),
    ]
    bad = (await view(storage, "scd_bad")).schedule
    assert bad.next_at == FIRST + 2 * MINUTE
    assert bad.error == "this schedule could not be run (OverflowError)"
    levels = {
        (level, fields.get("schedule")) for level, event, fields in bench.lines.all if "schedule." in event
    }
    assert levels >= {("warning", "scd_bad"), ("info", "scd_good")}
    assert ("info", "scd_bad") not in levels


async def test_the_error_of_a_run_stands_through_skips_until_a_run_succeeds(storage: Storage) -> None:
    schedule = await put(storage, cron="0 * * * *", next_at=NOW, catch_up=CatchUp.NONE)
    failed = Run(tick_at=NOW, fired_at=NOW, outcome=RunOutcome.FAILED)
    await storage.fire(
        Firing(schedule=schedule, runs=(failed,), messages=(), next_at=NOW + HOUR, error="the group is gone"),
        now=NOW,
    )
    bench = Bench(storage, now=NOW + HOUR + 2 * MINUTE)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        assert [run.outcome for run in await runs(storage)] == [RunOutcome.FAILED, RunOutcome.SKIPPED_MISSED]
        assert (await view(storage)).schedule.error == "the group is gone"
        await bench.clock.step(58 * MINUTE)
        assert await fired(storage) == [NOW + 2 * HOUR]
        assert (await view(storage)).schedule.error is None


async def test_schedules_that_cannot_even_be_failed_hide_nothing_behind_them_and_are_tried_again_later(
    storage: Storage,
) -> None:
    stuck = [f"scd_stuck{number}" for number in range(120)]
    for id in stuck:
        await put(storage, id, next_at=FIRST - SECOND)
    await put(storage, "scd_good")
    faulty = Faulty(storage)

    async def refuse_the_stuck(verb: str, *args: Any) -> None:
        if verb == "fire" and args[0].schedule.id in stuck:
            raise RuntimeError("the row is damaged")

    faulty.before = refuse_the_stuck
    bench = Bench(faulty, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        assert await fired(storage, "scd_good") == [FIRST]
        assert len(bench.lines.named("schedule.stuck")) == len(stuck)
        faulty.before = Faulty(storage).before
        await bench.clock.step(POLL)
        assert {tuple(await fired(storage, id)) for id in stuck} == {(FIRST,)}
    assert bench.clock.naps[0] == POLL


# --- storage that is away --------------------------------------------------------------------------------------


async def test_while_storage_is_away_it_asks_ever_less_often_and_then_fires_what_was_missed(
    storage: Storage,
) -> None:
    await put(storage)
    faulty = Faulty(storage)
    faulty.before = storage_is_away
    bench = Bench(faulty, now=FIRST)
    async with running(bench.scheduler):
        for _ in range(11):
            await bench.clock.step_to_end_of_nap()
        assert bench.scheduler.last_progress_at == FIRST
        faulty.before = Faulty(storage).before
        await bench.clock.step_to_end_of_nap()
        assert len(await fired(storage)) == 1
        assert bench.scheduler.last_progress_at == bench.clock.now()
    pauses = bench.clock.naps[:12]
    for failure, pause in enumerate(pauses):
        longest = min(100 * 2**failure, POLL)
        assert longest / 2 <= pause <= longest
    assert len({pause for pause in pauses if pause >= POLL / 2}) > 1
    assert bench.value('relay_storage_errors_total{operation="schedules"}') == 12
    assert bench.lines.named("scheduler.waiting")[0]["reason"] == "the disk is full"


async def test_the_pauses_begin_anew_after_storage_has_answered(storage: Storage) -> None:
    faulty = Faulty(storage)
    faulty.before = storage_is_away
    bench = Bench(faulty)
    async with running(bench.scheduler):
        for _ in range(5):
            await bench.clock.step_to_end_of_nap()
        faulty.before = Faulty(storage).before
        await bench.clock.step_to_end_of_nap()
        faulty.before = storage_is_away
        await bench.clock.step_to_end_of_nap()
    assert bench.clock.naps[-1] <= 100


async def test_one_firing_that_storage_did_not_take_is_repeated_and_the_others_are_not(
    storage: Storage,
) -> None:
    ids = ["scd_1", "scd_2", "scd_3"]
    for id in ids:
        await put(storage, id)
    faulty = Faulty(storage)

    async def refuse_the_second(verb: str, *args: Any) -> None:
        if verb == "fire" and args[0].schedule.id == "scd_2":
            faulty.before = Faulty(storage).before
            raise Unavailable("locked")

    faulty.before = refuse_the_second
    bench = Bench(faulty, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        assert [len(await fired(storage, id)) for id in ids] == [1, 0, 1]
        await bench.clock.step_to_end_of_nap()
        assert [await fired(storage, id) for id in ids] == [[FIRST]] * 3
        assert await live(storage) == 3
    assert bench.clock.naps[0] <= 100
    assert bench.value('relay_storage_errors_total{operation="schedules"}') == 1


async def test_a_bug_on_the_way_to_storage_is_logged_and_the_loop_goes_on(storage: Storage) -> None:
    await put(storage)
    faulty = Faulty(storage)

    async def break_once(verb: str, *args: Any) -> None:
        faulty.before = Faulty(storage).before
        raise RuntimeError("a row that cannot be decoded")

    faulty.before = break_once
    bench = Bench(faulty, now=FIRST)
    async with running(bench.scheduler):
        await bench.clock.asleep()
        assert len(bench.lines.named("scheduler.failed")) == 1
        await bench.clock.step_to_end_of_nap()
        assert await fired(storage) == [FIRST]


# --- stopping --------------------------------------------------------------------------------------------------


async def test_told_to_stop_it_finishes_the_batch_in_hand_and_leaves_the_rest_due(storage: Storage) -> None:
    for number in range(150):
        await put(storage, f"scd_{number}")
    faulty = Faulty(storage)
    bench = Bench(faulty, now=FIRST)
    async with running(bench.scheduler) as stopping:

        async def stop(verb: str, *args: Any) -> None:
            if verb == "fire":
                stopping.set()

        faulty.before = stop
        async with asyncio.timeout(30):
            await stopping.wait()
    assert await live(storage) == 100
    due, _ = await storage.due_schedules(now=FIRST, limit=1000)
    assert len(due) == 50


async def test_it_stops_in_the_middle_of_a_sleep(storage: Storage) -> None:
    bench = Bench(storage)
    async with running(bench.scheduler) as stopping:
        await bench.clock.asleep()
        stopping.set()
    assert bench.clock.now() == NOW


# --- URL groups ------------------------------------------------------------------------------------------------

TO_GROUP = Draft(request=Request(url="", body=b"0123456789"), url_group="group")


async def put_group(storage: Storage, *hosts: str) -> None:
    endpoints = [Endpoint(url=f"https://{host}.example") for host in hosts]
    assert await storage.put_endpoints(TENANT, "group", endpoints, max_groups=9, max_endpoints=99, now=NOW)


async def urls(storage: Storage) -> list[str]:
    claimed = await storage.claim(ClaimTerms(limit=1000, lease_ms=1_000), now=NOW + DAY)
    return sorted(claim.message.request.url for claim in claimed.claims)


async def test_a_tick_goes_to_the_endpoints_the_group_has_at_that_moment(storage: Storage) -> None:
    await put_group(storage, "a", "b")
    await put(storage, draft=TO_GROUP)
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.step(MINUTE)
        (first,) = await runs(storage)
        assert set((await view(storage)).last_states) == set(first.message_ids)
        assert await urls(storage) == ["https://a.example", "https://b.example"]
        await storage.remove_endpoints(TENANT, "group", [EndpointRef(url="https://a.example")], now=NOW)
        await put_group(storage, "c")
        await bench.clock.step(MINUTE)
    assert await urls(storage) == ["https://b.example", "https://c.example"]
    assert [len(run.message_ids) for run in await runs(storage)] == [2, 2]
    assert (await view(storage)).schedule.error is None


async def test_a_tick_to_a_group_that_is_gone_fails_with_its_name_and_the_next_one_is_tried(
    storage: Storage,
) -> None:
    await put(storage, draft=TO_GROUP)
    await put(storage, "other")
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.step(MINUTE)
        assert [run.outcome for run in await runs(storage)] == [RunOutcome.FAILED]
        assert (await view(storage)).schedule.error == 'URL group "group" not found'
        assert await fired(storage, "other") == [FIRST]
        assert bench.lines.named("schedule.broke") == []
        await put_group(storage, "a")
        await bench.clock.step(MINUTE)
    assert [run.outcome for run in await runs(storage)] == [RunOutcome.FAILED, RunOutcome.FIRED]
    assert (await view(storage)).schedule.error is None


async def test_another_accounts_group_of_that_name_is_none(storage: Storage) -> None:
    await storage.put_endpoints(
        OTHER_TENANT,
        "group",
        [Endpoint(url="https://theirs.example")],
        max_groups=1,
        max_endpoints=1,
        now=NOW,
    )
    await put(storage, draft=TO_GROUP)
    bench = Bench(storage)
    async with running(bench.scheduler):
        await bench.clock.step(MINUTE)
    assert [run.outcome for run in await runs(storage)] == [RunOutcome.FAILED]


async def test_no_firing_to_a_group_is_larger_than_its_bound(storage: Storage) -> None:
    await put_group(storage, "a", "b", "c")
    await put(storage, draft=TO_GROUP, catch_up=CatchUp.ALL)
    bench = Bench(storage, now=NOW + 3 * MINUTE, max_bytes=60)
    async with running(bench.scheduler):
        await bench.clock.asleep()
    assert [run.outcome for run in await runs(storage)] == [
        RunOutcome.FIRED,
        RunOutcome.FIRED,
        RunOutcome.FAILED,
    ]
    error = (await view(storage)).schedule.error
    assert error == "the body, once for each endpoint of group, is larger than the limit of 60 bytes"

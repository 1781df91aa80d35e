"""Schedules: kept, fired exactly once, and honest about what became of their runs."""

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from relay.domain.message import Callback, FlowControl, Message, Request, RetryPolicy
from relay.domain.publish import Draft
from relay.domain.schedule import CatchUp, Overlap, Run, RunOutcome, Schedule
from relay.domain.selection import Selection
from storage.protocol import Firing, Retention, Storage
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message
from tests.contract.steps import EVERYTHING, LATER, accept, deliver, fail, start, take

MINUTE_MS = 60_000
DAY_MS = 86_400_000
MANY = 100


def a_schedule(
    id: str = "scd_1",
    *,
    next_at: int | None = NOW,
    paused: bool = False,
    draft: Draft | None = None,
    catch_up: CatchUp = CatchUp.LAST,
    overlap: Overlap = Overlap.ALLOW,
) -> Schedule:
    return Schedule(
        tenant=TENANT,
        id=id,
        cron="* * * * *",
        draft=draft or Draft(request=Request(url="https://example.com/tick")),
        created_at=NOW - 5,
        revision=1,
        catch_up=catch_up,
        overlap=overlap,
        paused=paused,
        next_at=next_at,
    )


def a_firing(
    schedule: Schedule,
    *messages: Message,
    outcome: RunOutcome = RunOutcome.FIRED,
    error: str | None = None,
) -> Firing:
    assert schedule.next_at is not None
    run = Run(
        tick_at=schedule.next_at,
        fired_at=schedule.next_at + 3,
        outcome=outcome,
        message_ids=tuple(message.id for message in messages),
    )
    next_at = schedule.next_at + MINUTE_MS
    return Firing(schedule=schedule, runs=(run,), messages=messages, next_at=next_at, error=error)


async def put(storage: Storage, schedule: Schedule) -> Schedule:
    stored = await storage.put_schedule(schedule, limit=MANY)
    assert stored is not None
    return stored


async def read(storage: Storage, schedule_id: str = "scd_1") -> Schedule:
    view = await storage.schedule(TENANT, schedule_id)
    assert view is not None
    return view.schedule


async def outcomes(storage: Storage) -> dict[int, bool | None]:
    view = await storage.schedule(TENANT, "scd_1")
    assert view is not None
    return dict(view.last_states.items())


async def test_a_schedule_reads_back_exactly_as_it_was_put(storage: Storage) -> None:
    draft = Draft(
        request=Request(
            url="https://example.com/ü",
            method="PUT",
            headers=(("X-Raw", "\udcff"), ("A", "b")),
            body=bytes(range(256)),
            timeout_ms=5,
        ),
        retry=RetryPolicy(max_retries=7),
        delay_ms=1000,
        labels=("a", "b"),
        flow=FlowControl(key="k", rate=1),
        queue="q",
        callback=Callback(url="https://example.com/cb"),
    )
    schedule = a_schedule(draft=draft, catch_up=CatchUp.ALL, overlap=Overlap.SKIP)
    plain = a_schedule("other", next_at=None)
    assert await storage.put_schedule(schedule, limit=MANY) == schedule
    assert await storage.put_schedule(plain, limit=MANY) == plain
    view = await storage.schedule(TENANT, schedule.id)
    assert view is not None
    assert (view.schedule, view.last_states) == (schedule, {})
    assert [view.schedule for view in await storage.schedules(TENANT)] == [plain, schedule]


async def test_a_replacement_is_complete_but_for_age_and_last_firing(storage: Storage) -> None:
    first = await put(storage, a_schedule(draft=Draft(request=Request(url="https://a.example", body=b"x"))))
    assert await storage.fire(a_firing(first), now=NOW)
    second = replace(a_schedule(next_at=NOW + 9, overlap=Overlap.SKIP), created_at=NOW + 1)
    stored = await put(storage, second)
    expected = replace(second, created_at=first.created_at, revision=2, last_fired_at=NOW + 3)
    assert stored == expected
    assert await read(storage) == expected


async def test_the_limit_refuses_new_schedules_but_no_replacement(storage: Storage) -> None:
    await put(storage, a_schedule("one"))
    assert await storage.put_schedule(a_schedule("two"), limit=1) is None
    assert await storage.schedule(TENANT, "two") is None
    assert await storage.put_schedule(a_schedule("one"), limit=1) is not None
    theirs = replace(a_schedule("two"), tenant=OTHER_TENANT)
    assert await storage.put_schedule(theirs, limit=1) == theirs


async def test_schedules_survive_a_restart(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    schedule = await put(storage, a_schedule())
    again = await reopen()
    assert await read(again) == schedule
    due, _ = await again.due_schedules(now=NOW, limit=10)
    assert [one.schedule for one in due] == [schedule]


async def test_a_deleted_schedule_is_gone_and_its_messages_go_on(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    message = a_message(schedule_id="scd_1")
    await storage.fire(a_firing(schedule, message), now=NOW)
    assert await storage.delete_schedule(TENANT, "scd_1") is True
    assert await storage.delete_schedule(TENANT, "scd_1") is False
    assert await storage.schedule(TENANT, "scd_1") is None
    assert list(await storage.runs(TENANT, "scd_1", limit=10)) == []
    assert [claim.message for claim in await take(storage)] == [message]


async def test_pausing_and_resuming_are_changes_of_the_definition(storage: Storage) -> None:
    await put(storage, a_schedule())
    assert await storage.pause_schedule(TENANT, "scd_1", paused=True, next_at=None) is True
    paused = await read(storage)
    assert (paused.paused, paused.next_at, paused.revision) == (True, None, 2)
    assert await storage.due_schedules(now=LATER, limit=10) == ([], None)
    assert await storage.pause_schedule(TENANT, "scd_1", paused=True, next_at=None) is True
    assert await read(storage) == paused
    assert await storage.pause_schedule(TENANT, "scd_1", paused=False, next_at=NOW + 7) is True
    resumed = await read(storage)
    assert (resumed.paused, resumed.next_at, resumed.revision) == (False, NOW + 7, 3)
    assert await storage.pause_schedule(TENANT, "scd_1", paused=False, next_at=NOW + 9) is True
    assert await read(storage) == resumed
    assert await storage.pause_schedule(TENANT, "none", paused=True, next_at=None) is False


async def test_due_schedules_come_earliest_first_with_the_tick_of_all_the_others(storage: Storage) -> None:
    for name, next_at in (("b", NOW - 1), ("a", NOW), ("c", NOW + 1), ("never", None)):
        await put(storage, a_schedule(name, next_at=next_at))
    due, next_at = await storage.due_schedules(now=NOW, limit=10)
    assert ([one.schedule.id for one in due], next_at) == (["b", "a"], NOW + 1)
    due, next_at = await storage.due_schedules(now=NOW, limit=1)
    assert ([one.schedule.id for one in due], next_at) == (["b"], NOW)
    due, next_at = await storage.due_schedules(now=NOW - 2, limit=10)
    assert (list(due), next_at) == ([], NOW - 1)


async def test_a_firing_publishes_records_and_advances_in_one_commit(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    schedule = await put(storage, a_schedule())
    woken: list[int] = []
    storage.on_work(woken.append)
    message = a_message(schedule_id="scd_1")
    assert await storage.fire(a_firing(schedule, message, error="odd"), now=NOW) is True
    assert woken == [NOW]
    again = await reopen()
    fired = await read(again)
    assert fired == replace(schedule, next_at=NOW + MINUTE_MS, last_fired_at=NOW + 3, error="odd")
    assert await again.runs(TENANT, "scd_1", limit=10) == [
        Run(tick_at=NOW, fired_at=NOW + 3, outcome=RunOutcome.FIRED, message_ids=(message.id,))
    ]
    assert [claim.message for claim in await take(again)] == [message]


async def test_of_many_who_fire_one_tick_exactly_one_wins(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    messages = [a_message(schedule_id="scd_1") for _ in range(6)]
    won = await asyncio.gather(*(storage.fire(a_firing(schedule, message), now=NOW) for message in messages))
    assert sorted(won) == [False] * 5 + [True]
    assert [claim.message for claim in await take(storage)] == [messages[won.index(True)]]
    assert len(await storage.runs(TENANT, "scd_1", limit=10)) == 1
    assert await storage.fire(a_firing(schedule, a_message()), now=NOW) is False


async def test_a_firing_of_a_schedule_that_was_changed_meanwhile_loses(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    await put(storage, a_schedule())
    assert await storage.fire(a_firing(schedule, a_message()), now=NOW) is False
    current = await read(storage)
    await storage.pause_schedule(TENANT, "scd_1", paused=True, next_at=None)
    await storage.pause_schedule(TENANT, "scd_1", paused=False, next_at=NOW)
    assert await storage.fire(a_firing(current, a_message()), now=NOW) is False
    await storage.delete_schedule(TENANT, "scd_1")
    assert await storage.fire(a_firing(current, a_message()), now=NOW) is False
    assert await take(storage) == []
    assert list(await storage.runs(TENANT, "scd_1", limit=10)) == []


async def test_a_skipped_tick_is_recorded_and_is_not_a_firing(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    assert await storage.fire(a_firing(schedule, outcome=RunOutcome.SKIPPED_OVERLAP), now=NOW)
    after = await read(storage)
    assert (after.last_fired_at, after.next_at) == (None, NOW + MINUTE_MS)
    (run,) = await storage.runs(TENANT, "scd_1", limit=10)
    assert run.outcome is RunOutcome.SKIPPED_OVERLAP
    await storage.fire(a_firing(after), now=NOW)
    fired = await read(storage)
    await storage.fire(a_firing(fired, outcome=RunOutcome.SKIPPED_MISSED), now=NOW)
    assert (await read(storage)).last_fired_at == fired.last_fired_at == NOW + MINUTE_MS + 3


async def test_runs_come_newest_first_and_bounded(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    for _ in range(4):
        assert await storage.fire(a_firing(schedule), now=NOW)
        schedule = await read(storage)
    runs = await storage.runs(TENANT, "scd_1", limit=2)
    assert [run.tick_at for run in runs] == [NOW + 3 * MINUTE_MS, NOW + 2 * MINUTE_MS]


async def test_a_tick_that_comes_again_after_the_clock_was_set_back_is_no_obstacle(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    await storage.fire(a_firing(schedule, a_message()), now=NOW)
    again = await put(storage, a_schedule())
    second = a_message()
    assert await storage.fire(a_firing(again, second), now=NOW) is True
    assert await outcomes(storage) == {second.id: None}


async def test_the_last_run_tells_what_became_of_its_messages(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    messages = [a_message(schedule_id="scd_1", max_retries=0) for _ in range(4)]
    await storage.fire(a_firing(schedule, *messages), now=NOW)
    assert await outcomes(storage) == {message.id: None for message in messages}
    claims = await take(storage)
    await deliver(storage, claims[0])
    await fail(storage, claims[1])
    await storage.cancel(TENANT, Selection(message_ids=(messages[2].id,)), limit=None, now=NOW)
    await fail(storage, claims[2])
    expected = {messages[0].id: True, messages[1].id: False, messages[2].id: False, messages[3].id: None}
    assert await outcomes(storage) == expected
    await storage.fire(a_firing(await read(storage), outcome=RunOutcome.SKIPPED_OVERLAP), now=NOW)
    assert await outcomes(storage) == expected
    (view,) = await storage.schedules(TENANT)
    assert view.last_states == expected


async def test_the_last_run_still_tells_when_its_history_was_forgotten(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    done, dead, alive = (a_message(schedule_id="scd_1", max_retries=0) for _ in range(3))
    await storage.fire(a_firing(schedule, done, dead, alive), now=NOW)
    claims = await take(storage)
    await deliver(storage, claims[0])
    await fail(storage, claims[1])
    retention = Retention(events_before=NOW + DAY_MS, dead_letters_before=NOW + DAY_MS)
    while await storage.prune(retention, now=NOW, limit=4):
        pass
    assert await storage.message(TENANT, done.id) is None
    assert await outcomes(storage) == {done.id: True, dead.id: False, alive.id: None}


async def test_old_runs_are_forgotten_but_for_the_last_one_that_fired(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    await storage.fire(a_firing(schedule), now=NOW)
    await storage.fire(a_firing(await read(storage)), now=NOW)
    await storage.fire(a_firing(await read(storage), outcome=RunOutcome.SKIPPED_MISSED), now=NOW)
    retention = Retention(events_before=NOW + DAY_MS, dead_letters_before=NOW)
    assert await storage.prune(retention, now=NOW, limit=100) == 1
    assert await storage.prune(retention, now=NOW, limit=100) == 0
    runs = await storage.runs(TENANT, "scd_1", limit=10)
    assert [run.tick_at for run in runs] == [NOW + 2 * MINUTE_MS, NOW + MINUTE_MS]


async def test_a_due_schedule_tells_whether_its_last_run_is_unfinished(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    due, _ = await storage.due_schedules(now=NOW, limit=10)
    assert [one.in_progress for one in due] == [False]
    message = a_message(schedule_id="scd_1")
    await storage.fire(a_firing(schedule, message), now=NOW)
    due, _ = await storage.due_schedules(now=NOW + MINUTE_MS, limit=10)
    assert [one.in_progress for one in due] == [True]
    claims = await take(storage)
    due, _ = await storage.due_schedules(now=NOW + MINUTE_MS, limit=10)
    assert [one.in_progress for one in due] == [True]
    await deliver(storage, *claims)
    due, _ = await storage.due_schedules(now=NOW + MINUTE_MS, limit=10)
    assert [one.in_progress for one in due] == [False]


async def test_messages_of_a_schedule_are_selected_by_it(storage: Storage) -> None:
    schedule = await put(storage, a_schedule())
    message = a_message(schedule_id="scd_1")
    await storage.fire(a_firing(schedule, message), now=NOW)
    await accept(storage, a_message())
    selection = Selection(schedule_ids=("scd_1",))
    assert await storage.cancel(TENANT, selection, limit=None, now=NOW) == [message.id]


async def test_schedules_of_different_tenants_do_not_meet(storage: Storage) -> None:
    mine = await put(storage, a_schedule())
    theirs = await put(storage, replace(a_schedule(next_at=NOW + 1), tenant=OTHER_TENANT))
    message = replace(a_message(schedule_id="scd_1"), tenant=OTHER_TENANT)
    assert await storage.fire(a_firing(theirs, message), now=NOW) is True
    assert await read(storage) == mine
    assert await outcomes(storage) == {}
    assert list(await storage.runs(TENANT, "scd_1", limit=10)) == []
    assert await storage.delete_schedule(TENANT, "scd_1") is True
    assert len(await storage.runs(OTHER_TENANT, "scd_1", limit=10)) == 1
    assert [view.schedule.tenant for view in await storage.schedules(OTHER_TENANT)] == [OTHER_TENANT]
    assert await storage.pause_schedule(TENANT, "scd_1", paused=True, next_at=None) is False
    assert await start(storage) == []
    assert await storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW) == []


async def test_a_due_schedule_of_a_disabled_tenant_says_so(storage: Storage) -> None:
    theirs = await storage.add_tenant("acme", current_key="sig_1", next_key="sig_2", now=NOW)
    assert theirs is not None
    await storage.put_schedule(a_schedule(), limit=MANY)
    await storage.put_schedule(replace(a_schedule(), tenant=theirs.id), limit=MANY)
    for at in (None, NOW, None):
        await storage.put_disabled(theirs.id, at=at)
        due, _ = await storage.due_schedules(now=NOW, limit=10)
        assert {one.schedule.tenant: one.disabled for one in due} == {
            TENANT: False,
            theirs.id: at is not None,
        }


async def test_a_tick_may_pass_without_a_run(storage: Storage) -> None:
    schedule = await storage.put_schedule(a_schedule(), limit=MANY)
    assert schedule is not None
    firing = Firing(schedule=schedule, runs=(), messages=(), next_at=NOW + MINUTE_MS)
    assert await storage.fire(firing, now=NOW)
    assert await storage.due_schedules(now=NOW, limit=10) == ([], NOW + MINUTE_MS)
    assert list(await storage.runs(TENANT, "scd_1", limit=10)) == []
    assert (await storage.stats()).live == 0

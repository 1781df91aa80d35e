from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.domain.cron import Cron
from relay.domain.errors import NotFound
from relay.domain.message import Message, MessageId, Request, TenantId
from relay.domain.publish import Draft
from relay.domain.schedule import (
    MAX_CATCH_UP_RUNS,
    MAX_RECORDED_SKIPS,
    CatchUp,
    Overlap,
    Plan,
    RunOutcome,
    Schedule,
    due_runs,
    scheduled_messages,
)
from relay.domain.url_group import Endpoint, UrlGroup

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


NOON = at("2027-01-15 12:00")


def a_schedule(
    *,
    cron: str = "* * * * *",
    next_at: int | None = NOON,
    catch_up: CatchUp = CatchUp.LAST,
    overlap: Overlap = Overlap.ALLOW,
    paused: bool = False,
    draft: Draft | None = None,
) -> Schedule:
    return Schedule(
        tenant=TenantId(1),
        id="scd_1",
        cron=cron,
        draft=draft or Draft(request=Request(url="https://example.com/")),
        created_at=0,
        revision=1,
        catch_up=catch_up,
        overlap=overlap,
        paused=paused,
        next_at=next_at,
    )


def due(schedule: Schedule, now: int, *, grace_ms: int = DAY, in_progress: bool = False) -> Plan:
    return due_runs(schedule, now=now, grace_ms=grace_ms, in_progress=in_progress)


def skipped(plan: Plan, outcome: RunOutcome = RunOutcome.SKIPPED_MISSED) -> list[int]:
    return [run.tick_at for run in plan.skips if run.outcome is outcome]


# --- on time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("catch_up", CatchUp)
@pytest.mark.parametrize("late_ms", [0, 1, 45_000])
def test_a_tick_on_time_is_run_whatever_the_schedule_says_about_catching_up(
    catch_up: CatchUp, late_ms: int
) -> None:
    plan = due(a_schedule(catch_up=catch_up), NOON + late_ms)
    assert plan == Plan(ticks=(NOON,), next_at=NOON + MINUTE)


@pytest.mark.parametrize("catch_up", CatchUp)
def test_a_tick_is_on_time_up_to_a_minute_even_without_any_grace(catch_up: CatchUp) -> None:
    hourly = a_schedule(cron="0 * * * *", catch_up=catch_up)
    assert due(hourly, NOON + MINUTE, grace_ms=0).ticks == (NOON,)
    assert due(hourly, NOON + MINUTE + 1, grace_ms=0).ticks == ()


def test_nothing_is_due_before_the_next_tick_however_far_the_clock_was_set_back() -> None:
    for now in (NOON - 1, NOON - DAY, 0):
        assert due(a_schedule(), now) == Plan(next_at=NOON)


def test_a_schedule_without_a_further_tick_is_never_due() -> None:
    assert due(a_schedule(next_at=None), NOON) == Plan(next_at=None)


def test_a_paused_schedule_runs_nothing_records_nothing_and_has_no_next_tick() -> None:
    assert due(a_schedule(paused=True, catch_up=CatchUp.ALL), NOON + DAY) == Plan(next_at=None)


def test_the_last_tick_of_all_leaves_none_to_wait_for() -> None:
    end = at("9997-12-31 23:59")
    assert due(a_schedule(cron="59 23 31 12 *", next_at=end), end) == Plan(ticks=(end,), next_at=None)


def test_a_tick_that_was_announced_is_run_though_the_cron_would_not_name_it_any_more() -> None:
    announced = a_schedule(cron="0 * * * *", next_at=NOON + 7 * MINUTE)
    assert due(announced, NOON + 7 * MINUTE) == Plan(ticks=(NOON + 7 * MINUTE,), next_at=NOON + HOUR)


def test_a_cron_that_cannot_be_read_is_an_error_and_not_a_silence() -> None:
    with pytest.raises(ValueError, match="Atlantis"):
        due(a_schedule(cron="CRON_TZ=Europe/Atlantis * * * * *"), NOON)


# --- missed ----------------------------------------------------------------------------------------------------


def test_by_default_missed_ticks_are_caught_up_on_by_one_late_run_of_the_latest() -> None:
    plan = due(a_schedule(cron="0 * * * *"), NOON + 3 * HOUR + 20 * MINUTE)
    assert plan.ticks == (NOON + 3 * HOUR,)
    assert skipped(plan) == [NOON, NOON + HOUR, NOON + 2 * HOUR]
    assert plan.next_at == NOON + 4 * HOUR


def test_a_tick_on_time_stands_for_the_missed_ones_before_it() -> None:
    plan = due(a_schedule(cron="0 * * * *"), NOON + 2 * HOUR + 1)
    assert plan.ticks == (NOON + 2 * HOUR,)
    assert skipped(plan) == [NOON, NOON + HOUR]


def test_of_two_ticks_the_one_that_is_due_this_very_moment_is_run() -> None:
    plan = due(a_schedule(), NOON + MINUTE)
    assert (plan.ticks, skipped(plan), plan.next_at) == ((NOON + MINUTE,), [NOON], NOON + 2 * MINUTE)


def test_a_tick_missed_by_exactly_the_grace_period_is_caught_up_on_and_an_older_one_is_not() -> None:
    daily = a_schedule(cron="0 12 * * *")
    assert due(daily, NOON + HOUR, grace_ms=HOUR).ticks == (NOON,)
    late = due(daily, NOON + HOUR + 1, grace_ms=HOUR)
    assert (late.ticks, skipped(late), late.next_at) == ((), [NOON], NOON + DAY)


def test_a_schedule_that_does_not_catch_up_skips_what_it_missed_and_still_runs_what_is_on_time() -> None:
    hourly = a_schedule(cron="0 * * * *", catch_up=CatchUp.NONE)
    late = due(hourly, NOON + 2 * HOUR + 20 * MINUTE)
    assert (late.ticks, skipped(late)) == ((), [NOON, NOON + HOUR, NOON + 2 * HOUR])
    on_time = due(hourly, NOON + 2 * HOUR + 20_000)
    assert (on_time.ticks, skipped(on_time)) == ((NOON + 2 * HOUR,), [NOON, NOON + HOUR])


def test_catching_up_on_all_runs_every_tick_within_the_grace_period() -> None:
    plan = due(a_schedule(cron="0 * * * *", catch_up=CatchUp.ALL), NOON + 4 * HOUR, grace_ms=2 * HOUR)
    assert plan.ticks == (NOON + 2 * HOUR, NOON + 3 * HOUR, NOON + 4 * HOUR)
    assert skipped(plan) == [NOON, NOON + HOUR]


def test_catching_up_on_all_runs_the_latest_hundred_at_most_and_records_the_others_as_skipped() -> None:
    plan = due(a_schedule(catch_up=CatchUp.ALL), NOON + 119 * MINUTE)
    assert plan.ticks == tuple(NOON + minute * MINUTE for minute in range(20, 120))
    assert skipped(plan) == [NOON + minute * MINUTE for minute in range(20)]


def test_after_a_year_the_skips_are_the_one_it_began_with_and_the_latest_twenty_four() -> None:
    now = NOON + 365 * DAY
    last = due(a_schedule(), now)
    assert last.ticks == (now,)
    assert skipped(last) == [NOON, *(now - minute * MINUTE for minute in range(24, 0, -1))]
    everything = due(a_schedule(catch_up=CatchUp.ALL), now)
    assert len(everything.ticks) == MAX_CATCH_UP_RUNS
    assert skipped(everything) == [NOON, *(now - minute * MINUTE for minute in range(123, 99, -1))]


def test_the_latest_ticks_are_found_across_long_stretches_without_any() -> None:
    first = at("2016-02-29 06:30")
    plan = due(
        a_schedule(cron="30 6 29 2 *", next_at=first, catch_up=CatchUp.ALL), NOON, grace_ms=7 * 365 * DAY
    )
    assert plan.ticks == (at("2020-02-29 06:30"), at("2024-02-29 06:30"))
    assert skipped(plan) == [first]
    assert plan.next_at == at("2028-02-29 06:30")


def test_a_skip_is_recorded_with_the_moment_it_was_decided() -> None:
    plan = due(a_schedule(cron="0 * * * *"), NOON + 90 * MINUTE)
    assert [(run.tick_at, run.fired_at, run.message_ids) for run in plan.skips] == [
        (NOON, NOON + 90 * MINUTE, ())
    ]


# --- overlap ---------------------------------------------------------------------------------------------------


def test_an_earlier_run_in_progress_skips_this_one_only_where_overlap_is_not_allowed() -> None:
    careful = a_schedule(overlap=Overlap.SKIP)
    plan = due(careful, NOON, in_progress=True)
    assert plan.ticks == ()
    assert skipped(plan, RunOutcome.SKIPPED_OVERLAP) == [NOON]
    assert plan.next_at == NOON + MINUTE
    assert due(careful, NOON, in_progress=False).ticks == (NOON,)
    assert due(a_schedule(), NOON, in_progress=True).ticks == (NOON,)


def test_each_skip_names_its_own_reason() -> None:
    plan = due(a_schedule(cron="0 * * * *", overlap=Overlap.SKIP), NOON + 2 * HOUR, in_progress=True)
    assert skipped(plan, RunOutcome.SKIPPED_MISSED) == [NOON, NOON + HOUR]
    assert skipped(plan, RunOutcome.SKIPPED_OVERLAP) == [NOON + 2 * HOUR]


def test_runs_that_may_not_overlap_are_not_caught_up_on_side_by_side() -> None:
    plan = due(a_schedule(catch_up=CatchUp.ALL, overlap=Overlap.SKIP), NOON + 3 * MINUTE)
    assert plan.ticks == (NOON + 3 * MINUTE,)
    assert skipped(plan) == [NOON, NOON + MINUTE, NOON + 2 * MINUTE]


# --- time that behaves badly -----------------------------------------------------------------------------------


def test_a_clock_that_runs_an_hour_ahead_and_back_again_runs_no_tick_twice() -> None:
    schedule = a_schedule()
    ahead = due(schedule, NOON + HOUR)
    assert ahead.ticks == (NOON + HOUR,)
    schedule = replace(schedule, next_at=ahead.next_at)
    for minute in range(61):
        assert due(schedule, NOON + minute * MINUTE) == Plan(next_at=NOON + 61 * MINUTE)
    assert due(schedule, NOON + 61 * MINUTE).ticks == (NOON + 61 * MINUTE,)


CRONS = (
    "* * * * *",
    "*/7 */5 * * *",
    "0,1,2 9 * * *",
    "CRON_TZ=Europe/Berlin 30 2 * * *",
    "CRON_TZ=Australia/Lord_Howe */15 1-2 * * *",
    "0 0 1 * *",
)
#: Around changes of the clock in Berlin and on Lord Howe Island.
STARTS = (NOON, at("2027-03-27 12:00"), at("2027-04-03 09:30"), at("2027-10-30 22:10"))
#: Mostly downtime and short looks, now and then a clock that is set back.
MOVES = st.lists(
    st.one_of(
        st.integers(0, 2 * MINUTE),
        st.integers(0, 3 * HOUR),
        st.integers(0, 3 * DAY),
        st.integers(-2 * DAY, 0),
    ),
    min_size=1,
    max_size=12,
)


def all_ticks(cron: Cron, first: int, now: int) -> list[int]:
    ticks = []
    tick: int | None = first
    while tick is not None and tick <= now:
        ticks.append(tick)
        tick = cron.next_after(tick)
    return ticks


def expected_ticks(schedule: Schedule, ticks: Sequence[int], now: int, grace_ms: int) -> list[int]:
    on_time = [tick for tick in ticks[-1:] if now - tick <= MINUTE]
    missed = [tick for tick in ticks if tick not in on_time and now - tick <= grace_ms]
    if schedule.catch_up is CatchUp.NONE:
        return on_time
    if schedule.catch_up is CatchUp.LAST or schedule.overlap is Overlap.SKIP:
        return on_time or missed[-1:]
    return [tick for tick in ticks if now - tick <= max(grace_ms, MINUTE)][-MAX_CATCH_UP_RUNS:]


@given(
    text=st.sampled_from(CRONS),
    start=st.sampled_from(STARTS),
    moves=MOVES,
    grace_ms=st.sampled_from([0, HOUR, DAY, 30 * DAY]),
    catch_up=st.sampled_from(CatchUp),
    overlap=st.sampled_from(Overlap),
    in_progress=st.booleans(),
)
def test_whatever_the_downtime_and_the_clock_each_tick_is_run_once_or_its_skip_is_recorded(
    text: str,
    start: int,
    moves: list[int],
    grace_ms: int,
    catch_up: CatchUp,
    overlap: Overlap,
    in_progress: bool,
) -> None:
    cron = Cron.parse(text)
    next_at = cron.next_after(start)
    schedule = a_schedule(cron=text, next_at=next_at, catch_up=catch_up, overlap=overlap)
    dealt_with: set[int] = set()
    now = start
    for move in moves:
        now += move
        plan = due(schedule, now, grace_ms=grace_ms, in_progress=in_progress)
        assert schedule.next_at is not None
        assert plan.next_at is not None
        if schedule.next_at > now:
            assert plan == Plan(next_at=schedule.next_at)
            continue
        assert plan.next_at == cron.next_after(now)
        assert plan.next_at > schedule.next_at

        ticks = all_ticks(cron, schedule.next_at, now)
        expected = expected_ticks(schedule, ticks, now, grace_ms)
        overlapping = in_progress and overlap is Overlap.SKIP
        assert list(plan.ticks) == ([] if overlapping else expected)
        skips = [run.tick_at for run in plan.skips]
        assert skipped(plan, RunOutcome.SKIPPED_OVERLAP) == (expected if overlapping else [])

        assert not (plan.ticks and skips) or skips[-1] < plan.ticks[0]

        looked_at = {*plan.ticks, *skips}
        assert len(looked_at) == len(plan.ticks) + len(skips)
        assert not looked_at & dealt_with
        dealt_with |= looked_at
        assert len(skips) <= MAX_RECORDED_SKIPS
        not_run = [tick for tick in ticks if tick not in plan.ticks]
        if len(not_run) <= MAX_RECORDED_SKIPS:
            assert skips == not_run
        else:
            assert skips == [not_run[0], *not_run[1 - MAX_RECORDED_SKIPS :]]
        schedule = replace(schedule, next_at=plan.next_at)


# --- the message -----------------------------------------------------------------------------------------------


def message_of_run(draft: Draft) -> Message:
    (message,) = scheduled_messages(a_schedule(draft=draft), next_id=lambda at: 7, now=NOON)
    return message


def test_a_run_is_a_message_of_the_draft_that_knows_its_schedule() -> None:
    request = Request(url="https://example.com/", method="PUT", headers=(("A", "b"),), body=b"\0\xff")
    message = message_of_run(Draft(request=request, caller_ip="192.0.2.1", queue="q", labels=("l",)))
    assert (message.id, message.tenant, message.created_at) == (MessageId(7), TenantId(1), NOON)
    assert message.request == request
    assert message.labels == ("l",)
    assert message.origin.schedule_id == "scd_1"
    assert message.origin.caller_ip == "192.0.2.1"
    assert message.origin.queue == "q"
    assert message.not_before == NOON


def test_the_delay_of_a_schedule_is_counted_from_each_run() -> None:
    draft = Draft(request=Request(url="https://example.com/"), delay_ms=90_000)
    assert message_of_run(draft).not_before == NOON + 90_000


@pytest.mark.parametrize(
    "draft",
    [
        Draft(request=Request(url="https://example.com/"), deduplication_id="once"),
        Draft(request=Request(url="https://example.com/"), content_based_deduplication=True),
    ],
)
def test_no_run_is_taken_for_a_duplicate_of_the_one_before(draft: Draft) -> None:
    assert message_of_run(draft).dedup_key is None


def test_a_run_to_a_url_group_is_a_message_to_each_endpoint_it_has_then() -> None:
    schedule = a_schedule(
        draft=Draft(request=Request(url="", body=b"tick"), url_group="group", deduplication_id="once")
    )
    group = UrlGroup(
        tenant=TenantId(1),
        name="group",
        created_at=0,
        updated_at=0,
        endpoints=(Endpoint(url="https://a.example"), Endpoint(url="https://b.example", name="b")),
    )
    ids = iter((7, 8))
    messages = scheduled_messages(schedule, group=group, next_id=lambda at: next(ids), now=NOON)
    assert [(one.id, one.request.url, one.request.body) for one in messages] == [
        (7, "https://a.example", b"tick"),
        (8, "https://b.example", b"tick"),
    ]
    assert [(one.origin.url_group, one.origin.endpoint, one.origin.schedule_id) for one in messages] == [
        ("group", None, "scd_1"),
        ("group", "b", "scd_1"),
    ]
    assert [one.dedup_key for one in messages] == [None, None]


def test_a_run_to_a_url_group_that_is_gone_is_refused_with_its_name() -> None:
    schedule = a_schedule(draft=Draft(request=Request(url=""), url_group="group"))
    with pytest.raises(NotFound, match='URL group "group" not found'):
        scheduled_messages(schedule, group=None, next_id=lambda at: 7, now=NOON)

"""Gates: who may pass, when, and what the counts say after."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from relay.domain.gates import (
    UNLIMITED,
    Configure,
    Gate,
    GateId,
    GateKind,
    Pin,
    ResetRate,
    Unpin,
    accepted,
    admit,
    as_of,
    changed,
    default_parallelism,
    freed,
    left,
    opens_at,
    permits,
    shares,
    window_count,
)
from relay.domain.message import FlowControl
from tests.builders import NOW, TENANT

PERIOD_MS = 1000


class Waiter(NamedTuple):
    number: int
    eligible_at: int


def a_gate(
    kind: GateKind = GateKind.FLOW,
    *,
    parallelism: int | None = None,
    rate: int | None = None,
    period_ms: int = PERIOD_MS,
    paused: bool = False,
    held: int = 0,
    window_at: int | None = None,
    window_count: int = 0,
) -> Gate:
    return Gate(
        id=GateId(1),
        tenant=TENANT,
        kind=kind,
        name="g",
        created_at=NOW,
        updated_at=NOW,
        used_at=NOW,
        parallelism=parallelism,
        rate=rate,
        period_ms=period_ms,
        paused=paused,
        held=held,
        window_at=window_at,
        window_count=window_count,
    )


def waiters(*eligible_at: int) -> list[Waiter]:
    return [Waiter(number, at) for number, at in enumerate(eligible_at)]


# --- who may pass


def test_a_gate_without_limits_lets_everybody_pass() -> None:
    assert permits(a_gate(), NOW) == UNLIMITED


@pytest.mark.parametrize(("held", "expected"), [(0, 3), (2, 1), (3, 0), (5, 0)])
def test_slots_in_use_are_not_given_twice_even_after_the_limit_was_lowered(held: int, expected: int) -> None:
    assert permits(a_gate(parallelism=3, held=held), NOW) == expected


def test_both_limits_of_a_key_must_permit() -> None:
    gate = a_gate(parallelism=2, rate=5, window_at=NOW, window_count=4)
    assert permits(gate, NOW) == 1
    assert permits(replace(gate, held=2), NOW) == 0


def test_a_paused_gate_lets_nobody_pass_and_its_window_runs_on() -> None:
    gate = a_gate(rate=1, window_at=NOW, window_count=1)
    paused = changed(gate, Configure(paused=True), NOW)
    assert permits(paused, NOW + PERIOD_MS) == 0
    assert opens_at(paused, NOW, NOW) is None
    resumed = changed(paused, Configure(paused=False), NOW + 999)
    assert permits(resumed, NOW + 999) == 0
    assert permits(resumed, NOW + PERIOD_MS) == 1


def test_a_key_lets_pass_in_order_only_who_is_due() -> None:
    line = waiters(NOW - 1, NOW, NOW + 1)
    passing, gate = admit(a_gate(parallelism=5), line, room=9, now=NOW)
    assert passing == line[:2]
    assert gate.held == 2


def test_a_delayed_message_at_the_head_of_a_queue_takes_the_lane_and_waits_in_it() -> None:
    line = waiters(NOW + 9999, NOW)
    queue = a_gate(GateKind.QUEUE, parallelism=1)
    assert opens_at(queue, NOW + 9999, NOW) == NOW
    passing, queue = admit(queue, line, room=9, now=NOW)
    assert passing == line[:1]
    assert admit(queue, line[1:], room=9, now=NOW)[0] == []
    assert opens_at(queue, NOW, NOW) is None


def test_nobody_passes_without_room() -> None:
    gate = a_gate(rate=3)
    assert admit(gate, waiters(NOW), room=0, now=NOW) == ([], gate)


def test_a_window_begins_with_the_first_start_in_it() -> None:
    _, gate = admit(a_gate(rate=2), waiters(NOW), room=9, now=NOW)
    assert (gate.window_at, gate.window_count) == (NOW, 1)
    _, gate = admit(gate, waiters(NOW), room=9, now=NOW + 999)
    assert (gate.window_at, gate.window_count) == (NOW, 2)
    assert admit(gate, waiters(NOW), room=9, now=NOW + 999)[0] == []
    assert opens_at(gate, NOW, NOW + 999) == NOW + PERIOD_MS
    late = NOW + PERIOD_MS + 7
    passing, gate = admit(gate, waiters(NOW, NOW, NOW), room=9, now=late)
    assert len(passing) == 2
    assert (gate.window_at, gate.window_count) == (late, 2)


def test_a_window_in_which_nothing_started_is_none() -> None:
    gate = a_gate(rate=2, window_at=NOW, window_count=2)
    assert window_count(gate, NOW + 999) == 2
    assert window_count(gate, NOW + PERIOD_MS) == 0
    assert admit(gate, [], room=9, now=NOW + PERIOD_MS)[1] == gate


def test_a_clock_that_was_set_back_holds_nobody_longer_than_a_period() -> None:
    gate = as_of(a_gate(rate=1, window_at=NOW + 10**9, window_count=1), NOW)
    assert opens_at(gate, NOW, NOW) == NOW + PERIOD_MS
    passing, gate = admit(gate, waiters(NOW), room=9, now=NOW)
    assert (passing, gate.window_at) == ([], NOW)
    assert as_of(gate, NOW + 1) == gate
    ahead = a_gate(rate=1, window_at=NOW + PERIOD_MS, window_count=1)
    assert as_of(ahead, NOW) == ahead
    assert permits(gate, NOW + PERIOD_MS) == 1


def test_a_call_that_was_long_on_its_way_does_not_begin_the_window_of_another_node_anew() -> None:
    gate = a_gate(rate=1, window_at=NOW + 59_000, window_count=1)
    assert as_of(gate, NOW) == gate
    assert permits(gate, NOW) == 0


def test_a_gate_opens_when_its_first_waiter_is_due() -> None:
    assert opens_at(a_gate(), NOW + 50, NOW) == NOW + 50
    assert opens_at(a_gate(), NOW - 50, NOW) == NOW
    assert opens_at(a_gate(), None, NOW) is None
    assert opens_at(a_gate(parallelism=1, held=1), NOW, NOW) is None
    spent = a_gate(rate=1, window_at=NOW, window_count=1)
    assert opens_at(spent, NOW, NOW) == NOW + PERIOD_MS
    assert opens_at(spent, NOW + 5000, NOW) == NOW + 5000


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 100))
def test_shares_use_the_room_and_starve_nobody(wants: list[int], room: int) -> None:
    shared = shares(wants, room)
    assert sum(shared) == min(room, sum(wants))
    assert all(0 <= share <= want for share, want in zip(shared, wants, strict=True))
    for share, want in zip(shared, wants, strict=True):
        assert share == want or share >= max(shared) - 1


# --- what changes a gate


def test_the_last_accepted_message_decides_and_what_it_leaves_out_stays() -> None:
    gate = accepted(a_gate(), FlowControl(key="g", parallelism=3, rate=5, period_ms=60_000), NOW)
    assert (gate.parallelism, gate.rate, gate.period_ms) == (3, 5, 60_000)
    gate = accepted(gate, FlowControl(key="g", parallelism=1), NOW + 5)
    assert (gate.parallelism, gate.rate, gate.period_ms) == (1, 5, 60_000)
    gate = accepted(gate, FlowControl(key="g", rate=7), NOW + 5)
    assert (gate.parallelism, gate.rate, gate.period_ms) == (1, 7, 1000)
    assert (gate.members, gate.accepted, gate.used_at) == (3, 3, NOW + 5)
    gate = left(gate, NOW + 9)
    assert (gate.members, gate.accepted, gate.used_at) == (2, 3, NOW + 9)


def test_a_message_without_limits_changes_none_of_a_queue() -> None:
    assert default_parallelism(GateKind.QUEUE) == 1
    assert default_parallelism(GateKind.FLOW) is None
    assert accepted(a_gate(GateKind.QUEUE, parallelism=4), None, NOW).parallelism == 4


def test_pinned_limits_hold_until_a_message_comes_after_they_were_unpinned() -> None:
    gate = a_gate(parallelism=9, rate=9, window_at=NOW - 10, window_count=5)
    gate = changed(gate, Pin(parallelism=2, rate=3, period_ms=5000), NOW)
    assert (gate.parallelism, gate.rate, gate.period_ms) == (2, 3, 5000)
    assert (gate.window_at, gate.window_count) == (NOW, 0)
    brought = FlowControl(key="g", parallelism=8, rate=8)
    assert (accepted(gate, brought, NOW).parallelism, accepted(gate, brought, NOW).rate) == (2, 3)
    gate = changed(gate, Unpin(parallelism=True), NOW)
    assert (gate.parallelism, gate.parallelism_pinned, gate.rate_pinned) == (2, False, True)
    gate = accepted(gate, brought, NOW)
    assert (gate.parallelism, gate.rate, gate.period_ms) == (8, 3, 5000)
    gate = accepted(changed(gate, Unpin(rate=True), NOW), brought, NOW)
    assert (gate.rate, gate.period_ms, gate.rate_pinned) == (8, 1000, False)


def test_pinning_one_limit_leaves_the_other_to_the_messages() -> None:
    gate = changed(a_gate(rate=9, window_at=NOW, window_count=5), Pin(parallelism=2), NOW)
    assert (gate.rate_pinned, gate.window_count) == (False, 5)
    gate = accepted(gate, FlowControl(key="g", parallelism=8, rate=8), NOW)
    assert (gate.parallelism, gate.rate) == (2, 8)


def test_resetting_the_rate_begins_a_window_with_nothing_in_it() -> None:
    gate = changed(a_gate(rate=1, window_at=NOW, window_count=1), ResetRate(), NOW + 5)
    assert (gate.window_at, gate.window_count, permits(gate, NOW + 5)) == (NOW + 5, 0, 1)


def test_only_what_is_configured_changes() -> None:
    gate = a_gate(GateKind.QUEUE, parallelism=3, paused=True)
    assert changed(gate, Configure(), NOW + 1) == replace(gate, updated_at=NOW + 1)
    assert changed(gate, Configure(parallelism=2), NOW).paused
    assert changed(gate, Configure(paused=False), NOW).parallelism == 3


# --- every interleaving


class Crowd(RuleBasedStateMachine):
    """A gate, the line before it and those who passed; nothing may ever break a limit or be forgotten."""

    kind = GateKind.FLOW

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.gate = a_gate(self.kind, parallelism=default_parallelism(self.kind))
        self.line: list[Waiter] = []
        self.inside: list[Waiter] = []
        #: Starts since the window began that the gate says is running, and that window.
        self.window: tuple[int, int] = (0, 0)
        self.count = 0

    @property
    def first_at(self) -> int | None:
        if self.kind is GateKind.QUEUE:
            return self.line[0].eligible_at if self.line else None
        return min((waiter.eligible_at for waiter in self.line), default=None)

    @rule(
        delay=st.sampled_from([0, 0, 1, 300, 5000]),
        parallelism=st.sampled_from([None, 1, 2, 5]),
        rate=st.sampled_from([None, 1, 3]),
        period_ms=st.sampled_from([100, 1000]),
    )
    def accept(self, delay: int, parallelism: int | None, rate: int | None, period_ms: int) -> None:
        limits = None
        if self.kind is GateKind.FLOW:
            limits = FlowControl(key="g", parallelism=parallelism, rate=rate, period_ms=period_ms)
        self.gate = accepted(self.gate, limits, self.now)
        self.stand_in_line(delay)

    def stand_in_line(self, delay: int) -> None:
        self.count += 1
        self.line.append(Waiter(self.count, self.now + delay))
        if self.kind is not GateKind.QUEUE:
            self.line.sort(key=lambda waiter: (waiter.eligible_at, waiter.number))

    @rule(room=st.integers(0, 4))
    def look(self, room: int) -> None:
        possible = min(permits(self.gate, self.now), room)
        if self.kind is not GateKind.QUEUE:
            possible = min(possible, sum(1 for waiter in self.line if waiter.eligible_at <= self.now))
        else:
            possible = min(possible, len(self.line))
        before = self.gate
        passing, self.gate = admit(self.gate, self.line[: max(0, possible)], room=room, now=self.now)
        assert len(passing) == possible
        assert list(passing) == self.line[:possible]
        self.line = self.line[possible:]
        self.inside += passing
        if not passing:
            return
        assert not before.paused
        assert before.parallelism is None or len(self.inside) <= before.parallelism
        if before.rate is not None:
            assert self.gate.window_at is not None
            assert self.gate.window_at <= self.now < self.gate.window_at + before.period_ms
            began, starts = self.window
            # A window the gate had already begun is never begun again.
            self.window = (self.gate.window_at, (starts if began == self.gate.window_at else 0) + possible)
            assert self.window[1] == self.gate.window_count <= before.rate

    @precondition(lambda self: self.inside)
    @rule(nth=st.integers(0, 9), again=st.booleans(), delay=st.sampled_from([0, 300]))
    def finish(self, nth: int, again: bool, delay: int) -> None:
        del self.inside[nth % len(self.inside)]
        self.gate = freed(self.gate)
        if again and self.kind is GateKind.FLOW:
            self.stand_in_line(delay)
        else:
            self.gate = left(self.gate, self.now)

    @rule(paused=st.sampled_from([None, True, False]), parallelism=st.sampled_from([None, 1, 3]))
    def configure(self, paused: bool | None, parallelism: int | None) -> None:
        self.gate = changed(self.gate, Configure(parallelism=parallelism, paused=paused), self.now)

    @rule(rate=st.sampled_from([None, 1, 4]), period_ms=st.sampled_from([None, 200]))
    def pin(self, rate: int | None, period_ms: int | None) -> None:
        if self.kind is GateKind.FLOW:
            self.gate = changed(self.gate, Pin(rate=rate, period_ms=period_ms), self.now)
            self.window = (0, 0) if rate or period_ms else self.window

    @rule(reset=st.booleans())
    def unpin_or_reset(self, reset: bool) -> None:
        if self.kind is GateKind.FLOW:
            self.gate = changed(self.gate, ResetRate() if reset else Unpin(rate=True), self.now)
            self.window = (0, 0) if reset else self.window

    @rule(ms=st.sampled_from([1, 99, 300, 1000]))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @rule()
    def sleep_until_it_opens(self) -> None:
        at = opens_at(self.gate, self.first_at, self.now)
        if at is not None:
            assert at >= self.now
            self.now = at
            passing, _ = admit(self.gate, self.line, room=1, now=self.now)
            assert len(passing) == 1

    @invariant()
    def the_counts_are_true(self) -> None:
        assert self.gate.held == len(self.inside)
        assert self.gate.members == len(self.inside) + len(self.line)

    @invariant()
    def whoever_could_pass_is_announced(self) -> None:
        passing, _ = admit(self.gate, self.line, room=1, now=self.now)
        at = opens_at(self.gate, self.first_at, self.now)
        assert bool(passing) == (at == self.now)
        if at is None and self.line:
            full = self.gate.parallelism is not None and self.gate.held >= self.gate.parallelism
            assert self.gate.paused or full


class QueueCrowd(Crowd):
    kind = GateKind.QUEUE


TestFlowKey = Crowd.TestCase
TestFlowKey.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestQueue = QueueCrowd.TestCase
TestQueue.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)

"""The rule file: what every outcome of an attempt makes of a delivery."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.delivery import (
    FINAL,
    MAX_LOST_LEASES,
    TRANSITIONS,
    Attempt,
    Change,
    Claim,
    Settlement,
    State,
    lesser,
    lost,
    released,
    settle,
)
from relay.domain.message import Callback
from tests.builders import NOW, a_claim, a_message, an_attempt, next_id

MARKER = (("Upstash-NonRetryable-Error", "true"),)
DAY_MS = 86_400_000


def settled(claim: Claim, attempt: Attempt, *, retry_after_ms: int | None = None) -> Settlement:
    return settle(claim, attempt, next_id=next_id, retry_after_ms=retry_after_ms)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_every_2xx_delivers(status: int) -> None:
    settlement = settled(a_claim(), an_attempt(status=status))
    assert (settlement.change, settlement.due_at) == (Change.DELIVERED, None)


@pytest.mark.parametrize("status", [100, 199, 300, 301, 304, 400, 404, 429, 489, 500, 599, None])
def test_anything_else_is_retried_while_retries_are_left(status: int | None) -> None:
    attempt = an_attempt(status=status, error=None if status else "connection refused")
    settlement = settled(a_claim(a_message(max_retries=1)), attempt)
    assert settlement.change is Change.RETRIED
    assert settlement.due_at is not None
    assert settlement.due_at > attempt.ended_at


def test_a_2xx_whose_body_broke_off_is_no_success() -> None:
    attempt = an_attempt(status=200, error="the connection was reset in the middle of the body")
    assert settled(a_claim(), attempt).change is Change.RETRIED


@pytest.mark.parametrize(
    ("retried", "change"), [(0, Change.RETRIED), (1, Change.RETRIED), (2, Change.FAILED)]
)
def test_attempts_are_one_more_than_the_retries(retried: int, change: Change) -> None:
    claim = a_claim(a_message(max_retries=2), retried=retried)
    assert settled(claim, an_attempt(status=500)).change is change


def test_a_failure_for_good_has_no_due_time_and_keeps_its_attempt() -> None:
    attempt = an_attempt(status=500)
    settlement = settled(a_claim(a_message(max_retries=0)), attempt)
    assert (settlement.due_at, settlement.attempt, settlement.at) == (None, attempt, attempt.ended_at)


@pytest.mark.parametrize(
    ("status", "headers", "change"),
    [
        (489, MARKER, Change.FAILED),
        (489, (("upstash-nonretryable-error", " TRUE "),), Change.FAILED),
        (489, (), Change.RETRIED),
        (489, (("Upstash-NonRetryable-Error", "false"),), Change.RETRIED),
        (500, MARKER, Change.RETRIED),
        (200, MARKER, Change.DELIVERED),
    ],
)
def test_only_489_with_its_marker_ends_the_retries(
    status: int, headers: tuple[tuple[str, str], ...], change: Change
) -> None:
    assert settled(a_claim(), an_attempt(status=status, headers=headers)).change is change


def test_the_delay_counts_from_the_end_of_the_attempt() -> None:
    attempt = an_attempt(status=500, started_at=NOW, ended_at=NOW + 900_000)
    settlement = settled(a_claim(a_message(retry_delay="5000")), attempt)
    assert settlement.due_at == NOW + 905_000


def test_what_the_response_asks_for_goes_before_the_expression_and_that_before_the_curve() -> None:
    attempt = an_attempt(status=500, ended_at=NOW)
    own = a_claim(a_message(retry_delay="7000 * (1 + retried)"), retried=1)
    assert settled(own, attempt, retry_after_ms=30_000).due_at == NOW + 30_000
    assert settled(own, attempt).due_at == NOW + 14_000
    assert settled(a_claim(), attempt).due_at == NOW + 12_182


@pytest.mark.parametrize(
    ("change", "becomes"),
    [
        (Change.RETRIED, Change.CANCELED_AFTER_ERROR),
        (Change.FAILED, Change.CANCELED_AFTER_ERROR),
        (Change.DELIVERED, Change.DELIVERED),
    ],
)
def test_a_cancellation_turns_a_failure_into_the_end_and_leaves_a_success(
    change: Change, becomes: Change
) -> None:
    status, max_retries = {Change.RETRIED: (500, 1), Change.FAILED: (500, 0), Change.DELIVERED: (200, 1)}[
        change
    ]
    settlement = settled(a_claim(a_message(max_retries=max_retries)), an_attempt(status=status))
    assert settlement.change is change
    canceled = settlement.canceled()
    assert canceled.change is becomes
    assert canceled.attempt == settlement.attempt
    assert canceled.due_at is None


def test_a_lost_lease_alone_is_attempted_again() -> None:
    assert lost(a_claim(lost_leases=MAX_LOST_LEASES - 1), now=NOW, next_id=next_id) is None


def test_too_many_lost_leases_are_a_failed_attempt_that_says_so() -> None:
    settlement = lost(
        a_claim(a_message(max_retries=0), lost_leases=MAX_LOST_LEASES), now=NOW, next_id=next_id
    )
    assert settlement is not None
    assert settlement.change is Change.FAILED
    assert settlement.attempt is not None
    assert str(MAX_LOST_LEASES) in str(settlement.attempt.error)


def test_what_is_handed_back_is_due_at_once_and_made_no_attempt() -> None:
    settlement = released(a_claim(), now=NOW)
    assert (settlement.change, settlement.due_at, settlement.attempt) == (Change.RELEASED, NOW, None)


@pytest.mark.parametrize("change", Change)
def test_the_entries_of_a_change_follow_each_other_in_the_state_machine(change: Change) -> None:
    for state, following in pairwise(change.states):
        assert following in TRANSITIONS[state]


@pytest.mark.parametrize("state", State)
def test_exactly_the_final_states_lead_nowhere(state: State) -> None:
    assert (TRANSITIONS[state] == frozenset()) == (state in FINAL)


@given(
    status=st.none() | st.integers(min_value=100, max_value=999),
    retried=st.integers(min_value=0, max_value=100),
    max_retries=st.integers(min_value=0, max_value=100),
    retry_after_ms=st.none() | st.integers(min_value=-(10**15), max_value=10**15),
    delay=st.none() | st.sampled_from(["0", "1000", "pow(10, 300) * retried", "0 - 5", "1 / retried"]),
    marked=st.booleans(),
)
def test_every_outcome_ends_the_delivery_or_gives_it_a_time_within_a_day(
    status: int | None,
    retried: int,
    max_retries: int,
    retry_after_ms: int | None,
    delay: str | None,
    marked: bool,
) -> None:
    attempt = an_attempt(
        status=status, error=None if status else "no answer", headers=MARKER if marked else (), ended_at=NOW
    )
    claim = a_claim(a_message(max_retries=max_retries, retry_delay=delay), retried=retried)
    settlement = settled(claim, attempt, retry_after_ms=retry_after_ms)
    assert State.ACTIVE in TRANSITIONS
    assert settlement.change.states[0] in TRANSITIONS[State.ACTIVE]
    if settlement.change is Change.RETRIED:
        assert retried < max_retries
        assert settlement.due_at is not None
        assert NOW <= settlement.due_at <= NOW + DAY_MS
    else:
        assert settlement.due_at is None
        assert settlement.change.states[-1] in FINAL
    assert (settlement.dead_letter_id is not None) == (settlement.change is Change.FAILED)


def test_less_of_a_settlement_loses_callbacks_one_by_one_and_then_the_answer() -> None:
    url = "https://example.com/report"
    message = a_message(max_retries=0, callback=Callback(url=url), failure_callback=Callback(url=url))
    whole = settled(a_claim(message), an_attempt(status=500, headers=(("A", "b"),), body=b"no"))
    both, first, second, none = whole.publishes, whole.publishes[:1], whole.publishes[1:], ()
    tried = list(lesser(whole))
    assert [less.publishes for less in tried] == [first, second, none, both, first, second, none]
    assert [less.attempt == whole.attempt for less in tried] == [True] * 3 + [False] * 4
    bare = tried[-1].attempt
    assert bare is not None
    assert (bare.status, bare.headers, bare.body, bare.succeeded) == (500, (), b"", False)
    for less in tried:
        assert (less.claim, less.change, less.at, less.due_at, less.dead_letter_id) == (
            whole.claim,
            whole.change,
            whole.at,
            whole.due_at,
            whole.dead_letter_id,
        )


def test_a_delivery_stays_delivered_with_less_of_its_settlement() -> None:
    whole = settled(a_claim(), an_attempt(headers=(("A", "b"),)))
    [less] = lesser(whole)
    assert less.change is Change.DELIVERED
    assert less.attempt is not None
    assert (less.attempt.status, less.attempt.headers, less.attempt.error) == (200, (), None)


def test_there_is_nothing_less_than_a_claim_handed_back() -> None:
    assert list(lesser(released(a_claim(), now=NOW))) == []

"""Told to stop, or frozen, the relay finishes what it can, gives back the rest, and believes no stale outcome."""

from tests.crash.conftest import Play
from tests.crash.scenarios import (
    AT_ONCE,
    FINISHING,
    FROZEN,
    HANDING_BACK,
    frozen_under_load,
    restarted_under_load,
)


async def test_what_is_in_flight_at_sigterm_and_answered_in_time_is_delivered_once(played: Play) -> None:
    outcome = await played(FINISHING)
    assert (outcome.accepted, outcome.lost, outcome.doubled) == (20, 0, 0)


async def test_what_is_not_answered_in_time_is_handed_back_without_spending_a_try(played: Play) -> None:
    outcome = await played(HANDING_BACK)
    assert (outcome.accepted, outcome.lost, outcome.doubled) == (20, 0, 20)


async def test_a_second_signal_ends_the_relay_at_once_and_loses_nothing(played: Play) -> None:
    outcome = await played(AT_ONCE)
    assert (outcome.accepted, outcome.lost, outcome.doubled) == (20, 0, 20)


async def test_restarts_in_good_order_under_load_neither_lose_nor_double(played: Play) -> None:
    outcome = await played(restarted_under_load(2))
    assert outcome.accepted > 100
    assert (outcome.lost, outcome.doubled) == (0, 0)


async def test_outcomes_of_a_relay_that_was_frozen_beyond_its_leases_are_refused(played: Play) -> None:
    outcome = await played(FROZEN)
    assert (outcome.accepted, outcome.lost, outcome.doubled) == (20, 0, 20)


async def test_a_relay_that_is_frozen_beyond_its_leases_under_load_loses_nothing(played: Play) -> None:
    outcome = await played(frozen_under_load(2))
    assert outcome.accepted > 100
    assert outcome.lost == 0

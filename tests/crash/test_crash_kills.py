"""Killed at any step of the road, the relay loses nothing it had accepted."""

import pytest

from tests.crash.conftest import Play
from tests.crash.doom import STEPS, steps_of
from tests.crash.scenarios import (
    MIGRATING,
    POISON,
    PRUNING,
    ROAD,
    killed_at_random,
    killed_in_a_redrive,
    killed_on_the_road,
    killed_while_handing_back,
)


@pytest.mark.parametrize("verb", ROAD)
async def test_killed_at_every_step_of_the_road_under_load_nothing_accepted_is_lost(
    played: Play, verb: str
) -> None:
    outcome = await played(killed_on_the_road(*steps_of(verb)))
    assert outcome.accepted > 50
    assert outcome.lost == 0


async def test_killed_while_history_is_forgotten_nothing_accepted_is_lost(played: Play) -> None:
    outcome = await played(PRUNING)
    assert outcome.accepted > 50
    assert outcome.lost == 0


async def test_a_start_killed_in_the_middle_of_a_migration_is_made_good_by_the_next(played: Play) -> None:
    outcome = await played(MIGRATING)
    assert outcome.accepted > 50
    assert (outcome.lost, outcome.doubled) == (0, 0)


@pytest.mark.parametrize("step", ["redrive.committing", "redrive.committed"])
async def test_a_dead_letter_whose_redrive_is_killed_is_still_there_or_alive_again_and_never_both(
    played: Play, step: str
) -> None:
    outcome = await played(killed_in_a_redrive(step))
    assert outcome.accepted == 8
    assert outcome.lost == 0


@pytest.mark.parametrize("step", ["hand_back.committing", "hand_back.committed"])
async def test_killed_while_it_hands_back_what_it_could_not_finish_nothing_is_lost(
    played: Play, step: str
) -> None:
    outcome = await played(killed_while_handing_back(step))
    assert outcome.accepted == 20
    assert outcome.lost == 0


async def test_a_message_that_kills_its_worker_ends_as_a_dead_letter_and_takes_no_other_with_it(
    played: Play,
) -> None:
    outcome = await played(POISON)
    assert outcome.accepted > 10
    assert outcome.lost == 0


async def test_the_real_command_killed_at_random_under_load_loses_nothing(played: Play) -> None:
    outcome = await played(killed_at_random(5))
    assert outcome.accepted > 50
    assert outcome.lost == 0


def test_every_verb_that_writes_is_killed_around_its_commit() -> None:
    killed = {step.partition(".")[0] for step in STEPS if step.endswith((".committing", ".committed"))}
    assert killed == {*ROAD, "hand_back", "redrive", "fire", "prune", "migrate"} - {"send"}

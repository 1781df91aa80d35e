"""While storage fails, publishers are refused and nothing is made up; afterwards everything goes on by itself."""

from pathlib import Path

import pytest

from tests.crash.conftest import Play
from tests.crash.node import refused
from tests.crash.scenarios import (
    AWAY,
    AWAY_BEFORE_SIGNING,
    FULL,
    KILLED_IN_TROUBLE,
    LOCKED,
    READONLY,
    UNWRITABLE,
    Scenario,
)
from tests.crash.trouble import a_lock
from tests.crash.world import a_world


async def test_storage_that_does_not_answer_refuses_publishes_and_costs_nothing_else(played: Play) -> None:
    outcome = await played(AWAY)
    assert (outcome.accepted, outcome.lost, outcome.doubled) == (50, 0, 0)


async def test_a_delivery_that_cannot_be_signed_for_want_of_storage_is_not_a_failed_attempt(
    played: Play,
) -> None:
    outcome = await played(AWAY_BEFORE_SIGNING)
    assert (outcome.accepted, outcome.lost, outcome.doubled) == (1, 0, 0)


@pytest.mark.parametrize("trouble", [LOCKED, UNWRITABLE, FULL, READONLY], ids=lambda trouble: trouble.name)
async def test_a_file_in_trouble_refuses_publishes_and_costs_nothing_else(
    played: Play, trouble: Scenario
) -> None:
    outcome = await played(trouble)
    assert (outcome.accepted, outcome.lost, outcome.doubled) == (50, 0, 0)


async def test_killed_while_nothing_can_be_written_the_relay_has_all_it_accepted(
    played: Play,
) -> None:
    outcome = await played(KILLED_IN_TROUBLE)
    assert outcome.accepted > 50
    assert outcome.lost == 0


async def test_a_start_on_a_file_that_another_process_has_locked_ends_with_one_sentence(
    tmp_path: Path,
) -> None:
    database = tmp_path / "relay.db"
    async with a_world(tmp_path, f"sqlite:///{database}") as world:
        await world.node.serve()
        assert await world.node.stop() == 0
    async with a_lock(database):
        assert refused(f"sqlite:///{database}") == "relay: the database is locked by another process\n"

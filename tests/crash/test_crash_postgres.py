"""On PostgreSQL, alone or as one of several nodes, the relay loses nothing either: the short version."""

from tests.crash.conftest import Play
from tests.crash.scenarios import (
    CUT_OFF,
    DATABASE_AHEAD,
    ONE_FROZEN,
    SERVER_KILLED,
    killed_on_the_road,
    one_killed_at,
    sessions_terminated,
)


async def test_killed_around_a_commit_on_a_server_nothing_accepted_is_lost(played_on_a_server: Play) -> None:
    outcome = await played_on_a_server(killed_on_the_road("publish.sent", "claim.committing", "settle.sent"))
    assert outcome.accepted > 50
    assert outcome.lost == 0


async def test_what_a_killed_node_held_arrives_from_another(played_on_a_server: Play) -> None:
    outcome = await played_on_a_server(one_killed_at("send"))
    assert outcome.accepted > 50
    assert outcome.lost == 0


async def test_a_node_that_was_frozen_beyond_its_leases_is_not_believed(played_on_a_server: Play) -> None:
    outcome = await played_on_a_server(ONE_FROZEN)
    assert (outcome.accepted, outcome.lost) == (21, 0)
    assert outcome.doubled > 0


async def test_a_database_whose_clock_goes_ahead_makes_no_node_take_what_another_attempts(
    played_on_a_server: Play,
) -> None:
    outcome = await played_on_a_server(DATABASE_AHEAD)
    assert outcome.accepted > 21 + 50
    assert (outcome.lost, outcome.doubled) == (0, 0)


async def test_a_node_cut_off_from_its_database_refuses_publishers_and_is_not_believed(
    played_on_a_server: Play,
) -> None:
    outcome = await played_on_a_server(CUT_OFF)
    assert outcome.accepted > 20
    assert outcome.lost == 0


async def test_a_server_that_is_killed_and_started_again_has_all_that_was_accepted(
    played_on_a_server: Play,
) -> None:
    outcome = await played_on_a_server(SERVER_KILLED)
    assert outcome.accepted > 50
    assert outcome.lost == 0


async def test_sessions_terminated_again_and_again_lose_nothing(played_on_a_server: Play) -> None:
    outcome = await played_on_a_server(sessions_terminated(3))
    assert outcome.accepted > 50
    assert outcome.lost == 0

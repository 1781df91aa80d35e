"""With a pooler in transaction mode between them and PostgreSQL, nodes lose nothing either: the short version."""

from tests.crash.conftest import Play
from tests.crash.scenarios import FIRING_BEHIND_A_POOLER, RESTARTED_BEHIND_A_POOLER, killed_behind_a_pooler


async def test_nodes_killed_behind_a_pooler_lose_nothing_and_leave_nothing_in_its_sessions(
    played_on_a_server: Play,
) -> None:
    outcome = await played_on_a_server(killed_behind_a_pooler(2))
    assert outcome.accepted > 40
    assert outcome.lost == 0


async def test_a_server_restarted_behind_a_pooler_has_all_that_was_accepted(played_on_a_server: Play) -> None:
    outcome = await played_on_a_server(RESTARTED_BEHIND_A_POOLER)
    assert outcome.accepted > 50
    assert outcome.lost == 0


async def test_behind_a_pooler_no_tick_is_lost_or_doubled(played_on_a_server: Play) -> None:
    outcome = await played_on_a_server(FIRING_BEHIND_A_POOLER)
    assert outcome.accepted > 30
    assert outcome.lost == 0

"""Every tick is exactly one message, whatever dies around it."""

from tests.crash.conftest import Play
from tests.crash.scenarios import FIRING


async def test_killed_at_every_step_of_a_firing_no_tick_is_lost_or_doubled(played: Play) -> None:
    outcome = await played(FIRING)
    assert outcome.accepted > 30
    assert outcome.lost == 0

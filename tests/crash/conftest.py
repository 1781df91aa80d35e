"""What every crash test gets."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.crash.scenarios import BACKENDS, Scenario, play
from tests.crash.world import Outcome

#: Plays a scenario in this test's directory.
Play = Callable[[Scenario], Awaitable[Outcome]]


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    """One after the other, for what is short."""
    name: str = request.param
    return name


@pytest.fixture
def played(tmp_path: Path) -> Play:
    """On a file."""

    async def play_here(scenario: Scenario) -> Outcome:
        return await play(scenario, tmp_path, "sqlite")

    return play_here


@pytest.fixture
def played_on_a_server(tmp_path: Path) -> Play:
    async def play_here(scenario: Scenario) -> Outcome:
        return await play(scenario, tmp_path, "postgresql")

    return play_here

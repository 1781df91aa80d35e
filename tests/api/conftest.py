"""The API under test, as `rig`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.rig import Rig, running
from tests.api.specification import Specification


@pytest.fixture(scope="session")
def specification() -> Specification:
    return Specification()


@pytest.fixture
def lane() -> bool:
    """Whether publishes may take the fast lane. Tests of what both roads must do parametrize it."""
    return True


@pytest.fixture
async def rig(tmp_path: Path, specification: Specification, lane: bool) -> AsyncIterator[Rig]:
    async with running(tmp_path / "relay.db", specification, lane=lane) as rig:
        yield rig

"""What every test of the command gets."""

from collections.abc import Iterator

import pytest

from tests.cli.console import Console, Server


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server().running() as server:
        yield server

"""Killed at any moment, SQLite storage holds everything it had acknowledged, and nothing by halves."""

import subprocess
import sys
from pathlib import Path

import pytest

from relay.domain.delivery import State
from relay.domain.message import MessageId
from relay.domain.selection import Order
from storage.protocol import ClaimTerms
from storage.sqlite import driver, open_sqlite
from tests.builders import TENANT
from tests.contract.steps import EVERYTHING, LATER, LEASE_MS

ROOT = Path(__file__).parent.parent.parent


def burst(url: str, acknowledgements: int) -> dict[str, set[int]]:
    """Run the burst until it has acknowledged that much, kill it, and tell what it had acknowledged by then."""
    said: dict[str, set[int]] = {"accepted": set(), "delivered": set(), "failed": set()}
    command = [sys.executable, "-m", "tests.contract.burst", url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for count, line in enumerate(child.stdout, 1):
            word, number = line.split()
            said[word.decode()].add(int(number))
            if count == acknowledgements:
                # What it says from now on is drained after its death: all of it counts.
                child.kill()
    return said


@pytest.mark.parametrize("acknowledgements", [1, 100, 1500])
async def test_a_kill_in_the_middle_of_a_burst_loses_nothing_that_was_acknowledged(
    tmp_path: Path, acknowledgements: int
) -> None:
    url = f"sqlite:///{tmp_path}/relay.db"
    said = burst(url, acknowledgements)
    assert said["accepted"]
    storage = await open_sqlite(url)
    events = await storage.events(TENANT, EVERYTHING, order=Order.EARLIEST_FIRST, start=None, limit=10**6)
    log: dict[int, list[State]] = {}
    for event in events:
        log.setdefault(event.message.id, []).extend(event.change.states)
    letters = await storage.dead_letters(
        TENANT, EVERYTHING, order=Order.EARLIEST_FIRST, start=None, limit=10**6
    )
    claimed = await storage.claim(ClaimTerms(limit=10**6, lease_ms=LEASE_MS), now=LATER)
    stats = await storage.stats()
    await storage.close()

    assert said["accepted"] <= log.keys()
    assert all(log[id_][-1] is State.DELIVERED for id_ in said["delivered"])
    dead = {letter.message.id for letter in letters}
    assert said["failed"] <= dead
    alive = {claim.message.id for claim in claimed.claims}
    # Every message is exactly where its log says it is.
    assert {id_ for id_, states in log.items() if states[-1] is State.FAILED} == dead
    assert {id_ for id_, states in log.items() if states[-1] is State.ACTIVE} == alive
    assert all(MessageId(id_) in log for id_ in alive)
    assert (stats.live, stats.dead_letters) == (len(alive), len(dead))
    connection = driver.connect_reader(tmp_path / "relay.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()

"""Killed at any moment, a process leaves everything it had acknowledged in storage, and nothing by halves."""

import asyncio
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from relay.domain.delivery import State
from relay.domain.message import MessageId
from relay.domain.selection import Order
from relay.main import open_storage
from storage.postgres.driver import target_of
from storage.protocol import ClaimTerms, Storage
from storage.sqlite import driver
from tests import postgres_server
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
async def test_a_kill_in_the_middle_of_a_burst_loses_nothing_that_was_acknowledged_on_sqlite(
    tmp_path: Path, acknowledgements: int
) -> None:
    url = f"sqlite:///{tmp_path}/relay.db"
    said = burst(url, acknowledgements)
    await examine(await open_storage(url), said)
    connection = driver.connect_reader(tmp_path / "relay.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@pytest.mark.parametrize("acknowledgements", [1, 100, 1500])
async def test_a_kill_in_the_middle_of_a_burst_loses_nothing_that_was_acknowledged_on_postgres(
    acknowledgements: int,
) -> None:
    url = postgres_server.url()
    bystander = await open_storage(url)
    said = burst(url, acknowledgements)
    await the_server_to_notice(url)
    await examine(bystander, said)


async def the_server_to_notice(url: str) -> None:
    """What the dead had asked for is finished, or undone, by the server: only then everything has its place."""
    target = target_of(url)
    database = await asyncpg.connect(target.dsn)
    async with asyncio.timeout(20):
        while await database.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'relay' AND (state <> 'idle' OR state IS NULL)"
        ):
            await asyncio.sleep(0.01)
    await database.close()


async def examine(storage: Storage, said: dict[str, set[int]]) -> None:
    """What was acknowledged is there, and every message is exactly where its log says it is."""
    history = await storage.events(TENANT, EVERYTHING, order=Order.EARLIEST_FIRST, start=None, limit=10**6)
    log: dict[int, list[State]] = {}
    called_back: dict[int, MessageId] = {}
    for event in history.events:
        log.setdefault(event.message.id, []).extend(event.change.states)
        if event.message.origin.source is not None:
            called_back[event.message.id] = event.message.origin.source
    letters = await storage.dead_letters(
        TENANT, EVERYTHING, order=Order.EARLIEST_FIRST, start=None, limit=10**6
    )
    claimed = await storage.claim(ClaimTerms(limit=10**6, lease_ms=LEASE_MS), now=LATER)
    stats = await storage.stats()
    await storage.close()

    assert said["accepted"]
    assert said["accepted"] <= log.keys()
    assert all(log[id_][-1] is State.DELIVERED for id_ in said["delivered"])
    dead = {letter.message.id for letter in letters}
    assert said["failed"] <= dead
    alive = {claim.message.id for claim in claimed.claims}
    assert {id_ for id_, states in log.items() if states[-1] is State.FAILED} == dead
    # A dead letter and its failure callback are one commit: there is none of them without the other.
    assert sorted(called_back.values()) == sorted(dead)
    assert {id_ for id_, states in log.items() if states[-1] is State.ACTIVE} == alive - called_back.keys()
    assert called_back.keys() <= alive
    assert all(MessageId(id_) in log for id_ in alive)
    assert (stats.live, stats.dead_letters) == (len(alive), len(dead))

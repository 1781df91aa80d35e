"""Loops that run by themselves: restarted after a bug, watched, stopped in order."""

import asyncio
from typing import cast

from relay.clock import FakeClock
from relay.domain.errors import Unavailable
from relay.engine.engine import Engine
from relay.engine.janitor import Janitor
from relay.engine.outage import Outage
from relay.engine.scheduler import Scheduler
from relay.engine.service import Service
from tests.engine.stepped import Lines

NOW = 1_800_000_000_000


class Loops:
    """All loops of a relay, ended by a bug as often as `bugs` says, and what was called in which order."""

    def __init__(self, bugs: int = 0, clock: FakeClock | None = None) -> None:
        self.bugs = bugs
        self.calls: list[str] = []
        self.last_progress_at = NOW
        self.has_looked = True
        self.is_full = False
        self.outage = Outage("engine", clock=FakeClock(NOW) if clock is None else clock, log=Lines())
        self.refused: tuple[int, str] | None = None

    async def claim_loop(self) -> None:
        self.calls.append("claim")
        if self.bugs:
            self.bugs -= 1
            raise ZeroDivisionError
        await asyncio.Event().wait()

    async def settle_loop(self) -> None:
        self.calls.append("settle")
        try:
            await asyncio.Event().wait()
        finally:
            self.calls.append("settle ended")

    async def renew_loop(self) -> None:
        await asyncio.Event().wait()

    async def run(self, stopping: asyncio.Event) -> None:
        await stopping.wait()

    async def drain(self, until: int) -> None:
        self.calls.append(f"drained until {until - NOW}")


def service(loops: Loops, clock: FakeClock, lines: Lines) -> Service:
    return Service(
        engine=cast(Engine, loops),
        scheduler=cast(Scheduler, loops),
        janitor=cast(Janitor, loops),
        clock=clock,
        log=lines,
    )


async def _turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_loop_that_breaks_is_logged_and_started_again_after_a_pause() -> None:
    loops, clock, lines = Loops(bugs=1), FakeClock(NOW), Lines()
    running = service(loops, clock, lines)
    running.start()
    await _turns()
    assert loops.calls.count("claim") == 1
    (broke,) = lines.named("loop.broke")
    assert broke["loop"] == "claim"
    clock.advance(1_000)
    await _turns()
    assert loops.calls.count("claim") == 2
    await running.stop(NOW)


async def test_settling_goes_on_until_everything_is_drained() -> None:
    loops, clock = Loops(), FakeClock(NOW)
    running = service(loops, clock, Lines())
    running.start()
    await _turns()
    await running.stop(NOW + 5_000)
    assert loops.calls[-2:] == ["drained until 5000", "settle ended"]


async def test_a_loop_without_progress_makes_the_relay_unready() -> None:
    loops, clock = Loops(), FakeClock(NOW)
    running = service(loops, clock, Lines())
    assert running.problems() == []
    clock.advance(31_000)
    assert running.problems() == [
        "the claim loop has made no progress for 31 seconds",
        "the scheduler has made no progress for 31 seconds",
    ]


async def test_a_relay_that_has_not_seen_what_is_due_is_not_ready() -> None:
    loops = Loops()
    loops.has_looked = False
    running = service(loops, FakeClock(NOW), Lines())
    assert running.problems() == ["the engine has not seen yet what is due"]
    loops.outage.met(Unavailable("the database accepts no more connections"))
    assert running.problems() == [
        "the engine has not seen yet what is due: the database accepts no more connections"
    ]


async def test_a_relay_that_cannot_claim_for_long_is_not_ready_and_says_why() -> None:
    clock = FakeClock(NOW)
    loops = Loops(clock=clock)
    running = service(loops, clock, Lines())
    loops.outage.met(Unavailable("the database accepts no more connections"))
    clock.advance(4_999)
    assert running.problems() == []
    clock.advance(1)
    assert running.problems() == ["nothing is claimed: the database accepts no more connections"]
    loops.outage.over()
    assert running.problems() == []


async def test_a_relay_that_is_full_is_not_unready_for_what_it_does_not_ask_for() -> None:
    clock = FakeClock(NOW)
    loops = Loops(clock=clock)
    running = service(loops, clock, Lines())
    loops.outage.met(Unavailable("the database accepts no more connections"))
    clock.advance(5_000)
    loops.is_full = True
    assert running.problems() == []
    loops.is_full = False
    assert running.problems() == ["nothing is claimed: the database accepts no more connections"]


async def test_a_relay_that_refuses_publishes_is_not_ready_for_a_while() -> None:
    loops, clock = Loops(), FakeClock(NOW)
    running = service(loops, clock, Lines())
    loops.refused = (NOW, "the disk is full")
    clock.advance(4_999)
    assert running.problems() == ["publishes are refused: the disk is full"]
    clock.advance(1)
    assert running.problems() == []


async def test_a_relay_that_shuts_down_is_not_ready() -> None:
    running = service(Loops(), FakeClock(NOW), Lines())
    running.start()
    await running.stop(NOW)
    assert running.problems() == ["the relay is shutting down"]

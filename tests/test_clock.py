"""Waiting for an event or an instant, whichever comes first."""

import asyncio

from relay.clock import FakeClock, SharedClock, SystemClock


async def test_a_set_event_ends_the_wait_at_once() -> None:
    event = asyncio.Event()
    event.set()
    for clock in (SystemClock(), FakeClock()):
        assert await clock.wait(event, None)
        assert await clock.wait(event, clock.now() - 1)


async def test_an_instant_in_the_past_ends_the_wait_at_once() -> None:
    for clock in (SystemClock(), FakeClock()):
        assert not await clock.wait(asyncio.Event(), clock.now())


async def test_the_event_ends_the_wait_before_its_time() -> None:
    for clock in (SystemClock(), FakeClock()):
        event = asyncio.Event()
        waiting = asyncio.create_task(clock.wait(event, clock.now() + 3_600_000))
        await asyncio.sleep(0)
        event.set()
        assert await waiting


async def test_the_fake_clock_stands_still_until_told() -> None:
    clock = FakeClock(1_000)
    waiting = asyncio.create_task(clock.wait(asyncio.Event(), 3_000))
    clock.advance(1_999)
    await asyncio.sleep(0)
    assert not waiting.done()
    clock.advance(1)
    assert not await waiting
    assert clock.now() == 3_000


async def test_the_system_clock_reaches_the_instant_it_waits_for() -> None:
    clock = SystemClock()
    until = clock.now() + 20
    assert not await clock.wait(asyncio.Event(), until)
    assert clock.now() >= until


class Machine:
    """A machine whose clock somebody sets."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000_000
        self.steady = 5_000

    def clock(self) -> SharedClock:
        return SharedClock(wall=lambda: self.wall, steady=lambda: self.steady)

    def run(self, ms: int) -> None:
        self.wall += ms
        self.steady += ms


def test_a_shared_clock_is_the_machines_until_it_is_corrected() -> None:
    machine = Machine()
    clock = machine.clock()
    assert (clock.now(), clock.offset_ms) == (1_800_000_000_000, 0)
    machine.run(250)
    clock.correct(-1_000)
    assert (clock.now(), clock.offset_ms) == (1_799_999_999_250, 1_000)
    machine.run(1)
    assert (clock.now(), clock.offset_ms) == (1_799_999_999_251, 1_000)


def test_setting_the_machines_clock_does_not_move_a_shared_clock() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall += 3_600_000
    assert (clock.now(), clock.offset_ms) == (1_800_000_000_000, 3_600_000)
    machine.wall -= 7_200_000
    assert (clock.now(), clock.offset_ms) == (1_800_000_000_000, -3_600_000)


async def test_who_waits_by_a_shared_clock_waits_by_the_corrected_time() -> None:
    clock = SharedClock()
    waiting = asyncio.create_task(clock.wait(asyncio.Event(), clock.now() + 3_600_000))
    early = asyncio.create_task(clock.wait(asyncio.Event(), clock.now() + 30))
    await asyncio.sleep(0)
    clock.correct(-60_000)
    clock.correct(3_600_000)
    assert not await early
    assert not waiting.done()
    clock.correct(60_000)
    async with asyncio.timeout(10):
        assert not await waiting


async def test_a_wait_that_is_over_is_left_alone_by_corrections() -> None:
    clock = SharedClock()
    event = asyncio.Event()
    waits = [asyncio.create_task(clock.wait(event, clock.now() + after)) for after in (-1, 0, 3_600_000)]
    await asyncio.sleep(0)
    event.set()
    for _ in range(4):
        clock.correct(7_200_000)
        await asyncio.sleep(0)
    assert await asyncio.gather(*waits) == [True] * 3


def test_a_shared_clock_of_this_machine_goes_like_it() -> None:
    clock = SharedClock()
    before = clock.now()
    assert abs(before - SystemClock().now()) < 1_000
    assert clock.now() >= before

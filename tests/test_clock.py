"""Waiting for an event or an instant, whichever comes first."""

import asyncio

from relay.clock import FakeClock, SystemClock


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

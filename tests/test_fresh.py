"""Values believed for a moment, and asked for once at a time."""

import asyncio

import pytest

from relay.clock import FakeClock
from relay.fresh import Fresh


class Source:
    def __init__(self) -> None:
        self.value: str | None = "one"
        self.asked = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def ask(self) -> str | None:
        self.asked += 1
        await self.answering.wait()
        return self.value


async def test_a_value_is_known_until_it_ages() -> None:
    clock, source = FakeClock(), Source()
    fresh: Fresh[str, str] = Fresh(clock, fresh_ms=1_000, most=10)
    assert fresh.known("key") is None
    assert await fresh.fetch("key", source.ask) == "one"
    clock.advance(999)
    assert fresh.known("key") == "one"
    clock.advance(1)
    assert fresh.known("key") is None


async def test_a_value_from_the_future_is_not_believed() -> None:
    clock, source = FakeClock(), Source()
    fresh: Fresh[str, str] = Fresh(clock, fresh_ms=1_000, most=10)
    await fresh.fetch("key", source.ask)
    clock.advance(-1)
    assert fresh.known("key") is None


async def test_many_who_wait_ask_once() -> None:
    clock, source = FakeClock(), Source()
    fresh: Fresh[str, str] = Fresh(clock, fresh_ms=1_000, most=10)
    source.answering.clear()
    waiting = [asyncio.create_task(fresh.fetch("key", source.ask)) for _ in range(50)]
    await asyncio.sleep(0)
    source.answering.set()
    assert await asyncio.gather(*waiting) == ["one"] * 50
    assert source.asked == 1


async def test_who_stops_waiting_takes_the_answer_from_nobody() -> None:
    clock, source = FakeClock(), Source()
    fresh: Fresh[str, str] = Fresh(clock, fresh_ms=1_000, most=10)
    source.answering.clear()
    first = asyncio.create_task(fresh.fetch("key", source.ask))
    second = asyncio.create_task(fresh.fetch("key", source.ask))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    source.answering.set()
    assert await second == "one"
    assert source.asked == 1


async def test_what_does_not_exist_is_asked_for_every_time_and_forgotten() -> None:
    clock, source = FakeClock(), Source()
    fresh: Fresh[str, str] = Fresh(clock, fresh_ms=1_000, most=10)
    await fresh.fetch("key", source.ask)
    source.value = None
    assert await fresh.fetch("key", source.ask) is None
    assert fresh.known("key") is None
    assert source.asked == 2


async def test_a_failure_to_ask_reaches_everyone_who_waits_and_is_not_remembered() -> None:
    clock, source = FakeClock(), Source()
    fresh: Fresh[str, str] = Fresh(clock, fresh_ms=1_000, most=10)

    async def fail() -> str | None:
        raise ConnectionError

    for _ in range(2):
        with pytest.raises(ConnectionError):
            await fresh.fetch("key", fail)
    assert await fresh.fetch("key", source.ask) == "one"


async def test_no_more_than_the_bound_is_remembered() -> None:
    clock, source = FakeClock(), Source()
    fresh: Fresh[int, str] = Fresh(clock, fresh_ms=1_000, most=10)
    for key in range(25):
        await fresh.fetch(key, source.ask)
    assert sum(fresh.known(key) is not None for key in range(25)) <= 10
    assert fresh.known(24) == "one"

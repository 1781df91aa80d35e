"""Limits as the destination sees them, with the engine, real storage, and workers that vanish."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import cast

import pytest

from relay.clock import FakeClock
from relay.config import Config
from relay.domain.delivery import Attempt, State
from relay.domain.errors import Unavailable
from relay.domain.gates import Configure, GateKind
from relay.domain.message import FlowControl, Headers, Message, TenantId
from relay.domain.selection import Order, Selection
from relay.domain.tenant import Tenant, TenantLimits
from relay.engine.engine import Engine
from relay.ids import Ids
from relay.metrics import Metrics
from relay.wire.outbound import Outgoing
from storage.protocol import Stats, Storage
from storage.sqlite import driver
from tests.builders import NOW, TENANT, a_message
from tests.engine.stepped import Faulty, Lines, WithHint

_PATIENCE_S = 60


class Unsigned:
    def __init__(self) -> None:
        self.limited = False

    async def held_until(self, tenant: TenantId) -> int | None:
        return None

    async def is_limited(self, tenant: TenantId) -> bool:
        return self.limited

    async def sign(self, message: Message) -> Headers:
        return (("Upstash-Signature", "signature"),)


class Destination:
    """Takes `takes_ms` for every request, fails the ones it is told to, and remembers when each came."""

    def __init__(self, clock: FakeClock, *, takes_ms: int = 0, failing: float = 0.0) -> None:
        self._clock = clock
        self._takes_ms = takes_ms
        self._failing = failing
        self._chance = random.Random(7)
        self.bodies: list[str] = []
        self.times: list[int] = []
        self.present = 0
        self.most = 0

    async def send(self, outgoing: Outgoing, *, timeout_ms: int, keep_bytes: int | None = None) -> Attempt:
        started_at = self._clock.now()
        self.bodies.append((outgoing.head + outgoing.body).rpartition(b"\r\n\r\n")[2].decode())
        self.times.append(started_at)
        self.present += 1
        self.most = max(self.most, self.present)
        try:
            await self._clock.wait(asyncio.Event(), started_at + self._takes_ms)
        finally:
            self.present -= 1
        status = 500 if self._chance.random() < self._failing else 200
        return Attempt(started_at=started_at, ended_at=self._clock.now(), status=status)


def an_engine(
    storage: Storage,
    destination: Destination,
    clock: FakeClock,
    *,
    lease_ms: int = 30_000,
    signer: Unsigned | None = None,
    slots: int = 1_000,
) -> Engine:
    return Engine(
        storage,
        sender=destination,
        signer=signer or Unsigned(),
        settings=Config(lease_ms=lease_ms, max_in_flight=slots),
        clock=clock,
        ids=Ids(),
        log=Lines(),
        metrics=Metrics(),
    )


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Sequence[asyncio.Task[None]]]:
    loops = [
        asyncio.create_task(loop()) for loop in (engine.claim_loop, engine.settle_loop, engine.renew_loop)
    ]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def until(clock: FakeClock, step_ms: int, true: Callable[[], bool]) -> None:
    """Let time pass, a step and then whatever it sets off, until it is true."""
    async with asyncio.timeout(_PATIENCE_S):
        while not true():
            clock.advance(step_ms)
            for _ in range(20):
                await asyncio.sleep(0.0001)


async def test_a_rate_holds_at_the_destination_after_another_process_had_locked_the_database(
    tmp_path: Path, storage: Storage
) -> None:
    clock = FakeClock()
    destination = Destination(clock)
    await storage.publish(keyed(20, rate=3, period_ms=1_000), now=NOW)
    with closing(driver.connect_writer(tmp_path / "relay.db")) as foreign:
        foreign.execute("BEGIN EXCLUSIVE")
        async with running(an_engine(storage, destination, clock)):
            await asyncio.sleep(0)
            clock.advance(2_000)
            foreign.execute("ROLLBACK")
            await until(clock, 0, lambda: len(destination.times) >= 3)
            await until(clock, 50, lambda: clock.now() >= NOW + 2_900)
            assert destination.times == [NOW + 2_000] * 3
            await until(clock, 50, lambda: len(destination.times) >= 6)


def keyed(count: int, **limits: int) -> list[Message]:
    return [a_message(flow=FlowControl(key="k", **limits), body=b"%d" % number) for number in range(count)]


async def starts(storage: Storage) -> Sequence[int]:
    """When attempts were started, by the log."""
    history = await storage.events(
        TENANT, Selection(states=(State.ACTIVE,)), order=Order.EARLIEST_FIRST, start=None, limit=1000
    )
    return [event.at for event in history.events]


def most_in(times: Sequence[int], span_ms: int) -> int:
    """The most requests within any window that begins with a request."""
    return max(sum(1 for at in times if start <= at < start + span_ms) for start in times)


async def test_a_rate_is_never_exceeded_in_a_window_and_nearly_all_of_it_is_used(storage: Storage) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=5)
    engine = an_engine(storage, destination, clock)
    async with running(engine):
        await engine.publish(keyed(60, rate=10, period_ms=1000))
        await until(clock, 20, lambda: len(destination.times) == 60)
        await until(clock, 20, lambda: engine.in_flight == 0)
    # A window is one of starts: how long a request is on its way belongs to no window.
    windows: list[list[int]] = []
    for at in await starts(storage):
        if not windows or at >= windows[-1][0] + 1000:
            windows.append([])
        windows[-1].append(at)
    assert max(map(len, windows)) == 10
    assert destination.times[-1] - destination.times[0] <= 5 * 1000 / 0.9
    assert destination.bodies == [str(number) for number in range(60)]


def windows_of(times: Sequence[int], period_ms: int) -> list[list[int]]:
    """The starts of each window, of which every one begins with its first start."""
    windows: list[list[int]] = []
    for at in times:
        if not windows or at >= windows[-1][0] + period_ms:
            windows.append([])
        windows[-1].append(at)
    return windows


@pytest.mark.parametrize(("rate", "period_ms"), [(1, 1_000), (50, 60_000), (3, 86_400_000)])
async def test_a_rate_lets_through_nearly_all_that_it_allows(
    storage: Storage, rate: int, period_ms: int
) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=period_ms // 50)
    engine = an_engine(storage, destination, clock, lease_ms=10**9)
    count = rate * 5
    async with running(engine):
        await engine.publish(keyed(count, rate=rate, period_ms=period_ms))
        await until(clock, period_ms // 25, lambda: len(destination.times) == count)
        await until(clock, period_ms // 25, lambda: engine.in_flight == 0)
    windows = windows_of(await starts(storage), period_ms)
    assert [len(window) for window in windows] == [rate] * 5
    assert destination.times[-1] - destination.times[0] <= 4 * period_ms / 0.9


async def test_a_rate_holds_under_failures_pauses_changing_limits_and_a_worker_that_vanishes(
    storage: Storage,
) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=40, failing=0.3)
    first = an_engine(storage, destination, clock, lease_ms=5_000)

    def rated(count: int, rate: int) -> list[Message]:
        flow = FlowControl(key="k", rate=rate, period_ms=1000)
        return [a_message(flow=flow, max_retries=5, retry_delay="100") for _ in range(count)]

    async def pause(paused: bool) -> None:
        change = Configure(paused=paused)
        assert await storage.change_gate(TENANT, GateKind.FLOW, "k", change, create=False, now=clock.now())

    async with running(first) as loops:
        await first.publish(rated(60, 10))
        await until(clock, 10, lambda: len(destination.times) >= 25)
        await pause(True)
        await until(clock, 10, lambda: first.in_flight == 0)
        paused_at, held = clock.now(), len(destination.times)
        clock.advance(3_500)
        await until(clock, 10, lambda: clock.now() > paused_at + 4_000)
        assert len(destination.times) == held
        await pause(False)
        await until(clock, 10, lambda: first.in_flight > 0)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    lowered_at = clock.now()
    second = an_engine(storage, destination, clock, lease_ms=5_000)
    async with running(second):
        await second.publish(rated(1, 4))
        live: int | None = -1
        while live != 0:
            await until(clock, 10, lambda: second.in_flight == 0)
            live = (await storage.stats()).live
            clock.advance(10)
    windows = windows_of(await starts(storage), 1000)
    assert max(map(len, windows)) <= 10
    lowered = [window for window in windows if window[0] > lowered_at]
    assert max(map(len, lowered)) == 4
    assert len(lowered) > 5


async def test_parallelism_is_never_exceeded_under_failures_pauses_and_changing_limits(
    storage: Storage,
) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=40, failing=0.3)
    # No lease runs out here, however much faster than the disk the clock is.
    engine = an_engine(storage, destination, clock, lease_ms=10**9)
    messages = [
        a_message(flow=FlowControl(key="k", parallelism=3), max_retries=5, retry_delay="100")
        for _ in range(60)
    ]
    paused, resumed = Configure(paused=True), Configure(paused=False)
    async with running(engine):
        await engine.publish(messages[:50])
        await until(clock, 10, lambda: len(destination.times) >= 20)
        await storage.change_gate(TENANT, GateKind.FLOW, "k", paused, create=False, now=clock.now())
        await until(clock, 10, lambda: engine.in_flight == 0)
        await storage.change_gate(TENANT, GateKind.FLOW, "k", resumed, create=False, now=clock.now())
        assert destination.most == 3
        await engine.publish(
            [a_message(flow=FlowControl(key="k", parallelism=1), max_retries=5) for _ in messages[50:]]
        )
        held = 3
        while held > 1:
            clock.advance(10)
            key = await storage.flow_key(TENANT, "k", now=clock.now())
            assert key is not None
            held = key.gate.held
        destination.most = 0
        live: int | None = -1
        while live != 0:
            await until(clock, 50, lambda: engine.in_flight == 0)
            live = (await storage.stats()).live
            clock.advance(500)
    assert destination.most == 1


async def test_a_queue_stays_in_order_although_its_worker_vanishes(storage: Storage) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=5)
    first = an_engine(storage, destination, clock)
    messages = [a_message(queue="q", body=b"%d" % number) for number in range(30)]
    async with running(first) as loops:
        await first.publish(messages)
        await until(clock, 1, lambda: len(destination.bodies) == 10)
        # The process is gone: what it has in hand is never settled.
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    second = an_engine(storage, destination, clock)
    async with running(second):
        await until(clock, 500, lambda: len(destination.bodies) == 11)
        await until(clock, 5, lambda: destination.bodies[-1:] == ["29"] and second.in_flight == 0)
    assert destination.most == 1
    assert destination.bodies == [*map(str, range(10)), *map(str, range(9, 30))]
    # As long as the lease lasts nothing else of the queue is sent.
    assert destination.times[10] - destination.times[9] >= Config().lease_ms


async def test_one_rate_window_holds_across_a_restart(storage: Storage) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock)
    first, second = (an_engine(storage, destination, clock) for _ in range(2))
    async with running(first):
        await first.publish(keyed(6, rate=2, period_ms=60_000))
        await until(clock, 10, lambda: len(destination.times) == 2 and first.in_flight == 0)
    async with running(second):
        await until(clock, 1000, lambda: len(destination.times) == 6 and second.in_flight == 0)
    assert most_in(await starts(storage), 60_000) == 2


async def limit(storage: Storage, parallelism: int | None, clock: FakeClock) -> None:
    if await storage.tenant(TENANT) is None:
        tenant = Tenant(id=TENANT, user_id="t", current_key="a", next_key="b")
        await storage.put_tenant(tenant, now=clock.now())
    assert await storage.put_limits(TENANT, TenantLimits(max_parallelism=parallelism), now=clock.now())


def of_every_kind(count: int) -> list[Message]:
    """Messages without a gate, of three hosts, with a key, in a queue, and with both."""
    made = []
    for number in range(count):
        flow = FlowControl(key="k", parallelism=2) if number % 3 == 1 else None
        queue = "q" if number % 4 == 2 else None
        url = f"https://host{number % 3}.example/"
        made.append(a_message(url=url, flow=flow, queue=queue, max_retries=9, retry_delay="100"))
    return made


async def all_is_over(storage: Storage, clock: FakeClock, engine: Engine) -> None:
    live: int | None = -1
    while live != 0:
        await until(clock, 50, lambda: engine.in_flight == 0)
        live = (await storage.stats()).live
        clock.advance(500)


@pytest.mark.parametrize("slots", [1_000, 8])
async def test_a_tenant_is_never_beyond_its_limit_under_failures_workers_that_vanish_and_changing_limits(
    storage: Storage, slots: int
) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=40, failing=0.3)
    signer = Unsigned()
    signer.limited = True
    first, second = (
        an_engine(storage, destination, clock, lease_ms=lease_ms, signer=signer, slots=slots)
        # In the second no lease runs out, however much faster than the disk the clock is.
        for lease_ms in (5_000, 10**9)
    )
    await limit(storage, 3, clock)
    async with running(first) as loops:
        for message in of_every_kind(60):
            await first.publish([message])
        await until(clock, 10, lambda: len(destination.times) >= 25)
        assert destination.most == 3
        # The process is gone: what it has in hand is never settled.
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    async with running(second):
        await second.publish(of_every_kind(20))
        await until(clock, 50, lambda: len(destination.times) >= 50)
        assert destination.most == 3
        await limit(storage, 1, clock)
        while await storage.in_flight(TENANT, now=clock.now()) > 1:
            await until(clock, 10, lambda: True)
            clock.advance(10)
        await until(clock, 10, lambda: destination.present <= 1)
        destination.most = 0
        await until(clock, 50, lambda: len(destination.times) >= 70)
        assert destination.most == 1
        await limit(storage, 4, clock)
        await all_is_over(storage, clock, second)
    assert destination.most == 4
    assert await storage.in_flight(TENANT, now=clock.now()) == 0
    assert await storage.count_rows("gated") == 0


async def test_a_limit_that_is_taken_back_lets_everybody_go(storage: Storage) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=40)
    signer = Unsigned()
    signer.limited = True
    engine = an_engine(storage, destination, clock, lease_ms=10**9, signer=signer)
    await limit(storage, 1, clock)
    async with running(engine):
        await engine.publish([a_message() for _ in range(20)])
        await until(clock, 10, lambda: len(destination.times) >= 3)
        assert destination.most == 1
        await limit(storage, None, clock)
        signer.limited = False
        await all_is_over(storage, clock, engine)
    assert destination.most == 17
    assert len(destination.times) == 20


async def test_stopping_gives_the_permits_back_that_were_asked_for(storage: Storage) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=10**9)
    signer = Unsigned()
    signer.limited = True
    engine = an_engine(storage, destination, clock, lease_ms=10**9, signer=signer)
    await limit(storage, 2, clock)
    async with running(engine):
        await engine.publish([a_message() for _ in range(4)])
        await until(clock, 1, lambda: destination.present == 2)
        await engine.drain(clock.now())
    assert engine.in_flight == 0
    assert await storage.in_flight(TENANT, now=clock.now()) == 0
    assert (await storage.stats()).live == 4


class Verbs:
    """What the engine asks of storage, in its order."""

    def __init__(self, faulty: Faulty) -> None:
        self.asked: list[str] = []
        faulty.before = self._before

    async def _before(self, verb: str, *args: object) -> None:
        self.asked.append(verb)


@pytest.mark.parametrize("parallelism", [1, 3])
async def test_who_waits_for_a_permit_is_claimed_with_the_settlement_that_frees_it(
    storage: Storage, parallelism: int
) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=10)
    faulty = Faulty(storage)
    verbs = Verbs(faulty)
    engine = an_engine(cast(Storage, WithHint(faulty, storage)), destination, clock)
    async with running(engine):
        await engine.publish(keyed(12, parallelism=parallelism))
        await until(clock, 10, lambda: len(destination.bodies) == 12 and engine.in_flight == 0)
    assert destination.most == parallelism
    assert destination.bodies == [str(number) for number in range(12)]
    assert verbs.asked.count("settle") == 0


@pytest.mark.parametrize("lost", ["question", "answer"])
async def test_a_claim_that_comes_with_a_settlement_and_is_lost_loses_neither(
    storage: Storage, lost: str
) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=10)
    faulty = Faulty(storage)
    engine = an_engine(cast(Storage, WithHint(faulty, storage)), destination, clock, lease_ms=2_000)
    claims = count(1)

    async def trouble(verb: str, *args: object) -> None:
        if verb == "claim" and destination.bodies and next(claims) in (2, 5):
            raise Unavailable("the disk is full")

    if lost == "question":
        faulty.before = trouble
    else:
        faulty.after = trouble
    async with running(engine):
        await engine.publish(keyed(8, parallelism=1))
        await until(clock, 10, lambda: len(set(destination.bodies)) == 8 and engine.in_flight == 0)
    assert next(claims) > 5
    assert destination.most == 1
    assert sorted(destination.bodies) == [str(number) for number in range(8)]
    assert await storage.stats() == Stats(live=0, dead_letters=0, oldest_due_at=None)


async def test_a_settlement_is_written_although_nothing_can_be_claimed_with_it(storage: Storage) -> None:
    clock = FakeClock(NOW)
    destination = Destination(clock, takes_ms=10)
    faulty = Faulty(storage)
    engine = an_engine(cast(Storage, WithHint(faulty, storage)), destination, clock)
    settled: list[str] = []

    async def trouble(verb: str, *args: object) -> None:
        if verb == "claim" and len(destination.bodies) == 1 and not settled:
            raise ValueError("cannot be claimed")
        if verb == "settle":
            settled.append(verb)

    faulty.before = trouble
    async with running(engine):
        await engine.publish(keyed(4, parallelism=1))
        await until(clock, 10, lambda: len(destination.bodies) == 4 and engine.in_flight == 0)
    assert settled == ["settle"]
    assert destination.most == 1
    assert (await storage.stats()).live == 0

"""However much one tenant has for one host, and however long that takes: another's message starts at once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.clock import FakeClock
from relay.config import Config
from relay.domain.delivery import Attempt, State
from relay.domain.errors import Unavailable
from relay.domain.message import Message, TenantId
from relay.domain.selection import Order, Selection
from relay.wire.outbound import Outgoing
from storage.protocol import Storage
from storage.sqlite import open_sqlite
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message
from tests.engine.test_engine import Destination, Rig

SLOW = "https://slow.example/"
SLOTS = 40


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await open_sqlite(f"sqlite:///{tmp_path}/relay.db")
    yield opened
    await opened.close()


class WithSlowHost(Destination):
    """A destination of which one host holds its requests until they are let go; `most` is how many at once."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.let_go = asyncio.Event()
        self.holding = 0
        self.most = 0
        #: Whether all hosts are slow.
        self.everyone = False

    async def send(self, outgoing: Outgoing, *, timeout_ms: int, keep_bytes: int | None = None) -> Attempt:
        if self.everyone or outgoing.peer.host == "slow.example":
            self.latest = outgoing.peer
            self.holding += 1
            self.most = max(self.most, self.holding)
            await self.let_go.wait()
            self.holding -= 1
        return await super().send(outgoing, timeout_ms=timeout_ms, keep_bytes=keep_bytes)


class Contest(Rig):
    """An engine with few slots, and a host that answers nobody."""

    def __init__(self, storage: object, slots: int = SLOTS) -> None:
        host: list[WithSlowHost] = []

        def slow_host(clock: FakeClock) -> WithSlowHost:
            host.append(WithSlowHost(clock))
            return host[0]

        super().__init__(storage, Config(max_in_flight=slots), destination=slow_host)
        (self.host,) = host

    async def publish(self, *messages: Message) -> None:
        await self.engine.publish(messages)

    async def states_of(self, message: Message) -> list[State]:
        history = await self.storage.events(
            message.tenant,
            Selection(message_ids=(message.id,)),
            order=Order.EARLIEST_FIRST,
            start=None,
            limit=100,
        )
        return [state for event in history.events for state in event.change.states]

    async def delivered(self, message: Message) -> None:
        async with asyncio.timeout(20):
            while State.DELIVERED not in await self.states_of(message):
                await asyncio.sleep(0)


def slow(count: int, *, not_before: int = NOW, tenant: TenantId = TENANT) -> list[Message]:
    return [
        a_message(url=f"{SLOW}{number}", not_before=not_before, tenant=tenant, created_at=NOW)
        for number in range(count)
    ]


async def test_a_host_that_hangs_leaves_room_for_others(storage: Storage) -> None:
    rig = Contest(storage)
    async with rig.running():
        await rig.publish(*slow(3 * SLOTS))
        await rig.until(lambda: rig.host.holding == SLOTS // 2)
        other = a_message()
        await rig.publish(other)
        await rig.delivered(other)
        assert rig.host.most == SLOTS // 2
        rig.host.let_go.set()


async def test_what_is_due_behind_the_backlog_of_a_host_that_hangs_starts_when_it_is_due(
    storage: Storage,
) -> None:
    rig = Contest(storage)
    due_at = NOW + 60_000
    backlog = slow(5 * SLOTS, not_before=due_at)
    other = a_message(not_before=due_at + 1)
    await storage.publish([*backlog, other], now=NOW)
    async with rig.running():
        rig.clock.advance(due_at + 1 - NOW)
        await rig.delivered(other)
        rig.host.let_go.set()
        for message in backlog:
            await rig.delivered(message)


async def test_a_backlog_drains_as_the_host_answers_without_another_look_at_the_clock(
    storage: Storage,
) -> None:
    rig = Contest(storage)
    messages = slow(6 * SLOTS)
    async with rig.running():
        for message in messages:
            await rig.publish(message)
        await rig.until(lambda: rig.host.holding == SLOTS // 2)
        rig.host.let_go.set()
        for message in messages:
            await rig.delivered(message)
    assert rig.clock.now() == NOW


async def test_many_hosts_that_hang_leave_room_for_one_more(storage: Storage) -> None:
    rig = Contest(storage, slots=100)
    async with rig.running():
        for number in range(5):
            await rig.publish(*slow(100, tenant=TenantId(100 + number)))
        await rig.publish(a_message(tenant=OTHER_TENANT))
        await rig.pass_time_until(
            lambda: any(sent.peer.host == "example.com" for sent in rig.destination.requests), step_ms=1
        )
        assert rig.clock.now() - NOW < 1_000
        rig.host.let_go.set()


async def test_a_tenant_with_very_many_hosts_leaves_room_for_others(storage: Storage) -> None:
    rig = Contest(storage)
    rig.host.everyone = True
    async with rig.running():
        for number in range(3 * SLOTS):
            queue = None if number % 2 else str(number)
            await rig.publish(a_message(url=f"https://{number}.example/", queue=queue))
        await rig.until(lambda: rig.host.holding == SLOTS * 3 // 4)
        await rig.publish(a_message(tenant=OTHER_TENANT))
        await rig.until(lambda: rig.host.holding == SLOTS * 3 // 4 + 1)
        assert rig.host.latest.host == "example.com"
        rig.host.let_go.set()


async def test_a_message_in_a_queue_takes_its_turn_among_those_that_wait_for_its_host(
    storage: Storage,
) -> None:
    rig = Contest(storage)
    queued, later = a_message(url=SLOW, queue="q"), a_message(url=SLOW, queue="q")
    async with rig.running():
        await rig.publish(*slow(2 * SLOTS))
        await rig.until(lambda: rig.host.holding == SLOTS // 2)
        await rig.publish(queued)
        await rig.publish(later)
        await rig.until(lambda: bool(rig.lines.named("crowds.set_aside")))
        rig.clock.advance(60_000)
        await rig.publish(*slow(SLOTS))
        rig.host.let_go.set()
        await rig.delivered(queued)
        await rig.delivered(later)
    # Waiting is no attempt, and leaves nothing behind however long it takes.
    for message in (queued, later):
        assert await rig.states_of(message) == [State.CREATED, State.ACTIVE, State.DELIVERED]


class AwayTwice:
    """Storage that does not answer the first two times something is to be set aside."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._failures = 2

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._storage, verb)

    async def set_aside(self, *arguments: Any, **others: Any) -> Any:
        self._failures -= 1
        if self._failures >= 0:
            raise Unavailable("the disk is full")
        return await self._storage.set_aside(*arguments, **others)


async def test_what_cannot_be_set_aside_is_handed_back_and_lost_never(storage: Storage) -> None:
    rig = Contest(AwayTwice(storage))
    messages = slow(3 * SLOTS)
    await storage.publish(messages, now=NOW)
    async with rig.running():
        await rig.until(lambda: len(rig.lines.named("crowds.not_set_aside")) == 2)
        await rig.until(lambda: rig.host.holding == SLOTS // 2)
        rig.host.let_go.set()
        for message in messages:
            await rig.delivered(message)

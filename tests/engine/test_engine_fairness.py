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

    async def send(self, outgoing: Outgoing, *, timeout_ms: int, keep_bytes: int | None = None) -> Attempt:
        if outgoing.peer.host == "slow.example":
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

    async def delivered(self, message: Message) -> None:
        states: list[State] = []

        async def look() -> None:
            history = await self.storage.events(
                message.tenant,
                Selection(message_ids=(message.id,)),
                order=Order.EARLIEST_FIRST,
                start=None,
                limit=100,
            )
            states[:] = [state for event in history.events for state in event.change.states]

        async with asyncio.timeout(20):
            while State.DELIVERED not in states:
                await look()
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


async def test_a_message_in_a_queue_whose_host_has_its_share_waits_in_its_lane(storage: Storage) -> None:
    rig = Contest(storage)
    queued = a_message(url=SLOW, queue="q")
    async with rig.running():
        await rig.publish(*slow(2 * SLOTS))
        await rig.until(lambda: rig.host.holding == SLOTS // 2)
        await rig.publish(queued)
        await rig.until(lambda: bool(rig.lines.named("delivery.postponed")))
        rig.host.let_go.set()
        await rig.pass_time_until(lambda: rig.engine.in_flight == 0, step_ms=1_000)
        await rig.delivered(queued)


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

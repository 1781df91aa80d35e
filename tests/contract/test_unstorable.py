"""What the database cannot hold costs no more than itself: the delivery ends, and nobody waits behind it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relay.clock import FakeClock
from relay.domain.delivery import Claim, Settlement, State, settle
from relay.domain.errors import Invalid
from relay.domain.message import Callback, FlowControl, Message, Request
from relay.domain.publish import Draft
from relay.domain.schedule import RunOutcome, Schedule
from relay.domain.tenant import Limits
from relay.engine.scheduler import Scheduler
from relay.engine.settler import Settler
from relay.ids import Ids, text_of
from relay.metrics import Metrics
from relay.wire.headers import parse_draft
from relay.wire.texts import MAX_INDEXED_BYTES
from storage.postgres.storage import PostgresStorage
from storage.protocol import Rejected, Storage, Unstorable
from tests.builders import NOW, TENANT, a_message, an_attempt, next_id
from tests.contract.steps import LATER, accept, graves, start, states, take
from tests.engine.stepped import Lines

URL = "https://example.com/report"
_chance = random.Random(1)


def incompressible(bytes_: int) -> str:
    """So many bytes in UTF-8, of random ideographs and what is left over."""
    count, rest = divmod(bytes_, 3)
    return "".join(chr(_chance.randint(0x4E00, 0x9FFF)) for _ in range(count)) + "k" * rest


#: What neither backend can hold, although it is spelled in JSON until a message is made of it.
POISON = FlowControl(key="key", parallelism=1 << 70)
#: More than an index of PostgreSQL takes.
LONG = FlowControl(key=incompressible(3000), parallelism=1)


class Desk:
    """A settler over real storage, and what it says."""

    def __init__(self, storage: Storage) -> None:
        self.lines = Lines()
        self.metrics = Metrics()
        self.done: list[Settlement] = []
        self._arrived = asyncio.Event()
        self.settler = Settler(
            storage.settle,
            clock=FakeClock(NOW),
            log=self.lines,
            metrics=self.metrics,
            settled=self._settled,
        )

    def _settled(self, batch: object) -> None:
        assert isinstance(batch, list)
        self.done += batch
        self._arrived.set()

    async def settle(self, *settlements: Settlement) -> None:
        for settlement in settlements:
            self.settler.put(settlement)
        async with asyncio.timeout(20):
            while len(self.done) < len(settlements):
                self._arrived.clear()
                await self._arrived.wait()

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


@asynccontextmanager
async def a_desk(storage: Storage) -> AsyncIterator[Desk]:
    desk = Desk(storage)
    loop = asyncio.create_task(desk.settler.run())
    yield desk
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


def outcome(claim: Claim, *, status: int = 200, error: str | None = None) -> Settlement:
    attempt = an_attempt(status=status, headers=(("A", "b"),), body=b"answer", error=error)
    return settle(claim, attempt, next_id=next_id)


async def reports_on(storage: Storage, message: Message) -> list[Message]:
    return [
        claim.message for claim in await take(storage, now=LATER) if claim.message.origin.source == message.id
    ]


@pytest.mark.parametrize("flow", [POISON, LONG], ids=["number", "length"])
@pytest.mark.parametrize("status", [200, 500])
async def test_a_delivery_whose_callback_cannot_be_stored_ends_without_it_and_its_lane_is_free(
    storage: Storage, flow: FlowControl, status: int
) -> None:
    if flow is LONG and not isinstance(storage, PostgresStorage):
        flow = POISON
    head = a_message(queue="q", max_retries=0, callback=Callback(url=URL, flow=flow))
    behind = a_message(queue="q")
    neighbour = a_message()
    claims = await start(storage, neighbour, head)
    await accept(storage, behind)
    async with a_desk(storage) as desk:
        await desk.settle(*(outcome(claim, status=status) for claim in claims))
    end = State.DELIVERED if status == 200 else State.FAILED
    assert (await states(storage, head))[-1] is end
    assert [letter.message.id for letter in await graves(storage)] == ([] if status == 200 else [head.id])
    next_in_line = [claim.message for claim in await take(storage, now=LATER)]
    assert behind in next_in_line
    assert [message.id for message in next_in_line if message.origin.source == head.id] == []
    [line] = desk.lines.named("settlement.cut")
    assert line["message"] == text_of("msg_", head.id)
    assert (line["callbacks_lost"], line["answer_lost"]) == (1, False)
    assert [event for level, event, _ in desk.lines.all if level == "error"] == ["settlement.cut"]
    assert desk.value("relay_settlements_cut_total") == 1
    assert desk.value("relay_messages_published_total") == 0


async def test_of_two_callbacks_only_the_one_that_cannot_be_stored_is_lost(storage: Storage) -> None:
    message = a_message(
        max_retries=0, callback=Callback(url=URL, flow=POISON), failure_callback=Callback(url=f"{URL}/failed")
    )
    [claim] = await start(storage, message)
    async with a_desk(storage) as desk:
        await desk.settle(outcome(claim, status=500))
    assert [report.request.url for report in await reports_on(storage, message)] == [f"{URL}/failed"]
    assert desk.value("relay_messages_published_total") == 1


async def test_an_answer_that_cannot_be_stored_leaves_a_dead_letter_that_says_so() -> None:
    message = a_message(max_retries=0, failure_callback=Callback(url=URL))
    claim = Claim(message=message, claim_no=1, claimed_at=NOW)
    written: list[Settlement] = []

    class WithoutRoomForAnswers:
        async def settle(self, settlements: list[Settlement]) -> list[int]:
            if any(one.attempt is not None and one.attempt.body for one in settlements):
                raise Unstorable("string or blob too big")
            written.extend(settlements)
            return []

    whole = outcome(claim, status=503)
    async with a_desk(WithoutRoomForAnswers()) as desk:  # type: ignore[arg-type]
        await desk.settle(whole)
    [cut] = written
    assert cut.attempt is not None
    assert (cut.attempt.status, cut.attempt.headers, cut.attempt.body) == (503, (), b"")
    assert cut.attempt.error == "the attempt failed, and what came of it cannot be stored"
    assert (cut.change, cut.dead_letter_id) == (whole.change, whole.dead_letter_id)
    assert cut.publishes == whole.publishes
    [line] = desk.lines.named("settlement.cut")
    assert (line["callbacks_lost"], line["answer_lost"]) == (0, True)


async def test_a_settlement_that_cannot_be_stored_under_a_lost_lease_is_refused_all_the_same(
    storage: Storage,
) -> None:
    message = a_message(callback=Callback(url=URL, flow=POISON))
    [claim] = await start(storage, message)
    [again] = await take(storage, now=LATER)
    async with a_desk(storage) as desk:
        await desk.settle(outcome(claim))
    assert [line["count"] for line in desk.lines.named("settlement.refused")] == [1]
    assert desk.lines.named("settlement.cut") == []
    assert (again.claim_no, (await states(storage, message))[-1]) == (2, State.ACTIVE)


async def test_nothing_is_given_up_when_it_is_not_the_values_that_storage_refuses() -> None:
    message = a_message(callback=Callback(url=URL))
    claim = Claim(message=message, claim_no=1, claimed_at=NOW)
    asked: list[Settlement] = []

    class OfOtherTables:
        async def settle(self, settlements: list[Settlement]) -> list[int]:
            asked.extend(settlements)
            raise Rejected('column "terms" does not exist')

    async with a_desk(OfOtherTables()) as desk:  # type: ignore[arg-type]
        await desk.settle(outcome(claim))
    assert all(settlement.publishes for settlement in asked)
    [line] = desk.lines.named("settlement.failed")
    assert line["message"] == text_of("msg_", message.id)
    assert desk.value("relay_settlements_cut_total") == 0


@pytest.mark.parametrize("flow", [POISON, LONG], ids=["number", "length"])
async def test_a_schedule_whose_runs_cannot_be_stored_says_so_at_each_tick_and_stops_no_other(
    storage: Storage, flow: FlowControl
) -> None:
    if flow is LONG and not isinstance(storage, PostgresStorage):
        flow = POISON
    minute = 60_000
    for id, limits in (("scd_bad", flow), ("scd_good", None)):
        schedule = Schedule(
            tenant=TENANT,
            id=id,
            cron="* * * * *",
            draft=Draft(request=Request(url=URL), flow=limits),
            created_at=NOW,
            revision=1,
            next_at=NOW + minute,
        )
        assert await storage.put_schedule(schedule, limit=10) is not None
    clock, lines, metrics = FakeClock(NOW), Lines(), Metrics()
    scheduler = Scheduler(
        storage,
        clock=clock,
        ids=Ids(),
        log=lines,
        metrics=metrics,
        grace_ms=minute,
        max_bytes=1000,
        random=lambda: 0.5,
    )
    stopping = asyncio.Event()
    loop = asyncio.create_task(scheduler.run(stopping))
    for tick in (1, 2):
        clock.advance(minute)
        async with asyncio.timeout(20):
            while len(await storage.runs(TENANT, "scd_good", limit=10)) < tick:
                await asyncio.sleep(0)
            while len(await storage.runs(TENANT, "scd_bad", limit=10)) < tick:
                await asyncio.sleep(0)
    stopping.set()
    await loop
    bad = await storage.runs(TENANT, "scd_bad", limit=10)
    assert [run.outcome for run in bad] == [RunOutcome.FAILED, RunOutcome.FAILED]
    good = await storage.runs(TENANT, "scd_good", limit=10)
    assert [run.outcome for run in good] == [RunOutcome.FIRED, RunOutcome.FIRED]
    assert [line["schedule"] for line in lines.named("schedule.broke")] == ["scd_bad", "scd_bad"]
    failed = metrics.registry.get_sample_value("relay_schedule_runs_total", {"outcome": "failed"})
    assert failed == 2


async def test_the_longest_texts_that_are_taken_fit_into_every_index_and_are_found_again(
    storage: Storage,
) -> None:
    key, name = incompressible(MAX_INDEXED_BYTES), "n" * 256
    labels = tuple("".join(chr(_chance.randint(0x1F300, 0x1F5FF)) for _ in range(256)) for _ in range(20))
    message = a_message(
        flow=FlowControl(key=key, parallelism=1),
        labels=labels,
        url_group=name,
        endpoint=labels[0],
        schedule_id=name,
        queue=name,
        max_retries=0,
        callback=Callback(url=URL, flow=FlowControl(key=key, rate=1)),
    )
    [claim] = await start(storage, message)
    async with a_desk(storage) as desk:
        await desk.settle(outcome(claim))
    assert desk.value("relay_messages_published_total") == 1
    assert (await storage.flow_key(TENANT, key, now=NOW)) is not None


@pytest.mark.parametrize("prefix", ["Upstash", "Upstash-Callback", "Upstash-Failure-Callback-Callback"])
def test_a_key_that_is_too_long_is_refused_by_its_name_wherever_it_is_given(prefix: str) -> None:
    headers = {
        "Upstash-Callback": URL,
        "Upstash-Failure-Callback": URL,
        "Upstash-Failure-Callback-Callback": URL,
        f"{prefix}-Flow-Control-Key": incompressible(MAX_INDEXED_BYTES + 1),
        f"{prefix}-Flow-Control-Value": "parallelism=1",
    }
    with pytest.raises(Invalid, match="must have 1 to 2048 bytes in UTF-8") as refused:
        parse_draft(
            headers.items(),
            to=URL,
            body=b"",
            caller_ip=None,
            now=NOW,
            limits=Limits(),
            refusal=lambda address: None,
        )
    assert refused.value.field == f"{prefix}-Flow-Control-Key"

from typing import Any, cast

import pytest

from relay.domain.delivery import settle
from relay.domain.message import Message, MessageId, TenantId
from relay.domain.selection import Order, Selection
from relay.domain.tenant import Tenant, TenantLimits
from relay.engine.janitor import Janitor, Store
from storage.protocol import ClaimTerms, Storage
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message, an_attempt, next_id
from tests.engine.stepped import Faulty, Workbench, running, storage_is_away

SECOND = 1_000
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE
ROUND = 15 * SECOND


class Bench(Workbench):
    def __init__(
        self,
        storage: object,
        *,
        now: int = NOW,
        log_retention_ms: int = 14 * DAY,
        dlq_retention_ms: int = 7 * DAY,
    ) -> None:
        super().__init__(now)
        self.janitor = Janitor(
            cast(Store, storage),
            clock=self.clock,
            log=self.lines,
            metrics=self.metrics,
            log_retention_ms=log_retention_ms,
            dlq_retention_ms=dlq_retention_ms,
            random=self.random,
        )


async def finish(storage: Storage, *messages: Message, status: int = 200) -> None:
    """Attempted at `NOW`, for good: with status 200 delivered, otherwise (without retries) dead."""
    await storage.publish(messages, now=NOW)
    claimed = await storage.claim(ClaimTerms(limit=len(messages), lease_ms=30_000), now=NOW)
    attempt = an_attempt(started_at=NOW, ended_at=NOW, status=status)
    await storage.settle([settle(claim, attempt, next_id=next_id) for claim in claimed.claims])


async def exists(storage: Storage, message: Message) -> bool:
    return await storage.message(message.tenant, message.id) is not None


async def dead(storage: Storage, tenant: TenantId = TENANT) -> list[MessageId]:
    letters = await storage.dead_letters(tenant, Selection(), order=Order.LATEST_FIRST, start=None, limit=100)
    return [letter.message.id for letter in letters]


# --- retention -------------------------------------------------------------------------------------------------


async def test_a_delivered_message_is_readable_for_the_log_retention_and_then_forgotten(
    storage: Storage,
) -> None:
    message = a_message()
    await finish(storage, message)
    bench = Bench(storage, log_retention_ms=DAY)
    async with running(bench.janitor):
        await bench.clock.step(DAY)
        assert await exists(storage, message)
        await bench.clock.step(ROUND)
        assert not await exists(storage, message)
    assert bench.value("relay_pruned_rows_total") >= 1


async def test_a_delivered_message_is_readable_for_ten_minutes_whatever_is_configured(
    storage: Storage,
) -> None:
    message = a_message()
    await finish(storage, message)
    bench = Bench(storage, log_retention_ms=1)
    async with running(bench.janitor):
        for _ in range(40):
            await bench.clock.step(ROUND)
        assert bench.clock.now() == NOW + 10 * MINUTE
        assert await exists(storage, message)
        await bench.clock.step(ROUND)
        assert not await exists(storage, message)


async def test_a_dead_letter_stays_for_its_own_retention_and_is_not_bound_to_the_log(
    storage: Storage,
) -> None:
    message = a_message(max_retries=0)
    await finish(storage, message, status=500)
    bench = Bench(storage, log_retention_ms=DAY, dlq_retention_ms=7 * DAY)
    async with running(bench.janitor):
        await bench.clock.step(7 * DAY)
        assert await dead(storage) == [message.id]
        await bench.clock.step(ROUND)
        assert await dead(storage) == []
        await bench.clock.step_to_end_of_nap()
        assert not await exists(storage, message)


async def two_tenants(storage: Storage, limits: TenantLimits) -> None:
    """Of which the other has limits of its own."""
    for tenant in (TENANT, OTHER_TENANT):
        keys = Tenant(id=tenant, user_id=f"user {tenant}", current_key="sig_1", next_key="sig_2")
        await storage.put_tenant(keys, now=NOW)
    await storage.put_limits(OTHER_TENANT, limits, now=NOW)


async def test_a_tenants_own_retention_of_the_log_is_its_own(storage: Storage) -> None:
    await two_tenants(storage, TenantLimits(log_retention_ms=2 * DAY))
    ours, theirs = a_message(), a_message(tenant=OTHER_TENANT)
    await finish(storage, ours, theirs)
    for log_retention_ms, ours_stays in ((3 * DAY, True), (DAY, False)):
        bench = Bench(storage, log_retention_ms=log_retention_ms, now=NOW + 2 * DAY)
        async with running(bench.janitor):
            await bench.clock.asleep()
            assert (await exists(storage, ours), await exists(storage, theirs)) == (ours_stays, True)
    bench = Bench(storage, now=NOW + 2 * DAY + 1)
    async with running(bench.janitor):
        await bench.clock.asleep()
        assert not await exists(storage, theirs)


@pytest.mark.parametrize("theirs_ms", [DAY, 20 * DAY])
async def test_a_tenants_own_retention_of_dead_letters_is_its_own(storage: Storage, theirs_ms: int) -> None:
    await two_tenants(storage, TenantLimits(dlq_retention_ms=theirs_ms))
    ours, theirs = (a_message(tenant=tenant, max_retries=0) for tenant in (TENANT, OTHER_TENANT))
    await finish(storage, ours, theirs, status=500)
    for age_ms in sorted((7 * DAY, theirs_ms)):
        for now in (NOW + age_ms, NOW + age_ms + 1):
            bench = Bench(storage, now=now)
            async with running(bench.janitor):
                await bench.clock.asleep()
            assert await dead(storage) == ([ours.id] if now <= NOW + 7 * DAY else [])
            assert await dead(storage, OTHER_TENANT) == ([theirs.id] if now <= NOW + theirs_ms else [])


async def test_no_tenants_log_is_shorter_than_ten_minutes(storage: Storage) -> None:
    await two_tenants(storage, TenantLimits(log_retention_ms=1))
    message = a_message(tenant=OTHER_TENANT)
    await finish(storage, message)
    for age_ms, stays in ((10 * MINUTE, True), (10 * MINUTE + 1, False)):
        bench = Bench(storage, now=NOW + age_ms)
        async with running(bench.janitor):
            await bench.clock.asleep()
            assert await exists(storage, message) == stays


async def test_a_retention_that_is_set_while_the_janitor_runs_counts_within_a_round(storage: Storage) -> None:
    await two_tenants(storage, TenantLimits())
    message = a_message(tenant=OTHER_TENANT)
    await finish(storage, message)
    bench = Bench(storage, now=NOW + DAY)
    async with running(bench.janitor):
        await bench.clock.asleep()
        await storage.put_limits(OTHER_TENANT, TenantLimits(log_retention_ms=DAY // 2), now=NOW)
        await bench.clock.step(ROUND)
        assert not await exists(storage, message)


async def test_what_is_not_finished_is_never_forgotten(storage: Storage) -> None:
    message = a_message(not_before=NOW + 1000 * DAY)
    await storage.publish([message], now=NOW)
    bench = Bench(storage)
    async with running(bench.janitor):
        await bench.clock.step(500 * DAY)
        await bench.clock.step_to_end_of_nap()
        assert await exists(storage, message)
        assert (await storage.stats()).live == 1


async def test_a_backlog_is_eaten_in_small_bites_with_a_rest_after_each(storage: Storage) -> None:
    messages = [a_message() for _ in range(1200)]
    await finish(storage, *messages)
    bites: list[int] = []
    faulty = Faulty(storage)

    async def count_the_bite(verb: str, *args: Any, **kwargs: Any) -> None:
        if verb == "prune":
            bites.append(1)

    faulty.after = count_the_bite
    bench = Bench(faulty, now=NOW + 15 * DAY)
    async with running(bench.janitor):
        while True:
            await bench.clock.asleep()
            if bench.clock.naps[-1] > SECOND:
                break
            await bench.clock.step_to_end_of_nap()
        assert [await exists(storage, message) for message in messages[::100]] == [False] * 12
    *rests, round_rest = bench.clock.naps
    assert len(bites) == len(bench.clock.naps) >= 3
    assert all(25 <= rest <= 50 for rest in rests)
    assert ROUND / 2 <= round_rest <= ROUND
    [line] = bench.lines.named("history.pruned")
    assert line["rows"] == bench.value("relay_pruned_rows_total") >= 1200


async def test_after_a_slow_bite_the_rest_is_longer_but_never_longer_than_a_round(storage: Storage) -> None:
    await finish(storage, *[a_message() for _ in range(3000)])
    faulty = Faulty(storage)
    bench = Bench(faulty, now=NOW + 15 * DAY)
    took_ms = 100

    async def take_long(verb: str, *args: Any) -> None:
        if verb == "prune":
            bench.clock.advance(took_ms)

    faulty.after = take_long
    async with running(bench.janitor):
        await bench.clock.asleep()
        took_ms = 3_000
        await bench.clock.step_to_end_of_nap()
        took_ms = 60_000
        await bench.clock.step_to_end_of_nap()
    assert 200 <= bench.clock.naps[0] <= 400
    assert 6_000 <= bench.clock.naps[1] <= 12_000
    assert ROUND / 2 <= bench.clock.naps[2] <= ROUND


# --- trouble ---------------------------------------------------------------------------------------------------


async def test_while_storage_is_away_it_asks_ever_less_often_and_then_goes_on(storage: Storage) -> None:
    faulty = Faulty(storage)
    faulty.before = storage_is_away
    bench = Bench(faulty)
    async with running(bench.janitor):
        for _ in range(8):
            await bench.clock.step_to_end_of_nap()
        assert bench.janitor.last_progress_at == NOW
        faulty.before = Faulty(storage).before
        await bench.clock.step_to_end_of_nap()
        assert bench.janitor.last_progress_at == bench.clock.now()
        faulty.before = storage_is_away
        await bench.clock.step_to_end_of_nap()
    *pauses, normal, again = bench.clock.naps
    for failure, pause in enumerate(pauses):
        longest = min(500 * 2**failure, ROUND)
        assert longest / 2 <= pause <= longest
    assert ROUND / 2 <= normal <= ROUND
    assert again <= 500
    assert bench.value('relay_storage_errors_total{operation="prune"}') == 10
    assert bench.lines.named("janitor.waiting")[0]["reason"] == "the disk is full"


async def test_a_bug_on_the_way_to_storage_is_logged_and_the_loop_goes_on(storage: Storage) -> None:
    faulty = Faulty(storage)

    async def break_it(verb: str, *args: Any) -> None:
        raise RuntimeError("a row that cannot be decoded")

    faulty.before = break_it
    bench = Bench(faulty)
    async with running(bench.janitor):
        await bench.clock.asleep()
        [line] = bench.lines.named("janitor.failed")
        assert str(line["exc"]) == "a row that cannot be decoded"
        faulty.before = Faulty(storage).before
        await bench.clock.step_to_end_of_nap()
        assert bench.janitor.last_progress_at == bench.clock.now()


async def test_it_stops_in_the_middle_of_a_rest(storage: Storage) -> None:
    bench = Bench(storage)
    async with running(bench.janitor) as stopping:
        await bench.clock.asleep()
        stopping.set()
    assert bench.clock.now() == NOW

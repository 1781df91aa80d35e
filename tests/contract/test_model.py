"""Every history of publishes, claims, outcomes, cancellations, crashes and time agrees with a small dictionary."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from relay.domain.dead_letter import DeadLetterId
from relay.domain.delivery import Claim, Lease, Settlement, State, lost, released, settle
from relay.domain.message import Callback, Message
from relay.domain.selection import Order, Selection
from storage.protocol import DEDUP_WINDOW_MS, ClaimTerms, Storage
from tests.builders import NOW, TENANT, a_message, an_attempt, next_id
from tests.contract.conftest import BACKENDS
from tests.contract.steps import EVERYTHING, LEASE_MS

T = TypeVar("T")

RETRY_MS = 1000


@dataclass
class Delivery:
    """What the dictionary knows of one living delivery."""

    message: Message
    due_at: int
    active: bool = False
    retried: int = 0
    claim_no: int = 0
    lost_leases: int = 0
    cancel_requested: bool = False


@dataclass
class Model:
    """What storage should hold: the living, the log of everyone, the dead, and who holds which key."""

    living: dict[int, Delivery] = field(default_factory=dict)
    log: dict[int, list[State]] = field(default_factory=dict)
    messages: dict[int, Message] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    keys: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    def accept(self, message: Message, now: int) -> int:
        """The id that answers."""
        key = message.dedup_key
        if key is not None:
            holder, until = self.keys.get(key, (0, 0))
            if until > now:
                return holder
            self.keys[key] = (message.id, now + DEDUP_WINDOW_MS)
        self.messages[message.id] = message
        self.living[message.id] = Delivery(message, message.not_before)
        self.log[message.id] = [State.CREATED]
        return message.id

    def start(self, id_: int, now: int) -> None:
        delivery = self.living[id_]
        delivery.lost_leases += delivery.active
        delivery.active = True
        delivery.claim_no += 1
        delivery.due_at = now + LEASE_MS
        self.log[id_].append(State.ACTIVE)

    def end(self, id_: int, *final: State) -> None:
        del self.living[id_]
        self.log[id_] += final
        if final[-1] is State.DELIVERED:
            return
        for key, (holder, _) in list(self.keys.items()):
            if holder == id_:
                del self.keys[key]

    def due(self, now: int) -> list[int]:
        waiting = [(one.due_at, id_) for id_, one in self.living.items() if one.due_at <= now]
        return [id_ for _, id_ in sorted(waiting)]

    def holds(self, claim: Claim) -> bool:
        delivery = self.living.get(claim.message.id)
        return delivery is not None and delivery.active and delivery.claim_no == claim.claim_no


class Machine(RuleBasedStateMachine):
    """Drives one database and the dictionary side by side."""

    claims = Bundle("claims")

    backend: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.open: Callable[[], Awaitable[Storage]] = BACKENDS[self.backend](Path(self.directory.name))
        self.storage = self.wait(self.open())
        self.model = Model()
        self.now = NOW

    def teardown(self) -> None:
        self.wait(self.storage.close())
        self.runner.close()
        self.directory.cleanup()

    def wait(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        return self.runner.run(wait())

    @rule(
        target=claims,
        delays=st.lists(st.sampled_from([0, 0, 1, LEASE_MS]), min_size=1, max_size=3),
        key=st.sampled_from([None, None, b"a" * 16, b"b" * 16]),
        max_retries=st.integers(0, 2),
        callback=st.sampled_from([None, None, Callback(url="https://example.com/cb")]),
        limit=st.sampled_from([None, 0, 1, 5]),
    )
    def publish(
        self,
        delays: list[int],
        key: bytes | None,
        max_retries: int,
        callback: Callback | None,
        limit: int | None,
    ) -> Any:
        messages = [
            a_message(
                created_at=self.now,
                not_before=self.now + delay,
                dedup_key=key,
                max_retries=max_retries,
                callback=callback,
                failure_callback=callback,
            )
            for delay in delays
        ]
        terms = None if limit is None else ClaimTerms(limit=limit, lease_ms=LEASE_MS)
        published = self.wait(self.storage.publish(messages, now=self.now, claim=terms))
        expected = [self.model.accept(message, self.now) for message in messages]
        assert [receipt.message_id for receipt in published.receipts] == expected
        fresh = [message.id for message, id_ in zip(messages, expected, strict=True) if message.id == id_]
        handed_out = [id_ for id_ in fresh if self.model.living[id_].due_at <= self.now][: limit or 0]
        assert [claim.message.id for claim in published.claims] == handed_out
        for id_ in handed_out:
            self.model.start(id_, self.now)
        return multiple(*published.claims)

    @rule(target=claims, limit=st.integers(1, 4))
    def claim(self, limit: int) -> Any:
        claimed = self.wait(self.storage.claim(ClaimTerms(limit=limit, lease_ms=LEASE_MS), now=self.now))
        expected = []
        for id_ in self.model.due(self.now)[:limit]:
            self.model.start(id_, self.now)
            delivery = self.model.living[id_]
            if delivery.cancel_requested:
                self.model.log[id_].pop()
                self.model.end(id_, State.ERROR, State.CANCELED)
            else:
                expected.append(
                    Claim(
                        message=delivery.message,
                        claim_no=delivery.claim_no,
                        claimed_at=self.now,
                        retried=delivery.retried,
                        lost_leases=delivery.lost_leases,
                    )
                )
        assert claimed.claims == expected
        assert claimed.next_due_at == min((one.due_at for one in self.model.living.values()), default=None)
        return multiple(*claimed.claims)

    @rule(claim=claims, status=st.sampled_from([200, 500, 500]), give_back=st.booleans())
    def settle(self, claim: Claim, status: int, give_back: bool) -> None:
        settlement = lost(claim, now=self.now, next_id=next_id)
        if settlement is None and give_back:
            settlement = released(claim, now=self.now)
        if settlement is None:
            attempt = an_attempt(started_at=self.now, ended_at=self.now, status=status)
            settlement = settle(claim, attempt, retry_after_ms=RETRY_MS, next_id=next_id)
        held = self.model.holds(claim)
        refused = self.wait(self.storage.settle([settlement]))
        assert refused == ([] if held else [claim.message.id])
        if held:
            self.expect(settlement)

    def expect(self, settlement: Settlement) -> None:
        id_ = settlement.claim.message.id
        delivery = self.model.living[id_]
        states = settlement.change.states
        canceled = delivery.cancel_requested and states != (State.DELIVERED,)
        if states == (State.DELIVERED,):
            self.model.end(id_, State.DELIVERED)
        elif canceled:
            self.model.end(id_, State.ERROR, State.CANCELED)
        elif states[-1:] == (State.FAILED,):
            self.model.end(id_, State.ERROR, State.FAILED)
            self.model.dead.add(id_)
        else:
            assert settlement.due_at is not None
            delivery.active = False
            delivery.due_at = settlement.due_at
            self.model.log[id_] += states
            if states:
                delivery.retried += 1
                delivery.lost_leases = 0
        if not canceled:
            for message in settlement.publishes:
                self.model.accept(message, settlement.at)

    @rule(claim=claims)
    def renew(self, claim: Claim) -> None:
        lease = Lease(tenant=TENANT, message_id=claim.message.id, claim_no=claim.claim_no)
        until = self.now + LEASE_MS
        gone = self.wait(self.storage.renew([lease], until=until))
        if self.model.holds(claim):
            assert gone == []
            self.model.living[claim.message.id].due_at = until
        else:
            assert gone == [claim.message.id]

    @rule(claim=claims)
    def cancel_one(self, claim: Claim) -> None:
        self.cancel(Selection(message_ids=(claim.message.id,)), [claim.message.id], None)

    @rule(limit=st.sampled_from([None, 1, 2]))
    def cancel_all(self, limit: int | None) -> None:
        self.cancel(EVERYTHING, sorted(self.model.living), limit)

    def cancel(self, selection: Selection, ids: list[int], limit: int | None) -> None:
        cancelled = self.wait(self.storage.cancel(TENANT, selection, limit=limit, now=self.now))
        living = self.model.living
        expected = [id_ for id_ in ids if id_ in living and not living[id_].cancel_requested][:limit]
        assert cancelled == expected
        for id_ in expected:
            if living[id_].active:
                living[id_].cancel_requested = True
                self.model.log[id_].append(State.CANCEL_REQUESTED)
            else:
                self.model.end(id_, State.CANCEL_REQUESTED, State.CANCELED)

    @rule(nth=st.integers(0, 3))
    def redrive(self, nth: int) -> None:
        letters = self.wait(
            self.storage.dead_letters(TENANT, EVERYTHING, order=Order.LATEST_FIRST, start=None, limit=100)
        )
        pairs = [(letter.id, a_message(created_at=self.now)) for letter in letters[nth : nth + 1]]
        pairs.append((DeadLetterId(1), a_message(created_at=self.now)))
        redriven = self.wait(self.storage.redrive(TENANT, pairs, now=self.now))
        assert redriven == [message.id for _, message in pairs[:-1]]
        for letter in letters[nth : nth + 1]:
            self.model.dead.remove(letter.message.id)
        for _, message in pairs[:-1]:
            self.model.accept(message, self.now)

    @rule(ms=st.sampled_from([1, RETRY_MS, LEASE_MS - 1, LEASE_MS, DEDUP_WINDOW_MS]))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @rule()
    def restart(self) -> None:
        self.wait(self.storage.close())
        self.storage = self.wait(self.open())

    @invariant()
    def the_depths_agree(self) -> None:
        stats = self.wait(self.storage.stats())
        waiting = [one.due_at for one in self.model.living.values() if not one.active]
        assert (stats.live, stats.dead_letters, stats.oldest_due_at) == (
            len(self.model.living),
            len(self.model.dead),
            min(waiting, default=None),
        )

    @invariant()
    def the_logs_and_the_dead_agree(self) -> None:
        history = self.wait(
            self.storage.events(TENANT, EVERYTHING, order=Order.EARLIEST_FIRST, start=None, limit=10_000)
        )
        log: dict[int, list[State]] = {}
        for event in history.events:
            log.setdefault(event.message.id, []).extend(event.change.states)
            assert event.message == self.model.messages[event.message.id]
        assert log == self.model.log
        letters = self.wait(
            self.storage.dead_letters(TENANT, EVERYTHING, order=Order.LATEST_FIRST, start=None, limit=1000)
        )
        assert {letter.message.id for letter in letters} == self.model.dead


@pytest.mark.parametrize("backend", list(BACKENDS))
def test_storage_agrees_with_a_dictionary(backend: str) -> None:
    run_state_machine_as_test(
        type("Machine", (Machine,), {"backend": backend}),
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

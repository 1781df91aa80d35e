"""No statement on the road of a message walks a table: what one costs does not grow with what is stored."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from relay.domain.delivery import Lease, State, released, settle
from relay.domain.fairness import Shares, crowd_of
from relay.domain.gates import Configure, GateKind
from relay.domain.message import FlowControl
from relay.domain.selection import Order, Selection
from relay.ids import Ids
from storage.protocol import ClaimTerms, Retention
from storage.sql import archive, cancel, catalog, gates, schedules
from storage.sql.road import Acceptance
from storage.sql.script import Script
from storage.sqlite import driver, open_sqlite, work
from storage.sqlite.driver import Connection
from storage.sqlite.writer import Tx
from tests.builders import NOW, TENANT, a_message, an_attempt, next_id
from tests.contract.steps import EVERYTHING, LATER, LEASE_MS

BIG = "messages", "message_labels", "deliveries", "events", "dead_letters", "dedup", "gates", "gated"


class Explained:
    """A connection that remembers how every statement was going to find its rows."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.statements: list[str] = []
        connection.set_trace_callback(self.statements.append)

    def plans(self) -> Sequence[tuple[str, str]]:
        """(statement, step) for every step of everything that ran so far."""
        self.connection.set_trace_callback(None)
        found = []
        for statement in dict.fromkeys(self.statements):
            if statement.lstrip().upper().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")):
                rows = self.connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                found += [(statement, str(row[3])) for row in rows]
        return found


@pytest.fixture
async def explained(tmp_path: Path) -> Explained:
    path = tmp_path / "relay.db"
    await (await open_sqlite(str(path))).close()
    return Explained(driver.connect_writer(path))


def scans(explained: Explained) -> Sequence[tuple[str, str]]:
    """The steps that walk one of the big tables, named or by the alias it has in its statement."""
    found = []
    for statement, step in explained.plans():
        words = step.split()
        if words[0] != "SCAN":
            continue
        name = words[1]
        if name in BIG or any(f" {table} {name} " in f"{statement} " for table in BIG):
            found.append((statement, step))
    return found


def test_the_road_of_a_message_walks_no_table(explained: Explained) -> None:
    with closing(explained.connection) as connection:
        tx = Tx(connection, Ids())
        plain = [a_message() for _ in range(3)]
        rich = a_message(dedup_key=b"k" * 16, labels=("l",), flow=FlowControl(key="f"), max_retries=0)
        waiting = [a_message(), a_message(not_before=LATER)]
        terms = ClaimTerms(limit=4, lease_ms=LEASE_MS)
        claims = work.publish(tx, [Acceptance([*plain, rich, *waiting], NOW, terms)])[0].claims
        work.publish_again(tx, Acceptance(plain, NOW, None))
        delivered, failed, given_back, dead = claims
        work.settle(
            tx,
            [
                [
                    settle(delivered, an_attempt(), next_id=next_id),
                    settle(failed, an_attempt(status=500), next_id=next_id),
                ],
                [
                    released(given_back, now=NOW),
                    settle(dead, an_attempt(status=500), next_id=next_id),
                    released(dead, now=NOW),
                ],
            ],
        )
        (claim, *_) = work.claim(tx, terms, NOW).claims
        work.claim(tx, terms, NOW + LEASE_MS)
        lease = Lease(tenant=TENANT, message_id=claim.message.id, claim_no=claim.claim_no)
        work.renew(tx, [lease], LATER)
        tx.run(
            cancel.cancel(
                TENANT, [message.id for message in (*plain, *waiting)], limit=9, now=NOW, position=tx.position
            )
        )
        tx.run(archive.message(TENANT, rich.id))
        tx.run(catalog.principal(b"h"))
        tx.run(schedules.due_schedules(now=NOW, limit=5))
        for _ in range(3):
            tx.run(
                archive.prune(Retention(events_before=LATER, dead_letters_before=LATER), now=LATER, limit=5)
            )
        assert len(explained.statements) > 40
        assert scans(explained) == []


def test_what_claims_ask_is_prepared_once(explained: Explained) -> None:
    with closing(explained.connection) as connection:
        tx = Tx(connection, Ids())
        held = [a_message(flow=FlowControl(key=f"k{n}", parallelism=1)) for n in range(50)]
        work.publish(tx, [Acceptance(held, NOW, None)])
        shut = Shares(free=9, crowds={crowd_of(held[0]): 0})
        prepared: list[str] = []

        def notice(action: int, *about: str | None) -> int:
            prepared.append(f"{action} {about}")
            return 0

        connection.set_authorizer(notice)
        for step in range(3):
            # All keys have rested for long enough, and nobody of them fits.
            now = NOW + step * 10_000
            plain = a_message(url="https://other.example/")
            work.publish(tx, [Acceptance([plain], now, None)])
            if step == 2:
                prepared.clear()
            asked = len(explained.statements)
            terms = ClaimTerms(limit=100, lease_ms=10 * LEASE_MS, shares=shut)
            assert [claim.message.id for claim in work.claim(tx, terms, now).claims] == [plain.id]
        assert len(explained.statements) - asked > 5
        assert prepared == []


def steps_of_a_message(tx: Tx, connection: Connection, key: str) -> int:
    """How many tens of steps the database makes for a message with a key, from publish to its end."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    message = a_message(flow=FlowControl(key=key, parallelism=1))
    connection.set_progress_handler(count, 10)
    work.publish(tx, [Acceptance([message], NOW, None)])
    (claim,) = work.claim(tx, ClaimTerms(limit=9, lease_ms=LEASE_MS), NOW).claims
    assert work.settle(tx, [[settle(claim, an_attempt(), next_id=next_id)]]) == [[]]
    connection.set_progress_handler(None, 0)
    assert claim.message == message
    return steps


def test_ten_thousand_behind_closed_gates_cost_others_nothing(explained: Explained) -> None:
    with closing(explained.connection) as connection:
        connection.set_trace_callback(None)
        tx = Tx(connection, Ids())
        tx.run(
            gates.change(
                TENANT, GateKind.FLOW, "paused", Configure(paused=True), create=True, limit=None, now=NOW
            )
        )
        full = FlowControl(key="full", parallelism=1)
        work.publish(tx, [Acceptance([a_message(flow=full), a_message(queue="q")], NOW, None)])
        assert len(work.claim(tx, ClaimTerms(limit=9, lease_ms=LEASE_MS), NOW).claims) == 2
        steps_of_a_message(tx, connection, "before")
        before = steps_of_a_message(tx, connection, "open")
        for waiting in ({"flow": FlowControl(key="paused")}, {"flow": full}, {"queue": "q"}):
            messages = [a_message(**waiting) for _ in range(4_000)]
            work.publish(tx, [Acceptance(messages, NOW, None)])
        # An index with a level more is all the difference there is.
        assert steps_of_a_message(tx, connection, "open") <= before * 1.1
        assert work.claim(tx, ClaimTerms(limit=9, lease_ms=LEASE_MS), NOW).claims == []


def test_the_road_through_the_gates_walks_no_table(explained: Explained) -> None:
    with closing(explained.connection) as connection:
        tx = Tx(connection, Ids())
        flow = FlowControl(key="f", parallelism=2, rate=9)
        messages = [a_message(queue="q", flow=flow), a_message(flow=flow), a_message(queue="q"), a_message()]
        work.publish(tx, [Acceptance(messages, NOW, None)])
        terms = ClaimTerms(limit=9, lease_ms=LEASE_MS)
        (_, claim, *_) = work.claim(tx, terms, NOW).claims
        work.settle(tx, [[settle(claim, an_attempt(status=500), next_id=next_id)]])
        for kind, name in ((GateKind.QUEUE, "q"), (GateKind.FLOW, "f")):
            tx.run(
                gates.change(TENANT, kind, name, Configure(paused=False), create=True, limit=None, now=NOW)
            )
        work.claim(tx, terms, NOW + LEASE_MS)
        ids = [message.id for message in messages]
        tx.run(cancel.cancel(TENANT, ids, limit=9, now=NOW, position=tx.position))
        gate = tx.run(gates.retire(TENANT, "q", NOW))
        assert gate is not None
        tx.run(gates.stragglers(gate, limit=9))
        tx.run(gates.retired())
        tx.run(gates.forget(LATER, limit=9))
        tx.run(gates.queues(TENANT))
        tx.run(gates.flow_key(TENANT, "f", NOW))
        tx.run(gates.flow_keys(TENANT, "a", limit=9, now=NOW))
        tx.run(gates.in_flight(TENANT, until=NOW))
        assert len(explained.statements) > 40
        # Deleted queues that still have messages are few, and all there is in their index.
        assert [step for _, step in scans(explained) if "gates_deleted" not in step] == []


def searches() -> Iterator[Script[object]]:
    selections = (
        EVERYTHING,
        Selection(message_ids=(1, 2)),
        Selection(labels=("l",)),
        Selection(schedule_ids=("s",), hosts=("h",)),
        Selection(url_groups=("g",)),
        Selection(queues=("q",)),
        Selection(flow_keys=("f",), labels=("l",)),
        Selection(urls=("https://example.com/",), paths=("/",), caller_ips=("::1",)),
        Selection(states=(State.FAILED,), from_at=NOW, to_at=LATER),
    )
    for selection in selections:
        for order in Order:
            for walk in (None, 1):
                yield archive.events(TENANT, selection, order=order, start=5, limit=10, walk=walk)
            yield archive.dead_letters(TENANT, selection, order=order, start=None, limit=10)
        yield cancel.selected(TENANT, selection, after=0, last=1 << 60, limit=10)
    yield cancel.newest(TENANT)
    yield archive.dead_letters(
        TENANT, Selection(dead_letter_ids=(1,)), order=Order.LATEST_FIRST, start=None, limit=10
    )


def test_searches_go_by_keys_in_the_order_of_the_answer(explained: Explained) -> None:
    with closing(explained.connection) as connection:
        tx = Tx(connection, Ids())
        work.publish(tx, [Acceptance([a_message(labels=("l",), queue="q")], NOW, None)])
        for search in searches():
            driver.run(connection, search)
        assert scans(explained) == []
        sorted_ = {statement for statement, step in explained.plans() if "TEMP B-TREE FOR ORDER BY" in step}
        # Only what an index has narrowed to a few messages is ever sorted.
        assert {statement for statement in sorted_ if "message_id IN" not in statement} == set()


def test_rare_states_are_found_without_walking_the_common_ones(explained: Explained) -> None:
    with closing(explained.connection) as connection:
        selection = Selection(states=(State.FAILED, State.CANCELED))
        driver.run(
            connection,
            archive.events(TENANT, selection, order=Order.LATEST_FIRST, start=None, limit=10, walk=9),
        )
        plan = "SEARCH e USING INDEX events_unusual (tenant=?)"
        assert [step for _, step in explained.plans()] == [plan, plan]

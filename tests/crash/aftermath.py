"""What the database holds once the relay has gone, and whether all of it agrees with itself and with the ledger."""

import asyncio
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

from relay.domain.dead_letter import DeadLetter
from relay.domain.delivery import FINAL, TRANSITIONS, Claim, State
from relay.domain.message import MessageId
from relay.domain.schedule import Run
from relay.domain.selection import Order, Selection
from relay.domain.tenant import DEFAULT_TENANT
from relay.ids import number_of, text_of
from relay.main import open_storage
from storage.postgres import driver as postgres_driver
from storage.postgres.driver import Session
from storage.protocol import ClaimTerms, Storage
from storage.sqlite import SqliteStorage, driver
from tests.crash.ledger import ASKED, DOOMED, Kind, Ledger, read

_EVERYTHING = Selection()
_ALL = 1_000_000
#: Alive beyond those that are counted, if the count is wrong.
_MORE = 1_000
#: Everything is due by then: the year 2109.
_END_OF_TIME = 1 << 42
#: Longer than a fresh node waits before it takes over what others may hold.
_PATIENCE_S = 15.0
_TURN_S = 0.1


@dataclass(frozen=True, slots=True)
class Aftermath:
    """By message id as publishers know it: its log, its dead letter, and its delivery if it is still alive."""

    logs: dict[str, Sequence[State]]
    dead: dict[str, DeadLetter]
    alive: Mapping[str, Claim]
    runs: dict[str, Sequence[Run]]
    problems: Sequence[str]


async def examine(database: str) -> Aftermath:
    """Open the database as the next relay would, and take all of it apart. Everything alive is claimed."""
    storage = await open_storage(database)
    try:
        found = await _examine(storage)
        stray = await _stray(storage, database)
        return replace(found, problems=[*found.problems, *stray])
    finally:
        await storage.close()


async def _examine(storage: Storage) -> Aftermath:
    tenant = DEFAULT_TENANT
    logs: dict[str, list[State]] = {}
    history = await storage.events(tenant, _EVERYTHING, order=Order.EARLIEST_FIRST, start=None, limit=_ALL)
    events = history.events
    if not isinstance(storage, SqliteStorage):
        # Nodes order history by the time they act; a claim may wait at the server until what it finds is written.
        events = sorted(events, key=lambda event: (State.CREATED not in event.change.states, event.retried))
    for event in events:
        logs.setdefault(text_of_id(event.message.id), []).extend(event.change.states)
    letters = await storage.dead_letters(
        tenant, _EVERYTHING, order=Order.EARLIEST_FIRST, start=None, limit=_ALL
    )
    dead = {text_of_id(letter.message.id): letter for letter in letters}
    stats = await storage.stats()
    alive = await _alive(storage, stats.live or 0)
    runs = {
        view.schedule.id: await storage.runs(tenant, view.schedule.id, limit=_ALL)
        for view in await storage.schedules(tenant)
    }
    problems = [
        f"{message_id}: {' '.join(state.name for state in log)}"
        for message_id, log in logs.items()
        if not _is_possible(log)
    ]
    ended = {message_id for message_id, log in logs.items() if log[-1] in FINAL}
    if both := ended & alive.keys():
        problems.append(f"ended and alive: {both}")
    if neither := logs.keys() - ended - alive.keys():
        problems.append(f"neither ended nor alive: {neither}")
    if stats.live != len(alive) or stats.dead_letters != len(dead):
        problems.append(f"counted {stats}, found {len(alive)} alive and {len(dead)} dead")
    problems += [
        f"{message_id} has no message"
        for message_id in (*dead, *alive)
        if await storage.message(tenant, _number(message_id)) is None
    ]
    return Aftermath(dict(logs), dead, alive, runs, problems)


async def _alive(storage: Storage, count: int) -> Mapping[str, Claim]:
    """Everything that is alive, claimed. While sessions of nodes that have just gone are still there, whoever opens
    the database leaves alone what they may hold."""
    alive: dict[str, Claim] = {}
    terms = ClaimTerms(limit=count + _MORE, lease_ms=1)
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        claimed = await storage.claim(terms, now=_END_OF_TIME)
        alive |= {text_of_id(claim.message.id): claim for claim in claimed.claims}
        if len(alive) >= count or time.monotonic() >= deadline:
            return alive
        await asyncio.sleep(_TURN_S)


def contradictions(
    ledger: Ledger, found: Aftermath, *, forgets: bool = False, gone: Set[str] = frozenset()
) -> Sequence[str]:
    """Where the database says something else than publishers and the endpoint know.

    `forgets`: history was pruned meanwhile. `gone` are dead letters that were sent once more.
    """
    problems = list(found.problems)
    promised = ledger.promised()
    if not forgets and (unheard := promised - found.logs.keys()):
        problems.append(f"promised, and no history of it: {unheard}")
    if not forgets and (finished := promised & found.alive.keys()):
        problems.append(f"all is settled, and still alive: {finished}")
    for message_id in ledger.promised(*DOOMED) - gone:
        letter = found.dead.get(message_id)
        if letter is None:
            problems.append(f"failed for good, and no dead letter: {message_id}")
        elif not forgets and found.logs[message_id][-2:] != [State.ERROR, State.FAILED]:
            problems.append(f"a dead letter without its history: {message_id} {found.logs[message_id]}")
    for message_id, letter in found.dead.items():
        _, kind = read(letter.message.request.body)
        if kind not in DOOMED:
            problems.append(f"a dead letter that should have been delivered: {message_id} {letter.attempt}")
        elif letter.retried != ASKED[kind] or (kind is Kind.DEAD and letter.attempt.status != 500):
            problems.append(f"{message_id} is a dead letter after {letter.retried} retries: {letter.attempt}")
    return problems


def _is_possible(log: Sequence[State]) -> bool:
    """Whether each state may follow the one before. What was forgotten was at the beginning."""
    return bool(log) and all(later in TRANSITIONS[earlier] for earlier, later in pairwise(log))


_STRAY = """
    SELECT id FROM messages
    WHERE NOT EXISTS (SELECT 1 FROM events WHERE events.message_id = messages.id)
    AND id NOT IN (SELECT message_id FROM dead_letters)
    AND id NOT IN (SELECT id FROM deliveries)
"""


async def _stray(storage: Storage, database: str) -> Sequence[str]:
    """What no verb of storage would show."""
    if not isinstance(storage, SqliteStorage):
        connection = await postgres_driver.connect(postgres_driver.target_of(database), Session(longest_s=60))
        try:
            ids = [row[0] for row in await connection.rows(_STRAY)]
        finally:
            await connection.close()
        damage = []
    else:
        reader = driver.connect_reader(storage.path)
        try:
            ids = [row[0] for row in reader.execute(_STRAY).fetchall()]
            damage = [row[0] for row in reader.execute("PRAGMA integrity_check").fetchall() if row != ("ok",)]
        finally:
            reader.close()
    return [*damage, *(f"{text_of_id(id_)} is stored and has no history" for id_ in ids)]


def text_of_id(number: int) -> str:
    return text_of("msg_", number)


def _number(text: str) -> MessageId:
    number = number_of("msg_", text)
    assert number is not None
    return MessageId(number)

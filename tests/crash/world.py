"""Relay, endpoint, publishers and ledger together, and what is to be said when the dust has settled."""

import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.crash import aftermath
from tests.crash.doom import steps_of
from tests.crash.endpoint import Endpoint, an_endpoint
from tests.crash.fleet import Fleet, a_fleet
from tests.crash.ledger import DOOMED, Kind, Ledger, Promise
from tests.crash.load import LONG_PAUSE_S, MIXED, PAUSE_S, Client, Load, a_session
from tests.crash.node import Node
from tests.crash.waiting import PATIENCE_S, until


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the table.

    `doubled` are attempts that were made once more than they count. `recovered_s` is the longest time from a death
    to the last arrival of what was owed by then, the restart included, or from the end of a trouble to readiness.
    """

    accepted: int
    lost: int
    doubled: int
    recovered_s: float | None


class World:
    """Everything but the time belongs to one scenario."""

    def __init__(self, fleet: Fleet, endpoint: Endpoint, client: Client, ledger: Ledger) -> None:
        self.fleet = fleet
        #: The first, and in most scenarios the only one.
        self.node = fleet.nodes[0]
        self.endpoint = endpoint
        self.client = client
        self.ledger = ledger
        self.load = self.load_of(MIXED)
        #: Message ids of dead letters that were sent once more.
        self.redriven: set[str] = set()
        self._interruptions: list[tuple[float, Sequence[Promise]]] = []
        self._recoveries: list[float] = []

    def load_of(self, kinds: Sequence[Kind]) -> Load:
        """Publishers of these."""
        pause_s = PAUSE_S if len(self.fleet.nodes) == 1 else LONG_PAUSE_S
        return Load(self.client, self.fleet, kinds, pause_s=pause_s)

    def steps_of(self, *verbs: str) -> Sequence[str]:
        """Those there are with this database."""
        return steps_of(*verbs, server=self.node.database.startswith("postgresql:"))

    def moved_to(self, database: str) -> None:
        """All nodes use this database from their next start on."""
        for node in self.fleet.nodes:
            node.database = database

    def interrupted(self) -> None:
        """The relay, or a part of it, has stopped working: remember what is owed."""
        self._interruptions.append((time.monotonic(), self.ledger.owed()))

    async def rescued(self) -> None:
        """Wait until all that was owed at the last interruption has arrived."""
        _, owed = self._interruptions[-1]

        def missing() -> Sequence[Promise]:
            return [promise for promise in owed if self.ledger.done_at(promise) is None]

        await until(lambda: not missing(), lambda: f"nobody rescues {missing()[:10]}")

    async def accepted(self, count: int) -> None:
        """Wait until so many more were accepted."""
        before = len(self.ledger.promises)
        await until(
            lambda: len(self.ledger.promises) >= before + count,
            lambda: f"only {len(self.ledger.promises) - before} were accepted",
        )

    async def ready(self) -> None:
        """Wait until every node in trouble can do its work again, and remember how long that took."""
        began = time.monotonic()
        await self.started()
        self.recovered_since(began)

    async def started(self) -> None:
        """Wait until all nodes are ready: from then on they start what is published without asking storage."""
        for node in self.fleet.nodes:
            client = self.client.at(node)

            async def is_ready(client: Client = client) -> bool:
                return await client.status("/readyz") == 200

            await until(is_ready, lambda node=node: f"it does not get ready:\n{node.log[-5000:]}")  # type: ignore[misc]

    def recovered_since(self, began: float) -> None:
        """All is well again; it was not from the instant `began` (of `time.monotonic`) on."""
        self._recoveries.append(time.monotonic() - began)

    async def killed(self, *nodes: Node) -> None:
        """Kill it, or these of its nodes, from outside, as a power cut would."""
        for node in nodes or [self.node]:
            node.signal(signal.SIGKILL)
        for node in nodes or [self.node]:
            await self.dead(node)

    async def dead(self, node: Node | None = None) -> None:
        """Wait until the relay, or this node of it, has killed itself, or was killed."""
        node = node or self.node
        status = await node.ended(within_s=PATIENCE_S)
        assert status == -signal.SIGKILL, f"it ended with {status}:\n{node.log[-5000:]}"
        self.interrupted()

    async def settled(self, *, forgets: bool = False) -> None:
        """Wait until everything that was promised has arrived and, unless history is pruned, is written down so."""
        await until(lambda: not self.ledger.owed(), lambda: f"still owed: {self.ledger.owed()[:10]}")
        dead = self.ledger.promised(*DOOMED)
        alive = self.ledger.promised() - dead
        missing: set[str] = set()

        async def is_written() -> bool:
            missing.clear()
            missing.update(dead - self.redriven - set((await self.client.dead_letters()).values()))
            if not forgets:
                missing.update(alive - await self.client.delivered())
            return not missing

        await until(is_written, lambda: f"it has ended, and that is written nowhere: {missing}")

    def _recovered_s(self) -> float | None:
        """Over all interruptions the longest time until what was owed had arrived; None without any."""
        times = [
            max((done_at - at for promise in owed if (done_at := self.ledger.done_at(promise))), default=0.0)
            for at, owed in self._interruptions
        ]
        return max([*times, *self._recoveries], default=None)

    async def stopped(self) -> None:
        """Every node that runs ends in good order."""
        for node in self.fleet.nodes:
            if node.is_running:
                assert await node.stop() == 0, node.log[-5000:]

    async def judge(self, *, forgets: bool = False, in_doubt: bool = False, late: bool = False) -> Outcome:
        """Stop the relay in good order, and hold what it leaves against the ledger.

        `forgets`: it has pruned. `in_doubt`: commits may have lost their answers, so that what was refused may
        have been accepted; then only what was published once more under its deduplication id is known to be one.
        `late`: a living node may have lost its leases, so that requests of its arrive after those of the next.
        """
        await self.stopped()
        ledger = self.ledger
        found = await aftermath.examine(self.node.database)
        problems = [
            *aftermath.contradictions(ledger, found, forgets=forgets, gone=self.redriven),
            *(f"deduplicated, and several messages: {ids}" for ids in ledger.split().values()),
            *(
                f"its count of retries is wrong: {message_id}"
                for message_id in ledger.forgotten_retries(late=late)
            ),
            *(f"refused, and arrived: {number}" for number in ledger.ghosts if not in_doubt),
        ]
        assert not problems, "\n".join(problems)
        for node in self.fleet.nodes:
            assert "library.error" not in node.log
        return Outcome(len(ledger.promises), len(ledger.owed()), ledger.doubled, self._recovered_s())


@asynccontextmanager
async def a_world(
    directory: Path, database: str, environment: Mapping[str, str] | None = None, *, nodes: int = 1
) -> AsyncIterator[World]:
    """A relay that is not started yet, and all around it."""
    ledger = Ledger()
    async with (
        an_endpoint(ledger) as endpoint,
        a_fleet(directory, database, environment or {}, nodes) as fleet,
        a_session() as session,
    ):
        yield World(fleet, endpoint, Client(fleet, ledger, endpoint.url, session), ledger)

"""Relay, endpoint, publishers and ledger together, and what is to be said when the dust has settled."""

import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.crash import aftermath
from tests.crash.endpoint import Endpoint, an_endpoint
from tests.crash.ledger import DOOMED, Ledger, Promise
from tests.crash.load import Client, Load, a_session
from tests.crash.node import Node, a_node
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

    def __init__(self, node: Node, endpoint: Endpoint, client: Client, ledger: Ledger) -> None:
        self.node = node
        self.endpoint = endpoint
        self.client = client
        self.ledger = ledger
        self.load = Load(client, node)
        #: Message ids of dead letters that were sent once more.
        self.redriven: set[str] = set()
        self._interruptions: list[tuple[float, Sequence[Promise]]] = []
        self._recoveries: list[float] = []

    def interrupted(self) -> None:
        """The relay has stopped working: remember what it owes."""
        self._interruptions.append((time.monotonic(), self.ledger.owed()))

    async def ready(self) -> None:
        """Wait until a relay in trouble can do its work again, and remember how long that took."""
        began = time.monotonic()
        await self.started()
        self.recovered_since(began)

    async def started(self) -> None:
        """Wait until a relay is ready: from then on it starts what is published without asking storage again."""

        async def is_ready() -> bool:
            return await self.client.status("/readyz") == 200

        await until(is_ready, lambda: f"it does not get ready:\n{self.node.log[-5000:]}")

    def recovered_since(self, began: float) -> None:
        """All is well again; it was not from the instant `began` (of `time.monotonic`) on."""
        self._recoveries.append(time.monotonic() - began)

    async def killed(self) -> None:
        """Kill it from outside, as a power cut would."""
        self.node.signal(signal.SIGKILL)
        await self.dead()

    async def dead(self) -> None:
        """Wait until the relay has killed itself, or was killed."""
        status = await self.node.ended(within_s=PATIENCE_S)
        assert status == -signal.SIGKILL, f"it ended with {status}:\n{self.node.log[-5000:]}"
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

    async def judge(self, *, forgets: bool = False) -> Outcome:
        """Stop the relay in good order, and hold what it leaves against the ledger. `forgets`: it has pruned."""
        assert await self.node.stop() == 0
        ledger = self.ledger
        found = await aftermath.examine(self.node.database)
        problems = [
            *aftermath.contradictions(ledger, found, forgets=forgets, gone=self.redriven),
            *(f"deduplicated, and several messages: {ids}" for ids in ledger.split().values()),
            *(f"its count of retries is wrong: {message_id}" for message_id in ledger.forgotten_retries()),
            *(f"refused, and arrived: {number}" for number in ledger.ghosts),
        ]
        assert not problems, "\n".join(problems)
        assert "library.error" not in self.node.log
        return Outcome(len(ledger.promises), len(ledger.owed()), ledger.doubled, self._recovered_s())


@asynccontextmanager
async def a_world(
    directory: Path, database: str, environment: Mapping[str, str] | None = None
) -> AsyncIterator[World]:
    """A relay that is not started yet, and all around it."""
    ledger = Ledger()
    async with (
        an_endpoint(ledger) as endpoint,
        a_node(directory, database, environment or {}) as node,
        a_session() as session,
    ):
        yield World(node, endpoint, Client(node, ledger, endpoint.url, session), ledger)

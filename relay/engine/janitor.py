"""Forgets what has been kept long enough, and folds what depths are added up from, in small bites.

Both share the disk with deliveries and are never urgent: a bite is a short transaction, and after each the
janitor rests for at least twice as long as the bite took.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from relay.clock import Clock
from relay.domain.errors import Unavailable
from relay.domain.tenant import Tenant, TenantLimits
from relay.engine.outage import Outage
from relay.log import Log
from relay.metrics import Metrics
from storage.protocol import Retention

#: Whatever is configured, a message stays readable this long after it was delivered: clients look it up.
LEAST_LOG_RETENTION_MS = 600_000

#: The rest when nothing is left to forget, and the longest of all rests.
_ROUND_MS = 15_000
_BITE_ROWS = 500
_SHORTEST_REST_MS = 50
_REST_PER_BITE = 4
_FIRST_PAUSE_MS = 500
_LONGEST_PAUSE_MS = _ROUND_MS


class Store(Protocol):
    """What the janitor needs of storage."""

    async def tenants(self) -> Sequence[Tenant]: ...

    async def prune(self, retention: Retention, *, now: int, limit: int) -> int: ...

    async def fold(self) -> bool: ...


class Janitor:
    """The loop that prunes one database.

    History older than `log_retention_ms` and dead letters older than `dlq_retention_ms` are forgotten, unless their
    tenant's limits say otherwise; what those say counts within a round. `random` gives numbers from 0 to 1, so that
    several processes do not bite in step. `last_progress_at` is when storage last answered this loop; one that is
    alive and well renews it every 15 seconds.
    """

    def __init__(
        self,
        storage: Store,
        *,
        clock: Clock,
        log: Log,
        metrics: Metrics,
        log_retention_ms: int,
        dlq_retention_ms: int,
        random: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._log = log
        self._metrics = metrics
        self._log_retention_ms = max(log_retention_ms, LEAST_LOG_RETENTION_MS)
        self._dlq_retention_ms = dlq_retention_ms
        self._random = random
        self._failures = 0
        self._outage = Outage("janitor", clock=clock, log=log)
        #: The tenants that differ, as they were at the instant.
        self._different: tuple[int, Sequence[Tenant]] | None = None
        #: Rows forgotten since the last round that left nothing old behind.
        self._pruned = 0
        self.last_progress_at = clock.now()

    async def run(self, stopping: asyncio.Event) -> None:
        """Prune until `stopping` is set; the bite in hand is finished."""
        while not stopping.is_set():
            try:
                rest_ms = await self._turn()
                self._failures = 0
                self._outage.over()
            except Exception as reason:
                rest_ms = self._recovery_ms(reason)
            await self._clock.wait(stopping, self._clock.now() + rest_ms)

    async def _turn(self) -> int:
        """Take one bite; returns how long to rest, in ms."""
        began_at = self._clock.now()
        retention = await self._retention(began_at)
        rows = await self._storage.prune(retention, now=began_at, limit=_BITE_ROWS)
        self.last_progress_at = self._clock.now()
        self._pruned += rows
        self._metrics.pruned_rows.inc(rows)
        more = await self._storage.fold()
        self.last_progress_at = self._clock.now()
        if more or rows >= _BITE_ROWS:
            rest_ms = max(_SHORTEST_REST_MS, _REST_PER_BITE * (self.last_progress_at - began_at))
            return self._spread(min(rest_ms, _ROUND_MS))
        if self._pruned:
            self._log.info("history.pruned", rows=self._pruned)
            self._pruned = 0
        return self._spread(_ROUND_MS)

    async def _retention(self, now: int) -> Retention:
        """What may be forgotten now. The tenants are asked for once a round, not with every bite."""
        if self._different is None or not 0 <= now - self._different[0] < _ROUND_MS:
            tenants = await self._storage.tenants()
            self._different = now, [tenant for tenant in tenants if _is_different(tenant.limits)]
        return Retention(
            events_before=now - self._log_retention_ms,
            dead_letters_before=now - self._dlq_retention_ms,
            own={tenant.id: self._own(tenant.limits, now) for tenant in self._different[1]},
        )

    def _own(self, limits: TenantLimits, now: int) -> Retention:
        log_ms, dlq_ms = limits.log_retention_ms, limits.dlq_retention_ms
        return Retention(
            events_before=now
            - (self._log_retention_ms if log_ms is None else max(log_ms, LEAST_LOG_RETENTION_MS)),
            dead_letters_before=now - (self._dlq_retention_ms if dlq_ms is None else dlq_ms),
        )

    def _recovery_ms(self, reason: Exception) -> int:
        """How long to leave storage alone after a failure: doubling with every one in a row, bounded."""
        if isinstance(reason, Unavailable):
            self._metrics.storage_errors.labels("prune").inc()
            self._outage.met(reason)
        else:
            self._log.error("janitor.failed", exc=reason)
        pause_ms = min(_FIRST_PAUSE_MS << min(self._failures, 16), _LONGEST_PAUSE_MS)
        self._failures += 1
        return self._spread(pause_ms)

    def _spread(self, longest_ms: int) -> int:
        """Somewhere in the upper half, so that a rest stays a rest."""
        return int(longest_ms * (0.5 + self._random() / 2))


def _is_different(limits: TenantLimits) -> bool:
    return limits.log_retention_ms is not None or limits.dlq_retention_ms is not None

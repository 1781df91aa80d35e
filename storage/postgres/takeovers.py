"""When leases that have run out may be taken over: not while others may not know yet how late it is.

A lease ends at an instant of the database's clock. When that is set forward, or another server with a clock ahead
takes over, whoever measures it first sees the leases of all others run out before those could renew them. Takeovers
would break every limit, and attempts be made twice. So:

- Whoever corrects its own clock forward leaves alone what is leased until everybody has had the time to do the
  same. Everything else that is due goes on. A correction makes renewals come at once, so nothing is lost but what
  nobody holds, which is taken over that much later.
- Whoever opens the database knows the right time, and not since when. It does the same, unless there is nobody
  else, or all others were seen so lately that no step since then could have ended a lease of theirs.

A step within a rest begins the rest anew. Steps too small to count end no lease: of each that is renewed in time
half is always left. A clock that is set back ends nothing too soon; what a dead process held comes back later by as
much.
"""

from collections.abc import Callable

from storage.postgres import schema
from storage.postgres.driver import Connection, Target
from storage.postgres.nodes import POOLED, Node

#: Corrections up to this are less than half of the shortest lease there is.
_STEP_MS = 1_000

#: How often processes measure the database's clock.
MEASURE_S = 2.0
#: Everybody has measured, even if the database took as long to answer as it may, and has renewed.
REST_S = MEASURE_S + 6.0

_SILENCE = """
    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - seen_at) * 1000), 0)::bigint
    FROM nodes WHERE owner <> $1
"""
_POOLED = f"SELECT 1 FROM nodes WHERE owner <> $1 AND starts_with(owner, '{POOLED}') LIMIT 1"


class Takeovers:
    """What one process knows of it. `silent_ms` is for how long one of the others had been silent when this one
    opened the database; 0: there was nobody else. `steady` gives seconds that only ever grow."""

    def __init__(self, steady: Callable[[], float], *, silent_ms: int) -> None:
        self._steady = steady
        self._silent_ms = silent_ms
        self._opened_at = steady()
        self._stepped_at: float | None = None

    def corrected(self, by_ms: int) -> None:
        """The clock of this process was found to be late by so much, and corrected."""
        if by_ms > _STEP_MS:
            self._stepped_at = self._steady()

    def allowed(self, lease_ms: int) -> bool:
        """Whether a lease, which is given for so long, is lost once it has run out."""
        now = self._steady()
        if self._stepped_at is not None and now < self._stepped_at + REST_S:
            return False
        return 2 * self._silent_ms < lease_ms or now >= self._opened_at + REST_S


async def silence(connection: Connection, target: Target, node: Node) -> int:
    """For how long, in ms, one of the other processes has been silent; 0 when there are none. Inside a transaction
    that nobody else opens the database in.

    Those that have sessions hold a lock by them, which goes with them however they end. Of those behind a pooler
    nobody can tell.
    """
    if not await connection.rows(_POOLED, node.owner) and not target.pooled:
        alone = await connection.rows(schema.try_advisory_lock(target.schema, schema.ALIVE))
        if alone[0][0]:
            return 0
    return max(0, int((await connection.rows(_SILENCE, node.owner))[0][0]))

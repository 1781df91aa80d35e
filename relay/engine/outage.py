"""What a loop says while storage is away: that it began, now and then that it lasts, and that it is over."""

from relay.clock import Clock
from relay.domain.errors import Unavailable
from relay.log import Log

#: Silence after the first line; it doubles with every further one.
_FIRST_SILENCE_MS = 1_000
_LONGEST_SILENCE_MS = 60_000


class Outage:
    """The log of one loop, which tries again far more often than anybody wants to read.

    Lines are `<loop>.waiting`, with the reason and for how long by then, and in the end `<loop>.resumed`.
    """

    def __init__(self, loop: str, *, clock: Clock, log: Log) -> None:
        self._loop = loop
        self._clock = clock
        self._log = log
        self._began_at: int | None = None
        self._silent_until = 0
        self._silence_ms = _FIRST_SILENCE_MS
        #: Why storage refused the loop the last time; None while it answers.
        self.reason: str | None = None

    @property
    def lasted_ms(self) -> int:
        """0 while storage answers."""
        return 0 if self._began_at is None else self._clock.now() - self._began_at

    def met(self, problem: Unavailable, **fields: object) -> None:
        """Storage refused the loop; `fields` are for the line, if there is one."""
        now = self._clock.now()
        self.reason = str(problem)
        if self._began_at is None:
            self._began_at, self._silent_until, self._silence_ms = now, now, _FIRST_SILENCE_MS
        if now < self._silent_until:
            return
        self._log.warning(f"{self._loop}.waiting", reason=self.reason, waited_ms=self.lasted_ms, **fields)
        self._silent_until = now + self._silence_ms
        self._silence_ms = min(2 * self._silence_ms, _LONGEST_SILENCE_MS)

    def over(self) -> None:
        """Storage answered the loop."""
        if self._began_at is not None:
            self._log.info(f"{self._loop}.resumed", waited_ms=self.lasted_ms)
            self._began_at = self.reason = None

"""What the log says about requests that were refused: which rule said no.

A line has the request's id, which its client was told, and names the rule and the header or parameter. It has no
values: those can be secrets, and the client knows them. Of storage that does not answer it says why.
"""

from collections.abc import Mapping

from relay.clock import Clock
from relay.domain.errors import Invalid, RelayError, Unavailable
from relay.log import Log

#: Whoever has no token can be refused as often as they like, and must not fill a disk with it.
MOST_PER_SECOND = 100


class Refusals:
    """Writes at most `MOST_PER_SECOND` lines; the next one after that tells how many there would have been."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._second = 0
        self._written = 0
        self._untold = 0

    def tell(self, request_id: str, method: str | None, status: int, rule: str | RelayError) -> None:
        """`method` is None for what is no request; `rule` is the error that says no, or a word for what does."""
        second = self._clock.now() // 1000
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= MOST_PER_SECOND:
            self._untold += 1
            return
        self._written += 1
        untold, self._untold = self._untold, 0
        # That storage does not answer is no doing of the client's: somebody should look.
        write = self._log.warning if isinstance(rule, Unavailable) else self._log.info
        write(
            "request.refused",
            request_id=request_id,
            status=status,
            **({} if method is None else {"method": method}),
            **_named(rule),
            **({"untold": untold} if untold else {}),
        )


def _named(rule: str | RelayError) -> Mapping[str, str]:
    if isinstance(rule, str):
        return {"rule": rule}
    named = {"rule": type(rule).__name__}
    if isinstance(rule, Unavailable):
        return {**named, "reason": str(rule)}
    return {**named, "field": rule.field} if isinstance(rule, Invalid) else named

"""The steps of the road at which something can happen to a relay, and the worst that can.

A step is `verb.moment`. The moments of a verb that writes, in order:

- `asked`: the engine has decided to, storage has heard nothing yet
- `writing`: inside the transaction, some of its rows are written
- `committing`: inside the transaction, all of them are, and COMMIT is next
- `sent`: only where there is a server: COMMIT is on its way to it, and its answer has not been read
- `committed`: COMMIT has returned, and nobody has been told
- `told`: whoever asked has the answer and has done nothing with it

`send` has only `asked` (nothing has gone to the endpoint) and `told` (the endpoint has answered).
"""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

_WRITES = ("asked", "writing", "committing", "sent", "committed", "told")

#: The verbs and their moments. `bury` is a settlement that leaves a dead letter, `hand_back` one of a shutdown.
MOMENTS: dict[str, Sequence[str]] = {
    "publish": _WRITES,
    "claim": _WRITES,
    "send": ("asked", "told"),
    "settle": _WRITES,
    "bury": _WRITES,
    "hand_back": _WRITES,
    "redrive": _WRITES,
    "fire": _WRITES,
    "prune": _WRITES,
    "migrate": ("writing", "committing", "committed"),
}

STEPS = tuple(f"{verb}.{moment}" for verb, moments in MOMENTS.items() for moment in moments)


def steps_of(*verbs: str, server: bool = False) -> Sequence[str]:
    """The steps of these verbs, in the order of the road; with a `server` or without."""
    return [
        f"{verb}.{moment}"
        for verb, moments in MOMENTS.items()
        for moment in moments
        if verb in verbs and (server or moment != "sent")
    ]


class Doom:
    """Strikes the `nth` time this process reaches `step`; never without a step."""

    def __init__(self, step: str | None, nth: int, strike: Callable[[], object]) -> None:
        self._step = step
        self._left = nth
        self._strike = strike
        self._going_on: Counter[str] = Counter()

    def reached(self, verb: str, moment: str) -> None:
        """Each step is reached by one thread only."""
        if f"{verb}.{moment}" == self._step:
            self._left -= 1
            if self._left == 0:
                self._strike()

    def aims_at(self, verb: str, *moments: str) -> bool:
        """Whether it may yet strike at one of these."""
        return self._left > 0 and self._step in {f"{verb}.{moment}" for moment in moments}

    @contextmanager
    def during(self, *verbs: str) -> Iterator[None]:
        """Storage has been asked for these until the end of the block."""
        for verb in verbs:
            self.reached(verb, "asked")
        self._going_on.update(verbs)
        try:
            yield
        finally:
            self._going_on.subtract(verbs)

    def is_going_on(self, verb: str) -> bool:
        return self._going_on[verb] > 0


def die() -> NoReturn:
    """As a power cut would: no handler, no flush, no goodbye."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody outlives this")

"""What the outside world knows: what was promised to publishers, what arrived at the endpoint, and what follows."""

import re
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise


class Kind(Enum):
    """What becomes of a message at the endpoint; the value is part of its body."""

    PLAIN = "plain"
    #: Due a second after it was published.
    DELAYED = "delayed"
    #: Published with a deduplication id, and again until its publisher has an answer.
    ONCE = "once"
    #: Answered 500 twice, then 200.
    FLAKY = "flaky"
    #: Always answered 500: it ends as a dead letter, after one retry.
    DEAD = "dead"
    #: Due in a year.
    DISTANT = "distant"
    #: Answered 200 when the endpoint is told to.
    HELD = "held"
    #: Not answered at all the first time, until whoever asked has gone; then 200.
    HUNG = "hung"
    #: Its first connection is reset; then 200.
    RESET = "reset"
    #: Answered 200, and a second and a half late.
    LATE = "late"
    #: Kills the relay that is about to send it, so that it ends as a dead letter without having arrived.
    POISON = "poison"


#: How many attempts of a message fail: None means all.
FAILURES: dict[Kind, int | None] = {Kind.FLAKY: 2, Kind.DEAD: None}
#: How many retries a message asks for, and, of those that get an answer at all, how many it needs at most.
ASKED = {Kind.DEAD: 1, Kind.POISON: 0}
ASKED_BY_OTHERS = 3
NEEDED = {Kind.FLAKY: 2, Kind.DEAD: 1, Kind.HUNG: ASKED_BY_OTHERS, Kind.RESET: ASKED_BY_OTHERS}
#: Those that end as a dead letter.
DOOMED = (Kind.DEAD, Kind.POISON)
_BODY = re.compile(rb"([0-9]+) ([a-z]+)")


def body_of(number: int, kind: Kind) -> bytes:
    return f"{number} {kind.value}".encode()


def read(body: bytes) -> tuple[int, Kind]:
    match = _BODY.match(body)
    assert match is not None, f"nobody published {body!r}"
    return int(match[1]), Kind(match[2].decode())


@dataclass(frozen=True, slots=True)
class Promise:
    """A publish that was answered 2xx. `at` is an instant of `time.monotonic`, as all here."""

    number: int
    kind: Kind
    message_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request at the endpoint, and the status it was answered with; 0 when nobody was there to hear it."""

    number: int
    kind: Kind
    message_id: str
    retried: int
    status: int
    at: float


@dataclass(slots=True)
class Ledger:
    """`refused` are the publishes answered 503, `unknown` those without any answer: they may have been accepted."""

    promises: dict[int, Promise] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    refused: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    #: The first success of each message id.
    delivered: dict[str, float] = field(default_factory=dict)
    #: Message ids whose last attempt has failed.
    spent: dict[str, float] = field(default_factory=dict)

    def promise(self, number: int, kind: Kind, message_id: str) -> None:
        self.promises[number] = Promise(number, kind, message_id, time.monotonic())

    def arrive(self, number: int, kind: Kind, message_id: str, retried: int, status: int) -> None:
        now = time.monotonic()
        self.arrivals.append(Arrival(number, kind, message_id, retried, status, now))
        if status == 0:
            return
        if status < 300:
            self.delivered.setdefault(message_id, now)
        elif retried >= NEEDED.get(kind, 0):
            self.spent.setdefault(message_id, now)

    def done_at(self, promise: Promise) -> float | None:
        """When the endpoint had heard all it is to hear of it."""
        heard = self.spent if promise.kind is Kind.DEAD else self.delivered
        return heard.get(promise.message_id)

    def owed(self) -> Sequence[Promise]:
        """Promises the endpoint still waits for."""
        return [
            promise
            for promise in self.promises.values()
            if promise.kind is not Kind.POISON and self.done_at(promise) is None
        ]

    def promised(self, *kinds: Kind) -> Set[str]:
        """Message ids that were told to publishers."""
        return {promise.message_id for promise in self.promises.values() if promise.kind in (kinds or Kind)}

    def successes(self) -> dict[int, set[str]]:
        """The message ids under which each number was answered 2xx."""
        found: dict[int, set[str]] = {}
        for arrival in self.arrivals:
            if 200 <= arrival.status < 300:
                found.setdefault(arrival.number, set()).add(arrival.message_id)
        return found

    @property
    def doubled(self) -> int:
        """Attempts that were made once more than they count."""
        return len(self.arrivals) - len({(arrival.message_id, arrival.retried) for arrival in self.arrivals})

    @property
    def ghosts(self) -> Set[int]:
        """Messages that arrived although their publish was refused."""
        return self.refused & {arrival.number for arrival in self.arrivals} - self.promises.keys()

    def split(self) -> dict[int, Set[str]]:
        """Deduplicated numbers that became several messages."""
        ids: dict[int, set[str]] = {}
        heard_of: list[Promise | Arrival] = [*self.promises.values(), *self.arrivals]
        for one in heard_of:
            if one.kind is Kind.ONCE:
                ids.setdefault(one.number, set()).add(one.message_id)
        return {number: several for number, several in ids.items() if len(several) > 1}

    def forgotten_retries(self, *, late: bool = False) -> Sequence[str]:
        """Messages whose count of retries went back, unless requests may be `late`, skipped one, or went beyond
        what they need."""
        counts: dict[str, list[Arrival]] = {}
        for arrival in self.arrivals:
            counts.setdefault(arrival.message_id, []).append(arrival)
        return [
            message_id
            for message_id, arrivals in counts.items()
            if not _counts_up(
                sorted(arrival.retried for arrival in arrivals)
                if late
                else [arrival.retried for arrival in arrivals],
                NEEDED.get(arrivals[0].kind, 0),
            )
        ]

    def kinds(self) -> Counter[Kind]:
        return Counter(promise.kind for promise in self.promises.values())


def _counts_up(retried: Sequence[int], most: int) -> bool:
    """From 0, each attempt the same again or one further."""
    steps = [later - earlier for earlier, later in pairwise(retried)]
    return retried[0] == 0 and set(steps) <= {0, 1} and retried[-1] <= most

"""Where the next claim begins to look: what is known to be taken already need not be walked over again.

Rows that were claimed and settled stay in the index until vacuum may remove them, and while anything holds an old
snapshot (a backup, a forgotten session) it may not: looking from the very beginning then costs more with every
message that went through. So a claim begins where the one before ended.

Things become due in the past, too. What this process writes itself is known here. What others write comes at most
moments late, for which there is a margin, and whatever the reason, every so often a claim looks at everything.
"""

_MARGIN_MS = 2_000
_EVERYTHING_MS = 10_000
_BEGINNING = -(1 << 63)


class Horizon:
    """The due time below which nothing is left to take, as one process knows it."""

    def __init__(self) -> None:
        self._floor = _BEGINNING
        self._everything_at: int | None = None
        self._latest = 0
        #: The earliest that was heard of since the claim under way began.
        self._heard: int | None = None

    @property
    def floor(self) -> int:
        """From which due time on to look, without beginning a claim."""
        return self._floor

    def begin(self, now: int) -> int:
        """A claim at `now` begins: the due time from which on it has to look."""
        if (
            self._everything_at is None
            or not 0 <= now - self._everything_at < _EVERYTHING_MS
            or now < self._latest
        ):
            self._everything_at = now
            self._floor = _BEGINNING
        self._latest = now
        self._heard = None
        return self._floor

    def seen(self, until: int, now: int) -> None:
        """The claim has taken, or seen others take, whatever was due before `until`."""
        self._floor = min(until, now - _MARGIN_MS)
        if self._heard is not None:
            self._floor = min(self._floor, self._heard)

    def hear(self, due_at: int) -> None:
        """Something was written that is due then."""
        self._floor = min(self._floor, due_at)
        if self._heard is None or due_at < self._heard:
            self._heard = due_at

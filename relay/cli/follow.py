"""Following the log: every entry once, in the order of the relay's history, whatever happens to the connection.

A poll reads from where the last one ended: `cursor` is the start of the page that was the last then, so that new
entries are found at its end, however late they were written. Entries have no id of their own; those already seen
are told apart by counting equal ones. After any loss of the connection the relay may be another one, with other
cursors, and the reading goes back to the time of the newest entry.
"""

from collections import Counter
from collections.abc import Iterator

from relay.cli.client import PAGE, Fields, Relay
from relay.cli.document import Document

_Key = tuple[int, str, str]

#: Entries carry the time at which things happened and are written a little later.
_LATE_MS = 5_000
#: How far a poll looks back at most: it bounds what a filter that matches little makes the relay read.
_LOOK_BACK_MS = 60_000


class Follower:
    """Finds what `query` selects and was written after `newest`, the newest entry there was at `now`."""

    def __init__(self, relay: Relay, query: Fields, newest: Document | None, now: int) -> None:
        """`now` is the time by the relay's clock (Unix ms)."""
        self._relay = relay
        self._query = query
        self._connections = relay.connections
        self._since = now
        #: Set until the entry that was the newest has come by again: what comes before it is not new.
        self._skip_to: _Key | None = None
        if newest is not None:
            self._since = max(now - _LOOK_BACK_MS, newest["time"] - _LATE_MS)
            self._skip_to = _key(newest) if newest["time"] >= self._since else None
        self._earliest = self._newest_at = self._since
        self._cursor = ""
        #: How often each entry has been read that may be read again.
        self._seen: Counter[_Key] = Counter()

    def poll(self) -> Iterator[Document]:
        """What is new since the last poll. After a `Failure` the next poll goes on where this one was."""
        known = Counter(self._seen)
        restarted = False
        while True:
            query = [*self._query, ("order", "earliestFirst"), ("fromDate", str(self._since))]
            query.append(("count", str(PAGE)))
            if self._cursor:
                query.append(("cursor", self._cursor))
            document = self._relay.get("/v2/events", query)
            if self._relay.connections != self._connections:
                self._connections = self._relay.connections
                if not restarted:
                    restarted = True
                    self._start_again()
                    known = Counter(self._seen)
                    continue
            entries = document.objects("events")
            for entry in entries:
                key = _key(entry)
                if known[key] > 0:
                    known[key] -= 1
                    continue
                self._seen[key] += 1
                self._newest_at = max(self._newest_at, key[0])
                if self._skip_to is None:
                    yield entry
                elif self._skip_to == key:
                    self._skip_to = None
            self._forget(entries)
            following = document.get("cursor", "")
            if not following:
                self._skip_to = None
                if self._relay.at is not None:
                    self._since = max(self._since, self._relay.at - _LOOK_BACK_MS)
                return
            self._cursor = following

    def _start_again(self) -> None:
        self._cursor = ""
        self._since = max(self._earliest, self._newest_at - _LATE_MS)

    def _forget(self, page: list[Document]) -> None:
        """Keep what this page may show again and what starting again would."""
        on_page = {_key(entry) for entry in page}
        for key in [key for key in self._seen if key not in on_page and key[0] < self._newest_at - _LATE_MS]:
            del self._seen[key]


def _key(entry: Document) -> _Key:
    return entry["time"], entry["messageId"], entry["state"]

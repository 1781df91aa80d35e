"""SQLite as the doomed relay uses it: a connection that knows what its transaction does, and can be in trouble."""

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from storage.sqlite import driver
from storage.sqlite.driver import Connection
from tests.crash.doom import Doom

#: By what a verb is recognised in the middle of its transaction: the first statement only it makes.
SIGNS = {
    "publish": re.compile("INSERT INTO deliveries "),
    "claim": re.compile(r"UPDATE deliveries (d )?SET state = 2, claim_no = (d\.)?claim_no \+ 1"),
    "settle": re.compile(r"DELETE FROM deliveries |SET state = j\.state"),
    "bury": re.compile("INSERT INTO dead_letters "),
    "hand_back": re.compile(r"SET state = j\.state"),
    "redrive": re.compile("DELETE FROM dead_letters "),
    "fire": re.compile("UPDATE schedules SET next_at = "),
    "prune": re.compile("DELETE FROM events "),
    "migrate": re.compile("CREATE TABLE messages "),
}
_MOST_PAGES = 4_294_967_294


class Trouble:
    """What is wrong with storage, while it is.

    `full`: the file cannot grow. `readonly`: it takes no write. `away`: storage answers nothing at all.
    """

    def __init__(self, kind: str | None) -> None:
        self._kind = kind
        self._present = threading.Event()

    def begin(self) -> None:
        self._present.set()

    def end(self) -> None:
        self._present.clear()

    @property
    def away(self) -> bool:
        return self._kind == "away" and self._present.is_set()

    def visit(self, connection: Connection) -> None:
        """Make the connection feel it, or feel it no more."""
        present = self._present.is_set()
        if self._kind == "readonly":
            connection.execute(f"PRAGMA query_only = {int(present)}")
        elif self._kind == "full":
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages if present else _MOST_PAGES}")


class _Watched:
    """Has the part of a connection that storage uses."""

    def __init__(self, connection: Connection, doom: Doom, trouble: Trouble) -> None:
        self._connection = connection
        self._doom = doom
        self._trouble = trouble
        self._verbs: list[str] = []

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, text: str, parameters: Sequence[Any] = ()) -> Any:
        if text.startswith("BEGIN"):
            self._verbs.clear()
            self._trouble.visit(self._connection)
        elif text == "COMMIT":
            self._all_reached("committing")
        answer = self._connection.execute(text, parameters)
        if text == "COMMIT":
            self._all_reached("committed")
        else:
            self._recognise(" ".join(text.split()))
        return answer

    def close(self) -> None:
        self._connection.close()

    def _recognise(self, text: str) -> None:
        for verb, sign in SIGNS.items():
            if sign.search(text) and (verb == "migrate" or self._doom.is_going_on(verb)):
                self._verbs.append(verb)
                self._doom.reached(verb, "writing")

    def _all_reached(self, moment: str) -> None:
        for verb in dict.fromkeys(self._verbs):
            self._doom.reached(verb, moment)


def watch(doom: Doom, trouble: Trouble) -> None:
    """From now on every writing connection of this process is watched: the first, which migrates, included."""
    connect: Callable[[Path], Connection] = driver.connect_writer

    def connect_watched(path: Path) -> Connection:
        return cast(Connection, _Watched(connect(path), doom, trouble))

    driver.connect_writer = connect_watched  # type: ignore[assignment]

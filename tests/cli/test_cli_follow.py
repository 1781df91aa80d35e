"""Following the log prints every entry once and in order, whatever happens to the relay meanwhile."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.cli.console import NOW, Answer, Console, Request, Result, Server
from tests.cli.shapes import an_entry


class History:
    """The log of a relay: entries in the order they were written, which need not be the order of their times."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.now = NOW
        self.pages = 0
        #: Relays number their history for themselves: a cursor means nothing to another one.
        self.first_position = 1

    def write(self, message: str, *, time: int | None = None, state: str = "CREATED") -> None:
        self.entries.append(an_entry(messageId=message, state=state, time=self.now if time is None else time))

    def answer(self, request: Request) -> Answer:
        query = dict(request.query)
        earliest_first = query.get("order") == "earliestFirst"
        self.pages += 1
        rows = [
            (position, entry)
            for position, entry in enumerate(self.entries, self.first_position)
            if entry["time"] >= int(query.get("fromDate", "0"))
            and ("messageId" not in query or entry["messageId"] == query["messageId"])
        ]
        if "cursor" in query:
            start = int(query["cursor"])
            rows = [row for row in rows if (row[0] >= start if earliest_first else row[0] <= start)]
        rows = rows if earliest_first else rows[::-1]
        count = int(query["count"])
        document: dict[str, Any] = {"events": [entry for _, entry in rows[:count]]}
        if len(rows) > count:
            document["cursor"] = str(rows[count][0])
        return Server.json(document)


@pytest.fixture
def history(server: Server) -> History:
    history = History()
    server.answer = history.answer
    server.now = lambda: history.now
    return history


def follow(server: Server, history: History, *flags: str, steps: list[Callable[[], None]]) -> Result:
    """`relay logs --follow`, with a step taken at each pause and an interrupt after the last."""
    console = Console()
    console.environment = {"QSTASH_URL": server.url, "QSTASH_TOKEN": "a-token"}
    console.now = lambda: history.now
    remaining: Iterator[Callable[[], None]] = iter(steps)

    def pause(seconds: float) -> None:
        assert 0 < seconds <= 5
        history.now += int(seconds * 1000)
        step = next(remaining, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    console.pause = pause
    return console("logs", "--follow", "--json", *flags)


def ids(result: Result) -> list[str]:
    assert (result.code, result.err) == (130, "")
    return [json.loads(line)["messageId"] for line in result.out.splitlines()]


def nothing() -> None:
    pass


def test_following_begins_with_the_latest_entries_and_goes_on_with_new_ones(
    server: Server, history: History
) -> None:
    for name in "abcd":
        history.write(name)
    steps = [nothing, lambda: history.write("e"), nothing, lambda: history.write("f"), nothing]
    assert ids(follow(server, history, "--count", "2", steps=steps)) == ["c", "d", "e", "f"]


def test_following_can_begin_with_nothing(server: Server, history: History) -> None:
    history.write("old")
    steps = [lambda: history.write("new"), nothing]
    assert ids(follow(server, history, "--count", "0", steps=steps)) == ["new"]


def test_following_an_empty_log_shows_its_first_entry(server: Server, history: History) -> None:
    steps = [nothing, lambda: history.write("first"), nothing]
    assert ids(follow(server, history, steps=steps)) == ["first"]


def test_following_after_a_long_silence_shows_the_next_entry_once(server: Server, history: History) -> None:
    history.write("old")
    history.now += 3_600_000
    steps = [nothing, lambda: history.write("new"), nothing]
    assert ids(follow(server, history, steps=steps)) == ["old", "new"]


def test_a_burst_of_many_pages_comes_complete_and_in_order(server: Server, history: History) -> None:
    def burst() -> None:
        for number in range(550):
            history.write(f"m{number}")

    expected = [f"m{number}" for number in range(550)]
    assert ids(follow(server, history, steps=[nothing, burst, nothing, nothing])) == expected


def test_bursts_with_pauses_between_come_complete_and_in_order(server: Server, history: History) -> None:
    def burst() -> None:
        for _ in range(120):
            history.write(f"m{len(history.entries)}")

    pause = [nothing] * 7
    steps = [burst, *pause, burst, *pause, burst, *pause]
    assert ids(follow(server, history, steps=steps)) == [f"m{number}" for number in range(360)]


def test_a_page_that_ends_exactly_at_the_end_of_the_log_is_not_repeated(
    server: Server, history: History
) -> None:
    def write(count: int) -> None:
        for _ in range(count):
            history.write(f"m{len(history.entries)}")

    steps = [lambda: write(100), nothing, lambda: write(1), nothing, lambda: write(99), nothing, nothing]
    assert ids(follow(server, history, steps=steps)) == [f"m{number}" for number in range(200)]


def test_equal_entries_of_one_instant_are_all_shown(server: Server, history: History) -> None:
    def twice() -> None:
        history.write("a", state="ERROR")
        history.write("a", state="ERROR")

    assert ids(follow(server, history, steps=[nothing, twice, nothing])) == ["a", "a"]


def test_an_entry_written_late_is_shown_though_later_ones_were_before(
    server: Server, history: History
) -> None:
    """A settlement carries the end of its attempt, and is written when storage can again."""
    steps = [
        lambda: history.write("a"),
        lambda: history.write("late", time=history.now - 20_000),
        lambda: history.write("b"),
        nothing,
    ]
    history.write("old", time=NOW - 30_000)
    assert ids(follow(server, history, steps=steps)) == ["old", "a", "late", "b"]


def test_an_idle_log_costs_one_small_question_a_poll(server: Server, history: History) -> None:
    for _ in range(10):
        history.write("old")
    history.now += 600_000
    follow(server, history, steps=[nothing] * 20)
    # One to begin with, then one a poll: twenty pauses and the one before the first.
    assert history.pages == 22
    assert int(dict(server.requests[-1].query)["fromDate"]) > NOW + 500_000


def test_the_filters_hold_while_following_but_not_the_age(server: Server, history: History) -> None:
    history.write("a", time=NOW - 120_000)
    history.write("a", time=NOW - 30_000)
    steps = [lambda: history.write("b"), lambda: history.write("a"), nothing]
    result = follow(server, history, "--message", "a", "--since", "1m", steps=steps)
    assert ids(result) == ["a", "a"]
    assert [json.loads(line)["time"] for line in result.out.splitlines()] == [NOW - 30_000, NOW + 2_000]


def test_following_outlives_an_absence_of_the_relay_and_says_so(server: Server, history: History) -> None:
    history.write("a")
    away: list[Answer | None] = [None, None, Server.json({"error": "storage is locked"}, 503)]

    def answer(request: Request) -> Answer | None:
        return away.pop() if gone and away else history.answer(request)

    gone: list[bool] = []
    server.answer = answer
    steps = [lambda: gone.append(True), nothing, nothing, lambda: history.write("b"), nothing]
    result = follow(server, history, steps=steps)
    assert [json.loads(line)["messageId"] for line in result.out.splitlines()] == ["a", "b"]
    assert result.err == f"relay: storage is locked (503); waiting for it\nrelay: {server.url} is back\n"


def test_following_goes_on_at_a_relay_that_was_restarted_with_another_history(history: History) -> None:
    """A development relay forgets its history at a restart, and numbers the new one from the start."""

    def listening(port: int = 0) -> Server:
        server = Server(port)
        server.answer = history.answer
        server.now = lambda: history.now
        running.enter_context(server.running())
        return server

    def restart() -> None:
        running.close()
        history.entries.clear()
        history.first_position = 1
        history.write("c")
        listening(server.port)

    history.first_position = 1_000_000
    for number in range(150):
        history.write(f"m{number}")
    with ExitStack() as running:
        server = listening()
        steps = [lambda: history.write("b"), nothing, restart, nothing, lambda: history.write("d"), nothing]
        assert ids(follow(server, history, "--count", "1", steps=steps)) == ["m149", "b", "c", "d"]


def test_following_works_through_a_server_that_keeps_no_connection(server: Server, history: History) -> None:
    """It looks like a restart at every poll, and must not become a loop or repeat anything."""
    server.answer = lambda request: history.answer(request)._replace(headers=(("Connection", "close"),))
    for number in range(150):
        history.write(f"old{number}")
    steps = [lambda: history.write("a"), nothing, lambda: history.write("b"), nothing]
    assert ids(follow(server, history, "--count", "1", steps=steps)) == ["old149", "a", "b"]


def test_following_ends_when_the_relay_refuses(server: Server, history: History) -> None:
    def revoke() -> None:
        server.answer = lambda request: Server.json({"error": "the token is not known"}, 401)

    result = follow(server, history, steps=[nothing, revoke, nothing, nothing])
    assert (result.code, result.err) == (1, "relay: the token is not known (401)\n")


def test_following_a_relay_that_was_never_there_ends_at_once(history: History) -> None:
    nobody = Server()
    with nobody.running():
        pass
    result = follow(nobody, history, steps=[nothing])
    assert (result.code, result.out) == (3, "")

"""The log: one line per event, off the loop, and never a reason to stop."""

import io
import logging
import threading
from typing import Any

import orjson

from relay.log import BridgeHandler, StreamLog

NOW = 1_800_000_000_123


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_and_event_first() -> None:
    stream = io.StringIO()
    log = StreamLog(stream, now=lambda: NOW)
    log.info("delivery.attempted", message="msg_1", status=200)
    log.warning("relay.slow")
    log.close()
    assert lines_of(stream) == [
        {"at": NOW, "level": "info", "event": "delivery.attempted", "message": "msg_1", "status": 200},
        {"at": NOW, "level": "warning", "event": "relay.slow"},
    ]


def test_an_error_brings_its_trace() -> None:
    stream = io.StringIO()
    log = StreamLog(stream, now=lambda: NOW)
    try:
        raise ValueError("what went wrong")
    except ValueError as error:
        log.error("loop.broke", exc=error, loop="claim")
    log.close()
    (line,) = lines_of(stream)
    assert line["error"] == "ValueError: what went wrong"
    assert "test_an_error_brings_its_trace" in line["trace"]


def test_people_get_a_clock_and_words() -> None:
    stream = io.StringIO()
    log = StreamLog(stream, now=lambda: NOW, human=True)
    log.info("delivery.attempted", status=200, error=None)
    log.warning("schedule.advanced", error='no "grüße"', ids=["a", "b"], text="a\nb", none="", fair="x=1")
    log.error("loop.broke", exc=ValueError("no"))
    log.close()
    first, words, second, *trace = stream.getvalue().splitlines()
    assert first == "08:00:00.123Z delivery.attempted status=200"
    assert words == (
        '08:00:00.123Z WARNING schedule.advanced error="no \\"grüße\\"" '
        """ids="['a', 'b']" text="a\\nb" none="" fair="x=1\""""
    )
    assert second == '08:00:00.123Z ERROR loop.broke error="ValueError: no"'
    assert trace == ["ValueError: no"]


class Stuck(io.StringIO):
    """A reader that has gone away, until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.go_on.wait()
        return super().write(text)


def test_a_stuck_reader_costs_old_lines_and_is_told_how_many() -> None:
    stream = Stuck()
    log = StreamLog(stream, now=lambda: NOW, capacity=10)
    log.info("first")
    assert stream.reached.wait(10)
    for number in range(100):
        log.info("later", number=number)
    stream.go_on.set()
    log.close(10)
    lines = lines_of(stream)
    assert lines[0]["event"] == "first"
    assert [line["number"] for line in lines[1:-1]] == list(range(90, 100))
    assert (lines[-1]["event"], lines[-1]["lines"]) == ("log.dropped", 90)


def test_closing_does_not_wait_for_a_stuck_reader() -> None:
    stream = Stuck()
    log = StreamLog(stream, now=lambda: NOW)
    log.info("first")
    assert stream.reached.wait(10)
    log.close(0.01)
    stream.go_on.set()


def test_a_closed_stream_is_no_error() -> None:
    stream = io.StringIO()
    stream.close()
    log = StreamLog(stream, now=lambda: NOW)
    log.info("nobody.reads")
    log.close()


def test_what_libraries_say_comes_into_the_same_stream() -> None:
    stream = io.StringIO()
    log = StreamLog(stream, now=lambda: NOW)
    logger = logging.Logger("some.library")
    logger.addHandler(BridgeHandler(log))
    logger.warning("careful with %s", "that")
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("could not")
    log.close()
    warning, error = lines_of(stream)
    assert (warning["level"], warning["source"], warning["text"]) == (
        "warning",
        "some.library",
        "careful with that",
    )
    assert (error["level"], error["text"], error["error"]) == ("error", "could not", "KeyError: 'gone'")

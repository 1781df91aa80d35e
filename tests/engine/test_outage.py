"""Whoever reads the log learns that storage is away, that it still is, and since when it is back: in few lines."""

from relay.clock import FakeClock
from relay.domain.errors import Unavailable
from relay.engine.outage import Outage
from tests.engine.stepped import Lines

NOW = 1_800_000_000_000
AWAY = Unavailable("the database cannot be reached")


def tried(seconds: float, outage: Outage, clock: FakeClock) -> None:
    for _ in range(int(seconds * 4)):
        outage.met(AWAY)
        clock.advance(250)


def test_the_first_refusal_is_told_at_once_and_with_its_reason() -> None:
    clock, lines = FakeClock(NOW), Lines()
    Outage("engine", clock=clock, log=lines).met(AWAY, settlements=3)
    assert lines.all == [
        (
            "warning",
            "engine.waiting",
            {"reason": "the database cannot be reached", "waited_ms": 0, "settlements": 3},
        )
    ]


def test_what_lasts_is_told_more_and_more_rarely_but_once_a_minute_for_ever() -> None:
    clock, lines = FakeClock(NOW), Lines()
    tried(300, Outage("engine", clock=clock, log=lines), clock)
    told = [line["waited_ms"] for line in lines.named("engine.waiting")]
    assert told == [0, 1_000, 3_000, 7_000, 15_000, 31_000, 63_000, 123_000, 183_000, 243_000]


def test_the_end_is_told_once_with_how_long_it_took() -> None:
    clock, lines = FakeClock(NOW), Lines()
    outage = Outage("engine", clock=clock, log=lines)
    tried(2, outage, clock)
    assert (outage.reason, outage.lasted_ms) == ("the database cannot be reached", 2_000)
    outage.over()
    outage.over()
    assert lines.named("engine.resumed") == [{"waited_ms": 2_000}]
    assert (outage.reason, outage.lasted_ms) == (None, 0)


def test_nothing_is_told_while_nothing_is_wrong() -> None:
    lines = Lines()
    Outage("engine", clock=FakeClock(NOW), log=lines).over()
    assert lines.all == []


def test_the_next_outage_is_told_at_once_again() -> None:
    clock, lines = FakeClock(NOW), Lines()
    outage = Outage("engine", clock=clock, log=lines)
    tried(100, outage, clock)
    outage.over()
    before = len(lines.named("engine.waiting"))
    outage.met(AWAY)
    assert lines.named("engine.waiting")[before:] == [
        {"reason": "the database cannot be reached", "waited_ms": 0}
    ]

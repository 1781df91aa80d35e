"""Processes are started, watched, replaced after growing pauses when they die or hang, and stopped together."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.clock import FakeClock
from relay.workers import CannotStart, Workers
from tests.engine.stepped import Lines, SteppedClock

#: Starts, answers what it is asked, and ends with the end of its input.
OBEDIENT = "read order; echo started; exec cat"
#: Starts, answers nothing, and has to be killed.
DEAF = f"""exec {sys.executable} -ISc 'import signal; input(); signal.signal(15, 1); print("started", flush=True)
while True: signal.pause()'"""


class Workplace:
    def __init__(self, workers: Workers, clock: FakeClock, lines: Lines) -> None:
        self.workers = workers
        self.clock = clock
        self.lines = lines
        self.losses = 0

    def lose(self) -> None:
        self.losses += 1


@asynccontextmanager
async def a_workplace(
    script: str,
    *,
    count: int = 2,
    shell: str = "sh",
    order: Callable[[int], bytes] = lambda number: b"%d" % number,
    clock: FakeClock | None = None,
) -> AsyncIterator[Workplace]:
    clock, lines = clock or FakeClock(), Lines()
    workers = Workers(
        [shell, "-c", script],
        count=count,
        order=order,
        silence_ms=15_000,
        patience_ms=500,
        clock=clock,
        log=lines,
        on_loss=lambda: place.lose(),
    )
    place = Workplace(workers, clock, lines)
    async with asyncio.timeout(30):
        try:
            yield place
        finally:
            workers.kill()
            await workers.stop()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_each_worker_is_told_its_own_order(tmp_path: Path) -> None:
    script = f'read order; echo "$order" > {tmp_path}/$order; echo started; cat > /dev/null'
    async with a_workplace(script, count=3) as place:
        await place.workers.start()
        assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["0\n", "1\n", "2\n"]
        assert sorted(place.workers.pids) == [0, 1, 2]


async def test_all_end_when_they_are_told_to() -> None:
    async with a_workplace(OBEDIENT, count=3) as place:
        await place.workers.start()
        pids = list(place.workers.pids.values())
        assert await place.workers.stop()
        assert not any(alive(pid) for pid in pids)
        assert place.lines.named("worker.died") == []


async def test_one_that_does_not_end_in_time_is_killed_and_told_of() -> None:
    async with a_workplace(DEAF, count=2) as place:
        await place.workers.start()
        pids = list(place.workers.pids.values())
        assert not await place.workers.stop()
        assert not any(alive(pid) for pid in pids)
        assert len(place.lines.named("worker.killed")) == 2


async def test_what_keeps_the_first_from_starting_ends_the_start_before_others_try(tmp_path: Path) -> None:
    script = f"read order; echo $order >> {tmp_path}/tried; exit 7"
    async with a_workplace(script, count=4) as place:
        with pytest.raises(CannotStart) as caught:
            await place.workers.start()
        assert caught.value.status == 7
        assert (tmp_path / "tried").read_text() == "0\n"


async def test_one_of_the_others_that_cannot_start_ends_the_start_too() -> None:
    script = "read order; [ $order = 2 ] && exit 9; echo started; cat > /dev/null"
    async with a_workplace(script, count=4) as place:
        with pytest.raises(CannotStart) as caught:
            await place.workers.start()
        assert caught.value.status == 9
        pids = list(place.workers.pids.values())
        await place.workers.stop()
        assert not any(alive(pid) for pid in pids)


async def test_a_worker_that_dies_is_replaced_and_the_others_are_left_alone() -> None:
    async with a_workplace(OBEDIENT) as place:
        await place.workers.start()
        before = place.workers.pids
        os.kill(before[1], signal.SIGKILL)
        await until(lambda: bool(place.lines.named("worker.died")))
        assert 1 not in place.workers.pids
        place.clock.advance(100)
        await until(lambda: bool(place.lines.named("worker.replaced")))
        assert place.workers.pids[0] == before[0]
        assert place.workers.pids[1] != before[1]
        (died,) = place.lines.named("worker.died")
        assert (died["worker"], died["status"], died["pause_ms"]) == (1, -signal.SIGKILL, 100)
        assert place.losses == 1


async def test_a_worker_that_keeps_dying_is_replaced_more_and_more_rarely_but_for_ever() -> None:
    async with a_workplace(OBEDIENT, count=1) as place:
        await place.workers.start()
        for deaths in range(1, 11):
            os.kill(place.workers.pids[0], signal.SIGKILL)
            await until(lambda deaths=deaths: len(place.lines.named("worker.died")) == deaths)  # type: ignore[misc]
            place.clock.advance(10_000)
            await until(lambda deaths=deaths: len(place.lines.named("worker.replaced")) == deaths)  # type: ignore[misc]
        pauses = [line["pause_ms"] for line in place.lines.named("worker.died")]
        assert pauses == [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]


async def test_one_that_lived_long_is_replaced_at_once_again() -> None:
    async with a_workplace(OBEDIENT, count=1) as place:
        await place.workers.start()
        for deaths, age_ms in ((1, 0), (2, 0), (3, 30_000)):
            place.clock.advance(age_ms)
            os.kill(place.workers.pids[0], signal.SIGKILL)
            await until(lambda deaths=deaths: len(place.lines.named("worker.died")) == deaths)  # type: ignore[misc]
            place.clock.advance(400)
            await until(lambda deaths=deaths: len(place.lines.named("worker.replaced")) == deaths)  # type: ignore[misc]
        assert [line["pause_ms"] for line in place.lines.named("worker.died")] == [100, 200, 100]


async def test_a_successor_for_which_the_machine_has_nothing_left_is_tried_again(tmp_path: Path) -> None:
    shell = tmp_path / "sh"
    shell.symlink_to("/bin/sh")
    async with a_workplace(OBEDIENT, count=1, shell=str(shell)) as place:
        await place.workers.start()
        shell.unlink()
        os.kill(place.workers.pids[0], signal.SIGKILL)
        await until(lambda: len(place.lines.named("worker.died")) == 1)
        place.clock.advance(100)
        await until(lambda: len(place.lines.named("worker.not_replaced")) == 1)
        shell.symlink_to("/bin/sh")
        place.clock.advance(200)
        await until(lambda: bool(place.lines.named("worker.replaced")))
        assert alive(place.workers.pids[0])
        assert await place.workers.stop()


async def test_a_successor_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    away = tmp_path / "away"
    script = f"read order; [ -e {away} ] && exit 1; echo started; cat > /dev/null"
    async with a_workplace(script, count=1) as place:
        await place.workers.start()
        away.touch()
        os.kill(place.workers.pids[0], signal.SIGKILL)
        await until(lambda: len(place.lines.named("worker.died")) == 1)
        place.clock.advance(100)
        await until(lambda: len(place.lines.named("worker.died")) == 2)
        away.unlink()
        place.clock.advance(200)
        await until(lambda: bool(place.lines.named("worker.replaced")))
        assert alive(place.workers.pids[0])


async def test_nobody_is_replaced_while_all_are_told_to_end() -> None:
    async with a_workplace(OBEDIENT) as place:
        await place.workers.start()
        os.kill(place.workers.pids[0], signal.SIGKILL)
        await until(lambda: bool(place.lines.named("worker.died")))
        assert await place.workers.stop()
        place.clock.advance(60_000)
        assert place.workers.pids == {}
        assert place.lines.named("worker.replaced") == []


#: A fifteenth of what a worker may be silent here.
BEAT_MS = 1_000


async def test_one_that_answers_nothing_is_told_of_then_killed_and_replaced() -> None:
    clock = SteppedClock()
    async with a_workplace(DEAF, count=1, clock=clock) as place:
        await place.workers.start()
        before = place.workers.pids[0]
        for _ in range(14):
            await clock.step(BEAT_MS)
        assert place.lines.named("worker.silent") == [{"worker": 0, "pid": before, "silent_ms": 3_000}]
        assert alive(before)
        await clock.step(BEAT_MS)
        (killed,) = place.lines.named("worker.killed")
        assert (killed["worker"], killed["pid"]) == (0, before)
        assert killed["reason"] == "it has given no sign of life for 15 seconds"
        (died,) = place.lines.named("worker.died")
        assert died["status"] == -signal.SIGKILL
        assert place.losses == 1
        await clock.step(100)
        await until(lambda: bool(place.lines.named("worker.replaced")))
        assert place.workers.pids[0] != before
        assert len(place.lines.named("worker.silent")) == 1


async def test_one_that_answers_again_is_left_alone_and_has_all_the_time_again() -> None:
    clock = SteppedClock()
    async with a_workplace(OBEDIENT, count=1, clock=clock) as place:
        await place.workers.start()
        pid = place.workers.pids[0]
        for times in (1, 2, 3):
            os.kill(pid, signal.SIGSTOP)
            while len(place.lines.named("worker.silent")) < times:
                await clock.step(BEAT_MS)
            for _ in range(11):
                await clock.step(BEAT_MS)
            os.kill(pid, signal.SIGCONT)
            # What it was asked meanwhile it answers now, and the rest of the beat is waited for.
            naps = len(clock.naps)
            await until(lambda naps=naps: len(clock.naps) > naps)  # type: ignore[misc]
            await clock.step(BEAT_MS)
            assert len(place.lines.named("worker.answers")) == times
        assert place.workers.pids == {0: pid}
        assert place.lines.named("worker.killed") == []


async def test_silence_is_counted_in_questions_and_not_in_hours_the_parent_was_away() -> None:
    clock = SteppedClock()
    async with a_workplace(DEAF, count=1, clock=clock) as place:
        await place.workers.start()
        pid = place.workers.pids[0]
        for _ in range(14):
            await clock.step(3_600_000)
        assert place.workers.pids == {0: pid}
        assert place.lines.named("worker.killed") == []


async def test_a_successor_has_two_minutes_to_its_first_sign_of_life(tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    script = f"read order; [ -e {slow} ] && exec sleep 1000; echo started; exec cat"
    clock = SteppedClock()
    async with a_workplace(script, count=1, clock=clock) as place:
        await place.workers.start()
        slow.touch()
        os.kill(place.workers.pids[0], signal.SIGKILL)
        await until(lambda: bool(place.lines.named("worker.died")))
        await clock.step(100)
        successor = place.workers.pids[0]
        for _ in range(119):
            await clock.step(BEAT_MS)
        assert alive(successor)
        assert place.lines.named("worker.silent") == []
        await clock.step(BEAT_MS)
        (killed,) = place.lines.named("worker.killed")
        assert killed["reason"] == "it has given no sign of life for 120 seconds"


async def test_a_worker_keeps_what_it_inherits_until_it_ends() -> None:
    reader, writer = os.pipe()
    clock, lines = FakeClock(), Lines()
    workers = Workers(
        ["sh", "-c", OBEDIENT],
        count=1,
        order=lambda number: b"%d" % number,
        silence_ms=15_000,
        patience_ms=500,
        clock=clock,
        log=lines,
        inherited=(writer,),
    )
    async with asyncio.timeout(30):
        await workers.start()
        os.close(writer)
        os.set_blocking(reader, False)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
        await workers.stop()
        assert os.read(reader, 1) == b""
    os.close(reader)

"""Whoever of several processes is asked answers for all, also when one of them is dead, mute or new."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from relay.metrics import SHARES, Metrics, depths
from relay.peers import Peers, Standing, tell_of_parent
from tests.many.test_merge import values


class Process:
    """One of the processes: what it counts, and what ails it."""

    def __init__(self, directory: Path, number: int, count: int) -> None:
        self.metrics = Metrics()
        self.ailments: list[str] = []
        self.depth: int | None = None
        self.joined = True
        self.peers = Peers(directory, number=number, count=count, summed=SHARES)

    async def listen(self) -> "Process":
        await self.peers.listen(standing=self.standing, numbers=self.numbers)
        return self

    async def standing(self) -> Standing:
        return Standing(problems=self.ailments, joined=self.joined)

    async def numbers(self) -> bytes:
        return self.metrics.render()

    async def all_problems(self) -> Sequence[str]:
        return await self.peers.problems(self.standing())

    async def all_numbers(self) -> dict[str, float]:
        return values(await self.peers.metrics(await self.numbers() + self.depths()))

    def depths(self) -> bytes:
        return depths(live=self.depth, dead_letters=None, oldest_due_seconds=0)


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[list[Process]]:
    started = [await Process(tmp_path, number, 3).listen() for number in range(3)]
    yield started
    for process in started:
        await process.peers.close()


PUBLISHED = "relay_messages_published_total"


async def test_it_does_not_matter_which_process_is_asked_for_numbers(processes: list[Process]) -> None:
    for number, process in enumerate(processes, 1):
        process.metrics.published.inc(number)
        process.metrics.in_flight.set(10 * number)
    for process in processes:
        numbers = await process.all_numbers()
        assert numbers[PUBLISHED] == 6
        assert numbers["relay_in_flight"] == 60


async def test_a_depth_is_told_by_the_process_that_was_asked(processes: list[Process]) -> None:
    for depth, process in enumerate(processes):
        process.depth = depth
    assert [(await process.all_numbers())["relay_messages_live"] for process in processes] == [0, 1, 2]


async def test_a_depth_that_nobody_knows_is_absent(processes: list[Process]) -> None:
    assert "relay_messages_live" not in await processes[0].all_numbers()


async def test_nobody_is_ready_while_one_is_not_and_it_is_named(processes: list[Process]) -> None:
    assert await processes[0].all_problems() == []
    processes[2].ailments.append("the scheduler sleeps")
    assert await processes[0].all_problems() == ["worker 2: the scheduler sleeps"]
    assert await processes[2].all_problems() == ["the scheduler sleeps"]


async def test_whoever_answers_is_alive_whatever_ails_it_and_nobody_misses_one_that_is_away(
    processes: list[Process],
) -> None:
    processes[1].ailments.append("storage is away")
    await processes[2].peers.close()
    assert await processes[0].peers.mute() == []


async def test_what_ails_all_is_said_once(processes: list[Process]) -> None:
    for process in processes:
        process.ailments.append("storage is away")
    assert await processes[1].all_problems() == ["storage is away"]


async def test_a_process_that_has_just_begun_makes_nobody_unready_and_is_ready_with_the_others(
    processes: list[Process],
) -> None:
    processes[1].ailments.append("it has not looked yet")
    processes[1].joined = False
    for process in processes:
        assert await process.all_problems() == []
    processes[2].ailments.append("the scheduler sleeps")
    assert await processes[1].all_problems() == ["worker 2: the scheduler sleeps"]
    processes[1].joined = True
    assert await processes[1].all_problems() == ["it has not looked yet", "worker 2: the scheduler sleeps"]


async def test_what_ails_a_process_that_has_just_begun_and_all_others_is_said(
    processes: list[Process],
) -> None:
    for process in processes:
        process.ailments.append("storage is away")
    processes[1].joined = False
    assert await processes[1].all_problems() == [
        "worker 0: storage is away",
        "worker 2: storage is away",
    ]


async def test_nobody_is_ready_while_all_have_just_begun(processes: list[Process]) -> None:
    for process in processes:
        process.ailments.append("it has not looked yet")
        process.joined = False
    assert await processes[0].all_problems() == ["it has not looked yet"]


async def test_nobody_is_ready_when_the_one_that_has_just_begun_is_alone(processes: list[Process]) -> None:
    await processes[1].peers.close()
    await processes[2].peers.close()
    assert await processes[0].all_problems() == []
    processes[0].ailments.append("it has not looked yet")
    processes[0].joined = False
    assert await processes[0].all_problems() == ["it has not looked yet"]


async def test_what_the_parent_counts_is_told_once_whoever_is_asked(
    processes: list[Process], tmp_path: Path
) -> None:
    parent = Metrics()
    for restarts in (1, 2):
        parent.worker_restarts.inc()
        tell_of_parent(tmp_path, parent.render_of_parent())
        for process in processes:
            assert (await process.all_numbers())["relay_worker_restarts_total"] == restarts


async def test_a_dead_process_is_not_missed_and_its_numbers_count_on(processes: list[Process]) -> None:
    for process in processes:
        process.metrics.published.inc(5)
    before = await processes[0].all_numbers()
    await processes[1].peers.close()
    assert await processes[0].all_problems() == []
    assert (await processes[0].all_numbers())[PUBLISHED] == before[PUBLISHED] == 15


async def test_what_a_dead_process_had_in_flight_is_in_flight_no_more(processes: list[Process]) -> None:
    for process in processes:
        process.metrics.in_flight.set(4)
    assert (await processes[0].all_numbers())["relay_in_flight"] == 12
    await processes[1].peers.close()
    assert (await processes[0].all_numbers())["relay_in_flight"] == 8


async def test_a_successor_counts_on_from_what_was_told_last(
    processes: list[Process], tmp_path: Path
) -> None:
    processes[1].metrics.published.inc(5)
    assert (await processes[0].all_numbers())[PUBLISHED] == 5
    for life in (1, 2, 3):
        await processes[1].peers.close()
        processes[1] = await Process(tmp_path, 1, 3).listen()
        processes[1].metrics.published.inc()
        for process in processes:
            assert (await process.all_numbers())[PUBLISHED] == 5 + life
    assert await processes[0].all_problems() == []


async def test_a_mute_process_is_named_and_holds_nobody_up(processes: list[Process], tmp_path: Path) -> None:
    await processes[2].peers.close()
    released = asyncio.Event()

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    async with await asyncio.start_unix_server(never, tmp_path / "2.sock"):
        processes[0].metrics.published.inc(5)
        async with asyncio.timeout(10):
            assert await processes[0].all_problems() == ["worker 2 does not answer"]
            assert await processes[0].peers.mute() == ["worker 2 does not answer"]
            assert (await processes[0].all_numbers())[PUBLISHED] == 5
        released.set()


async def test_a_process_that_takes_long_is_blamed_only_if_nothing_ails_the_one_that_asks(
    processes: list[Process], tmp_path: Path
) -> None:
    await processes[2].peers.close()
    released = asyncio.Event()

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here\n")
        await released.wait()
        writer.close()

    async with await asyncio.start_unix_server(begin, tmp_path / "2.sock"):
        assert await processes[0].all_problems() == ["worker 2 does not say whether it works"]
        processes[0].ailments.append("storage hangs")
        assert await processes[0].all_problems() == ["storage hangs"]
        released.set()


async def test_a_process_that_dies_while_it_is_asked_is_not_missed(
    processes: list[Process], tmp_path: Path
) -> None:
    await processes[2].peers.close()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        writer.close()

    server = await asyncio.start_unix_server(die, tmp_path / "2.sock")
    assert await processes[0].all_problems() == []
    await server.wait_closed()


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"soup\n", b"100\nshort", b"here\n", b"here\n100\nshort", b"here\n-1\n"],
)
async def test_a_process_that_answers_nonsense_is_as_good_as_mute(
    processes: list[Process], tmp_path: Path, nonsense: bytes
) -> None:
    await processes[2].peers.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(nonsense)
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "2.sock"):
        assert await processes[0].all_problems() == ["worker 2 does not answer"]
        assert (await processes[0].all_numbers())[PUBLISHED] == 0


async def test_a_standing_that_cannot_be_read_is_no_standing(
    processes: list[Process], tmp_path: Path
) -> None:
    await processes[2].peers.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"here\n4\nsoup")
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "2.sock"):
        assert await processes[0].all_problems() == ["worker 2 does not answer"]


async def test_a_single_process_has_nobody_to_ask(tmp_path: Path) -> None:
    process = await Process(tmp_path, 0, 1).listen()
    process.metrics.published.inc(2)
    assert await process.all_problems() == []
    assert (await process.all_numbers())[PUBLISHED] == 2
    await process.peers.close()


async def test_a_question_that_never_ends_is_not_waited_for(processes: list[Process], tmp_path: Path) -> None:
    assert stat.S_ISSOCK(os.stat(tmp_path / "0.sock").st_mode)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "0.sock")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()

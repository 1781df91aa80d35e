"""Whoever of several processes is asked answers for all, also when one of them is dead, mute or new."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from relay.metrics import SHARES, Metrics, depths
from relay.peers import Peers
from tests.many.test_merge import values


class Process:
    """One of the processes: what it counts, and what ails it."""

    def __init__(self, directory: Path, number: int, count: int) -> None:
        self.metrics = Metrics()
        self.ailments: list[str] = []
        self.depth: int | None = None
        self.peers = Peers(directory, number=number, count=count, summed=SHARES)

    async def listen(self) -> "Process":
        await self.peers.listen(problems=self.problems, numbers=self.numbers)
        return self

    async def problems(self) -> Sequence[str]:
        return self.ailments

    async def numbers(self) -> bytes:
        return self.metrics.render()

    async def all_problems(self) -> Sequence[str]:
        return await self.peers.problems(self.ailments)

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


async def test_what_ails_all_is_said_once(processes: list[Process]) -> None:
    for process in processes:
        process.ailments.append("storage is away")
    assert await processes[1].all_problems() == ["storage is away"]


async def test_a_dead_process_is_named_and_its_numbers_count_on(processes: list[Process]) -> None:
    for process in processes:
        process.metrics.published.inc(5)
    before = await processes[0].all_numbers()
    await processes[1].peers.close()
    assert await processes[0].all_problems() == ["worker 1 does not answer"]
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
            assert (await processes[0].all_numbers())[PUBLISHED] == 5
        released.set()


@pytest.mark.parametrize("nonsense", [b"", b"soup\n", b"100\nshort", b"-1\n"])
async def test_a_process_that_answers_nonsense_is_as_good_as_dead(
    processes: list[Process], tmp_path: Path, nonsense: bytes
) -> None:
    await processes[2].peers.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(nonsense)
        writer.close()

    async with await asyncio.start_unix_server(answer, tmp_path / "2.sock"):
        assert await processes[0].all_problems() == ["worker 2 does not answer"]
        assert (await processes[0].all_numbers())[PUBLISHED] == 0


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

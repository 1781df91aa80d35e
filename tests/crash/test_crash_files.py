"""Damaged, torn and foreign files: what is whole is kept, what is not is said in one sentence."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.crash import aftermath
from tests.crash.node import refused
from tests.crash.torn import Remains, remains
from tests.crash.world import a_world

_FRAME = 24 + 4096
_MESSAGES = 12


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Remains:
    """What a killed relay left; every message in it is waiting for next year."""
    directory = tmp_path_factory.mktemp("left")
    (directory / "life").mkdir()

    async def live_and_die() -> Remains:
        async with a_world(directory, f"sqlite:///{directory}/life/relay.db") as world:
            return await remains(world, messages=_MESSAGES)

    return asyncio.run(live_and_die())


async def kept(url: str) -> set[str]:
    """The messages a relay finds when it opens the database."""
    found = await aftermath.examine(url)
    assert not found.problems
    assert found.alive.keys() == found.logs.keys()
    return set(found.alive)


async def test_a_log_whose_end_was_cut_off_holds_every_transaction_before_the_cut(
    left: Remains, tmp_path: Path
) -> None:
    sizes = [size for _, size in left.commits]
    cuts = {cut for end in sizes[-4:] for cut in (end - _FRAME - 1, end - _FRAME, end - 100, end - 1, end)}
    lost = []
    for cut in sorted(cuts):
        url, log = left.copy(tmp_path / f"cut-{cut}")
        os.truncate(log, cut)
        expected = left.whole(cut)
        assert await kept(url) == expected
        lost.append(_MESSAGES - len(expected))
    assert set(lost) == {0, 1, 2, 3, 4}


async def test_a_log_whose_last_frame_is_garbled_holds_every_transaction_before_it(
    left: Remains, tmp_path: Path
) -> None:
    _, end = left.commits[-1]
    for place in (end - _FRAME, end - _FRAME + 10, end - 2000, end - 1):
        url, log = left.copy(tmp_path / f"garbled-{place}")
        with log.open("r+b") as file:
            file.seek(place)
            (byte,) = file.read(1)
            file.seek(place)
            file.write(bytes([byte ^ 0x55]))
        assert await kept(url) == left.whole(end - 1)


@pytest.mark.parametrize(
    "debris", [b"\0" * 100, b"\xff" * 3 * _FRAME, os.urandom(2 * _FRAME + 7)], ids=["zeros", "ones", "noise"]
)
async def test_what_was_being_written_after_the_last_commit_takes_nothing_with_it(
    left: Remains, tmp_path: Path, debris: bytes
) -> None:
    url, log = left.copy(tmp_path / "debris")
    with log.open("ab") as file:
        file.write(debris)
    assert await kept(url) == {message_id for message_id, _ in left.commits}


async def test_frames_written_once_more_after_the_last_commit_are_not_taken_for_another(
    left: Remains, tmp_path: Path
) -> None:
    url, log = left.copy(tmp_path / "repeated")
    with log.open("r+b") as file:
        file.seek(-3 * _FRAME, os.SEEK_END)
        frames = file.read()
        file.write(frames)
    assert await kept(url) == {message_id for message_id, _ in left.commits}


async def test_the_real_command_starts_on_a_torn_log(left: Remains, tmp_path: Path) -> None:
    url, log = left.copy(tmp_path / "torn")
    os.truncate(log, log.stat().st_size - 100)
    async with a_world(tmp_path, url) as world:
        await world.node.serve()
        await world.started()
        for message_id, _ in left.commits[:-1]:
            assert await world.client.status(f"/v2/messages/{message_id}") == 200
        assert await world.client.status(f"/v2/messages/{left.commits[-1][0]}") == 404
        assert await world.client.publish() == 200
        await world.settled()
        assert await world.node.stop() == 0


def test_a_garbage_file_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    database = tmp_path / "relay.db"
    garbage = os.urandom(50_000)
    database.write_bytes(garbage)
    assert refused(f"sqlite:///{database}") == f"relay: {database} is not a SQLite database\n"
    assert database.read_bytes() == garbage


def test_a_place_that_cannot_be_written_ends_the_start_with_one_sentence() -> None:
    said = refused("sqlite:////proc/relay.db")
    assert said.startswith("relay: /proc/relay.db cannot be opened: ")
    assert said.count("\n") == 1


async def test_a_damaged_file_ends_the_start_with_one_sentence(left: Remains, tmp_path: Path) -> None:
    url, log = left.copy(tmp_path / "damaged")
    # With its log merged into it and then half of its pages overwritten, the file still begins like a database.
    assert len(await kept(url)) == _MESSAGES
    database = log.with_name("relay.db")
    whole = database.read_bytes()
    half = len(whole) // 2
    named = " (set by RELAY_DATABASE_URL or --database)"
    database.write_bytes(whole[:100] + os.urandom(len(whole) - 100))
    assert refused(url) == f"relay: {database}: the database file is damaged{named}\n"
    database.write_bytes(whole[:half])
    assert refused(url) == f"relay: {database}: the database file is damaged{named}\n"

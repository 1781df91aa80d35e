"""Processes meet in a directory that goes with the last of them, however they end."""

import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.meeting import meeting_place

#: Makes a place, starts one that inherits its descriptor, tells both, and waits.
PARENT = """
import subprocess, sys
from relay.meeting import meeting_place
with meeting_place() as (directory, kept):
    (directory / "0.sock").touch()
    child = subprocess.Popen(["sleep", "1000"], pass_fds=(kept,), stdout=subprocess.DEVNULL)
    print(directory, child.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """Where temporary files of this process and its children are."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path)
    yield tmp_path
    tempfile.tempdir = before


def places(temporary: Path) -> list[Path]:
    return sorted(temporary.iterdir())


def test_a_place_is_for_this_user_only_and_goes_with_its_end(temporary: Path) -> None:
    with meeting_place() as (directory, _):
        (directory / "0.sock").touch()
        assert places(temporary) == [directory]
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert places(temporary) == []


def test_a_place_in_use_is_left_alone(temporary: Path) -> None:
    with meeting_place() as (one, _), meeting_place() as (two, _):
        assert places(temporary) == sorted((one, two))
        assert (one / "lock").exists()


def test_the_place_of_the_killed_is_removed_by_the_next_once_all_of_them_have_gone(temporary: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        directory, child = parent.stdout.readline().split()
        ended = os.pidfd_open(int(child))
        try:
            parent.kill()
            parent.wait(30)
            with meeting_place() as (other, _):
                assert places(temporary) == sorted((Path(directory), other))
                assert (Path(directory) / "0.sock").exists()
        finally:
            os.kill(int(child), signal.SIGKILL)
        _wait_for(ended)
    with meeting_place() as (other, _):
        assert places(temporary) == [other]


def test_what_only_looks_like_a_place_is_left_alone(temporary: Path) -> None:
    strangers = [temporary / "relay-workers-strange", temporary / "relay-abcdefgh"]
    for stranger in strangers:
        stranger.mkdir()
        (stranger / "precious").touch()
    (strangers[1] / "lock").touch()
    with meeting_place():
        pass
    assert all((stranger / "precious").exists() for stranger in strangers)


def _wait_for(ended: int) -> None:
    """Until the process has ended: its descriptors are closed by then."""
    try:
        assert select.select([ended], [], [], 30)[0]
    finally:
        os.close(ended)

"""The directory in which the processes of one machine's relay meet, and the end of those that nobody meets in."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "relay-workers-"
#: Locked by whoever belongs to the directory. It gets its name when it is locked already, so that one which can be
#: locked is nobody's, and a directory without one is none of ours, or has just begun.
_LOCK = "lock"


@contextlib.contextmanager
def meeting_place() -> Iterator[tuple[Path, int]]:
    """A fresh directory that nobody but this user may enter, and the descriptor that keeps it.

    It is removed at the end. When the end is a SIGKILL, the next relay of this user removes it, if no process has
    the descriptor any more: processes that inherit it keep the directory as well.
    """
    _sweep()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = os.open(directory / "fresh", os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(directory / "fresh", directory / _LOCK)
        yield directory, lock
    finally:
        _remove(directory)
        os.close(lock)


def _sweep() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or somebody else is removing it
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(directory)
            finally:
                os.close(lock)


def _remove(directory: Path) -> None:
    """The lock goes last: who is killed in the middle leaves what the next one can remove."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path.name != _LOCK:
                path.unlink(missing_ok=True)
        (directory / _LOCK).unlink(missing_ok=True)
        directory.rmdir()

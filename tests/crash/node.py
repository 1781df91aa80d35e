"""A relay process that is killed, stopped, and started again on the same database."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.crash.waiting import PATIENCE_S, until

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("relay"))
TOKEN = "the-token-of-the-crash-tests"


class Node:
    """One process at a time, on one database, in one directory; every start listens on another port.

    Its log is `relay.log` in the directory, appended to by every start.
    """

    def __init__(self, directory: Path, database: str, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self.database = database
        self.url = ""
        #: Set while there is a process that answers.
        self.up = asyncio.Event()
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        #: All starts continue one time; see `doomed.py`.
        self.epoch = time.time_ns() // 1_000_000

    @property
    def log(self) -> str:
        return (self.directory / "relay.log").read_text()

    @property
    def is_running(self) -> bool:
        return self._process is not None

    async def answering(self) -> None:
        """Wait until there is a process that answers."""
        await self.up.wait()

    async def serve(self, **environment: str) -> None:
        """Start the real command."""
        await self._start([COMMAND, "serve", "--port", "0", "--database", self.database], environment)

    async def doom(self, *flags: str, rate: int, **environment: str) -> None:
        """Start the watched program; without more flags it is a relay like any other, with a fast clock."""
        program = [sys.executable, "-m", "tests.crash.doomed", "--database", self.database]
        clock = ["--rate", str(rate), "--epoch", str(self.epoch)]
        await self._start([*program, *clock, *flags], environment)

    async def ended(self, *, within_s: float = PATIENCE_S) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        process = self._running()
        await until(
            lambda: process.poll() is not None,
            lambda: f"the relay should have ended:\n{self.log[-5000:]}",
            within_s=within_s,
        )
        self.up.clear()
        self._process = None
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    async def kill(self) -> None:
        """As a power cut would."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        """As an operator would."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    def signal(self, number: int) -> None:
        os.kill(self._running().pid, number)

    def freeze(self) -> None:
        """Nothing of it goes on until it thaws; publishers are sent elsewhere."""
        self.signal(signal.SIGSTOP)
        self.up.clear()

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)
        self.up.set()

    def limit_files(self, size: int | None) -> None:
        """From now on, writing a file beyond `size` fails, as on a broken disk; None lifts the limit."""
        pid = self._running().pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))

    async def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        assert self._process is None, "it is still running"
        self._process = self._spawn(command, environment)
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        if line:
            self.url = line.decode().split()[-1]
            self.up.set()

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        settings = {"RELAY_TOKEN": TOKEN, "RELAY_ALLOW_NETWORKS": "127.0.0.0/8"}
        with (self.directory / "relay.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env={**_inherited(), **settings, **self._environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "it is not running"
        return self._process

    async def end(self) -> None:
        """Whatever it is doing."""
        if self._process is not None:
            await self.kill()


@asynccontextmanager
async def a_node(directory: Path, database: str, environment: Mapping[str, str]) -> AsyncIterator[Node]:
    node = Node(directory, database, environment)
    try:
        yield node
    finally:
        await node.end()


def refused(database: str) -> str:
    """What the real command says when it cannot start on this database, which it must not."""
    ended = subprocess.run(
        [COMMAND, "serve", "--port", "0", "--database", database],
        env=_inherited(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, ""), ended
    return ended.stderr


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}

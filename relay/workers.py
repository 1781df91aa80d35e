"""Several processes that are one relay: started, watched, replaced when they die, stopped together.

A worker is told what it is by one line on its standard input, and says `started` on its standard output when it is
ready to serve. Its input stays open for as long as its parent lives: when that ends, however it does, the worker
finishes what it has in flight and ends too, so that nobody is left behind.
"""

import asyncio
import contextlib
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence

from relay.clock import Clock
from relay.log import Log

STARTED = b"started\n"

#: A worker that died is replaced after a pause, which doubles while its successors die young.
_FIRST_PAUSE_MS = 100
_LONGEST_PAUSE_MS = 10_000
#: One that has lived for so long did not die of how it was started.
_GROWN_UP_MS = 30_000


class CannotStart(Exception):  # noqa: N818 - what happened, in the words of the one who reads it
    """A worker ended before it had started, with this exit status; why, it has said itself."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a worker ended with {status} before it had started")
        self.status = status


class Workers:
    """`count` processes of one `command`; `order` is the line each is given, by its number.

    `patience_ms` is how long a worker may take to end once it was told to; then it is killed.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        count: int,
        order: Callable[[int], bytes],
        patience_ms: int,
        clock: Clock,
        log: Log,
    ) -> None:
        self._command = command
        self._count = count
        self._order = order
        self._patience_ms = patience_ms
        self._clock = clock
        self._log = log
        self._processes: dict[int, Process] = {}
        self._stopping = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def pids(self) -> dict[int, int]:
        """The process ids of those that live, by their numbers."""
        return {number: process.pid for number, process in self._processes.items()}

    async def start(self) -> None:
        """Start all, and return when each has started; from then on they are replaced when they die.

        The first starts alone: what keeps it from starting is said once. Raises `CannotStart`; call `stop` then.
        """
        await self._first(0)
        others = (self._first(number) for number in range(1, self._count))
        for outcome in await asyncio.gather(*others, return_exceptions=True):
            if outcome is not None:
                raise outcome
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(self._count)]

    async def stop(self) -> bool:
        """Tell all to end, wait for them together; False when one had to be killed."""
        self._stopping.set()
        for process in self._processes.values():
            _tell(process)
        ended = asyncio.ensure_future(self._ended())
        done, _ = await asyncio.wait((ended,), timeout=self._patience_ms / 1000)
        if not done:
            for number in self._processes:
                self._log.error("worker.killed", worker=number)
            self.kill()
        await ended
        return bool(done)

    def kill(self) -> None:
        """End all at once, without a chance to finish anything."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _ended(self) -> None:
        await asyncio.gather(*self._keepers)
        for process in list(self._processes.values()):
            await process.wait()

    async def _first(self, number: int) -> None:
        process = await self._spawn(number)
        if not await _started(process):
            raise CannotStart(await process.wait())

    async def _keep(self, number: int) -> None:
        """See to it that there is always one with this number."""
        began_at, pause_ms = self._clock.now(), _FIRST_PAUSE_MS
        while True:
            status = await self._processes[number].wait()
            del self._processes[number]
            if self._stopping.is_set():
                return
            if self._clock.now() - began_at >= _GROWN_UP_MS:
                pause_ms = _FIRST_PAUSE_MS
            self._log.warning("worker.died", worker=number, status=status, pause_ms=pause_ms)
            if await self._clock.wait(self._stopping, self._clock.now() + pause_ms):
                return
            pause_ms = min(2 * pause_ms, _LONGEST_PAUSE_MS)
            began_at = self._clock.now()
            process = await self._spawn(number)
            if await _started(process):
                self._log.info("worker.replaced", worker=number, pid=process.pid)

    async def _spawn(self, number: int) -> Process:
        # A session of its own: Ctrl-C in a terminal is for the parent, who tells the workers.
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        self._processes[number] = process
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(self._order(number) + b"\n")
            await process.stdin.drain()
        if self._stopping.is_set():
            _tell(process)
        return process


async def _started(process: Process) -> bool:
    """Wait until it says so; False when it ends without."""
    assert process.stdout is not None
    return await process.stdout.readline() == STARTED


def _tell(process: Process) -> None:
    """SIGTERM for a worker that serves already, the end of its input for one that has just begun to start."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    if process.stdin is not None:
        process.stdin.close()

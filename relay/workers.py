"""Several processes that are one relay: started, watched, replaced when they die or hang, stopped together.

A worker is told what it is by one line on its standard input, and says `started` on its standard output when it is
ready to serve. Whatever it is sent after that it answers with a line: one that does not, for too long, is killed.
That is what every worker survives at any point: nothing acknowledged is in its memory alone, and what it had in
flight is others' when its lease is over. Its input stays open for as long as its parent lives: when that ends,
however it does, the worker finishes what it has in flight and ends too, so that nobody is left behind.
"""

import asyncio
import contextlib
import functools
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence

from relay.clock import Clock
from relay.log import Log
from relay.pulse import Pulse

#: A worker that died is replaced after a pause, which doubles while its successors die young.
_FIRST_PAUSE_MS = 100
_LONGEST_PAUSE_MS = 10_000
#: One that has lived for so long did not die of how it was started.
_GROWN_UP_MS = 30_000
#: How often in a row a worker may not answer before that is told, and before it is killed.
_TOLD_AFTER = 3
_KILLED_AFTER = 15
#: What one may take to its first sign of life: a busy machine is slow to start a program.
_BEGINNING_MS = 120_000


class CannotStart(Exception):  # noqa: N818 - what happened, in the words of the one who reads it
    """A worker ended before it had started, with this exit status; why, it has said itself."""

    def __init__(self, status: int) -> None:
        super().__init__(f"a worker ended with {status} before it had started")
        self.status = status


class Workers:
    """`count` processes of one `command`; `order` is the line each is given, by its number.

    `silence_ms` is how long a worker may answer nothing before it is killed and replaced; `patience_ms` how long it
    may take to end once it was told to; then it is killed, too. `on_loss` is called when one has died that is to be
    replaced. `inherited` are descriptors they get from here.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        count: int,
        order: Callable[[int], bytes],
        silence_ms: int,
        patience_ms: int,
        clock: Clock,
        log: Log,
        on_loss: Callable[[], None] = lambda: None,
        inherited: Sequence[int] = (),
    ) -> None:
        self._command = command
        self._count = count
        self._order = order
        self._beat_ms = max(1, silence_ms // _KILLED_AFTER)
        self._patience_ms = patience_ms
        self._clock = clock
        self._log = log
        self._on_loss = on_loss
        self._inherited = inherited
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
        pulses = [await self._first(0)]
        others = (self._first(number) for number in range(1, self._count))
        for outcome in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
            pulses.append(outcome)
        self._keepers = [
            asyncio.create_task(self._keep(number, pulse)) for number, pulse in enumerate(pulses)
        ]

    async def stop(self) -> bool:
        """Tell all to end, wait for them together; False when one had to be killed."""
        self._stopping.set()
        for process in self._processes.values():
            _tell(process)
        ended = asyncio.ensure_future(self._ended())
        done, _ = await asyncio.wait((ended,), timeout=self._patience_ms / 1000)
        if not done:
            for number, process in self._processes.items():
                self._log.error("worker.killed", worker=number, pid=process.pid, reason="it did not end")
            self.kill()
        await ended
        return bool(done)

    def kill(self) -> None:
        """End all at once, without a chance to finish anything."""
        for process in self._processes.values():
            _kill(process)

    async def _ended(self) -> None:
        await asyncio.gather(*self._keepers)
        for process in list(self._processes.values()):
            await process.wait()

    async def _first(self, number: int) -> Pulse:
        pulse = await self._spawn(number)
        if not await pulse.started:
            raise CannotStart(await self._processes[number].wait())
        return pulse

    async def _keep(self, number: int, pulse: Pulse) -> None:
        """See to it that there is always one with this number, and that it is alive."""
        began_at, pause_ms = self._clock.now(), _FIRST_PAUSE_MS
        while True:
            watching = asyncio.create_task(self._watch(number, pulse))
            status = await self._processes[number].wait()
            watching.cancel()
            await asyncio.wait((watching,))
            del self._processes[number]
            if self._stopping.is_set():
                return
            if self._clock.now() - began_at >= _GROWN_UP_MS:
                pause_ms = _FIRST_PAUSE_MS
            self._log.warning("worker.died", worker=number, status=status, pause_ms=pause_ms)
            self._on_loss()
            successor = None
            while successor is None:
                if await self._clock.wait(self._stopping, self._clock.now() + pause_ms):
                    return
                pause_ms = min(2 * pause_ms, _LONGEST_PAUSE_MS)
                began_at = self._clock.now()
                successor = await self._successor(number, pause_ms)
            pulse = successor
            pid = self._processes[number].pid
            pulse.started.add_done_callback(functools.partial(self._replaced, number, pid))

    async def _successor(self, number: int, pause_ms: int) -> Pulse | None:
        """None when the machine has no process, memory or file descriptor left for one: that may pass."""
        try:
            return await self._spawn(number)
        except OSError as problem:
            reason = str(problem)
            self._log.error("worker.not_replaced", worker=number, reason=reason, pause_ms=pause_ms)
            return None

    def _replaced(self, number: int, pid: int, started: asyncio.Future[bool]) -> None:
        if started.result():
            self._log.info("worker.replaced", worker=number, pid=pid)

    async def _watch(self, number: int, pulse: Pulse) -> None:
        """Kill it when it has given no sign of life for too long."""
        process, unanswered = self._processes[number], 0
        while not self._stopping.is_set():
            if await pulse.beat(self._beat_ms, stopping=self._stopping):
                if unanswered >= _TOLD_AFTER:
                    self._log.info("worker.answers", worker=number, pid=process.pid)
                unanswered = 0
                continue
            unanswered += 1
            silent_ms = unanswered * self._beat_ms
            if unanswered == _TOLD_AFTER and pulse.ever_heard:
                self._log.warning("worker.silent", worker=number, pid=process.pid, silent_ms=silent_ms)
            if unanswered >= _KILLED_AFTER and (pulse.ever_heard or silent_ms >= _BEGINNING_MS):
                reason = f"it has given no sign of life for {silent_ms / 1000:g} seconds"
                self._log.error("worker.killed", worker=number, pid=process.pid, reason=reason)
                _kill(process)
                return

    async def _spawn(self, number: int) -> Pulse:
        # A session of its own: Ctrl-C in a terminal is for the parent, who tells the workers.
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, start_new_session=True, pass_fds=self._inherited
        )
        self._processes[number] = process
        pulse = Pulse(process, clock=self._clock)
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(self._order(number) + b"\n")
            await process.stdin.drain()
        if self._stopping.is_set():
            _tell(process)
        return pulse


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def _tell(process: Process) -> None:
    """SIGTERM for a worker that serves already, the end of its input for one that has just begun to start."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    if process.stdin is not None:
        process.stdin.close()

"""Whether a process that lives does anything: asked on its standard input, it answers on its standard output."""

import asyncio
import contextlib
from asyncio.subprocess import Process

from relay.clock import Clock

STARTED = b"started\n"
ASK = b"\n"
ANSWER = b"\n"


class Pulse:
    """Of one process, whose whole output this reads.

    `started` tells whether it said `STARTED`; False when it ended without.
    """

    def __init__(self, process: Process, *, clock: Clock) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._input, self._output = process.stdin, process.stdout
        self._clock = clock
        self._heard = asyncio.Event()
        self._listening = asyncio.create_task(self._listen())
        self.started: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.ever_heard = False

    async def beat(self, length_ms: int, *, stopping: asyncio.Event) -> bool:
        """Ask once; after `length_ms`, whether there was a sign of life. Sooner when `stopping` is set.

        Waiting, and not the clock on the wall, is what tells silence: a parent that was stopped itself, or slept
        with its machine, comes back to the end of one beat, however late it is.
        """
        end = self._clock.now() + length_ms
        self._heard.clear()
        # Not drained: a process that hangs reads nothing, and these few bytes have room in the pipe.
        with contextlib.suppress(ConnectionError):
            self._input.write(ASK)
        heard = await self._clock.wait(self._heard, end)
        if heard:
            await self._clock.wait(stopping, end)
        return heard

    async def _listen(self) -> None:
        while line := await self._output.readline():
            self.ever_heard = True
            self._heard.set()
            if line == STARTED and not self.started.done():
                self.started.set_result(True)
        if not self.started.done():
            self.started.set_result(False)

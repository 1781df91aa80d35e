"""What the processes of one machine's relay tell each other: their problems and their numbers.

Each listens on a socket in a directory that only its own user may enter, and answers one question a connection.
Whoever is asked by the outside asks all others, so that it does not matter which of them a scrape or a probe meets.

Numbers that grow must not get smaller because a process died. What a process last told is kept in a file beside its
socket: while it is away the file speaks for it, and the one that takes its place counts on from there.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from relay.merge import growing, merged
from relay.question import LONGEST_ANSWER_MS

#: Nobody who asks us is to wait for a sibling that hangs. It may take this long to say that storage does.
PATIENCE_S = (LONGEST_ANSWER_MS + 750) / 1000
_PROBLEMS, _NUMBERS = b"problems\n", b"numbers\n"


class Peers:
    """One of `count` processes, seen by itself: the one with this `number`.

    `summed` are the gauges of which each process has its own share.
    """

    def __init__(self, directory: Path, *, number: int, count: int, summed: frozenset[str]) -> None:
        self._directory = directory
        self._number = number
        self._others = [other for other in range(count) if other != number]
        self._summed = summed
        self._before = _read(self._kept(number))
        self._keeping = asyncio.Lock()
        self._server: asyncio.Server | None = None

    async def listen(
        self, *, problems: Callable[[], Awaitable[Sequence[str]]], numbers: Callable[[], Awaitable[bytes]]
    ) -> None:
        """Answer the siblings from now on: `problems` and `numbers` are this process's own."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    question = await reader.readline()
                    if question == _PROBLEMS:
                        text = json.dumps(list(await problems())).encode()
                    else:
                        text = await self._told(await numbers())
                    writer.write(b"%d\n%b" % (len(text), text))
                    await writer.drain()
            writer.close()

        self._server = await asyncio.start_unix_server(answer, self._socket(self._number))

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def problems(self, asked: Awaitable[Sequence[str]]) -> Sequence[str]:
        """What keeps this process and its siblings from working; what all of them say is said once.

        `asked` brings this process's own, and is waited for together with theirs.
        """
        asking = asyncio.gather(*(self._ask(other, _PROBLEMS) for other in self._others))
        own, answers = await asyncio.gather(asked, asking)
        problems = list(own)
        for other, answer in zip(self._others, answers, strict=True):
            if answer is None:
                problems.append(f"worker {other} does not answer")
                continue
            problems += [f"worker {other}: {problem}" for problem in json.loads(answer) if problem not in own]
        return problems

    async def metrics(self, own: bytes) -> bytes:
        """The numbers of all processes as one text; `own` are this one's, and what is shared is taken from it."""
        answers = await asyncio.gather(*(self._ask(other, _NUMBERS) for other in self._others))
        texts = [await self._told(own)]
        for other, answer in zip(self._others, answers, strict=True):
            text = await asyncio.to_thread(_read, self._kept(other)) if answer is None else answer
            if text:
                texts.append(text)
        return await asyncio.to_thread(merged, texts, summed=self._summed)

    async def _told(self, own: bytes) -> bytes:
        """What this process says of itself, with what those counted that had its number before it."""
        async with self._keeping:
            return await asyncio.to_thread(self._keep, own)

    def _keep(self, own: bytes) -> bytes:
        text = merged([own, self._before], summed=self._summed) if self._before else own
        fresh = self._kept(self._number).with_suffix(".fresh")
        fresh.write_bytes(growing(text))
        os.replace(fresh, self._kept(self._number))
        return text

    async def _ask(self, other: int, question: bytes) -> bytes | None:
        """A sibling's answer, None when it has none in time."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(self._socket(other))
                try:
                    writer.write(question)
                    return await reader.readexactly(int(await reader.readline()))
                finally:
                    writer.close()
        except (OSError, EOFError, ValueError, TimeoutError):
            return None

    def _socket(self, number: int) -> str:
        return str(self._directory / f"{number}.sock")

    def _kept(self, number: int) -> Path:
        return self._directory / f"{number}.numbers"


def _read(path: Path) -> bytes:
    """What was kept there, nothing when nothing was."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""

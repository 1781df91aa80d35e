"""What the processes of one machine's relay tell each other: their problems and their numbers.

Each listens on a socket in a directory that only its own user may enter, and answers one question a connection.
Whoever is asked by the outside asks all others, so that it does not matter which of them a scrape or a probe meets.

Numbers that grow must not get smaller because a process died. What a process last told is kept in a file beside its
socket: while it is away the file speaks for it, and the one that takes its place counts on from there. What their
parent counts is in a file, too.
"""

import asyncio
import contextlib
import enum
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from relay.merge import growing, merged
from relay.question import LONGEST_ANSWER_MS

#: Nobody who asks us is to wait for a sibling that hangs: one that does not even say `_HERE` in this time.
_PATIENCE_S = 1.0
#: What one that is here may take to answer: longer than it waits for storage itself.
_LONGEST_S = LONGEST_ANSWER_MS / 1000 + 0.25
#: After which whoever asks a process for all of them has been answered.
LONGEST_PROBE_S = _PATIENCE_S + _LONGEST_S
#: The pauses after which one that hung up is asked again: the kernel closes the sockets of the killed one by one.
_DYING_S = (0.01, 0.05, 0.25)
_PROBLEMS, _NUMBERS, _LIFE, _HERE = b"problems\n", b"numbers\n", b"life\n", b"here\n"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps a process from working, and whether it is one of those that do the work.

    One that is about to begin or to end has not `joined`: the others do its work.
    """

    problems: Sequence[str]
    joined: bool


class _Missing(enum.Enum):
    """Why there is no answer."""

    #: No process listens: it died or ended, or is about to start. No connection gets to it either.
    AWAY = "is away"
    MUTE = "does not answer"
    SLOW = "does not say whether it works"


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
        self, *, standing: Callable[[], Awaitable[Standing]], numbers: Callable[[], Awaitable[bytes]]
    ) -> None:
        """Answer the siblings from now on: `standing` and `numbers` are this process's own."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                async with asyncio.timeout(2 * (_PATIENCE_S + _LONGEST_S)):  # whoever asks gives up sooner
                    question = await reader.readline()
                    writer.write(_HERE)
                    if question == _LIFE:
                        text = b""
                    elif question == _PROBLEMS:
                        text = msgspec.json.encode(await standing())
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

    async def mute(self) -> Sequence[str]:
        """Which siblings take connections and do not answer. Neither theirs nor this one's storage is asked."""
        answers = await asyncio.gather(*(self._ask(other, _LIFE) for other in self._others))
        return [
            f"worker {number} {answer.value}"
            for number, answer in zip(self._others, answers, strict=True)
            if answer is _Missing.MUTE or answer is _Missing.SLOW
        ]

    async def problems(self, standing: Awaitable[Standing]) -> Sequence[str]:
        """What keeps this process, whose `standing` is given, and its siblings from working.

        What all of them say is said once. Who is away, or has not joined, is left out: no connection gets to the
        one, and the others do the work of both. But somebody must do it.
        """
        own, answers = await asyncio.gather(standing, self._standings())
        helped = any(isinstance(answer, Standing) and answer.joined for answer in answers)
        common = own.problems if own.joined or not helped else ()
        problems = list(common)
        for number, answer in zip(self._others, answers, strict=True):
            if isinstance(answer, Standing):
                new = [text for text in answer.problems if text not in common]
                problems += [f"worker {number}: {text}" for text in new if answer.joined]
            # What makes this process fail makes its siblings slow, and is no fault of theirs.
            elif answer is _Missing.MUTE or (answer is _Missing.SLOW and not common):
                problems.append(f"worker {number} {answer.value}")
        return problems

    async def _standings(self) -> Sequence[Standing | _Missing]:
        return await asyncio.gather(*(self._standing_of(other) for other in self._others))

    async def _standing_of(self, other: int) -> Standing | _Missing:
        answer = await self._ask(other, _PROBLEMS)
        if isinstance(answer, _Missing):
            return answer
        try:
            return msgspec.json.decode(answer, type=Standing)
        except msgspec.DecodeError:
            return _Missing.MUTE

    async def metrics(self, own: bytes) -> bytes:
        """The numbers of all processes as one text; `own` are this one's, and what is shared is taken from it."""
        answers = await asyncio.gather(*(self._ask(other, _NUMBERS) for other in self._others))
        texts = [await self._told(own)]
        for other, answer in zip(self._others, answers, strict=True):
            if isinstance(answer, _Missing):
                answer = await asyncio.to_thread(_read, self._kept(other))
            texts.append(answer)
        texts.append(await asyncio.to_thread(_read, _kept_by_parent(self._directory)))
        texts = [text for text in texts if text]
        return await asyncio.to_thread(merged, texts, summed=self._summed)

    async def _told(self, own: bytes) -> bytes:
        """What this process says of itself, with what those counted that had its number before it."""
        async with self._keeping:
            return await asyncio.to_thread(self._keep, own)

    def _keep(self, own: bytes) -> bytes:
        text = merged([own, self._before], summed=self._summed) if self._before else own
        _write(self._kept(self._number), growing(text))
        return text

    async def _ask(self, other: int, question: bytes) -> bytes | _Missing:
        """A sibling's answer. One that hangs up is asked again: it may be dying just now, and then it is away."""
        for pause_s in _DYING_S:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError, EOFError):
                return await self._ask_once(other, question)
            await asyncio.sleep(pause_s)
        return _Missing.MUTE

    async def _ask_once(self, other: int, question: bytes) -> bytes | _Missing:
        missing = _Missing.MUTE
        try:
            async with asyncio.timeout(_PATIENCE_S) as patience:
                reader, writer = await asyncio.open_unix_connection(self._socket(other))
                try:
                    writer.write(question)
                    if await reader.readexactly(len(_HERE)) != _HERE:
                        return missing
                    missing = _Missing.SLOW
                    patience.reschedule(asyncio.get_running_loop().time() + _LONGEST_S)
                    return await reader.readexactly(int(await reader.readline()))
                finally:
                    writer.close()
        except (FileNotFoundError, ConnectionRefusedError):
            return _Missing.AWAY
        except (ConnectionResetError, BrokenPipeError):
            raise
        except TimeoutError:
            return missing
        except (OSError, ValueError):
            return _Missing.MUTE

    def _socket(self, number: int) -> str:
        return str(self._directory / f"{number}.sock")

    def _kept(self, number: int) -> Path:
        return self._directory / f"{number}.numbers"


def tell_of_parent(directory: Path, text: bytes) -> None:
    """Let every process of this directory add the parent's own counters, a Prometheus text, to what it tells."""
    _write(_kept_by_parent(directory), text)


def _kept_by_parent(directory: Path) -> Path:
    return directory / "parent.numbers"


def _write(path: Path, text: bytes) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(text)
    os.replace(fresh, path)


def _read(path: Path) -> bytes:
    """What was kept there, nothing when nothing was."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""

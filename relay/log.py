"""One wide line per unit of work, as JSON (or for people, in dev), written off the event loop.

Deliveries never wait for whoever reads the log: lines are gathered and written by a thread, and when the reader
is slower than the relay, the oldest gathered lines are dropped and counted. Lines carry ids, never tokens,
signing keys, bodies or header values.
"""

import json
import logging
import sys
import threading
import traceback
from collections import deque
from typing import IO, Protocol

import orjson

_GATHER_SECONDS = 0.05


class Log(Protocol):
    """Where lines go. `event` is `noun.verb`; fields are ids, counts, durations and sentences."""

    def info(self, event: str, /, **fields: object) -> None: ...

    def warning(self, event: str, /, **fields: object) -> None: ...

    def error(self, event: str, /, *, exc: BaseException | None = None, **fields: object) -> None: ...


class StreamLog:
    """Writes to `stream` from a thread of its own; at most `capacity` lines wait.

    `now` gives Unix ms. `human` writes `time event key=value ...` instead of JSON.
    """

    def __init__(
        self, stream: IO[str] | None = None, *, now: "NowMs", human: bool = False, capacity: int = 20_000
    ) -> None:
        self._stream = stream or sys.stderr
        self._now = now
        self._spell = _human_line if human else _json_line
        self._lines: deque[tuple[int, str, str, dict[str, object]]] = deque(maxlen=capacity)
        self._written = 0
        self._accepted = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def info(self, event: str, /, **fields: object) -> None:
        self._put("info", event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        self._put("warning", event, fields)

    def error(self, event: str, /, *, exc: BaseException | None = None, **fields: object) -> None:
        if exc is not None:
            fields["error"] = f"{type(exc).__name__}: {exc}"
            fields["trace"] = "".join(traceback.format_exception(exc))
        self._put("error", event, fields)

    def close(self, seconds: float = 1.0) -> None:
        """Write what was gathered, but wait no longer than `seconds` for a stuck reader."""
        self._closing.set()
        self._thread.join(seconds)

    def _put(self, level: str, event: str, fields: dict[str, object]) -> None:
        self._accepted += 1
        self._lines.append((self._now(), level, event, fields))

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(_GATHER_SECONDS)
            self._write_gathered()

    def _write_gathered(self) -> None:
        batch = []
        while self._lines:
            batch.append(self._spell(*self._lines.popleft()))
        dropped = self._accepted - self._written - len(batch) - len(self._lines)
        self._written += len(batch)
        if dropped > 0:
            self._written += dropped
            batch.append(self._spell(self._now(), "warning", "log.dropped", {"lines": dropped}))
        if batch:
            try:
                self._stream.write("".join(batch))
                self._stream.flush()
            except (OSError, ValueError):
                return  # nobody reads the log any more; deliveries go on


class BridgeHandler(logging.Handler):
    """Brings what libraries and storage say through the standard library's logging into the same stream."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        exc = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR:
            self._log.error("library.error", exc=exc, source=record.name, text=record.getMessage())
        else:
            self._log.warning("library.warning", source=record.name, text=record.getMessage())


class NowMs(Protocol):
    def __call__(self) -> int: ...


def _json_line(at: int, level: str, event: str, fields: dict[str, object]) -> str:
    line = orjson.dumps({"at": at, "level": level, "event": event, **fields}, default=str)
    return line.decode() + "\n"


def _human_line(at: int, level: str, event: str, fields: dict[str, object]) -> str:
    seconds, ms = divmod(at // 1, 1000)
    clock = f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}Z"
    trace = str(fields.pop("trace", "")).rstrip()
    words = " ".join(f"{name}={_word(value)}" for name, value in fields.items() if value is not None)
    mark = "" if level == "info" else f"{level.upper()} "
    return f"{clock} {mark}{event} {words}\n" + (trace + "\n" if trace else "")


def _word(value: object) -> str:
    """In quotes where it could be taken for more than one, or could not be told from the next field."""
    text = str(value)
    if text.isprintable():
        return text if text and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)
    return json.dumps(text)

"""Fills and counts a database through the storage package, while no relay is running on it."""

import time
from collections.abc import Sequence
from pathlib import Path

from relay.clock import SystemClock
from relay.domain.message import Message
from storage.protocol import Storage
from storage.sqlite import open_sqlite
from tests.bench.load import body
from tests.builders import a_message, a_message_id

#: Messages in one transaction while filling.
_BATCH = 1000
_CONTENT_TYPE = (("Content-Type", "text/plain"),)


def now() -> int:
    """Unix ms."""
    return SystemClock().now()


def messages(
    count: int, *, first: int, url: str, not_before: int, body_bytes: int | None = None
) -> list[Message]:
    """Messages whose bodies begin with their numbers, 1 KB each or as many bytes as given."""
    at = now()
    return [
        a_message(
            id=a_message_id(at),
            created_at=at,
            not_before=not_before,
            url=url,
            headers=_CONTENT_TYPE,
            body=body(number)[:body_bytes],
        )
        for number in range(first, first + count)
    ]


async def fill(
    storage: Storage, count: int, *, url: str, not_before: Sequence[int], body_bytes: int | None = None
) -> float:
    """Store messages 0 to `count - 1`, due at the instants of `not_before` in turn; returns the seconds it took."""
    began = time.perf_counter()
    for number, first in enumerate(range(0, count, _BATCH)):
        batch = messages(
            min(_BATCH, count - first),
            first=first,
            url=url,
            not_before=not_before[number % len(not_before)],
            body_bytes=body_bytes,
        )
        await storage.publish(batch, now=now())
    return time.perf_counter() - began


async def alive(database: Path) -> int:
    """How many messages the database holds that are not finished."""
    storage = await open_sqlite(f"sqlite:///{database}")
    try:
        live = (await storage.stats()).live
        assert live is not None
        return live
    finally:
        await storage.close()

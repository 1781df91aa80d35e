"""Questions that several tests ask a relay through the SDK."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from qstash import AsyncQStash
from qstash.dlq import DlqMessage
from qstash.errors import QStashError
from qstash.log import Log, LogState
from qstash.message import PublishResponse

T = TypeVar("T")

_PATIENCE_S = 15


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def eventually(ask: Callable[[], Awaitable[T]], holds: Callable[[T], object]) -> T:
    """The first answer that is as it should be; fails with the last one when none is in time."""
    deadline = time.monotonic() + _PATIENCE_S
    while not holds(answer := await ask()):
        assert time.monotonic() < deadline, f"still {answer!r}"
        await asyncio.sleep(0.02)
    return answer


async def publish(client: AsyncQStash, **arguments: Any) -> str:
    """The id of a message that was accepted and is no duplicate."""
    answer = await client.message.publish(**arguments)
    assert isinstance(answer, PublishResponse)
    assert not answer.deduplicated
    return answer.message_id


async def history(client: AsyncQStash, message_id: str) -> list[Log]:
    """What happened to the message so far, earliest first."""
    return (await client.log.list(filter={"message_id": message_id})).logs[::-1]


async def history_until(client: AsyncQStash, message_id: str, state: LogState) -> list[Log]:
    """What happened to the message, once it has come to rest in this state."""
    return await eventually(
        lambda: history(client, message_id), lambda rows: rows and rows[-1].state is state
    )


def states(rows: list[Log]) -> list[str]:
    return [row.state.value for row in rows]


async def dead_letter(client: AsyncQStash, message_id: str) -> DlqMessage:
    """The one dead letter of the message, as soon as it is there."""
    page = await eventually(
        lambda: client.dlq.list(filter={"message_id": message_id}), lambda page: page.messages
    )
    (entry,) = page.messages
    return entry


@contextmanager
def refused(status: int, *words: str) -> Iterator[None]:
    """The SDK raises an error with this status, whose text has all these words in it."""
    with pytest.raises(QStashError, match=rf"status: {status}, ") as raised:
        yield
    for word in words:
        assert word in str(raised.value)

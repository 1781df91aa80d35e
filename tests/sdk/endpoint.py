"""A real HTTP server to deliver to, which verifies every delivery with the SDK's own receiver."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from aiohttp import web
from multidict import CIMultiDictProxy
from qstash import Receiver
from qstash.errors import SignatureError

_PATIENCE_S = 15


class Delivery(NamedTuple):
    """A request as it arrived; `target` is not decoded, `at` is Unix ms."""

    method: str
    target: str
    headers: CIMultiDictProxy[str]
    body: bytes
    at: int


class Answer(NamedTuple):
    """What the endpoint says, once `after` is set if it is given."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    after: asyncio.Event | None = None


class RawText(str):
    """A body for the SDK's receiver, which asks its `str` for the bytes it stands for: these may be any."""

    __slots__ = ("raw",)
    raw: bytes

    @classmethod
    def of(cls, raw: bytes) -> "RawText":
        text = cls(raw.decode(errors="replace"))
        text.raw = raw
        return text

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return self.raw


class Endpoint:
    """Answers 200 unless it is told otherwise, and keeps what it was sent."""

    def __init__(self, receiver: Receiver) -> None:
        self.deliveries: list[Delivery] = []
        self.problems: list[str] = []
        self.port = 0
        #: What its messages are published to, where that is not what a request to it looks like.
        self.published_as: str | None = None
        self._receiver = receiver
        self._answers = [Answer()]
        self._arrived = asyncio.Condition()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/hook"

    def answers(self, *answers: Answer) -> None:
        """Say these one after the other, and the last one from then on."""
        self._answers = list(answers)

    async def delivery(self, number: int = 0, *, patience_s: float = _PATIENCE_S) -> Delivery:
        """The delivery of this number, counted from 0, as soon as it is there."""
        async with asyncio.timeout(patience_s), self._arrived:
            await self._arrived.wait_for(lambda: len(self.deliveries) > number)
        return self.deliveries[number]

    async def handle(self, request: web.BaseRequest) -> web.Response:
        at = time.time_ns() // 1_000_000
        body = await request.content.read()
        delivery = Delivery(request.method, request.raw_path, request.headers, body, at)
        self._verify(delivery)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        async with self._arrived:
            self.deliveries.append(delivery)
            self._arrived.notify_all()
        if answer.after is not None:
            await answer.after.wait()
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    def _verify(self, delivery: Delivery) -> None:
        try:
            self._receiver.verify(
                signature=delivery.headers["Upstash-Signature"],
                body=RawText.of(delivery.body),
                url=self.published_as or self.origin + delivery.target,
            )
        except (SignatureError, KeyError) as problem:
            self.problems.append(f"{delivery.method} {delivery.target}: {problem!r}")


@asynccontextmanager
async def an_endpoint(receiver: Receiver) -> AsyncIterator[Endpoint]:
    """An endpoint on a port of its own; a delivery that the receiver refuses fails the test at its end."""
    endpoint = Endpoint(receiver)
    runner = web.ServerRunner(web.Server(endpoint.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint.port = runner.addresses[0][1]
    try:
        yield endpoint
    finally:
        await runner.cleanup()
    assert endpoint.problems == [], endpoint.problems

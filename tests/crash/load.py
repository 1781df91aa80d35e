"""Publishers outside the relay, several at once, that remember what they were told."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence, Set
from itertools import count
from typing import Any, Protocol

import aiohttp

from tests.crash.ledger import ASKED, ASKED_BY_OTHERS, Kind, Ledger
from tests.crash.ledger import body_of as body
from tests.crash.node import TOKEN

#: One turn of every publisher through the kinds.
MIXED = (
    Kind.PLAIN,
    Kind.ONCE,
    Kind.FLAKY,
    Kind.PLAIN,
    Kind.DEAD,
    Kind.ONCE,
    Kind.DELAYED,
    Kind.PLAIN,
)
_DELAYS = {Kind.DELAYED: "1s", Kind.DISTANT: "365d"}
_PUBLISHERS = 16
PAUSE_S = 0.01
#: What three nodes and a server on the same few cores have time for besides keeping their leases.
LONG_PAUSE_S = 0.15
_TURN_S = 0.05
_PATIENCE_S = 20
_BATCH = 3


class Relay(Protocol):
    """Where requests go: a node, or several."""

    @property
    def url(self) -> str: ...

    async def answering(self) -> None: ...


class Client:
    """A publisher's side of the API."""

    def __init__(
        self,
        relay: Relay,
        ledger: Ledger,
        endpoint_url: str,
        session: aiohttp.ClientSession,
        *,
        numbers: Iterator[int] | None = None,
    ) -> None:
        self._relay = relay
        self._ledger = ledger
        self._endpoint_url = endpoint_url
        self._session = session
        self._numbers = numbers or count()

    def at(self, relay: Relay) -> "Client":
        """The same publisher, speaking to this one only."""
        return Client(relay, self._ledger, self._endpoint_url, self._session, numbers=self._numbers)

    async def publish(self, kind: Kind = Kind.PLAIN, *, padding: int = 0) -> int | None:
        """Publish a new message once; the status, None without an answer. `padding` bytes are added to it."""
        return await self._publish(next(self._numbers), kind, padding)

    async def publish_until_accepted(self, kind: Kind) -> None:
        """As a careful publisher does: under a deduplication id, again until the answer is 2xx."""
        number = next(self._numbers)
        while (await self._publish(number, kind) or 503) == 503:
            await asyncio.sleep(_TURN_S)
            await self._relay.answering()

    async def publish_batch(self) -> int | None:
        numbers = [next(self._numbers) for _ in range(_BATCH)]
        items = [
            {
                "destination": self._endpoint_url,
                "headers": _headers(number, Kind.PLAIN),
                "body": body(number, Kind.PLAIN).decode(),
            }
            for number in numbers
        ]
        answer = await self.ask("POST", "/v2/batch", json=items)
        self._enter(numbers, Kind.PLAIN, answer)
        return None if answer is None else answer[0]

    async def ask(self, method: str, path: str, **details: Any) -> tuple[int, Mapping[str, str], Any] | None:
        """Status, headers and JSON of an answer; None when there was none."""
        try:
            async with self._session.request(method, self._relay.url + path, **details) as response:
                return response.status, response.headers, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return None

    async def status(self, path: str) -> int | None:
        """The status of a GET."""
        answer = await self.ask("GET", path)
        return None if answer is None else answer[0]

    async def metric(self, name: str) -> float:
        """One number of /metrics, its labels included in the name."""
        async with self._session.get(self._relay.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        (value,) = (line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} "))
        return float(value)

    async def dead_letters(self) -> Mapping[str, str]:
        """All of them: message id by DLQ id."""
        return {
            entry["dlqId"]: entry["messageId"]
            async for entry in self._listed("/v2/dlq?count=100", "messages")
        }

    async def delivered(self) -> Set[str]:
        """The message ids of which the log says so."""
        return {
            entry["messageId"] async for entry in self._listed("/v2/logs?state=DELIVERED&count=1000", "logs")
        }

    async def _listed(self, path: str, name: str) -> AsyncIterator[Mapping[str, str]]:
        """Every page."""
        cursor: str | None = ""
        while cursor is not None:
            answer = await self.ask("GET", path + (cursor and f"&cursor={cursor}"))
            assert answer is not None
            assert answer[0] == 200, answer
            for entry in answer[2][name]:
                yield entry
            cursor = answer[2].get("cursor")

    async def _publish(self, number: int, kind: Kind, padding: int = 0) -> int | None:
        answer = await self.ask(
            "POST",
            f"/v2/publish/{self._endpoint_url}",
            data=body(number, kind) + b" " * padding,
            headers=_headers(number, kind),
        )
        self._enter([number], kind, answer)
        return None if answer is None else answer[0]

    def _enter(self, numbers: Sequence[int], kind: Kind, answer: tuple[int, Any, Any] | None) -> None:
        if answer is None:
            self._ledger.unknown.update(numbers)
            return
        status, headers, said = answer
        if status == 503:
            assert int(headers["Retry-After"]) > 0
            self._ledger.refused.update(numbers)
            return
        assert status in (200, 202), f"{status}: {said}"
        for number, receipt in zip(numbers, said if isinstance(said, list) else [said], strict=True):
            self._ledger.promise(number, kind, receipt["messageId"])


def a_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {TOKEN}"}, timeout=aiohttp.ClientTimeout(total=_PATIENCE_S)
    )


class Load:
    """Many publishers at work from `begin` to `end`, through every death of the relay."""

    def __init__(
        self, client: Client, relay: Relay, kinds: Sequence[Kind] = MIXED, *, pause_s: float = PAUSE_S
    ) -> None:
        self._client = client
        self._relay = relay
        self._kinds = kinds
        self._pause_s = pause_s
        self._ending = asyncio.Event()
        self._publishers: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._ending.clear()
        self._publishers = [asyncio.create_task(self._publish(number)) for number in range(_PUBLISHERS)]

    async def end(self) -> None:
        """Everyone finishes the message in hand; repetitions go on until they are answered."""
        self._ending.set()
        await asyncio.gather(*self._publishers)

    async def _publish(self, offset: int) -> None:
        for turn in count(offset):
            if self._ending.is_set():
                return
            await self._relay.answering()
            kind = self._kinds[turn % len(self._kinds)]
            if kind is Kind.ONCE:
                await self._client.publish_until_accepted(kind)
            elif kind is Kind.PLAIN and turn % 5 == 0:
                await self._client.publish_batch()
            else:
                await self._client.publish(kind)
            await asyncio.sleep(self._pause_s)


def _headers(number: int, kind: Kind) -> dict[str, str]:
    headers = {"Upstash-Retries": str(ASKED.get(kind, ASKED_BY_OTHERS)), "Upstash-Retry-Delay": "500"}
    if kind in (Kind.ONCE, Kind.POISON):
        headers["Upstash-Deduplication-Id"] = f"once-{number}"
    if kind is Kind.HUNG:
        headers["Upstash-Timeout"] = "2s"
    if kind in _DELAYS:
        headers["Upstash-Delay"] = _DELAYS[kind]
    return headers

"""The official clients, the synchronous one under the face of the asynchronous one."""

import asyncio
from functools import partial
from typing import Any, NamedTuple, cast

from qstash import AsyncQStash, QStash, Receiver

KINDS = ("sync", "async")


class Identity(NamedTuple):
    """One of the development identities that the QStash documentation publishes."""

    token: str
    current_key: str
    next_key: str

    @property
    def receiver(self) -> Receiver:
        return Receiver(self.current_key, self.next_key)


DEFAULT_USER = Identity(
    "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0=",
    "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
    "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
)
TEST_USER_1 = Identity(
    "eyJVc2VySUQiOiJ0ZXN0VXNlcjEiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
    "sig_7GVPjvuwsfqF65iC8fSrs1dfYruM",
    "sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua",
)
TEST_USER_2 = Identity(
    "eyJVc2VySUQiOiJ0ZXN0VXNlcjIiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
    "sig_6jWGaWRxHsw4vMSPJprXadyvrybF",
    "sig_7qHbvhmahe5GwfePDiS5Lg3pi6Qx",
)
TEST_USER_3 = Identity(
    "eyJVc2VySUQiOiJ0ZXN0VXNlcjMiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9",
    "sig_5T8FcSsynBjn9mMLBsXhpacRovJf",
    "sig_7GFR4YaDshFcqsxWRZpRB161jguD",
)


class _Threaded:
    """Each call of the synchronous client in a thread, to be awaited."""

    def __init__(self, part: object) -> None:
        self._part = part

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        return partial(asyncio.to_thread, found) if callable(found) else _Threaded(found)


class Clients:
    """Makes each client once: building one reads every root certificate of the machine."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._sync: dict[str, QStash] = {}
        self._async: dict[str, AsyncQStash] = {}

    def of(self, kind: str, token: str) -> AsyncQStash:
        if kind == "async":
            if token not in self._async:
                self._async[token] = AsyncQStash(token, base_url=self._url)
            return self._async[token]
        if token not in self._sync:
            self._sync[token] = QStash(token, base_url=self._url)
        return cast(AsyncQStash, _Threaded(self._sync[token]))

    async def close(self) -> None:
        """The SDK has no way to close a client; its sockets would be reported as leaked."""
        for client in self._sync.values():
            client.http._client.close()
        for other in self._async.values():
            await other.http._client.aclose()

"""From a host name to addresses, so that dead names never hold up living ones.

`getaddrinfo` blocks its thread, for half a minute when a name server is silent. Hence threads of our own (the
default pool has so few that twenty dead names stop everybody), at most one thread for a name however many
deliveries wait for it, a bounded queue, and a memory of the last good answer: a name that has been resolved before
goes on with that answer when the new one is late.

The threads are daemons: one that is stuck in a lookup does not keep the process from exiting.
"""

import asyncio
import contextlib
import queue
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from aiohttp.abc import AbstractResolver, ResolveResult

#: A blocking lookup: addresses as text, in the order to try; raises `OSError` (`socket.gaierror`).
Lookup = Callable[[str], Sequence[str]]


def system_lookup(host: str) -> Sequence[str]:
    """What the machine's own resolver says."""
    # Without a network glibc leaves even loopback out of an answer that is limited to configured families.
    local = host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")
    infos = socket.getaddrinfo(
        # Bytes, because text goes through a codec that fails with exceptions of its own.
        host.encode(),
        None,
        type=socket.SOCK_STREAM,
        flags=0 if local else socket.AI_ADDRCONFIG,
    )
    return [str(address[0]) for *_, address in infos]


class Resolver(AbstractResolver):
    """Looks names up in at most `threads` threads, with at most `max_waiting` names waiting for one.

    A name whose last good answer is younger than `stale_ms` waits no longer than `patience_ms` for the next;
    the last answers of `max_known` names are remembered.
    """

    def __init__(
        self,
        *,
        lookup: Lookup = system_lookup,
        threads: int = 64,
        max_waiting: int = 1_000,
        patience_ms: int = 2_000,
        stale_ms: int = 3_600_000,
        max_known: int = 10_000,
    ) -> None:
        self._lookup = lookup
        self._threads = threads
        self._most = threads + max_waiting
        self._patience_s = patience_ms / 1000
        self._stale_s = stale_ms / 1000
        self._max_known = max_known
        self._running: dict[str, asyncio.Future[Sequence[str]]] = {}
        self._known: OrderedDict[str, tuple[float, Sequence[str]]] = OrderedDict()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`; raises `OSError` when there are none."""
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._addresses(host)
        ]

    async def close(self) -> None:
        """Let the threads end as soon as they are done; nobody waits for them."""
        for _ in range(self._started):
            self._jobs.put(None)

    async def _addresses(self, host: str) -> Sequence[str]:
        answered_at, last = self._known.get(host, (0.0, None))
        if last is not None and asyncio.get_running_loop().time() - answered_at > self._stale_s:
            last = None
        try:
            answer = self._ask(host)
            if last is None:
                return await asyncio.shield(answer)
            async with asyncio.timeout(self._patience_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            if last is None:
                raise
            return last
        except socket.gaierror as failure:
            if last is None or failure.errno != socket.EAI_AGAIN:
                raise
            return last

    def _ask(self, host: str) -> asyncio.Future[Sequence[str]]:
        answer = self._running.get(host)
        if answer is not None:
            return answer
        if len(self._running) >= self._most:
            raise socket.gaierror(socket.EAI_AGAIN, "too many names are waiting to be looked up")
        loop = asyncio.get_running_loop()
        answer = self._running[host] = loop.create_future()
        answer.add_done_callback(lambda done: self._answered(host, done, loop.time()))
        self._jobs.put(_Job(host, answer, loop))
        if self._started < min(len(self._running), self._threads):
            self._started += 1
            threading.Thread(target=self._work, name=f"resolver-{self._started}", daemon=True).start()
        return answer

    def _answered(self, host: str, answer: asyncio.Future[Sequence[str]], now: float) -> None:
        del self._running[host]
        failure = answer.exception()
        if failure is None:
            self._known[host] = (now, answer.result())
            self._known.move_to_end(host)
            if len(self._known) > self._max_known:
                self._known.popitem(last=False)
        elif getattr(failure, "errno", None) != socket.EAI_AGAIN:
            # The name is gone, not just its server: what it used to mean counts no more.
            self._known.pop(host, None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run(self._lookup)


class _Job:
    """One lookup, run in a thread, answered on the loop."""

    def __init__(
        self, host: str, answer: asyncio.Future[Sequence[str]], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._host = host
        self._answer = answer
        self._loop = loop

    def run(self, lookup: Lookup) -> None:
        addresses: Sequence[str] = ()
        failure: Exception | None = None
        try:
            addresses = lookup(self._host)
        except Exception as problem:
            failure = problem
        # The loop may be gone by the time a dead name server has been given up.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._reply, addresses, failure)

    def _reply(self, addresses: Sequence[str], failure: Exception | None) -> None:
        if failure is not None:
            self._answer.set_exception(failure)
        elif addresses:
            self._answer.set_result(addresses)
        else:
            self._answer.set_exception(socket.gaierror(socket.EAI_NONAME, "the name has no address"))

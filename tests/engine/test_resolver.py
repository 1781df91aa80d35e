"""Names that nobody answers for do not hold up the others."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from relay.engine.resolver import Lookup, Resolver, system_lookup
from tests.chaos_server import ChaosServer, answering
from tests.engine.sending import PATIENT_MS, SHORT_MS, a_request, a_sender


class Names:
    """A name server in a test's hands: unknown names hang until `release`."""

    def __init__(self, **known: str) -> None:
        self.known = {f"{name}.example": address for name, address in known.items()}
        self.asked: list[str] = []
        self.failure: OSError | None = None
        self.hanging = threading.Semaphore(0)
        self._released = threading.Event()

    def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if self.failure is not None:
            raise self.failure
        if host in self.known:
            return [self.known[host]]
        self.hanging.release()
        self._released.wait()
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def release(self) -> None:
        self._released.set()


@asynccontextmanager
async def a_resolver(names: Lookup, **settings: int) -> AsyncIterator[Resolver]:
    resolver = Resolver(lookup=names, **settings)
    try:
        yield resolver
    finally:
        await resolver.close()
        if isinstance(names, Names):
            names.release()


async def addresses(resolver: Resolver, host: str) -> list[str]:
    return [found["host"] for found in await resolver.resolve(host, 80)]


async def until_hanging(names: Names, count: int) -> None:
    """Wait until `count` lookups have a thread each and no answer."""
    for _ in range(count):
        assert await asyncio.to_thread(names.hanging.acquire, timeout=10)


async def test_a_name_becomes_its_addresses_in_order() -> None:
    async with a_resolver(lambda host: ["2001:db8::1", "192.0.2.1"]) as resolver:
        found = await resolver.resolve("a.example", 443)
    assert [(each["host"], each["port"], each["family"]) for each in found] == [
        ("2001:db8::1", 443, socket.AF_INET6),
        ("192.0.2.1", 443, socket.AF_INET),
    ]


async def test_dead_names_do_not_delay_a_living_one() -> None:
    names = Names(alive="192.0.2.1")
    async with a_resolver(names, threads=21) as resolver:
        dead = [asyncio.ensure_future(resolver.resolve(f"dead{n}.example")) for n in range(20)]
        await until_hanging(names, 20)
        assert await asyncio.wait_for(addresses(resolver, "alive.example"), 10) == ["192.0.2.1"]
        assert not any(lookup.done() for lookup in dead)
        names.release()
        assert all(
            isinstance(end, socket.gaierror) for end in await asyncio.gather(*dead, return_exceptions=True)
        )


async def test_one_name_has_one_thread_however_many_wait_for_it() -> None:
    names = Names()
    async with a_resolver(names) as resolver:
        waiting = [asyncio.ensure_future(resolver.resolve("dead.example")) for _ in range(50)]
        await until_hanging(names, 1)
        names.release()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert names.asked == ["dead.example"]


async def test_a_waiter_that_leaves_takes_nothing_from_the_others() -> None:
    names = Names()
    async with a_resolver(names) as resolver:
        leaving, staying = (asyncio.ensure_future(resolver.resolve("dead.example")) for _ in range(2))
        await until_hanging(names, 1)
        leaving.cancel()
        names.release()
        with pytest.raises(socket.gaierror, match="not known"):
            await staying
    assert leaving.cancelled()


async def test_beyond_the_bound_names_are_refused_instead_of_queued() -> None:
    names = Names()
    async with a_resolver(names, threads=1, max_waiting=1) as resolver:
        dead = [asyncio.ensure_future(resolver.resolve(f"dead{n}.example")) for n in range(2)]
        await until_hanging(names, 1)
        with pytest.raises(socket.gaierror, match="too many names"):
            await resolver.resolve("one-more.example")
        names.release()
        await asyncio.gather(*dead, return_exceptions=True)
        names.known["one-more.example"] = "192.0.2.1"
        assert await addresses(resolver, "one-more.example") == ["192.0.2.1"]


async def test_a_name_that_was_known_goes_on_with_its_addresses_while_dns_is_slow() -> None:
    names = Names(known="192.0.2.1")
    async with a_resolver(names, patience_ms=10) as resolver:
        assert await addresses(resolver, "known.example") == ["192.0.2.1"]
        del names.known["known.example"]
        assert await addresses(resolver, "known.example") == ["192.0.2.1"]
        assert await addresses(resolver, "known.example") == ["192.0.2.1"]
        assert names.asked == ["known.example"] * 2
        names.release()


async def test_a_name_that_was_known_goes_on_with_its_addresses_while_dns_fails() -> None:
    names = Names(known="192.0.2.1")
    async with a_resolver(names) as resolver:
        await addresses(resolver, "known.example")
        names.failure = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        assert await addresses(resolver, "known.example") == ["192.0.2.1"]


async def test_an_answer_that_comes_late_counts_from_then_on() -> None:
    names = Names(known="192.0.2.1")
    arrived = threading.Event()

    def lookup(host: str) -> Sequence[str]:
        if arrived.is_set() or not names.asked:
            return names(host)
        names.asked.append(host)
        arrived.wait()
        return ["192.0.2.2"]

    async with a_resolver(lookup, patience_ms=10) as resolver:
        assert await addresses(resolver, "known.example") == ["192.0.2.1"]
        assert await addresses(resolver, "known.example") == ["192.0.2.1"]
        arrived.set()
        names.known["known.example"] = "192.0.2.2"
        while await addresses(resolver, "known.example") != ["192.0.2.2"]:
            pass


async def test_a_name_that_is_gone_is_forgotten() -> None:
    names = Names(known="192.0.2.1")
    async with a_resolver(names) as resolver:
        await addresses(resolver, "known.example")
        for code in (socket.EAI_NONAME, socket.EAI_AGAIN):
            names.failure = socket.gaierror(code, "no")
            with pytest.raises(socket.gaierror):
                await addresses(resolver, "known.example")


async def test_an_address_too_old_is_not_gone_on_with() -> None:
    names = Names(known="192.0.2.1")
    async with a_resolver(names, stale_ms=0) as resolver:
        await addresses(resolver, "known.example")
        names.failure = socket.gaierror(socket.EAI_AGAIN, "no")
        with pytest.raises(socket.gaierror):
            await addresses(resolver, "known.example")


async def test_only_so_many_names_are_remembered() -> None:
    names = Names(one="192.0.2.1", two="192.0.2.2")
    async with a_resolver(names, max_known=1) as resolver:
        await addresses(resolver, "one.example")
        await addresses(resolver, "two.example")
        names.failure = socket.gaierror(socket.EAI_AGAIN, "no")
        assert await addresses(resolver, "two.example") == ["192.0.2.2"]
        with pytest.raises(socket.gaierror):
            await addresses(resolver, "one.example")


async def test_a_lookup_that_times_out_by_itself_is_an_error() -> None:
    names = Names(known="192.0.2.1")
    names.failure = TimeoutError("the name server is silent")
    async with a_resolver(names) as resolver:
        with pytest.raises(TimeoutError, match="silent"):
            await addresses(resolver, "known.example")


async def test_a_name_without_addresses_is_an_error() -> None:
    async with a_resolver(lambda host: []) as resolver:
        with pytest.raises(socket.gaierror, match="no address"):
            await resolver.resolve("a.example")


async def test_loopback_has_a_name_even_without_a_network() -> None:
    assert "127.0.0.1" in system_lookup("localhost") or "::1" in system_lookup("localhost")


async def test_a_dead_name_is_an_attempt_that_says_so() -> None:
    names = Names()
    names.release()
    async with a_sender(resolver=Resolver(lookup=names)) as sender:
        attempt = await sender.send(a_request("http://dead.example/"), timeout_ms=PATIENT_MS)
    assert attempt.status is None
    assert attempt.error == "dead.example could not be resolved: Name or service not known"


async def test_a_name_nobody_answers_for_ends_at_the_connect_timeout_and_delays_nobody() -> None:
    names = Names(alive="127.0.0.1")
    async with (
        a_sender(resolver=Resolver(lookup=names), connect_timeout_ms=SHORT_MS * 2) as sender,
        ChaosServer(answering()) as server,
    ):
        dead = [
            asyncio.ensure_future(sender.send(a_request(f"http://dead{n}.example/"), timeout_ms=PATIENT_MS))
            for n in range(20)
        ]
        await until_hanging(names, 20)
        alive = await sender.send(a_request(f"http://alive.example:{server.port}/"), timeout_ms=PATIENT_MS)
        assert alive.succeeded
        for n, attempt in enumerate(await asyncio.gather(*dead)):
            assert attempt.error == f"no connection to dead{n}.example:80 within {SHORT_MS * 2} ms"
        names.release()


async def test_a_name_that_leads_to_a_refused_address_is_refused() -> None:
    names = Names(inside="10.1.2.3")
    async with a_sender(resolver=Resolver(lookup=names)) as sender:
        attempt = await sender.send(a_request("http://inside.example/"), timeout_ms=PATIENT_MS)
    assert attempt.error == "10.1.2.3 is not a public address; add it to RELAY_ALLOW_NETWORKS to allow it"


async def test_of_several_addresses_only_those_that_may_be_called_are() -> None:
    async with (
        a_sender(
            resolver=Resolver(lookup=lambda host: ["10.1.2.3", "::ffff:10.1.2.3", "127.0.0.1"])
        ) as sender,
        ChaosServer(answering()) as server,
    ):
        attempt = await sender.send(a_request(f"http://both.example:{server.port}/"), timeout_ms=PATIENT_MS)
        assert attempt.succeeded


async def test_an_address_that_changes_between_two_connections_is_judged_each_time() -> None:
    """DNS rebinding: a name that led to a public address leads inside the next time."""
    answers = iter([["127.0.0.1"], ["10.1.2.3"]])
    async with (
        a_sender(resolver=Resolver(lookup=lambda host: next(answers))) as sender,
        ChaosServer(answering()) as server,
    ):
        first = await sender.send(a_request(f"http://name.example:{server.port}/"), timeout_ms=PATIENT_MS)
        second = await sender.send(a_request("http://name.example:1/"), timeout_ms=PATIENT_MS)
    assert first.succeeded
    assert second.error == "10.1.2.3 is not a public address; add it to RELAY_ALLOW_NETWORKS to allow it"

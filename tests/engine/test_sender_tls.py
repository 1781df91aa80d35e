"""TLS is verified: what cannot be proven is not spoken to, and the attempt says why."""

import ssl

import pytest
import trustme

from relay.engine.resolver import Resolver
from tests.chaos_server import Caller, ChaosServer, an_answer, answering, answering_once
from tests.engine.sending import PATIENT_MS, a_request, a_sender

AUTHORITY = trustme.CA()
STRANGER = trustme.CA()


def a_server_context(*names: str, authority: trustme.CA = AUTHORITY) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def trusting() -> ssl.SSLContext:
    """A client's context that knows `AUTHORITY` and nobody else."""
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


async def test_a_trusted_server_is_spoken_to_over_a_connection_that_is_kept(trusting: ssl.SSLContext) -> None:
    tls = a_server_context("127.0.0.1")
    async with a_sender(tls=trusting) as sender, ChaosServer(answering(), tls=tls) as server:
        for _ in range(3):
            attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
            assert attempt.succeeded, attempt
        assert server.connections == 1
    assert [request.body for request in server.requests] == [b"hello"] * 3


async def test_the_name_of_the_url_is_what_the_certificate_must_be_for(trusting: ssl.SSLContext) -> None:
    tls = a_server_context("hooks.example")
    resolver = Resolver(lookup=lambda host: ["127.0.0.1"])
    async with (
        a_sender(tls=trusting, resolver=resolver) as sender,
        ChaosServer(answering(), tls=tls) as server,
    ):
        right = await sender.send(a_request(f"https://hooks.example:{server.port}/"), timeout_ms=PATIENT_MS)
        wrong = await sender.send(a_request(f"https://other.example:{server.port}/"), timeout_ms=PATIENT_MS)
        assert right.succeeded
        assert wrong.status is None
        assert wrong.error is not None
        assert wrong.error.startswith(
            f"the certificate of other.example:{server.port} is not valid: Hostname mismatch"
        )
    assert len(server.requests) == 1


async def test_an_unknown_authority_is_refused(trusting: ssl.SSLContext) -> None:
    tls = a_server_context("127.0.0.1", authority=STRANGER)
    async with a_sender(tls=trusting) as sender, ChaosServer(answering(), tls=tls) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
        assert attempt.status is None
        assert attempt.error == (
            f"the certificate of 127.0.0.1:{server.port} is not valid: unable to get local issuer certificate"
        )
    assert server.requests == []


async def test_without_a_context_the_certificates_of_the_machine_decide() -> None:
    tls = a_server_context("127.0.0.1")
    async with a_sender() as sender, ChaosServer(answering(), tls=tls) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
        assert attempt.error is not None
        assert attempt.error.startswith(f"the certificate of 127.0.0.1:{server.port} is not valid: ")
    assert server.requests == []


async def test_a_server_that_speaks_no_tls_is_a_tls_failure() -> None:
    async def speaking_plainly(caller: Caller) -> None:
        await caller.reader.read(1)
        caller.write(an_answer(400))
        await caller.gone()

    async with a_sender() as sender, ChaosServer(speaking_plainly) as server:
        attempt = await sender.send(a_request(f"https://127.0.0.1:{server.port}/"), timeout_ms=PATIENT_MS)
        assert attempt.status is None
        assert attempt.error == (
            f"127.0.0.1:{server.port} answered without TLS: does its URL begin with http://?"
        )


async def test_a_connection_that_breaks_during_the_handshake_is_no_connection() -> None:
    async def leaving(caller: Caller) -> None:
        await caller.reader.read(1)

    async with a_sender() as sender, ChaosServer(leaving) as server:
        attempt = await sender.send(a_request(f"https://127.0.0.1:{server.port}/"), timeout_ms=PATIENT_MS)
        assert attempt.status is None
        assert (
            attempt.error == f"no connection to 127.0.0.1:{server.port}: it was closed during the handshake"
        )


async def test_a_reset_during_the_handshake_is_no_connection() -> None:
    async def resetting(caller: Caller) -> None:
        await caller.reader.read(1)
        caller.reset()

    async with a_sender() as sender, ChaosServer(resetting) as server:
        attempt = await sender.send(a_request(f"https://127.0.0.1:{server.port}/"), timeout_ms=PATIENT_MS)
        assert attempt.status is None
        assert attempt.error == f"no connection to 127.0.0.1:{server.port}: connection reset by peer"


async def test_a_connection_that_breaks_after_the_handshake_is_a_failed_attempt(
    trusting: ssl.SSLContext,
) -> None:
    tls = a_server_context("127.0.0.1")
    async with a_sender(tls=trusting) as sender, ChaosServer(answering_once(), tls=tls) as server:
        attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
    assert attempt.error == "the connection was closed before any answer"


async def test_posts_at_the_idle_close_succeed_over_tls_too(trusting: ssl.SSLContext) -> None:
    tls = a_server_context("127.0.0.1")
    async with (
        a_sender(tls=trusting) as sender,
        ChaosServer(answering_once(an_answer()), tls=tls) as server,
    ):
        for _ in range(20):
            attempt = await sender.send(a_request(server.url()), timeout_ms=PATIENT_MS)
            assert attempt.succeeded, attempt
    assert len(server.requests) == 20

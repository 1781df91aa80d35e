"""What every test of a sender needs: one that may call loopback, and something to send."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

from relay.clock import Clock, FakeClock
from relay.domain.message import Headers
from relay.engine.egress import Egress
from relay.engine.sender import Sender
from relay.wire.outbound import Outgoing, outgoing
from tests.builders import a_claim, a_message

LOOPBACK = Egress([ip_network("127.0.0.0/8")])
#: Longer than anything takes that is expected to happen.
PATIENT_MS = 30_000
#: Long enough for everything but what never comes.
SHORT_MS = 250


def a_request(
    url: str, *, method: str = "POST", body: bytes = b"hello", headers: Headers = (), retried: int = 0
) -> Outgoing:
    message = a_message(url=url, method=method, body=body, headers=headers)
    return outgoing(
        a_claim(message, retried=retried), (("Upstash-Signature", "signed"),), region="EU-CENTRAL-1"
    )


@asynccontextmanager
async def a_sender(*, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Sender]:
    sender = Sender(egress=LOOPBACK, clock=clock or FakeClock(), **settings)
    try:
        yield sender
    finally:
        await sender.close()

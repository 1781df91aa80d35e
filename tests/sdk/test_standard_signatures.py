"""Deliveries signed by Standard Webhooks, as an endpoint gets them that verifies with the scheme's own library."""

import asyncio
import json
import urllib.request
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import jwt
import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Oracle

from signing import webhook_secret
from signing.adapters.aiohttp import verified
from tests.live import Live
from tests.sdk.clients import DEFAULT_USER

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = b'{"order": 1}'


class Received(NamedTuple):
    headers: Mapping[str, str]
    body: bytes


class Shop:
    """An application that believes genuine requests only; the first attempt at /flaky fails."""

    def __init__(self) -> None:
        self.url = ""
        self.received: asyncio.Queue[Received] = asyncio.Queue()
        self._failed = False

    async def take(self, request: web.Request) -> web.Response:
        await self.received.put(Received(request.headers, await request.read()))
        if request.path == "/flaky" and not self._failed:
            self._failed = True
            return web.Response(status=500)
        return web.Response()

    async def next(self) -> Received:
        async with asyncio.timeout(15):
            return await self.received.get()


@asynccontextmanager
async def a_shop() -> AsyncIterator[Shop]:
    shop = Shop()
    app = web.Application()
    app.router.add_post("/{path}", verified(DEFAULT_USER.current_key, DEFAULT_USER.next_key)(shop.take))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    shop.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield shop
    finally:
        await runner.cleanup()


async def publish(relay: Live, url: str, **headers: str) -> str:
    """The id of a message that was accepted."""
    request = urllib.request.Request(
        f"{relay.url}/v2/publish/{url}",
        data=BODY,
        headers={"Authorization": f"Bearer {relay.token}", "Content-Type": "application/json"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
    )
    answer: dict[str, Any] = json.loads((await asyncio.to_thread(urllib.request.urlopen, request)).read())
    return str(answer["messageId"])


def by_the_library(received: Received) -> bool:
    """Whether the scheme's own library, which knows the current secret alone, believes the request."""
    secret = webhook_secret(DEFAULT_USER.current_key)
    return bool(Oracle(secret).verify(received.body, dict(received.headers)) == json.loads(BODY))


async def test_the_library_of_the_scheme_verifies_a_delivery(relay: Live) -> None:
    async with a_shop() as shop:
        message_id = await publish(relay, f"{shop.url}/hook", Relay_Signature="standard")
        received = await shop.next()
        assert "Upstash-Signature" not in received.headers
        assert received.headers["webhook-id"] == message_id
        assert by_the_library(received)


async def test_a_delivery_signed_by_both_is_verified_by_either(relay: Live) -> None:
    async with a_shop() as shop:
        await publish(relay, f"{shop.url}/hook", Relay_Signature="both")
        received = await shop.next()
        assert by_the_library(received)
        DEFAULT_USER.receiver.verify(
            signature=received.headers["Upstash-Signature"],
            body=received.body.decode(),
            url=f"{shop.url}/hook",
        )


async def test_the_id_is_that_of_the_message_at_every_attempt(relay: Live) -> None:
    async with a_shop() as shop:
        message_id = await publish(
            relay,
            f"{shop.url}/flaky",
            Relay_Signature="standard",
            Upstash_Retry_Delay="1",
            Upstash_Retries="1",
        )
        first, second = await shop.next(), await shop.next()
        assert [received.headers["Upstash-Retried"] for received in (first, second)] == ["0", "1"]
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == message_id
        assert by_the_library(first)
        assert by_the_library(second)


async def test_a_callback_is_signed_as_its_message_is(relay: Live) -> None:
    async with a_shop() as shop:
        callback = f"{shop.url}/callback"
        message_id = await publish(
            relay, f"{shop.url}/hook", Relay_Signature="standard", Upstash_Callback=callback
        )
        await shop.next()
        report = await shop.next()
        assert json.loads(report.body)["sourceMessageId"] == message_id
        assert report.headers["webhook-id"] == report.headers["Upstash-Message-Id"] != message_id
        assert "Upstash-Signature" not in report.headers


async def test_the_published_keys_verify_a_delivery(relay: Live) -> None:
    key_set = json.loads(relay.get("/.well-known/jwks.json")[1])
    key = jwt.PyJWKSet.from_dict(key_set).keys[0].key
    async with a_shop() as shop:
        await publish(relay, f"{shop.url}/hook", Relay_Signature="standard")
        headers, body = await shop.next()
    _, by_ed25519 = headers["webhook-signature"].split()
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    key.verify(b64decode(by_ed25519.removeprefix("v1a,")), content)

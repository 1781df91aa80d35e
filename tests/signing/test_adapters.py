"""Every web framework: genuine requests reach the handler with their very bytes, and nothing else does."""

import json
import time
from typing import Any

import httpx
import pytest
from django.test import override_settings
from fastapi import FastAPI
from pydantic import BaseModel

from signing import generate_key, sign, sign_standard, webhook_secret
from signing.adapters import starlette as for_starlette
from signing.adapters.asgi import Verified
from tests.signing.sites import PATH, SITES, STREAMED, Open, Reply, Site

CURRENT, NEXT = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
URL = "https://public.example/hook?a=1"
BODY = b' {"order" : 1}\r\n\xff\x00'


@pytest.fixture(params=SITES)
def open_site(request: pytest.FixtureRequest) -> Open:
    return SITES[request.param]


def by_qstash(body: bytes = BODY, *, key: str = CURRENT, url: str = URL, age_s: int = 0) -> dict[str, str]:
    token = sign(key=key, url=url, body=body, now_s=int(time.time()) - age_s, jti="jwt_1")
    return {"Upstash-Signature": token, "Content-Type": "application/json"}


def by_standard(body: bytes = BODY, *, key: str = CURRENT, age_s: int = 0) -> dict[str, str]:
    now_s = int(time.time()) - age_s
    return {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(now_s),
        "Webhook-Signature": sign_standard(key=key, id="msg_1", now_s=now_s, body=body),
    }


def error_of(reply: Reply) -> str:
    """The sentence of a refusal, which is JSON with that one member."""
    assert reply.content_type.startswith("application/json")
    members = json.loads(reply.body)
    assert list(members) == ["error"]
    return str(members["error"])


async def is_refused(site: Site, headers: dict[str, str], *, body: bytes = BODY) -> str:
    before = list(site.seen)
    reply = await site.post(body, headers)
    assert (reply.status, site.seen) == (401, before)
    return error_of(reply)


async def passes(site: Site, headers: dict[str, str], *, body: bytes = BODY) -> bool:
    reply = await site.post(body, headers)
    assert (reply.status, reply.body.strip(b'"')) == (200, b"handled"), reply.body
    return site.seen[-1] == body


async def test_a_genuine_request_reaches_the_handler_with_its_very_bytes(open_site: Open) -> None:
    async with open_site(CURRENT, NEXT) as site:
        assert await passes(site, by_qstash())
        assert await passes(site, by_standard())
        assert await passes(site, by_standard() | by_qstash())
        assert await passes(site, by_qstash(b""), body=b"")
        assert len(site.seen) == 4


async def test_a_form_is_a_body_like_any_other(open_site: Open) -> None:
    form = b"name=one&name=%C3%BC&empty="
    async with open_site(CURRENT, NEXT) as site:
        headers = by_qstash(form) | {"Content-Type": "application/x-www-form-urlencoded"}
        assert await passes(site, headers, body=form)


async def test_what_is_not_genuine_is_answered_401_and_not_handled(open_site: Open) -> None:
    async with open_site(CURRENT, NEXT) as site:
        assert "no signature" in await is_refused(site, {})
        assert "neither" in await is_refused(site, by_qstash(key=generate_key()))
        assert "none of the keys" in await is_refused(site, by_standard(key=generate_key()))
        assert "another body" in await is_refused(site, by_qstash(BODY + b" "))
        assert "none of the keys" in await is_refused(site, by_standard(BODY + b" "))
        assert "not a readable" in await is_refused(site, {"Upstash-Signature": "nonsense"})
        assert "expired" in await is_refused(site, by_qstash(age_s=301))
        assert "expired" in await is_refused(site, by_standard(age_s=310))
        assert site.seen == []


async def test_one_rotation_interrupts_nobody_and_two_do(open_site: Open) -> None:
    async with open_site(CURRENT, NEXT) as site:
        assert await passes(site, by_qstash(key=NEXT))
        assert await passes(site, by_standard(key=NEXT))
        assert await is_refused(site, by_qstash(key=generate_key()))


async def test_secrets_of_standard_webhooks_are_keys_too(open_site: Open) -> None:
    async with open_site(webhook_secret(CURRENT), webhook_secret(NEXT)) as site:
        assert await passes(site, by_standard(key=NEXT))
        assert await is_refused(site, by_qstash())


async def is_too_large(site: Site, body: bytes, *, chunked: bool) -> bool:
    reply = await site.post(body, by_qstash(body), chunked=chunked)
    assert (reply.status, site.seen) == (413, [])
    return error_of(reply) == "The body is larger than this endpoint reads."


async def test_a_body_beyond_the_limit_is_answered_413_and_not_handled(open_site: Open) -> None:
    async with open_site(CURRENT, NEXT, max_body_bytes=1000) as site:
        assert await is_too_large(site, b"x" * 1001, chunked=False)
        assert await passes(site, by_qstash(b"x" * 1000), body=b"x" * 1000)


@pytest.mark.parametrize("name", STREAMED)
async def test_a_body_beyond_the_limit_is_refused_although_it_did_not_announce_its_length(name: str) -> None:
    async with STREAMED[name](CURRENT, NEXT, max_body_bytes=1000) as site:
        assert await is_too_large(site, b"x" * 1001, chunked=True)
        assert await is_too_large(site, b"x" * 100_000, chunked=True)
        genuine = b"x" * 1000
        assert (await site.post(genuine, by_qstash(genuine), chunked=True)).status == 200
        assert site.seen == [genuine]


async def test_the_published_url_is_checked_whatever_a_proxy_made_of_it(open_site: Open) -> None:
    async with open_site(CURRENT, NEXT, url=URL) as site:
        assert await passes(site, by_qstash())
        assert "another URL" in await is_refused(site, by_qstash(url="https://public.example/other"))
        assert "for which URL" in await is_refused(site, by_standard())


async def test_the_published_url_may_depend_on_the_request(open_site: Open) -> None:
    asked: list[Any] = []

    def url(request: Any) -> str:
        asked.append(request)
        return URL

    async with open_site(CURRENT, NEXT, url=url) as site:
        assert await passes(site, by_qstash())
        assert await is_refused(site, by_qstash(url=URL + "2"))
        assert len(asked) == 2


async def test_clocks_may_differ_by_as_much_as_is_tolerated(open_site: Open) -> None:
    async with open_site(CURRENT, NEXT, clock_tolerance_s=60) as site:
        assert await passes(site, by_qstash(age_s=330))
        assert await passes(site, by_qstash(age_s=-30))
        assert await is_refused(site, by_qstash(age_s=400))


@pytest.mark.parametrize(
    ("keys", "options", "problem"),
    [
        (("",), {}, "empty"),
        ((CURRENT, NEXT, "sig_third"), {}, "two signing keys"),
        (("whsec_a",), {}, "base64"),
        ((webhook_secret(CURRENT),), {"url": URL}, "does not sign the URL"),
        ((CURRENT,), {"max_body_bytes": 0}, "max_body_bytes"),
        ((CURRENT,), {"clock_tolerance_s": -1}, "clock_tolerance_s"),
    ],
)
async def test_what_no_request_could_be_judged_by_shows_at_the_start(
    open_site: Open, keys: tuple[str, ...], options: dict[str, Any], problem: str
) -> None:
    opened = open_site(*keys, **options)
    with pytest.raises(ValueError, match=problem):
        await opened.__aenter__()


# What only one framework has


async def test_a_limit_of_the_framework_that_is_smaller_is_answered_413_too() -> None:
    body = b"x" * 1001
    async with SITES["aiohttp"](CURRENT, NEXT, client_max_size=1000) as site:
        assert await is_too_large(site, body, chunked=True)
    async with SITES["flask"](CURRENT, NEXT, max_content_length=1000) as site:
        assert await is_too_large(site, body, chunked=False)
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=1000):
        for name in ("django", "django_async"):
            async with SITES[name](CURRENT, NEXT) as site:
                assert await is_too_large(site, body, chunked=False)


class Order(BaseModel):
    order: int


async def test_a_typed_body_is_not_parsed_before_the_signature_was_verified() -> None:
    hooks = FastAPI()
    seen: list[int] = []

    @hooks.post(PATH)
    async def hook(order: Order) -> str:
        seen.append(order.order)
        return "handled"

    app = FastAPI()
    app.mount("/hooks", Verified(hooks, CURRENT, NEXT))
    genuine, nonsense = b'{"order": 7}', b"nonsense"
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://inner.internal/hooks") as client:
        handled = await client.post(PATH, content=genuine, headers=by_qstash(genuine))
        assert handled.json() == "handled"
        refused = await client.post(PATH, content=nonsense, headers=by_qstash(genuine))
        assert refused.status_code == 401
        unparsed = await client.post(PATH, content=nonsense, headers=by_qstash(nonsense))
        assert unparsed.status_code == 422
        assert (await client.post("/missing", content=genuine)).status_code == 401
    assert seen == [7]


async def test_a_web_socket_cannot_go_around_the_signature() -> None:
    told: list[Any] = []

    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the application was called")

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        told.append(message)

    await Verified(never, CURRENT, NEXT)({"type": "websocket", "path": "/"}, receive, send)
    assert told == [{"type": "websocket.close", "code": 1008}]


async def test_an_application_is_told_of_its_start_and_end() -> None:
    scopes: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope["type"])

    async def silent(*_: Any) -> Any:
        raise AssertionError("nothing is received or sent")

    await Verified(app, CURRENT, NEXT)({"type": "lifespan"}, silent, silent)
    assert scopes == ["lifespan"]


async def test_an_endpoint_that_does_not_take_the_request_is_a_mistake() -> None:
    @for_starlette.verified(CURRENT, NEXT)
    async def hook() -> str:
        return "handled"

    with pytest.raises(TypeError, match="parameter for the request"):
        await hook()

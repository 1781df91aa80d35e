"""The same endpoint in every web framework: it notes the raw body it was given, and answers `handled`."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from types import ModuleType
from typing import Any, Protocol

import django
import httpx
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from fastapi import FastAPI
from flask import Flask
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from werkzeug.test import Client as WsgiClient
from werkzeug.wrappers import Response as WsgiResponse

from signing.adapters import aiohttp as for_aiohttp
from signing.adapters import django as for_django
from signing.adapters import flask as for_flask
from signing.adapters import starlette as for_starlette
from signing.adapters.asgi import Verified

PATH = "/hook"

if not settings.configured:
    settings.configure(
        SECRET_KEY="not used",
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
        ROOT_URLCONF="",
    )
    django.setup()


class Reply:
    def __init__(self, status: int, body: bytes, content_type: str) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type


class Site(Protocol):
    """An application with one verified endpoint at PATH; `seen` are the bodies its handler was given."""

    seen: list[bytes]

    async def post(
        self, body: bytes, headers: Mapping[str, str], *, chunked: bool = False, query: str = ""
    ) -> Reply: ...


Opened = AbstractAsyncContextManager[Site]


class _Asgi:
    """A site of an ASGI application; bodies come in pieces, as from a server."""

    def __init__(self, app: Any, seen: list[bytes]) -> None:
        self._app = app
        self.seen = seen

    async def post(
        self, body: bytes, headers: Mapping[str, str], *, chunked: bool = False, query: str = ""
    ) -> Reply:
        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        transport = httpx.ASGITransport(app=self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://inner.internal") as client:
            answer = await client.post(
                PATH + query, content=pieces() if chunked else body, headers=dict(headers)
            )
            return Reply(answer.status_code, answer.content, answer.headers["Content-Type"])


class _Wsgi:
    """A site of a WSGI application, under a server that says where a body without a length ends."""

    def __init__(self, app: Any, seen: list[bytes]) -> None:
        self._app = app
        self.seen = seen

    async def post(
        self, body: bytes, headers: Mapping[str, str], *, chunked: bool = False, query: str = ""
    ) -> Reply:
        client = WsgiClient(self._app, WsgiResponse)
        extra = {"wsgi.input_terminated": True} if chunked else {}
        answer = await asyncio.to_thread(
            client.post,
            PATH + query,
            data=body,
            headers=dict(headers),
            base_url="http://inner.internal",
            environ_overrides=extra | ({"CONTENT_LENGTH": ""} if chunked else {}),
        )
        return Reply(answer.status_code, answer.data, answer.headers["Content-Type"])


class _Aiohttp:
    """A site on a real socket."""

    def __init__(self, client: TestClient[Any, Any], seen: list[bytes]) -> None:
        self._client = client
        self.seen = seen

    async def post(
        self, body: bytes, headers: Mapping[str, str], *, chunked: bool = False, query: str = ""
    ) -> Reply:
        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        data: Any = pieces() if chunked else body
        async with self._client.post(PATH + query, data=data, headers=headers) as answer:
            return Reply(answer.status, await answer.read(), answer.headers["Content-Type"])


@asynccontextmanager
async def aiohttp_site(*keys: str, client_max_size: int = 1 << 20, **options: Any) -> AsyncIterator[Site]:
    seen: list[bytes] = []

    @for_aiohttp.verified(*keys, **options)
    async def hook(request: web.Request) -> web.Response:
        seen.append(await request.read())
        return web.Response(text="handled")

    app = web.Application(client_max_size=client_max_size)
    app.router.add_post(PATH, hook)
    async with TestClient(TestServer(app)) as client:
        yield _Aiohttp(client, seen)


@asynccontextmanager
async def starlette_site(*keys: str, **options: Any) -> AsyncIterator[Site]:
    seen: list[bytes] = []

    @for_starlette.verified(*keys, **options)
    async def hook(request: Request) -> PlainTextResponse:
        seen.append(await request.body())
        return PlainTextResponse("handled")

    yield _Asgi(Starlette(routes=[Route(PATH, hook, methods=["POST"])]), seen)


@asynccontextmanager
async def starlette_plain_site(*keys: str, **options: Any) -> AsyncIterator[Site]:
    """An endpoint that is no coroutine function runs in a thread, and cannot read the body itself."""
    seen: list[bytes] = []

    @for_starlette.verified(*keys, **options)
    def hook(request: Request) -> PlainTextResponse:
        seen.append(asyncio.run(request.body()))
        return PlainTextResponse("handled")

    yield _Asgi(Starlette(routes=[Route(PATH, hook, methods=["POST"])]), seen)


@asynccontextmanager
async def fastapi_site(*keys: str, **options: Any) -> AsyncIterator[Site]:
    seen: list[bytes] = []
    app = FastAPI()

    @app.post(PATH)
    @for_starlette.verified(*keys, **options)
    async def hook(request: Request, page: int = 1) -> str:
        seen.append(await request.body())
        return "handled"

    yield _Asgi(app, seen)


@asynccontextmanager
async def asgi_site(*keys: str, **options: Any) -> AsyncIterator[Site]:
    seen: list[bytes] = []

    async def hook(request: Request) -> PlainTextResponse:
        seen.append(await request.body())
        return PlainTextResponse("handled")

    around = [Middleware(Verified, *keys, **options)]
    yield _Asgi(Starlette(routes=[Route(PATH, hook, methods=["POST"], middleware=around)]), seen)


@asynccontextmanager
async def flask_site(
    *keys: str, max_content_length: int | None = None, **options: Any
) -> AsyncIterator[Site]:
    seen: list[bytes] = []
    app = Flask("site")
    app.config["MAX_CONTENT_LENGTH"] = max_content_length

    @app.post(PATH)
    @for_flask.verified(*keys, **options)
    def hook() -> str:
        seen.append(flask_request.get_data())
        return "handled"

    yield _Wsgi(app, seen)


@asynccontextmanager
async def flask_async_site(*keys: str, **options: Any) -> AsyncIterator[Site]:
    seen: list[bytes] = []
    app = Flask("site")

    @app.post(PATH)
    @for_flask.verified(*keys, **options)
    async def hook() -> str:
        seen.append(flask_request.get_data())
        return "handled"

    yield _Wsgi(app, seen)


def _django(view: Callable[..., Any]) -> AbstractContextManager[None]:
    urls = ModuleType("urls")
    urls.urlpatterns = [path(PATH.removeprefix("/"), view)]  # type: ignore[attr-defined]
    overridden: AbstractContextManager[None] = override_settings(ROOT_URLCONF=urls)
    return overridden


@asynccontextmanager
async def django_site(*keys: str, **options: Any) -> AsyncIterator[Site]:
    seen: list[bytes] = []

    @for_django.verified(*keys, **options)
    def hook(request: HttpRequest) -> HttpResponse:
        seen.append(request.body)
        return HttpResponse("handled")

    with _django(hook):
        yield _Wsgi(WSGIHandler(), seen)


@asynccontextmanager
async def django_class_site(*keys: str, **options: Any) -> AsyncIterator[Site]:
    seen: list[bytes] = []

    @method_decorator(for_django.verified(*keys, **options), name="dispatch")
    class Hook(View):  # type: ignore[misc]
        def post(self, request: HttpRequest) -> HttpResponse:
            seen.append(request.body)
            return HttpResponse("handled")

    with _django(Hook.as_view()):
        yield _Wsgi(WSGIHandler(), seen)


@asynccontextmanager
async def django_async_site(*keys: str, **options: Any) -> AsyncIterator[Site]:
    seen: list[bytes] = []

    @for_django.verified(*keys, **options)
    async def hook(request: HttpRequest) -> HttpResponse:
        seen.append(request.body)
        return HttpResponse("handled")

    assert inspect.iscoroutinefunction(hook)
    with _django(hook):
        yield _Asgi(ASGIHandler(), seen)


Open = Callable[..., Opened]
SITES: Mapping[str, Open] = {
    "aiohttp": aiohttp_site,
    "starlette": starlette_site,
    "starlette_plain": starlette_plain_site,
    "fastapi": fastapi_site,
    "asgi": asgi_site,
    "flask": flask_site,
    "flask_async": flask_async_site,
    "django": django_site,
    "django_class": django_class_site,
    "django_async": django_async_site,
}
#: Those that read a body whose length was not announced. To Django, WSGI requests without a length have no body.
STREAMED = {name: opened for name, opened in SITES.items() if name not in ("django", "django_class")}

"""The route table: every path the relay answers, one line each."""

from collections.abc import Awaitable, Callable
from enum import Enum

from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import Struct

from relay.api import (
    dlq,
    docs,
    flow_control,
    health,
    jwks,
    keys,
    logs,
    messages,
    publish,
    queues,
    schedules,
    url_groups,
)
from relay.api.answer import Answer
from relay.api.auth import Caller
from relay.api.middleware import guard, response_of
from relay.api.services import Services
from relay.domain.errors import NotOffered

Endpoint = Callable[[Services, Caller, web.Request], Awaitable[Answer]]
OpenEndpoint = Callable[[Services, web.Request], Awaitable[Answer]]


class Access(Enum):
    """What a token must be good for; a read-only one is refused where something may change, and where
    the signing keys are told: whoever has them can sign."""

    READ = "read"
    WRITE = "write"


class Route(Struct, frozen=True):
    method: str
    path: str
    access: Access
    endpoint: Endpoint


READ, WRITE = Access.READ, Access.WRITE

#: A destination is the raw rest of the request target; aiohttp only has to let it pass, line breaks included.
_DESTINATION = "{destination:(?s:.*)}"
#: Told apart from a destination by its beginning; the colon of a URL may be encoded.
_ID = "{schedule_id:(?!(?i:https?(?::|%3A)))[^/]+}"
#: Told apart from the word that stands in its place where a dead letter is retried.
_DLQ_ID = "{dlq_id:(?!retry$)[^/]+}"

ROUTES = (
    Route("POST", f"/v2/publish/{_DESTINATION}", WRITE, publish.create),
    Route("POST", f"/v2/enqueue/{{queue}}/{_DESTINATION}", WRITE, publish.enqueue),
    Route("POST", "/v2/batch", WRITE, publish.create_batch),
    Route("GET", "/v2/messages/{message_id}", READ, messages.show),
    Route("DELETE", "/v2/messages/{message_id}", WRITE, messages.cancel),
    Route("DELETE", "/v2/messages", WRITE, messages.cancel_selected),
    Route("GET", "/v2/queues", READ, queues.index),
    Route("POST", "/v2/queues", WRITE, queues.put),
    Route("GET", "/v2/queues/{queue}", READ, queues.show),
    Route("DELETE", "/v2/queues/{queue}", WRITE, queues.delete),
    Route("POST", "/v2/queues/{queue}/pause", WRITE, queues.pause),
    Route("POST", "/v2/queues/{queue}/resume", WRITE, queues.resume),
    Route("GET", "/v2/flowControl", READ, flow_control.index),
    Route("GET", "/v2/flowControl/{key}", READ, flow_control.show),
    Route("POST", "/v2/flowControl/{key}/pause", WRITE, flow_control.pause),
    Route("POST", "/v2/flowControl/{key}/resume", WRITE, flow_control.resume),
    Route("POST", "/v2/flowControl/{key}/pin", WRITE, flow_control.pin),
    Route("POST", "/v2/flowControl/{key}/unpin", WRITE, flow_control.unpin),
    Route("POST", "/v2/flowControl/{key}/resetRate", WRITE, flow_control.reset_rate),
    Route("POST", "/v2/flowControl/{key}/reset", WRITE, flow_control.reset_rate),
    Route("GET", "/v2/globalParallelism", READ, flow_control.in_flight),
    Route("GET", "/v2/schedules", READ, schedules.index),
    Route("PATCH", "/v2/schedules/{schedule_id}/pause", WRITE, schedules.pause),
    Route("POST", f"/v2/schedules/{_ID}/pause", WRITE, schedules.pause),
    Route("PATCH", "/v2/schedules/{schedule_id}/resume", WRITE, schedules.resume),
    Route("POST", f"/v2/schedules/{_ID}/resume", WRITE, schedules.resume),
    Route("GET", "/v2/schedules/{schedule_id}", READ, schedules.show),
    Route("DELETE", "/v2/schedules/{schedule_id}", WRITE, schedules.delete),
    Route("POST", f"/v2/schedules/{_DESTINATION}", WRITE, schedules.create),
    Route("GET", "/v2/topics", READ, url_groups.index),
    Route("GET", "/v2/topics/{name}", READ, url_groups.show),
    Route("PATCH", "/v2/topics/{name}", WRITE, url_groups.patch),
    Route("DELETE", "/v2/topics/{name}", WRITE, url_groups.delete),
    Route("POST", "/v2/topics/{name}/endpoints", WRITE, url_groups.put_endpoints),
    Route("DELETE", "/v2/topics/{name}/endpoints", WRITE, url_groups.remove_endpoints),
    Route("GET", "/v2/dlq", READ, dlq.index),
    Route("DELETE", "/v2/dlq", WRITE, dlq.delete_selected),
    Route("POST", "/v2/dlq/retry", WRITE, dlq.retry_selected),
    Route("POST", "/v2/dlq/retry/{dlq_id}", WRITE, dlq.retry),
    Route("GET", f"/v2/dlq/{_DLQ_ID}", READ, dlq.show),
    Route("DELETE", f"/v2/dlq/{_DLQ_ID}", WRITE, dlq.delete),
    Route("GET", "/v2/events", READ, logs.events),
    Route("GET", "/v2/logs", READ, logs.logs),
    Route("GET", "/v2/keys", WRITE, keys.show),
    Route("POST", "/v2/keys/rotate", WRITE, keys.rotate),
)

#: Asked by machines and browsers, without a token: by GET, and by HEAD for the same answer without its body.
OPEN_ROUTES: tuple[tuple[str, OpenEndpoint], ...] = (
    ("/healthz", health.healthz),
    ("/readyz", health.readyz),
    ("/metrics", health.metrics),
    ("/openapi.yaml", docs.description),
    ("/docs", docs.page),
    ("/docs/", docs.page_below),
    ("/docs/{file}", docs.asset),
    ("/.well-known/jwks.json", jwks.show),
)

#: Parts of the protocol that this version does not have, with everything below them. They say so: a client that
#: starts a workflow must not believe it runs.
NOT_OFFERED = (
    "/v2/trigger",
    "/v2/batch/trigger",
    "/v2/workflows",
    "/v2/notify",
    "/v2/wait",
    "/v2/waiters",
    "/llm/v1",
)

#: Why, where waiting for another version is of no use.
_NEVER = {"/llm/v1": "Relay hosts no language model, publish to the URL of a provider"}

#: Bytes of the request line and of one header field. Destinations and forwarded headers are both long-winded.
#: The two differ so that an error of the parser, which names only the limit, tells which it was.
_LINE_BYTES = 36 << 10
_FIELD_BYTES = 32 << 10
_MAX_HEADERS = 256


def build_app(services: Services) -> web.Application:
    """The application; it holds no state of its own.

    A trailing slash names the same collection. Bodies are never decompressed: they arrive as they were sent.
    """
    app = web.Application(
        middlewares=[guard(services)],
        handler_args={
            "access_log": None,
            "auto_decompress": False,
            "max_line_size": _LINE_BYTES,
            "max_field_size": _FIELD_BYTES,
            "max_headers": _MAX_HEADERS,
        },
    )
    for route in ROUTES:
        handler = _authenticated(services, route)
        _add(app, route.method, route.path, handler)
        if not route.path.endswith("}"):
            _add(app, route.method, route.path + "/", handler)
    for path, endpoint in OPEN_ROUTES:
        handler = _open(services, endpoint)
        _add(app, "GET", path, handler)
        _add(app, "HEAD", path, handler)
    for path in NOT_OFFERED:
        _add(app, "*", path, _not_offered(path))
        _add(app, "*", path + "/{rest:(?s:.*)}", _not_offered(path))
    return app


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    app.router.add_route(method, path, handler, expect_handler=_continue_later)


async def _continue_later(request: web.Request) -> None:
    """`100 Continue` is said when the body is read: after the token and the declared length were looked at."""


def _authenticated(services: Services, route: Route) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        caller = await services.authenticator.caller(
            request.headers.get("Authorization"), request.rel_url.raw_query_string
        )
        if route.access is Access.WRITE:
            caller.require_write()
        if route.method != "GET":
            services.refuse_when_stopping()
        return response_of(await route.endpoint(services, caller, request))

    return handle


def _open(services: Services, endpoint: OpenEndpoint) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return response_of(await endpoint(services, request))

    return handle


def _not_offered(path: str) -> Handler:
    reason = _NEVER.get(path)

    async def handle(request: web.Request) -> web.StreamResponse:
        raise NotOffered(path, reason)

    return handle

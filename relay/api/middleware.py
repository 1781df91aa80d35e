"""Around every request: its id, and an answer for whatever went wrong."""

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from relay.api.answer import Answer, answer_of, error_answer
from relay.api.bodies import Stalled
from relay.api.services import Services
from relay.domain.errors import RelayError, quoted
from relay.ids import text_of

REQUEST_ID_HEADER = "X-Request-Id"


def response_of(answer: Answer) -> web.Response:
    response = web.Response(status=answer.status, body=answer.body)
    response.headers["Content-Type"] = answer.content_type
    for name, value in answer.headers:
        response.headers[name] = value
    return response


def request_id(services: Services) -> str:
    """A new request's id, told to the client and named in the log."""
    return text_of("req_", services.ids.next(services.clock.now()))


def answer_to(services: Services, error: Exception, id: str, method: str) -> Answer:
    """What to say about an error, which the log hears of as well.

    One that is not a `RelayError` is ours: a 500, logged under the request's id.
    """
    if isinstance(error, RelayError):
        answer = answer_of(error)
        services.refusals.tell(id, method, answer.status, error)
        return answer
    services.log.error("request.failed", exc=error, request_id=id, method=method)
    return error_answer(500, f"internal error, see the log for {id}")


def guard(services: Services) -> Middleware:
    """The middleware of this app. What it does not know is a 500, logged under the request's id."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        id = request_id(services)
        try:
            response = await handler(request)
        except web.HTTPMethodNotAllowed as refused:
            response = response_of(_method_not_allowed(request.method, refused.allowed_methods))
            services.refusals.tell(id, request.method, 405, "method")
        except web.HTTPNotFound:
            response = response_of(error_answer(404, _no_such_path(request.path)))
            services.refusals.tell(id, request.method, 404, "path")
        except Stalled as stalled:
            response = response_of(error_answer(408, str(stalled)))
            services.refusals.tell(id, request.method, 408, "body stalled")
            response.force_close()
        except Exception as error:
            response = response_of(answer_to(services, error, id, request.method))
        finally:
            services.bodies.release(request)
        response.headers[REQUEST_ID_HEADER] = id
        if services.stopping():
            response.force_close()
        return response

    return guarded


def _no_such_path(path: str) -> str:
    # Clients add /v2 themselves.
    hint = "; the URL of a relay (QSTASH_URL) ends without /v2" if path.startswith("/v2/v2/") else ""
    return f"{quoted(path)} not found{hint}"


def _method_not_allowed(method: str, allowed: set[str]) -> Answer:
    allow = ", ".join(sorted(allowed))
    return error_answer(
        405, f"{quoted(method)} is not allowed here, only {allow}", headers=(("Allow", allow),)
    )

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


def guard(services: Services) -> Middleware:
    """The middleware of this app. What it does not know is a 500, logged under the request's id."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = text_of("req_", services.ids.next(services.clock.now()))
        try:
            response = await handler(request)
        except RelayError as error:
            response = response_of(answer_of(error))
        except web.HTTPMethodNotAllowed as refused:
            response = response_of(_method_not_allowed(request.method, refused.allowed_methods))
        except web.HTTPNotFound:
            response = response_of(error_answer(404, f"{quoted(request.path)} not found"))
        except Stalled as stalled:
            response = response_of(error_answer(408, str(stalled)))
            response.force_close()
        except Exception as bug:
            services.log.error("request.failed", exc=bug, request_id=request_id, method=request.method)
            response = response_of(error_answer(500, f"internal error, see the log for {request_id}"))
        finally:
            services.bodies.release(request)
        response.headers[REQUEST_ID_HEADER] = request_id
        return response

    return guarded


def _method_not_allowed(method: str, allowed: set[str]) -> Answer:
    allow = ", ".join(sorted(allowed))
    return error_answer(
        405, f"{quoted(method)} is not allowed here, only {allow}", headers=(("Allow", allow),)
    )

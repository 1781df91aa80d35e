"""Flask: `@verified(...)` above a view, below its route.

The body is what `request.get_data()` gives. It is read up to `max_body_bytes` or the application's own
`MAX_CONTENT_LENGTH`, whichever is smaller.
"""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec

from flask import Request, Response, current_app, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import RequestEntityTooLarge

from signing.adapters.gate import MAX_BODY_BYTES, Gate, Refusal, Url, url_for

P = ParamSpec("P")
View = Callable[P, ResponseReturnValue | Awaitable[ResponseReturnValue]]


def verified(
    *keys: str,
    url: Url[Request] = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    clock_tolerance_s: int = 0,
) -> Callable[[View[P]], Callable[P, ResponseReturnValue]]:
    """Call the view, a plain one or a coroutine function, for genuine requests only."""
    gate = Gate(
        keys, checks_url=url is not None, max_body_bytes=max_body_bytes, clock_tolerance_s=clock_tolerance_s
    )

    def decorate(view: View[P]) -> Callable[P, ResponseReturnValue]:
        @wraps(view)
        def handle(*args: P.args, **kwargs: P.kwargs) -> ResponseReturnValue:
            refusal = _refusal(gate, url)
            if refusal is not None:
                return Response(refusal.body, refusal.status, content_type="application/json")
            answer: ResponseReturnValue = current_app.ensure_sync(view)(*args, **kwargs)
            return answer

        return handle

    return decorate


def _refusal(gate: Gate, url: Url[Request]) -> Refusal | None:
    refusal = gate.too_large(request.content_length)
    if refusal is not None:
        return refusal
    # One byte more, for bodies without a length: up to a limit they are read without a word about the rest.
    most = gate.max_body_bytes + 1
    if request.max_content_length is None or request.max_content_length > most:
        request.max_content_length = most
    try:
        body = request.get_data()
    except RequestEntityTooLarge:
        return gate.refused_as_too_large()
    return gate.refusal(request.headers.items(), body, url_for(url, request))

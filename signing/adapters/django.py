"""Django: `@verified(...)` above a view, plain or async.

A view that is a class has it by `method_decorator(verified(...), name="dispatch")`.
The body is what `request.body` gives. It is read up to `max_body_bytes` or the project's own
`DATA_UPLOAD_MAX_MEMORY_SIZE` (2.5 MB), whichever is smaller. The view is exempt from the check against forged
forms, which is for browsers.
"""

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse

from signing.adapters.gate import MAX_BODY_BYTES, Gate, Refusal, Url, url_for

View = Callable[..., Any]


def verified(
    *keys: str,
    url: Url[HttpRequest] = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    clock_tolerance_s: int = 0,
) -> Callable[[View], View]:
    """Call the view for genuine requests only."""
    gate = Gate(
        keys, checks_url=url is not None, max_body_bytes=max_body_bytes, clock_tolerance_s=clock_tolerance_s
    )

    def decorate(view: View) -> View:
        if iscoroutinefunction(view):

            @wraps(view)
            async def handle_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                refusal = _refusal(gate, url, request)
                return await view(request, *args, **kwargs) if refusal is None else _response(refusal)

            handle: Any = handle_async
        else:

            @wraps(view)
            def handle_plain(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                refusal = _refusal(gate, url, request)
                return view(request, *args, **kwargs) if refusal is None else _response(refusal)

            handle = handle_plain
        handle.csrf_exempt = True
        view_under_rule: View = handle
        return view_under_rule

    return decorate


def _refusal(gate: Gate, url: Url[HttpRequest], request: HttpRequest) -> Refusal | None:
    refusal = gate.too_large(_announced(request))
    if refusal is not None:
        return refusal
    try:
        body = request.body
    except RequestDataTooBig:
        return gate.refused_as_too_large()
    return gate.refusal(request.headers.items(), body, url_for(url, request))


def _announced(request: HttpRequest) -> int | None:
    length = request.META.get("CONTENT_LENGTH") or ""
    return int(length) if length.isascii() and length.isdigit() else None


def _response(refusal: Refusal) -> HttpResponse:
    return HttpResponse(refusal.body, status=refusal.status, content_type="application/json")

"""What an endpoint says, before it is HTTP, and the one table from errors to statuses."""

from collections.abc import Mapping

import orjson
from msgspec import Struct

from relay.domain.errors import (
    Forbidden,
    Invalid,
    NotFound,
    NotOffered,
    OverLimit,
    RelayError,
    TooLarge,
    Unauthorized,
    Unavailable,
)

STATUS: Mapping[type[RelayError], int] = {
    Invalid: 400,
    NotOffered: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    OverLimit: 412,
    TooLarge: 413,
    Unavailable: 503,
}


class Answer(Struct, frozen=True, kw_only=True):
    """A complete response. `headers` are those besides Content-Type and Content-Length."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"


def json_answer(value: object, *, status: int = 200) -> Answer:
    return Answer(status=status, body=orjson.dumps(value))


#: For operations whose answer is that they were done: still valid JSON, since clients parse it.
DONE = json_answer({})


def error_answer(status: int, text: str, *, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """The shape of every error: one string member. Bytes that were never UTF-8 are shown as question marks."""
    shown = text.encode(errors="replace").decode()
    return Answer(status=status, body=orjson.dumps({"error": shown}), headers=headers)


def answer_of(error: RelayError) -> Answer:
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Unavailable):
        headers = (("Retry-After", str(error.retry_after_s)),)
    elif isinstance(error, Unauthorized):
        headers = (("WWW-Authenticate", "Bearer"),)
    return error_answer(STATUS[type(error)], str(error), headers=headers)

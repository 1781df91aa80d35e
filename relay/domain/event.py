"""One row of history: a change of one delivery, from which the log entries of the API are read."""

from msgspec import Struct

from relay.domain.delivery import Change
from relay.domain.message import Headers, Message


class Event(Struct, frozen=True, kw_only=True):
    """A change and the message it happened to.

    `position` orders all events and is the cursor. `next_at` is when the next attempt is due. The response is
    kept for failed attempts only; `status` and `duration_ms` for every attempt that ended.
    """

    position: int
    at: int
    change: Change
    message: Message
    retried: int = 0
    next_at: int | None = None
    duration_ms: int | None = None
    status: int | None = None
    error: str | None = None
    response_headers: Headers = ()
    response_body: bytes = b""

"""Which messages, log entries or dead letters a request means."""

from enum import Enum

from msgspec import Struct

from relay.domain.delivery import State


class Order(Enum):
    EARLIEST_FIRST = "earliestFirst"
    LATEST_FIRST = "latestFirst"


class Selection(Struct, frozen=True, kw_only=True):
    """Values of one filter are alternatives, different filters must all hold; an empty filter does not count.

    `message_ids` and `dead_letter_ids` hold numbers; an id that cannot be one of ours is simply left out, and
    `None` (not given) differs from `()` (given, nothing can match). `from_at` and `to_at` are inclusive.
    """

    message_ids: tuple[int, ...] | None = None
    dead_letter_ids: tuple[int, ...] | None = None
    urls: tuple[str, ...] = ()
    #: Compared without case, without a port.
    hosts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    url_groups: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    schedule_ids: tuple[str, ...] = ()
    flow_keys: tuple[str, ...] = ()
    caller_ips: tuple[str, ...] = ()
    #: 0 means that no HTTP response came.
    response_statuses: tuple[int, ...] = ()
    states: tuple[State, ...] = ()
    from_at: int | None = None
    to_at: int | None = None

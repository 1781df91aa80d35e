"""Filters, counts and cursors of list and bulk requests, read into a selection and a page of it.

A filter that the endpoint does not have is refused by its name: passed over, a misspelt filter would turn "delete
these" into "delete everything". For the same reason an empty filter is refused, and an empty list of ids means
none at all.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import TypeVar
from urllib.parse import urlsplit

import orjson
from msgspec import Struct

from relay.domain.delivery import State
from relay.domain.errors import Invalid, quoted
from relay.domain.selection import Order, Selection
from relay.ids import dead_letter_number, number_of
from relay.wire.cursor import Cursor, parse_dead_letter_cursor, parse_log_cursor
from relay.wire.target import parse_url
from relay.wire.texts import storable

#: Values of one filter: each is compared with every row that is looked at.
MAX_VALUES = 10_000

_MAX_DIGITS = 15
_NEXT_URL = re.compile(r",+\s*(?=https?:)", re.IGNORECASE)
_TOKEN_PARAMETER = "qstash_token"  # noqa: S105 - the name, not a secret

#: What `state` may name. The documentation and the official clients spell CANCELED differently.
_STATES: dict[str, tuple[State, ...]] = {
    **{state.value: (state,) for state in State},
    "CANCELLED": (State.CANCELED,),
    "IN_PROGRESS": (State.ACTIVE, State.RETRY, State.ERROR),
}
#: Both are in use.
_ALIASES = {"callerIP": "callerIp"}

_Value = TypeVar("_Value")


class Endpoint(Enum):
    """A list or bulk operation."""

    CANCEL = "cancel messages"
    LIST_DEAD_LETTERS = "list dead letters"
    #: To delete them, or to send them again.
    TAKE_DEAD_LETTERS = "take dead letters"
    LOGS = "logs"


class Page(Struct, frozen=True, kw_only=True):
    """How much of a selection, from where on, in which order. `count` None: all of it."""

    count: int | None = None
    cursor: Cursor | None = None
    order: Order = Order.EARLIEST_FIRST

    @property
    def start(self) -> int | None:
        """The position, or the id, of the first row."""
        return None if self.cursor is None else self.cursor.position


class _Form(Struct, frozen=True, kw_only=True):
    """What an endpoint understands. Given the parameter `alone`, all other filters have no effect."""

    filters: frozenset[str]
    max_count: int
    default_count: int | None
    default_order: Order = Order.EARLIEST_FIRST
    parse_cursor: Callable[[str], Cursor] = parse_dead_letter_cursor
    alone: str | None = None


_SHARED = {
    "url",
    "topicName",
    "queueName",
    "scheduleId",
    "label",
    "flowControlKey",
    "callerIp",
    "fromDate",
    "toDate",
    "count",
}
_DEAD_LETTERS = {*_SHARED, "dlqIds", "messageId", "responseStatus", "cursor"}

_FORMS = {
    Endpoint.CANCEL: _Form(
        filters=frozenset({*_SHARED, "messageIds", "host", "path"}),
        max_count=500,
        default_count=None,
        alone="messageIds",
    ),
    Endpoint.LIST_DEAD_LETTERS: _Form(
        filters=frozenset({*_DEAD_LETTERS, "order"}), max_count=100, default_count=100, alone="dlqIds"
    ),
    Endpoint.TAKE_DEAD_LETTERS: _Form(
        filters=frozenset(_DEAD_LETTERS), max_count=100, default_count=100, alone="dlqIds"
    ),
    Endpoint.LOGS: _Form(
        filters=frozenset({*_SHARED, "messageId", "messageIds", "state", "host", "path", "cursor", "order"}),
        max_count=1000,
        default_count=100,
        default_order=Order.LATEST_FIRST,
        parse_cursor=parse_log_cursor,
    ),
}


def select(endpoint: Endpoint, query: Iterable[tuple[str, str]], body: bytes = b"") -> tuple[Selection, Page]:
    """What a request with this decoded query, and this JSON body if there is one, means. Raises `Invalid`.

    A parameter of the body counts when the query does not have it; but it has to make sense.
    """
    form = _FORMS[endpoint]
    given = _of_query(form, query)
    if said := _of_body(form, body):
        _selection(said)
        _page(form, said)
        given = said | given
    selection = _selection(given)
    if form.alone is not None and form.alone in given:
        selection = Selection(
            message_ids=selection.message_ids if form.alone == "messageIds" else None,
            dead_letter_ids=selection.dead_letter_ids,
        )
    return selection, _page(form, given)


_Given = dict[str, list[str]]
"""Parameters and their values, one by one; none of them empty."""


def _of_query(form: _Form, query: Iterable[tuple[str, str]]) -> _Given:
    given: _Given = {}
    for name, value in query:
        if name != _TOKEN_PARAMETER:
            key = _key(form, name)
            given.setdefault(key, []).extend(_split(key, value))
    return given


def _of_body(form: _Form, body: bytes) -> _Given:
    if not body.strip():
        return {}
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Invalid("body", "is not valid JSON") from None
    if not isinstance(content, dict):
        raise Invalid("body", "must be a JSON object")
    given: _Given = {}
    for name, value in content.items():
        key = _key(form, name)
        values = given.setdefault(key, [])
        if isinstance(value, list):
            values.extend(text for item in value if (text := _scalar(name, item)))
        else:
            values.extend(_split(key, _scalar(name, value)))
    return given


def _key(form: _Form, name: str) -> str:
    key = _ALIASES.get(name, name)
    if key not in form.filters:
        raise Invalid(quoted(name), "is not a parameter of this endpoint")
    return key


def _scalar(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid(name, "must be a string, a whole number, or a list of them")
    return str(value)


def _split(key: str, text: str) -> list[str]:
    """Values of one parameter that are separated by commas. URLs may hold commas themselves."""
    parts = _NEXT_URL.split(text) if key == "url" else text.split(",")
    return [value for part in parts if (value := part.strip())]


# --- what the parameters mean


def _selection(given: _Given) -> Selection:
    for name, values in given.items():
        _check(name, values)
    return Selection(
        message_ids=_message_ids(given),
        dead_letter_ids=_ids(given, "dlqIds", dead_letter_number),
        urls=_values(given, "url", _comparable_url),
        hosts=_values(given, "host", _comparable_host),
        paths=_values(given, "path", _path),
        labels=_values(given, "label", str),
        url_groups=_values(given, "topicName", str),
        queues=_values(given, "queueName", str),
        schedule_ids=_values(given, "scheduleId", str),
        flow_keys=_values(given, "flowControlKey", str),
        caller_ips=_values(given, "callerIp", str),
        response_statuses=_values(given, "responseStatus", _status),
        states=tuple(dict.fromkeys(state for name in given.get("state", ()) for state in _states(name))),
        from_at=_instant(given, "fromDate"),
        to_at=_instant(given, "toDate"),
    )


def _page(form: _Form, given: _Given) -> Page:
    count, order = form.default_count, form.default_order
    if "count" in given:
        count = _number("count", _single(given, "count"), 1, form.max_count)
    if "order" in given:
        order = _order(_single(given, "order"))
    # An empty cursor is what some clients send for the first page.
    cursor = form.parse_cursor(_single(given, "cursor")) if given.get("cursor") else None
    return Page(count=count, cursor=cursor, order=order)


#: For these, an empty value says something: nothing is meant, or the first page.
_MAY_BE_EMPTY = frozenset({"messageIds", "dlqIds", "cursor"})


def _check(name: str, values: Sequence[str]) -> None:
    if not values and name not in _MAY_BE_EMPTY:
        raise Invalid(name, "must not be empty")
    if len(values) > MAX_VALUES:
        raise Invalid(name, f"has more than {MAX_VALUES} values")
    for value in values:
        storable(value, name)


def _values(given: _Given, name: str, convert: Callable[[str], _Value]) -> tuple[_Value, ...]:
    return tuple(dict.fromkeys(map(convert, given.get(name, ()))))


def _message_ids(given: _Given) -> tuple[int, ...] | None:
    """Both parameters are filters, and both must hold."""
    several = _ids(given, "messageIds", _message_number)
    single = _ids(given, "messageId", _message_number)
    if several is None or single is None:
        return single if several is None else several
    wanted = set(single)
    return tuple(number for number in several if number in wanted)


def _ids(given: _Given, name: str, convert: Callable[[str], int | None]) -> tuple[int, ...] | None:
    """Ids that cannot be ours are left out. None when the parameter was not given."""
    if name not in given:
        return None
    numbers = (convert(text) for text in given[name])
    return tuple(dict.fromkeys(number for number in numbers if number is not None))


def _message_number(text: str) -> int | None:
    return number_of("msg_", text)


def _comparable_url(text: str) -> str:
    """As a destination would be stored; what cannot be one matches nothing."""
    try:
        return parse_url(text, "url")
    except Invalid:
        return text


def _comparable_host(text: str) -> str:
    """Lower case, ASCII, without a port and without the brackets of an IPv6 address."""
    if not any(c in "/?#@\\" for c in text):
        try:
            return urlsplit(parse_url(f"http://{text}", "host")).hostname or text
        except Invalid:
            pass
    return text.lower()


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise Invalid("path", f"{quoted(text)} does not begin with /")
    return text


def _status(text: str) -> int:
    return _number("responseStatus", text, 0, 999)


def _states(name: str) -> tuple[State, ...]:
    states = _STATES.get(name.upper())
    if states is None:
        raise Invalid("state", f"{quoted(name)} is not one of {', '.join(_STATES)}")
    return states


def _order(text: str) -> Order:
    for order in Order:
        if order.value == text:
            return order
    raise Invalid("order", f"{quoted(text)} is neither earliestFirst nor latestFirst")


def _instant(given: _Given, name: str) -> int | None:
    return _number(name, _single(given, name), 0, 10**_MAX_DIGITS) if name in given else None


def _single(given: _Given, name: str) -> str:
    if len(given[name]) != 1:
        raise Invalid(name, "must be given once")
    return given[name][0]


def _number(name: str, text: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and least <= int(text) <= most:
        return int(text)
    raise Invalid(name, f"{quoted(text)} is not a whole number from {least} to {most}")

from base64 import b64encode
from hashlib import sha256

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.delivery import Change, State
from relay.domain.event import Event
from relay.domain.message import Callback, FlowControl, Headers, Message, MessageId, Redaction
from relay.domain.selection import Order
from relay.ids import text_of
from relay.wire.cursor import Cursor, parse_log_cursor
from relay.wire.json import PAGE_BYTES, log_entries, log_page
from relay.wire.selection import Page
from tests.builders import NOW, a_message

ID = MessageId(NOW << 20 | 5)
LATEST, EARLIEST = Order.LATEST_FIRST, Order.EARLIEST_FIRST


def an_event(
    change: Change,
    *,
    position: int = 1,
    message: Message | None = None,
    next_at: int | None = None,
    status: int | None = None,
    error: str | None = None,
    response_headers: Headers = (),
    response_body: bytes = b"",
) -> Event:
    return Event(
        position=position,
        at=NOW + 7,
        change=change,
        message=message or a_message(id=ID),
        next_at=next_at,
        status=status,
        error=error,
        response_headers=response_headers,
        response_body=response_body,
    )


PLAIN = {
    "time": NOW + 7,
    "messageId": text_of("msg_", ID),
    "url": "https://example.com/hook",
    "method": "POST",
    "maxRetries": 3,
    "header": {"Content-Type": ["text/plain"]},
    "body": b64encode(b"hello").decode(),
}


def test_an_entry_of_a_plain_message_has_exactly_these_members() -> None:
    assert log_entries(an_event(Change.CREATED)) == [PLAIN | {"state": "CREATED"}]


def test_every_entry_shows_everything_about_the_message() -> None:
    message = a_message(
        id=ID,
        timeout_ms=9000,
        retry_delay="1000",
        caller_ip="192.0.2.1",
        url_group="group",
        endpoint="one",
        schedule_id="scd_1",
        queue="queue",
        labels=("a", "b"),
        flow=FlowControl(key="k", parallelism=3, period_ms=60_000),
        callback=Callback(url="https://example.com/cb", headers=(("x-a", "1"),)),
        failure_callback=Callback(url="https://example.com/failed", headers=(("X-B", "2"),)),
    )
    everything = PLAIN | {
        "timeout": 9000,
        "retryDelayExpression": "1000",
        "retryDelayExpr": "1000",
        "topicName": "group",
        "endpointName": "one",
        "scheduleId": "scd_1",
        "queueName": "queue",
        "label": "a",
        "labels": ["a", "b"],
        "flowControlKey": "k",
        "parallelism": 3,
        "period": 60,
        "callback": "https://example.com/cb",
        "callbackHeaders": {"X-A": ["1"]},
        "failureCallback": "https://example.com/failed",
        "failureCallbackHeaders": {"X-B": ["2"]},
    }
    event = an_event(Change.STARTED_AT_ONCE, message=message)
    assert log_entries(event) == [everything | {"state": "ACTIVE"}, everything | {"state": "CREATED"}]


def test_a_failed_attempt_shows_the_answer_on_its_error_entry_only() -> None:
    event = an_event(
        Change.RETRIED,
        next_at=NOW + 12_000,
        status=500,
        response_headers=(("content-type", "text/plain"),),
        response_body=b"why",
    )
    assert log_entries(event) == [
        PLAIN | {"state": "RETRY", "nextDeliveryTime": NOW + 12_000},
        PLAIN
        | {
            "state": "ERROR",
            "error": "the destination answered with status 500",
            "responseStatus": 500,
            "responseHeader": {"Content-Type": ["text/plain"]},
            "responseHeaders": {"Content-Type": ["text/plain"]},
            "responseBody": b64encode(b"why").decode(),
        },
    ]


def test_an_attempt_without_an_answer_shows_its_error_and_no_status() -> None:
    event = an_event(Change.FAILED, error="connection refused by \udce9")
    assert log_entries(event) == [
        PLAIN | {"state": "FAILED"},
        PLAIN | {"state": "ERROR", "error": "connection refused by \ufffd"},
    ]


def test_an_attempt_about_which_nothing_is_known_is_still_an_entry() -> None:
    assert log_entries(an_event(Change.FAILED), states=(State.ERROR,)) == [PLAIN | {"state": "ERROR"}]


def test_a_delivered_entry_shows_no_answer() -> None:
    assert log_entries(an_event(Change.DELIVERED, status=204)) == [PLAIN | {"state": "DELIVERED"}]


def test_an_answer_with_an_error_shows_both() -> None:
    event = an_event(Change.FAILED, status=200, error="the body ended early")
    (entry,) = log_entries(event, states=(State.ERROR,))
    assert (entry["responseStatus"], entry["error"]) == (200, "the body ended early")


def test_a_created_entry_shows_the_next_delivery_only_when_it_was_delayed() -> None:
    delayed = a_message(id=ID, not_before=NOW + 5000)
    assert log_entries(an_event(Change.CREATED, message=delayed, next_at=NOW + 5000)) == [
        PLAIN | {"state": "CREATED", "nextDeliveryTime": NOW + 5000}
    ]
    assert log_entries(an_event(Change.CREATED, next_at=NOW)) == [PLAIN | {"state": "CREATED"}]


@pytest.mark.parametrize(
    ("change", "states"),
    [
        (Change.CREATED, ["CREATED"]),
        (Change.STARTED_AT_ONCE, ["CREATED", "ACTIVE"]),
        (Change.STARTED, ["ACTIVE"]),
        (Change.DELIVERED, ["DELIVERED"]),
        (Change.RETRIED, ["ERROR", "RETRY"]),
        (Change.FAILED, ["ERROR", "FAILED"]),
        (Change.CANCELED_AFTER_ERROR, ["ERROR", "CANCELED"]),
        (Change.CANCEL_REQUESTED, ["CANCEL_REQUESTED"]),
        (Change.CANCELED, ["CANCEL_REQUESTED", "CANCELED"]),
        (Change.RELEASED, []),
    ],
)
def test_a_row_is_the_states_it_passed_through_in_either_order(change: Change, states: list[str]) -> None:
    event = an_event(change)
    assert [entry["state"] for entry in log_entries(event, order=EARLIEST)] == states
    assert [entry["state"] for entry in log_entries(event)] == states[::-1]
    for state in State:
        chosen = [entry["state"] for entry in log_entries(event, states=(state,))]
        assert chosen == [state.value] * (state.value in states)


def test_redacted_values_are_shown_as_their_hash_in_plain() -> None:
    message = a_message(headers=(("X-A", "1"),), redaction=Redaction(body=True, headers=True))
    (entry,) = log_entries(an_event(Change.CREATED, message=message))
    assert entry["body"] == "REDACTED:" + sha256(b"hello").hexdigest()
    assert entry["header"] == {"X-A": ["REDACTED:" + sha256(b"1").hexdigest()]}


def test_what_a_message_does_not_have_is_absent() -> None:
    (entry,) = log_entries(an_event(Change.CREATED, message=a_message(headers=(), body=b"")))
    assert entry.keys() == {"time", "state", "messageId", "url", "method", "maxRetries"}


# --- pages


def test_a_page_may_end_inside_a_row_and_goes_on_there() -> None:
    rows = [an_event(Change.FAILED, position=9), an_event(Change.STARTED_AT_ONCE, position=8)]
    entries, cursor = log_page(rows, Page(count=3, order=LATEST), (), next_position=None)
    assert [entry["state"] for entry in entries] == ["FAILED", "ERROR", "ACTIVE"]
    assert cursor == "8-1"
    page = Page(count=3, cursor=parse_log_cursor(cursor), order=LATEST)
    entries, cursor = log_page(rows[1:], page, (), next_position=None)
    assert [entry["state"] for entry in entries] == ["CREATED"]
    assert cursor is None


def test_an_entry_keeps_its_number_in_the_row_when_others_are_filtered_out() -> None:
    rows = [an_event(Change.RETRIED, position=9), an_event(Change.FAILED, position=8)]
    entries, cursor = log_page(rows, Page(count=1, order=LATEST), (State.ERROR,), next_position=None)
    assert [entry["state"] for entry in entries] == ["ERROR"]
    assert cursor == "8-1"


def test_a_page_without_entries_still_leads_on_while_rows_follow() -> None:
    rows = [an_event(Change.RELEASED, position=9), an_event(Change.RELEASED, position=8)]
    assert log_page(rows, Page(count=1, order=LATEST), (), next_position=7) == ([], "7-0")
    assert log_page(rows, Page(count=1, order=LATEST), (), next_position=None) == ([], None)
    assert log_page([], Page(count=1, order=LATEST), (), next_position=5) == ([], "5-0")


def test_a_page_of_the_log_is_bounded_by_its_bodies_too() -> None:
    big = a_message(body=bytes(PAGE_BYTES))
    rows = [
        an_event(Change.STARTED, position=9, message=big, response_body=b"x"),
        an_event(Change.CREATED, position=8, message=big),
    ]
    entries, cursor = log_page(rows, Page(count=10, order=LATEST), (), next_position=None)
    assert (len(entries), cursor) == (1, "8-0")


@given(
    st.lists(st.sampled_from(Change), max_size=8),
    st.integers(1, 5),
    st.sampled_from(Order),
    st.sets(st.sampled_from(State), max_size=2),
)
def test_pages_put_together_are_the_whole_log(
    changes: list[Change], count: int, order: Order, states: set[State]
) -> None:
    rows = [an_event(change, position=10 + n) for n, change in enumerate(changes)]
    if order is LATEST:
        rows.reverse()
    whole = [entry for row in rows for entry in log_entries(row, order=order, states=states)]
    paged: list[object] = []
    cursor: Cursor | None = None
    for _ in range(len(rows) + len(whole) + 2):
        at = 0
        if cursor is not None:
            at = next(n for n, row in enumerate(rows) if row.position == cursor.position)
        fetched = rows[at : at + count + 1]
        page = Page(count=count, cursor=cursor, order=order)
        following = rows[at + count + 1 :]
        entries, text = log_page(
            fetched, page, states, next_position=following[0].position if following else None
        )
        assert len(entries) <= count
        paged += entries
        if text is None:
            break
        cursor = parse_log_cursor(text)
    assert text is None
    assert paged == whole


ANY_TEXT = st.text(st.characters(), max_size=8)


@given(ANY_TEXT, st.lists(st.tuples(st.text(max_size=4), ANY_TEXT), max_size=3), st.binary(max_size=6))
def test_whatever_a_destination_answered_can_be_shown(
    error: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    event = an_event(
        Change.FAILED, error=error, status=500, response_headers=tuple(headers), response_body=body
    )
    assert len(orjson.loads(orjson.dumps(log_entries(event)))) == 2

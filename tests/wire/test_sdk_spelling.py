"""The official Python SDK writes what we read, and reads what we write."""

import json

import orjson
import pytest
from qstash.dlq import parse_dlq_message_response, prepare_list_dlq_messages_params
from qstash.log import LogState, parse_logs_response, prepare_list_logs_request_params
from qstash.message import (
    parse_message_response,
    parse_publish_response,
    prepare_batch_message_body,
    prepare_headers,
)
from qstash.schedule import ScheduleState, parse_schedule_response, prepare_schedule_headers

from relay.domain.dead_letter import DeadLetter, DeadLetterId
from relay.domain.delivery import Change, State
from relay.domain.event import Event
from relay.domain.message import Callback, FlowControl, MessageId, Redaction, Request, RetryPolicy
from relay.domain.publish import Draft
from relay.domain.schedule import Schedule
from relay.domain.selection import Selection
from relay.ids import text_of
from relay.wire.json import dead_letter_json, log_entries, message_json, receipt_json, schedule_json
from relay.wire.selection import Endpoint, select
from storage.protocol import Receipt, ScheduleView
from tests.builders import NOW, TENANT, a_message, an_attempt
from tests.wire.drafts import draft_of, schedule_of

ID = MessageId(NOW << 20 | 5)

EVERYTHING = Draft(
    request=Request(
        url="https://example.com/hook",
        method="PUT",
        headers=(
            ("Content-Type", "text/plain"),
            ("Test-Header", "value"),
            ("Authorization", "Bearer theirs"),
        ),
        body=b"hello",
        timeout_ms=30_000,
    ),
    retry=RetryPolicy(max_retries=0, delay="1000 * (1 + retried)"),
    delay_ms=5_403_000,
    labels=("a", "b"),
    flow=FlowControl(key="k", parallelism=3, rate=5, period_ms=60_000),
    callback=Callback(url="https://example.com/cb", headers=(("X-A", "1"),), max_retries=1),
    failure_callback=Callback(url="https://example.com/failed", headers=(("X-B", "2"),)),
    redaction=Redaction(body=True, header_names=("authorization",)),
)


def test_the_sdks_headers_of_a_publish_are_understood() -> None:
    headers = prepare_headers(
        content_type="text/plain",
        method="PUT",
        headers={"test-header": "value", "Upstash-Forward-Authorization": "Bearer theirs"},
        callback_headers={"Retries": "1", "Forward-X-A": "1"},
        failure_callback_headers={"upstash-failure-callback-forward-x-b": "2"},
        retries=0,
        retry_delay="1000 * (1 + retried)",
        callback="https://example.com/cb",
        failure_callback="https://example.com/failed",
        delay="1h30m3s",
        not_before=1_800_000_005,
        deduplication_id="id",
        content_based_deduplication=True,
        timeout=30,
        flow_control={"key": "k", "parallelism": 3, "rate": 5, "period": "1m"},
        label="a,b",
        redact={"body": True, "header": ["Authorization"]},
    )
    assert draft_of(headers, not_offered=()) == Draft(
        request=EVERYTHING.request,
        retry=EVERYTHING.retry,
        delay_ms=EVERYTHING.delay_ms,
        not_before=NOW + 5000,
        labels=EVERYTHING.labels,
        flow=EVERYTHING.flow,
        callback=EVERYTHING.callback,
        failure_callback=EVERYTHING.failure_callback,
        redaction=EVERYTHING.redaction,
        deduplication_id="id",
        content_based_deduplication=True,
    )


def test_the_sdks_headers_of_a_schedule_are_understood() -> None:
    headers = prepare_schedule_headers(
        cron="*/10 * * * * ",
        content_type=None,
        method=None,
        headers={"content-type": "text/plain"},
        callback_headers=None,
        failure_callback_headers=None,
        retries=2,
        retry_delay=None,
        callback=None,
        failure_callback=None,
        delay=10,
        timeout="1m",
        schedule_id="my-schedule",
        queue="q",
        flow_control=None,
        label=None,
        redact={"header": True},
    )
    request = schedule_of(headers, not_offered=())
    assert (request.cron.text, request.schedule_id) == ("*/10 * * * *", "my-schedule")
    assert request.draft == Draft(
        request=Request(
            url="https://example.com/hook",
            headers=(("Content-Type", "text/plain"),),
            body=b"tick",
            timeout_ms=60_000,
        ),
        retry=RetryPolicy(max_retries=2),
        delay_ms=10_000,
        queue="q",
        redaction=Redaction(headers=True),
    )


def test_the_sdks_batch_item_is_understood() -> None:
    (item,) = json.loads(
        prepare_batch_message_body(
            [
                {
                    "url": "https://example.com/hook",
                    "content_type": "text/plain",
                    "headers": {"a": "1"},
                    "retries": 1,
                }
            ]
        )
    )
    assert draft_of(item["headers"]) == Draft(
        request=Request(
            url="https://example.com/hook",
            headers=(("Content-Type", "text/plain"), ("A", "1")),
            body=b"hello",
        ),
        retry=RetryPolicy(max_retries=1),
    )


def test_the_sdks_filters_of_dead_letters_are_understood() -> None:
    params = prepare_list_dlq_messages_params(
        cursor="1-1",
        count=10,
        filter={
            "message_id": text_of("msg_", 1),
            "url": "https://example.com/hook",
            "url_group": "g",
            "queue": "q",
            "schedule_id": "s",
            "from_time": 1,
            "to_time": 2,
            "response_status": 404,
            "caller_ip": "192.0.2.1",
            "label": "l",
        },
    )
    selection, page = select(Endpoint.LIST_DEAD_LETTERS, params.items())
    assert selection == Selection(
        message_ids=(1,),
        urls=("https://example.com/hook",),
        url_groups=("g",),
        queues=("q",),
        schedule_ids=("s",),
        from_at=1,
        to_at=2,
        response_statuses=(404,),
        caller_ips=("192.0.2.1",),
        labels=("l",),
    )
    assert (page.count, page.start) == (10, 1 << 20 | 1)


@pytest.mark.parametrize("state", LogState)
def test_every_state_the_sdk_can_ask_for_is_one(state: LogState) -> None:
    params = prepare_list_logs_request_params(cursor=None, count=None, filter={"state": state})
    selection, _ = select(Endpoint.LOGS, params.items())
    assert state.value in ("IN_PROGRESS", *(chosen.value for chosen in selection.states))


def test_every_state_we_show_is_one_the_sdk_knows() -> None:
    assert {state.value for state in State} <= {state.value for state in LogState}


STORED = a_message(
    id=ID,
    not_before=NOW + 5000,
    method="PUT",
    headers=(("Test-Header", "value"),),
    max_retries=0,
    retry_delay="1000",
    timeout_ms=9000,
    caller_ip="192.0.2.1",
    schedule_id="scd_1",
    labels=("a", "b"),
    flow=FlowControl(key="k", rate=5, period_ms=60_000),
    callback=Callback(url="https://example.com/cb", headers=(("X-A", "1"),)),
)


def test_the_sdk_reads_a_message() -> None:
    read = parse_message_response(orjson.loads(orjson.dumps(message_json(STORED))))
    assert (read.message_id, read.url, read.method) == (text_of("msg_", ID), STORED.request.url, "PUT")
    assert (read.body, read.body_base64, read.headers) == ("hello", None, {"Test-Header": ["value"]})
    assert (read.max_retries, read.retry_delay_expression) == (0, "1000")
    assert (read.not_before, read.created_at) == (NOW + 5000, NOW)
    assert (read.callback, read.callback_headers) == ("https://example.com/cb", {"X-A": ["1"]})
    assert (read.failure_callback, read.failure_callback_headers) == (None, None)
    assert (read.url_group, read.endpoint, read.queue, read.schedule_id) == (None, None, None, "scd_1")
    assert (read.caller_ip, read.label) == ("192.0.2.1", "a")
    assert read.flow_control is not None
    assert (read.flow_control.key, read.flow_control.parallelism, read.flow_control.rate) == ("k", None, 5)
    assert read.flow_control.period == 60


def test_the_sdk_reads_a_plain_message() -> None:
    read = parse_message_response(message_json(a_message(id=ID, body=b"\xff")))
    assert (read.body, read.body_base64, read.flow_control, read.label) == (None, "/w==", None, None)


def test_the_sdk_reads_a_dead_letter() -> None:
    attempt = an_attempt(status=404, headers=(("x-a", "1"),), body=b"404 Not Found")
    dead_letter = DeadLetter(id=DeadLetterId(7), failed_at=NOW, message=STORED, attempt=attempt)
    read = parse_dlq_message_response(dead_letter_json(dead_letter))
    assert (read.dlq_id, read.message_id, read.response_status) == ("0-7", text_of("msg_", ID), 404)
    assert (read.response_body, read.response_body_base64) == ("404 Not Found", None)
    assert read.response_headers == {"X-A": ["1"]}
    unanswered = DeadLetter(
        id=DeadLetterId(7), failed_at=NOW, message=STORED, attempt=an_attempt(status=None, error="refused")
    )
    assert parse_dlq_message_response(dead_letter_json(unanswered)).response_status == 0


def test_the_sdk_reads_log_entries() -> None:
    event = Event(
        position=1,
        at=NOW,
        change=Change.RETRIED,
        message=STORED,
        next_at=NOW + 1000,
        status=500,
        response_headers=(("x-a", "1"),),
        response_body=b"why",
    )
    retry, error = parse_logs_response(log_entries(event))
    assert (retry.state, retry.next_delivery_time, retry.error) == (LogState.RETRY, NOW + 1000, None)
    assert (error.state, error.response_status, error.response_body) == (LogState.ERROR, 500, "d2h5")
    assert error.response_headers == {"X-A": ["1"]}
    for entry in (retry, error):
        assert (entry.time, entry.message_id, entry.url) == (NOW, text_of("msg_", ID), STORED.request.url)
        assert (entry.label, entry.retry_delay_expression, entry.timeout) == ("a", "1000", 9000)
        assert (entry.body_base64, entry.headers) == ("aGVsbG8=", {"Test-Header": ["value"]})
        assert (entry.callback_headers, entry.max_retries, entry.method) == ({"X-A": ["1"]}, 0, "PUT")
        assert entry.flow_control is not None


def test_the_sdk_reads_a_schedule() -> None:
    schedule = Schedule(
        tenant=TENANT,
        id="scd_1",
        cron="* * * * *",
        draft=EVERYTHING,
        created_at=NOW,
        revision=1,
        paused=True,
        last_fired_at=NOW,
    )
    view = ScheduleView(
        schedule=schedule, last_states={MessageId(1): None, MessageId(2): True, MessageId(3): False}
    )
    read = parse_schedule_response(orjson.loads(orjson.dumps(schedule_json(view))))
    assert (read.schedule_id, read.cron, read.destination) == (
        "scd_1",
        "* * * * *",
        "https://example.com/hook",
    )
    assert (read.delay, read.timeout, read.retries, read.paused) == (5403, 30, 0, True)
    assert (read.last_schedule_time, read.next_schedule_time) == (NOW, None)
    assert read.last_schedule_states is not None
    assert list(read.last_schedule_states.values()) == [
        ScheduleState.IN_PROGRESS,
        ScheduleState.SUCCESS,
        ScheduleState.FAIL,
    ]


def test_the_sdk_reads_a_receipt() -> None:
    read = parse_publish_response(
        receipt_json(Receipt(message_id=ID, deduplicated=True), "https://example.com/")
    )
    assert not isinstance(read, list)
    assert (read.message_id, read.deduplicated) == (text_of("msg_", ID), True)

"""What a callback says, on which terms it is sent, and when there is one."""

import json
from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.delivery import MAX_LOST_LEASES, Change, Settlement, lost, released, settle
from relay.domain.message import (
    Callback,
    FlowControl,
    Headers,
    Message,
    MessageId,
    Origin,
    Redaction,
    RetryPolicy,
    SignedBy,
)
from relay.ids import Ids, dead_letter_text, text_of
from tests.builders import NOW, a_claim, a_message, an_attempt, next_id

URL = "https://example.com/callback"
CALLBACK = Callback(url=URL)
FAILURE_CALLBACK = Callback(url="https://example.com/failed")


def settled(
    message: Message,
    *,
    status: int | None = 200,
    headers: Headers = (),
    body: bytes = b"",
    error: str | None = None,
    retried: int = 0,
    **terms: Any,
) -> Settlement:
    error = "nobody there" if status is None and error is None else error
    attempt = an_attempt(status=status, headers=headers, body=body, error=error)
    return settle(a_claim(message, retried=retried), attempt, next_id=next_id, **terms)


def told(message: Message) -> dict[str, Any]:
    """The body of a report."""
    body = json.loads(message.request.body)
    assert isinstance(body, dict)
    return body


# --- what it says


def test_a_callback_tells_everything_about_the_message_and_the_attempt() -> None:
    source = a_message(
        url="https://example.com/hook?a=b",
        method="PUT",
        headers=(("content-type", "text/plain"), ("X-A", "1")),
        body=b"sent \xff",
        not_before=NOW + 5,
        max_retries=2,
        caller_ip="192.0.2.1",
        url_group="group",
        endpoint="end",
        schedule_id="scd_1",
        callback=CALLBACK,
    )
    (report,) = settled(
        source, status=500, headers=(("x-b", "1"), ("X-B", "2")), body=b"got \xfe", retried=1
    ).publishes
    assert told(report) == {
        "status": 500,
        "header": {"X-B": ["1", "2"]},
        "body": "Z290IP4=",
        "retried": 1,
        "maxRetries": 2,
        "sourceMessageId": text_of("msg_", source.id),
        "topicName": "group",
        "endpointName": "end",
        "url": "https://example.com/hook?a=b",
        "method": "PUT",
        "sourceHeader": {"Content-Type": ["text/plain"], "X-A": ["1"]},
        "sourceBody": "c2VudCD/",
        "notBefore": NOW + 5,
        "createdAt": NOW,
        "scheduleId": "scd_1",
        "callerIP": "192.0.2.1",
    }


def test_what_does_not_apply_is_left_out_and_bodies_and_headers_may_be_empty() -> None:
    source = a_message(headers=(), body=b"", callback=CALLBACK)
    (report,) = settled(source, status=None).publishes
    assert told(report) == {
        "status": 0,
        "header": {},
        "body": "",
        "error": "nobody there",
        "maxRetries": 3,
        "sourceMessageId": text_of("msg_", source.id),
        "url": "https://example.com/hook",
        "method": "POST",
        "sourceHeader": {},
        "sourceBody": "",
        "notBefore": NOW,
        "createdAt": NOW,
    }


def test_a_report_without_an_answer_says_why_there_is_none() -> None:
    source = a_message(callback=CALLBACK, failure_callback=CALLBACK, max_retries=0)
    reports = settled(source, status=None, error="refused \udcff").publishes
    assert [told(report)["error"] for report in reports] == ["refused \N{REPLACEMENT CHARACTER}"] * 2
    (broken, _) = settled(source, status=200, error="the body ended early").publishes
    assert (told(broken)["status"], told(broken)["error"]) == (200, "the body ended early")


def test_bodies_are_cut_at_the_bound() -> None:
    source = a_message(body=b"0123456789", callback=CALLBACK)
    (report,) = settled(source, body=b"abcdefghij", max_report_bytes=4).publishes
    assert b64decode(told(report)["body"]) == b"abcd"
    assert b64decode(told(report)["sourceBody"]) == b"0123"


def test_reports_about_reports_do_not_grow_without_end() -> None:
    nested = CALLBACK
    for _ in range(26):
        nested = Callback(url=URL, callback=nested)
    message = a_message(body=b"x" * 3000, callback=nested)
    sizes = []
    while message.callback is not None:
        (message,) = settled(message, body=b"y" * 3000, max_report_bytes=3000).publishes
        sizes.append(len(message.request.body))
    assert len(sizes) == 27
    assert max(sizes) < 9000


@given(
    st.lists(st.tuples(st.text("aB-", min_size=1), st.text() | st.just("\udcff\ud800"))),
    st.binary(),
    st.binary(),
)
def test_whatever_was_sent_and_answered_can_be_reported(
    headers: list[tuple[str, str]], sent: bytes, answered: bytes
) -> None:
    source = a_message(headers=tuple(headers), body=sent, callback=CALLBACK)
    (report,) = settled(source, headers=tuple(headers), body=answered).publishes
    assert b64decode(told(report)["sourceBody"]) == sent
    assert b64decode(told(report)["body"]) == answered
    assert told(report)["header"] == told(report)["sourceHeader"]


# --- on which terms it is sent


def test_a_callback_is_a_message_of_its_own_that_inherits_the_number_of_retries() -> None:
    source = a_message(
        max_retries=5,
        retry_delay="1000",
        timeout_ms=7,
        caller_ip="192.0.2.1",
        url_group="group",
        endpoint="end",
        schedule_id="scd_1",
        queue="queue",
        labels=("a",),
        flow=FlowControl(key="k", rate=1),
        dedup_key=b"k" * 16,
        callback=CALLBACK,
    )
    (report,) = settled(source).publishes
    assert report == a_message(
        id=report.id,
        created_at=NOW + 5,
        url=URL,
        headers=(("Content-Type", "application/json"),),
        body=report.request.body,
        max_retries=5,
        source=source.id,
        lane_of=source.id,
    )
    assert report.id != source.id


def test_only_the_callbacks_of_a_message_in_a_queue_keep_a_lane() -> None:
    nested = Callback(url=URL, callback=CALLBACK, failure_callback=FAILURE_CALLBACK)
    queued = a_message(queue="q", callback=nested, failure_callback=FAILURE_CALLBACK, max_retries=0)
    reports = settled(queued, status=500).publishes
    assert [report.lane_of for report in reports] == [queued.id, queued.id]
    assert [one.lane_of for one in settled(reports[0], status=500).publishes] == [None, None]
    assert [one.lane_of for one in settled(a_message(callback=CALLBACK)).publishes] == [None]


def test_a_callback_has_the_terms_it_was_given() -> None:
    callback = Callback(
        url=URL,
        method="PATCH",
        headers=(("X-A", "1"), ("content-TYPE", "text/html"), ("Authorization", "Bearer theirs")),
        timeout_ms=9,
        max_retries=0,
        retry_delay="2000",
        flow=FlowControl(key="k", parallelism=2),
        callback=Callback(url="https://example.com/nested"),
        failure_callback=FAILURE_CALLBACK,
    )
    (report,) = settled(a_message(callback=callback)).publishes
    assert report.request.method == "PATCH"
    assert report.request.timeout_ms == 9
    assert report.request.headers == (
        ("Content-Type", "application/json"),
        ("X-A", "1"),
        ("Authorization", "Bearer theirs"),
    )
    assert report.retry == RetryPolicy(max_retries=0, delay="2000")
    assert report.flow == FlowControl(key="k", parallelism=2)
    assert report.callback == Callback(url="https://example.com/nested")
    assert report.failure_callback == FAILURE_CALLBACK


@pytest.mark.parametrize(
    ("redaction", "expected"),
    [
        (None, None),
        (Redaction(body=True), Redaction(body=True)),
        (Redaction(headers=True), Redaction(body=True, headers=True)),
        (Redaction(header_names=("x-a",)), Redaction(body=True, header_names=("x-a",))),
    ],
)
def test_what_a_message_hides_its_report_hides(
    redaction: Redaction | None, expected: Redaction | None
) -> None:
    source = a_message(body=b"secret", redaction=redaction, callback=CALLBACK)
    (report,) = settled(source).publishes
    assert report.redaction == expected
    assert b64decode(told(report)["sourceBody"]) == b"secret"


@pytest.mark.parametrize("signed_by", [None, *SignedBy])
def test_a_report_is_signed_as_its_message_is(signed_by: SignedBy | None) -> None:
    failing = a_message(
        signed_by=signed_by,
        max_retries=0,
        callback=CALLBACK,
        failure_callback=Callback(url="https://f.example"),
    )
    assert [report.signed_by for report in settled(failing, status=500).publishes] == [signed_by] * 2


# --- when there is one


def test_a_message_without_callbacks_publishes_nothing() -> None:
    for status in (200, 500):
        assert settled(a_message(), status=status).publishes == ()


def test_a_callback_follows_every_attempt() -> None:
    message = a_message(max_retries=1, callback=CALLBACK)
    outcomes = [settled(message, status=500), settled(message, status=500, retried=1), settled(message)]
    assert [one.change for one in outcomes] == [Change.RETRIED, Change.FAILED, Change.DELIVERED]
    reports = [told(report) for one in outcomes for report in one.publishes]
    assert [(report["status"], report.get("retried")) for report in reports] == [
        (500, None),
        (500, 1),
        (200, None),
    ]
    assert all("dlqId" not in report for report in reports)


def test_a_failure_callback_follows_the_last_failure_and_names_its_dead_letter() -> None:
    message = a_message(max_retries=1, failure_callback=FAILURE_CALLBACK)
    assert settled(message).publishes == ()
    assert settled(message, status=500).publishes == ()
    settlement = settled(message, status=500, retried=1)
    (report,) = settlement.publishes
    assert settlement.dead_letter_id is not None
    assert told(report)["dlqId"] == dead_letter_text(settlement.dead_letter_id)
    assert report.request.url == FAILURE_CALLBACK.url


def test_a_failure_that_must_not_be_retried_calls_back_at_once() -> None:
    message = a_message(callback=CALLBACK, failure_callback=FAILURE_CALLBACK)
    settlement = settled(message, status=489, headers=(("Upstash-NonRetryable-Error", "true"),))
    assert [report.request.url for report in settlement.publishes] == [URL, FAILURE_CALLBACK.url]
    assert ["dlqId" in told(report) for report in settlement.publishes] == [False, True]


def test_a_message_that_kills_its_workers_calls_back_too() -> None:
    message = a_message(max_retries=0, failure_callback=FAILURE_CALLBACK)
    settlement = lost(a_claim(message, lost_leases=MAX_LOST_LEASES), now=NOW + 9, next_id=next_id)
    assert settlement is not None
    (report,) = settlement.publishes
    assert (told(report)["status"], report.not_before) == (0, NOW + 9)


def test_nobody_is_called_back_about_what_was_not_attempted_or_was_canceled() -> None:
    message = a_message(callback=CALLBACK, failure_callback=FAILURE_CALLBACK)
    assert released(a_claim(message), now=NOW).publishes == ()
    for retried in (0, 3):
        canceled = settled(message, status=500, retried=retried).canceled()
        assert (canceled.publishes, canceled.dead_letter_id) == ((), None)
        assert canceled.change is Change.CANCELED_AFTER_ERROR


def test_a_success_that_comes_after_its_cancellation_calls_back() -> None:
    settlement = settled(a_message(callback=CALLBACK)).canceled()
    assert (settlement.change, len(settlement.publishes)) == (Change.DELIVERED, 1)


def test_a_callback_that_fails_has_no_callbacks_but_those_it_was_given() -> None:
    (report,) = settled(a_message(callback=CALLBACK, failure_callback=FAILURE_CALLBACK)).publishes
    assert settled(report, status=500, retried=3).publishes == ()
    nested = Callback(url=URL, failure_callback=FAILURE_CALLBACK)
    (report,) = settled(a_message(callback=nested)).publishes
    (about_the_report,) = settled(report, status=500, retried=3).publishes
    assert about_the_report.origin == Origin(source=report.id)
    assert told(about_the_report)["sourceMessageId"] == text_of("msg_", report.id)


def test_every_id_of_a_settlement_is_its_own_and_belongs_to_its_instant() -> None:
    settlement = settle(
        a_claim(a_message(max_retries=0, callback=CALLBACK, failure_callback=FAILURE_CALLBACK)),
        an_attempt(status=500),
        next_id=Ids().next,
    )
    ids = [settlement.dead_letter_id, *(report.id for report in settlement.publishes)]
    first = MessageId(settlement.at << 20)
    assert ids == [first, first + 1, first + 2]

from base64 import b64encode
from hashlib import sha256

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from relay.domain.dead_letter import DeadLetter, DeadLetterId
from relay.domain.message import Callback, FlowControl, MessageId, Origin, Redaction
from relay.ids import text_of
from relay.wire.json import PAGE_BYTES, dead_letter_json, dead_letter_page, message_json, receipt_json
from storage.protocol import Receipt
from tests.builders import NOW, a_message, an_attempt

ID = MessageId(NOW << 20 | 5)
ID_TEXT = text_of("msg_", ID)


def redacted(value: bytes) -> str:
    return "REDACTED:" + sha256(value).hexdigest()


def a_dead_letter(number: int = NOW << 20, *, body: bytes = b"hello", response: bytes = b"") -> DeadLetter:
    return DeadLetter(
        id=DeadLetterId(number),
        failed_at=NOW,
        message=a_message(id=ID, body=body),
        attempt=an_attempt(status=500, body=response),
    )


def test_a_plain_message_has_exactly_these_members() -> None:
    assert message_json(a_message(id=ID)) == {
        "messageId": ID_TEXT,
        "url": "https://example.com/hook",
        "method": "POST",
        "header": {"Content-Type": ["text/plain"]},
        "body": "hello",
        "maxRetries": 3,
        "notBefore": NOW,
        "createdAt": NOW,
    }


def test_a_message_with_everything_has_exactly_these_members() -> None:
    message = a_message(
        id=ID,
        not_before=NOW + 5000,
        url="https://example.com/?a=1",
        method="PUT",
        headers=(("Content-Type", "text/plain"), ("test-header", "value-uppercase, value-lowercase")),
        max_retries=0,
        retry_delay="1000",
        timeout_ms=5000,
        caller_ip="192.0.2.1",
        url_group="group",
        endpoint="one",
        schedule_id="scd_1",
        queue="queue",
        labels=("a", "b"),
        flow=FlowControl(key="k", parallelism=3, rate=5, period_ms=60_000),
        callback=Callback(url="https://example.com/cb", headers=(("x-a", "1"),)),
        failure_callback=Callback(url="https://example.com/failed", headers=(("X-B", "2"),)),
    )
    assert message_json(message) == {
        "messageId": ID_TEXT,
        "url": "https://example.com/?a=1",
        "method": "PUT",
        "header": {"Content-Type": ["text/plain"], "Test-Header": ["value-uppercase, value-lowercase"]},
        "body": "hello",
        "maxRetries": 0,
        "notBefore": NOW + 5000,
        "createdAt": NOW,
        "topicName": "group",
        "endpointName": "one",
        "queueName": "queue",
        "scheduleId": "scd_1",
        "callerIP": "192.0.2.1",
        "retryDelayExpression": "1000",
        "callback": "https://example.com/cb",
        "callbackHeader": {"X-A": ["1"]},
        "failureCallback": "https://example.com/failed",
        "failureCallbackHeader": {"X-B": ["2"]},
        "label": "a",
        "labels": ["a", "b"],
        "flowControlKey": "k",
        "parallelism": 3,
        "rate": 5,
        "period": 60,
    }


@pytest.mark.parametrize(
    ("flow", "shown"),
    [
        (FlowControl(key="k", parallelism=2), {"flowControlKey": "k", "parallelism": 2, "period": 1}),
        (FlowControl(key="k", rate=2, period_ms=5000), {"flowControlKey": "k", "rate": 2, "period": 5}),
    ],
)
def test_a_period_goes_with_every_flow_key_and_a_limit_only_where_it_was_given(
    flow: FlowControl, shown: dict[str, object]
) -> None:
    assert message_json(a_message(id=ID, flow=flow)) == message_json(a_message(id=ID)) | shown


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", {}),
        ("grün".encode(), {"body": "grün"}),
        (b"\x00", {"body": "\x00"}),
        (b"\xff\x00", {"bodyBase64": "/wA="}),
        (b"\xed\xa0\x80", {"bodyBase64": "7aCA"}),
    ],
)
def test_a_body_is_text_when_it_is_utf8_base64_when_not_and_absent_when_empty(
    body: bytes, shown: dict[str, str]
) -> None:
    json = message_json(a_message(body=body))
    assert {key: value for key, value in json.items() if key.startswith("body")} == shown


def test_a_message_without_headers_shows_that_it_has_none() -> None:
    assert message_json(a_message(headers=()))["header"] == {}


def test_a_callback_without_headers_has_no_header_member() -> None:
    json = message_json(a_message(callback=Callback(url="https://example.com/cb")))
    assert json["callback"] == "https://example.com/cb"
    assert "callbackHeader" not in json


@pytest.mark.parametrize(
    ("redaction", "headers", "callback_headers", "body"),
    [
        (Redaction(), {"A": ["1"], "B": ["ü"]}, {"A": ["3"]}, "hello"),
        (Redaction(body=True), {"A": ["1"], "B": ["ü"]}, {"A": ["3"]}, redacted(b"hello")),
        (
            Redaction(headers=True),
            {"A": [redacted(b"1")], "B": [redacted("ü".encode())]},
            {"A": [redacted(b"3")]},
            "hello",
        ),
        (
            Redaction(header_names=("a",)),
            {"A": [redacted(b"1")], "B": ["ü"]},
            {"A": [redacted(b"3")]},
            "hello",
        ),
    ],
)
def test_redacted_values_are_shown_as_their_hash(
    redaction: Redaction, headers: dict[str, list[str]], callback_headers: dict[str, list[str]], body: str
) -> None:
    message = a_message(
        headers=(("A", "1"), ("B", "ü")),
        callback=Callback(url="https://example.com/cb", headers=(("A", "3"),)),
        redaction=redaction,
    )
    json = message_json(message)
    assert (json["header"], json["callbackHeader"], json["body"]) == (headers, callback_headers, body)


def test_a_redacted_body_is_a_hash_whether_it_is_text_or_not_and_absent_when_empty() -> None:
    json = message_json(a_message(body=b"\xff", redaction=Redaction(body=True)))
    assert json["body"] == redacted(b"\xff")
    assert "bodyBase64" not in json
    assert "body" not in message_json(a_message(body=b"", redaction=Redaction(body=True)))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\udcffb", "a\ufffdb"),
        ("\ud800", "\ufffd"),
        ("grün 😀", "grün 😀"),
    ],
)
def test_header_bytes_that_are_not_utf8_do_not_stop_the_answer(value: str, shown: str) -> None:
    json = message_json(a_message(headers=(("X", value),)))
    assert orjson.loads(orjson.dumps(json))["header"]["X"] == [shown]


@given(
    st.lists(st.tuples(st.text(max_size=5), st.text(st.characters(), max_size=5)), max_size=4),
    st.binary(max_size=8),
    st.binary(max_size=8),
)
def test_whatever_came_over_the_wire_can_be_shown(
    headers: list[tuple[str, str]], body: bytes, response: bytes
) -> None:
    message = a_message(body=body)
    attempt = an_attempt(status=500, headers=tuple(headers), body=response)
    shown = dead_letter_json(DeadLetter(id=DeadLetterId(1), failed_at=NOW, message=message, attempt=attempt))
    assert orjson.loads(orjson.dumps(shown))["dlqId"] == "0-1"


def test_a_dead_letter_is_its_message_with_the_last_answer() -> None:
    dead_letter = DeadLetter(
        id=DeadLetterId(1725323658779 << 20 | 3),
        failed_at=NOW,
        message=a_message(id=ID),
        attempt=an_attempt(
            status=404,
            headers=(("content-type", "text/plain"), ("Set-Cookie", "a=1"), ("set-cookie", "b=2")),
            body=b"404 Not Found",
        ),
    )
    assert dead_letter_json(dead_letter) == message_json(a_message(id=ID)) | {
        "dlqId": "1725323658779-3",
        "responseStatus": 404,
        "responseHeader": {"Content-Type": ["text/plain"], "Set-Cookie": ["a=1", "b=2"]},
        "responseBody": "404 Not Found",
    }


def test_a_dead_letter_that_got_no_answer_has_status_0_and_says_why() -> None:
    dead_letter = DeadLetter(
        id=DeadLetterId(1),
        failed_at=NOW,
        message=a_message(id=ID),
        attempt=an_attempt(status=None, error="connection \udcffrefused"),
    )
    assert dead_letter_json(dead_letter) == message_json(a_message(id=ID)) | {
        "dlqId": "0-1",
        "responseStatus": 0,
        "error": "connection \N{REPLACEMENT CHARACTER}refused",
    }


def test_a_dead_letter_says_how_often_it_was_retried() -> None:
    retried = replace(a_dead_letter(), retried=2)
    assert dead_letter_json(retried)["retried"] == 2


def test_a_callback_names_the_message_it_is_about() -> None:
    message = a_message(id=ID)
    callback = replace(message, origin=Origin(source=MessageId(5)))
    assert message_json(callback) == message_json(message) | {"sourceMessageId": text_of("msg_", 5)}


def test_a_dead_letter_whose_answer_broke_off_has_its_status_and_says_why() -> None:
    attempt = an_attempt(status=200, body=b"half", error="the body ended early")
    json = dead_letter_json(
        DeadLetter(id=DeadLetterId(1), failed_at=NOW, message=a_message(id=ID), attempt=attempt)
    )
    assert (json["responseStatus"], json["responseBody"], json["error"]) == (
        200,
        "half",
        "the body ended early",
    )


def test_an_answer_that_is_not_text_is_shown_in_base64() -> None:
    json = dead_letter_json(a_dead_letter(response=b"\xff\xfe"))
    assert json["responseBodyBase64"] == b64encode(b"\xff\xfe").decode()
    assert "responseBody" not in json


def test_what_is_redacted_of_the_message_is_shown_of_the_answer() -> None:
    dead_letter = DeadLetter(
        id=DeadLetterId(1),
        failed_at=NOW,
        message=a_message(redaction=Redaction(body=True, headers=True)),
        attempt=an_attempt(status=500, headers=(("X-A", "1"),), body=b"why"),
    )
    json = dead_letter_json(dead_letter)
    assert (json["responseHeader"], json["responseBody"]) == ({"X-A": ["1"]}, "why")


def test_a_page_of_dead_letters_ends_with_a_cursor_to_the_first_one_left_out() -> None:
    dead_letters = [a_dead_letter(number) for number in (7, 8, 9)]
    shown = [dead_letter_json(dead_letter) for dead_letter in dead_letters]
    assert dead_letter_page(dead_letters, count=3) == (shown, None)
    assert dead_letter_page(dead_letters, count=2) == (shown[:2], "0-9")
    assert dead_letter_page([], count=2) == ([], None)


def test_a_page_of_dead_letters_is_bounded_by_its_bodies_too() -> None:
    big = bytes(PAGE_BYTES // 2 + 1)
    dead_letters = [a_dead_letter(7, body=big), a_dead_letter(8, response=big), a_dead_letter(9)]
    entries, cursor = dead_letter_page(dead_letters, count=3)
    assert (len(entries), cursor) == (2, "0-9")
    huge = [a_dead_letter(7, body=big + big), a_dead_letter(8)]
    entries, cursor = dead_letter_page(huge, count=3)
    assert (len(entries), cursor) == (1, "0-8")


def test_a_receipt_says_that_it_is_of_a_duplicate_only_when_it_is() -> None:
    url = "https://example.com/"
    assert receipt_json(Receipt(message_id=ID), url) == {"messageId": ID_TEXT, "url": url}
    assert receipt_json(Receipt(message_id=ID, deduplicated=True), url) == {
        "messageId": ID_TEXT,
        "url": url,
        "deduplicated": True,
    }

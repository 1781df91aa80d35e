import json

import pytest

from relay.domain.errors import (
    Forbidden,
    Invalid,
    NotFound,
    OverLimit,
    RelayError,
    TooLarge,
    Unauthorized,
    Unavailable,
    quoted,
)


def test_an_invalid_value_is_reported_with_the_field_the_caller_used() -> None:
    error = Invalid("Upstash-Delay", f"{quoted('5x')} is not a duration such as 10s, 2m or 1d10h")

    assert str(error) == 'Upstash-Delay: "5x" is not a duration such as 10s, 2m or 1d10h'
    assert error.field == "Upstash-Delay"
    assert error.problem == '"5x" is not a duration such as 10s, 2m or 1d10h'


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OverLimit("Upstash-Retries", "1000000 is more than the 100 allowed"),
            "Upstash-Retries: 1000000 is more ",
        ),
        (TooLarge("the message body", 1024), "the message body is larger than the limit of 1024 bytes"),
        (Unauthorized("no valid token was given"), "no valid token was given"),
        (Forbidden("this token may only read"), "this token may only read"),
        (NotFound("message msg_1"), "message msg_1 not found"),
        (Unavailable("the database is locked"), "the database is locked"),
    ],
)
def test_every_error_is_a_sentence_that_can_be_shown(error: RelayError, sentence: str) -> None:
    assert str(error).startswith(sentence)


def test_what_was_too_large_missing_or_unavailable_can_be_read_from_the_error() -> None:
    assert TooLarge("the batch", 7).limit_bytes == 7
    assert NotFound("schedule s").what == "schedule s"
    assert Unavailable("storage is full").retry_after_s == 1
    assert Unavailable("storage is full", retry_after_s=30).retry_after_s == 30


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", '""'),
        ("grüße ✓", '"grüße ✓"'),
        ("a\r\nb\x00\u2028", '"a\\r\\nb\\x00\\u2028"'),
        ("caf\udce9", '"caf\\udce9"'),
        ("x" * 64, f'"{"x" * 64}"'),
        ("x" * 65, f'"{"x" * 63}..."'),
    ],
)
def test_quoted_text_is_short_on_one_line_and_can_be_encoded(text: str, shown: str) -> None:
    assert quoted(text) == shown
    assert json.loads(json.dumps(quoted(text).encode().decode())) == shown

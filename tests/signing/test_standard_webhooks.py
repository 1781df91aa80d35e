"""Standard Webhooks by HMAC: what is signed, what is believed, and that the scheme's own library agrees."""

import base64
import hmac
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as Oracle
from standardwebhooks.webhooks import WebhookVerificationError

from signing import (
    MalformedSignatureError,
    MissingSignatureError,
    SignatureError,
    SignatureExpiredError,
    SignatureNotYetValidError,
    Webhook,
    WebhookReceiver,
    WrongKeyError,
    generate_key,
    sign_standard,
    webhook_secret,
)

KEY, NEXT = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
RECEIVER = WebhookReceiver(KEY, NEXT)
ID = "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W"
BODY = b'{"order": 1}'
NOW_S = 1_700_000_000

#: What a header can carry and an id may hold.
ids = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="."), min_size=1)


def a_signature(*, key: str = KEY, id: str = ID, now_s: int = NOW_S, body: bytes = BODY) -> str:
    return sign_standard(key=key, id=id, now_s=now_s, body=body)


def verify(
    signature: str | None,
    *,
    id: str | None = ID,
    timestamp: str | None = str(NOW_S),
    body: bytes | str = BODY,
    now_s: int = NOW_S,
    clock_tolerance_s: int = 0,
) -> Webhook:
    return RECEIVER.verify(
        id=id,
        timestamp=timestamp,
        signature=signature,
        body=body,
        now_s=now_s,
        clock_tolerance_s=clock_tolerance_s,
    )


# Signed


def test_a_signature_is_the_hmac_of_id_time_and_body_in_base64() -> None:
    mac = hmac.digest(KEY.encode(), f"{ID}.{NOW_S}.".encode() + BODY, "sha256")
    assert a_signature() == "v1," + base64.b64encode(mac).decode()


def test_a_secret_is_the_signing_key_in_base64_and_signs_the_same() -> None:
    assert webhook_secret(KEY) == "whsec_" + base64.b64encode(KEY.encode()).decode()
    assert a_signature(key=webhook_secret(KEY)) == a_signature()


# The library of the scheme


def test_the_library_accepts_what_we_sign_and_we_what_it_signs() -> None:
    now_s = int(time.time())
    headers = {
        "webhook-id": ID,
        "webhook-timestamp": str(now_s),
        "webhook-signature": a_signature(now_s=now_s),
    }
    assert Oracle(webhook_secret(KEY)).verify(BODY, headers) == {"order": 1}
    theirs = Oracle(webhook_secret(KEY)).sign(ID, datetime.fromtimestamp(NOW_S, UTC), BODY.decode())
    assert verify(theirs) == Webhook(id=ID, timestamp=NOW_S)


@settings(deadline=None)
@given(id=ids, body=st.text(), key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1))
def test_the_library_signs_alike_for_any_id_body_and_key(id: str, body: str, key: str) -> None:
    theirs = Oracle(webhook_secret(key)).sign(id, datetime.fromtimestamp(NOW_S, UTC), body)
    assert sign_standard(key=webhook_secret(key), id=id, now_s=NOW_S, body=body.encode()) == theirs


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-id": "msg_other"},
        {"webhook-timestamp": str(int(time.time()) - 301)},
        {"webhook-signature": "v1," + base64.b64encode(bytes(32)).decode()},
        {"webhook-signature": ""},
        {"webhook-id": ""},
        {"webhook-timestamp": "yesterday"},
    ],
)
def test_both_refuse_what_was_changed(changed: dict[str, str]) -> None:
    now_s = int(time.time())
    headers = {
        "webhook-id": ID,
        "webhook-timestamp": str(now_s),
        "webhook-signature": a_signature(now_s=now_s),
    } | changed
    with pytest.raises(WebhookVerificationError):
        Oracle(webhook_secret(KEY)).verify(BODY, headers)
    with pytest.raises(SignatureError):
        RECEIVER.verify(
            id=headers["webhook-id"],
            timestamp=headers["webhook-timestamp"],
            signature=headers["webhook-signature"],
            body=BODY,
        )


# Accepted


@given(body=st.binary())
def test_any_bytes_are_a_body(body: bytes) -> None:
    assert verify(a_signature(body=body), body=body).id == ID


def test_a_str_body_stands_for_its_utf8_bytes() -> None:
    assert verify(a_signature(body="größer".encode()), body="größer").id == ID


def test_a_signature_by_the_next_key_is_accepted_and_one_by_a_third_is_not() -> None:
    assert verify(a_signature(key=NEXT)).timestamp == NOW_S
    with pytest.raises(WrongKeyError):
        verify(a_signature(key=generate_key()))


def test_one_genuine_signature_among_others_is_enough() -> None:
    assert verify(f"v9,xyz {a_signature(key=generate_key())} v1a,AAAA {a_signature()}").id == ID


def test_a_secret_without_padding_is_the_same_secret() -> None:
    bare = WebhookReceiver(webhook_secret("12345").rstrip("="))
    signature = sign_standard(key="12345", id=ID, now_s=NOW_S, body=BODY)
    assert bare.verify(id=ID, timestamp=str(NOW_S), signature=signature, body=BODY, now_s=NOW_S).id == ID


# Refused


@pytest.mark.parametrize(("id", "timestamp"), [(None, str(NOW_S)), ("", str(NOW_S)), (ID, None), (ID, "")])
def test_a_signature_without_its_id_or_time_is_missing_something(
    id: str | None, timestamp: str | None
) -> None:
    with pytest.raises(MissingSignatureError, match="no webhook-"):
        verify(a_signature(), id=id, timestamp=timestamp)


@pytest.mark.parametrize("signature", [None, ""])
def test_a_request_without_a_signature_is_refused(signature: str | None) -> None:
    with pytest.raises(MissingSignatureError):
        verify(signature)


@pytest.mark.parametrize("signature", ["v1", "nonsense", "v2,AAAA", "v1;AAAA", "v1,größe", " ", "v1,A " * 21])
def test_what_holds_no_known_signature_is_malformed(signature: str) -> None:
    with pytest.raises(MalformedSignatureError):
        verify(signature)


@pytest.mark.parametrize("signature", ["v1,", "v1,====", "v1,\x00", "v1,AAAA,AAAA"])
def test_what_only_looks_like_a_signature_is_made_with_no_key(signature: str) -> None:
    with pytest.raises(WrongKeyError):
        verify(signature)


@pytest.mark.parametrize("timestamp", ["-1", "1.7e9", f"{NOW_S}.0", "\u0661\u0667", "1" * 13, "NaN", " 1"])
def test_a_time_is_whole_seconds_in_digits(timestamp: str) -> None:
    with pytest.raises(MalformedSignatureError, match="webhook-timestamp"):
        verify(a_signature(), timestamp=timestamp)


def test_part_of_a_body_cannot_be_passed_off_as_a_later_time() -> None:
    later = NOW_S + 100_000
    signature = a_signature(body=f"{later}.{{}}".encode())
    assert verify(signature, body=f"{later}.{{}}").id == ID
    with pytest.raises(MalformedSignatureError, match="full stop"):
        verify(signature, id=f"{ID}.{NOW_S}", timestamp=str(later), body=b"{}", now_s=later)


@pytest.mark.parametrize(
    "changed", [{"id": "msg_other"}, {"timestamp": str(NOW_S + 1)}, {"body": BODY + b" "}]
)
def test_id_time_and_body_are_all_signed(changed: dict[str, str]) -> None:
    with pytest.raises(WrongKeyError):
        verify(a_signature(), **changed)  # type: ignore[arg-type]


def test_a_signature_is_good_for_five_minutes_before_and_after_its_time() -> None:
    for late_s in (-300, 0, 300):
        assert verify(a_signature(), now_s=NOW_S + late_s).timestamp == NOW_S
    with pytest.raises(SignatureExpiredError):
        verify(a_signature(), now_s=NOW_S + 301)
    with pytest.raises(SignatureNotYetValidError):
        verify(a_signature(), now_s=NOW_S - 301)
    assert verify(a_signature(), now_s=NOW_S + 310, clock_tolerance_s=10).timestamp == NOW_S


@settings(deadline=None)
@given(id=st.text(), timestamp=st.text(), signature=st.text(), body=st.binary())
def test_nothing_a_stranger_sends_is_believed_or_breaks_the_receiver(
    id: str, timestamp: str, signature: str, body: bytes
) -> None:
    for given_signature in (signature, "v1," + signature, a_signature() + " " + signature):
        with pytest.raises(SignatureError):
            verify(given_signature, id=id, timestamp=timestamp, body=body)


# Keys


@pytest.mark.parametrize("key", ["", "whsec_", "whsec_==", "whsec_not base64", "whsec_a"])
def test_a_key_that_is_empty_or_unreadable_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValueError, match=r"webhook secret|base64") as refused:
        WebhookReceiver(key)
    assert not key.removeprefix("whsec_").strip("=") or key not in str(refused.value)


def test_a_receiver_needs_a_key() -> None:
    with pytest.raises(ValueError, match="At least one key"):
        WebhookReceiver()


def test_a_parsed_body_and_a_negative_tolerance_are_mistakes_of_the_caller() -> None:
    with pytest.raises(TypeError, match="raw request body"):
        verify(a_signature(), body={"order": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        verify(a_signature(), clock_tolerance_s=-1)

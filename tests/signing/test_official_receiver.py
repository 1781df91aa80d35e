"""The receiver of the official Python SDK accepts what we sign, and refuses what it should."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qstash import Receiver as OfficialReceiver
from qstash.errors import SignatureError as OfficialSignatureError

from signing import KeyPair, Receiver, SignatureError, generate_key, rotate, sign

PAIR = KeyPair(generate_key(), generate_key())
OFFICIAL = OfficialReceiver(PAIR.current, PAIR.next)
OURS = Receiver(PAIR.current, PAIR.next)
URL = "https://example.com/hooks/orders?id=1"
BODY = '{"order": "größer"}'


def a_token(
    *, key: str = PAIR.current, url: str = URL, body: str = BODY, age_s: int = 0, jti: str = "jwt_1"
) -> str:
    return sign(key=key, url=url, body=body.encode(), now_s=int(time.time()) - age_s, jti=jti)


def test_the_official_receiver_accepts_a_token_with_and_without_the_url() -> None:
    OFFICIAL.verify(signature=a_token(), body=BODY)
    OFFICIAL.verify(signature=a_token(), body=BODY, url=URL)


def test_the_official_receiver_accepts_the_hash_of_an_empty_body() -> None:
    OFFICIAL.verify(signature=a_token(body=""), body="", url=URL)


def test_the_official_receiver_keeps_verifying_after_one_rotation_and_not_after_two() -> None:
    once = rotate(PAIR, generate_key())
    twice = rotate(once, generate_key())
    OFFICIAL.verify(signature=a_token(key=once.current), body=BODY, url=URL)
    with pytest.raises(OfficialSignatureError):
        OFFICIAL.verify(signature=a_token(key=twice.current), body=BODY)


@settings(deadline=None)
@given(url=st.text(), body=st.text(), jti=st.text())
def test_the_official_receiver_accepts_any_url_body_and_id(url: str, body: str, jti: str) -> None:
    OFFICIAL.verify(signature=a_token(url=url, body=body, jti=jti), body=body, url=url)


def refused_by_both(signature: str, *, body: str = BODY, url: str | None = None) -> bool:
    with pytest.raises(OfficialSignatureError):
        OFFICIAL.verify(signature=signature, body=body, url=url)
    with pytest.raises(SignatureError):
        OURS.verify(signature=signature, body=body, url=url)
    return True


def test_both_receivers_refuse_a_foreign_key() -> None:
    assert refused_by_both(a_token(key=generate_key()))


def test_both_receivers_refuse_a_tampered_body() -> None:
    assert refused_by_both(a_token(), body=BODY + " ")


def test_both_receivers_refuse_another_url() -> None:
    assert refused_by_both(a_token(), url=URL + "0")


def test_both_receivers_refuse_an_expired_token() -> None:
    OFFICIAL.verify(signature=a_token(age_s=200), body=BODY)
    assert refused_by_both(a_token(age_s=301))


def test_both_receivers_refuse_a_token_from_the_future() -> None:
    assert refused_by_both(a_token(age_s=-100))


def test_both_receivers_refuse_text_that_is_no_token() -> None:
    assert refused_by_both("not.a.token")

"""The tokens `sign` makes, as PyJWT reads them."""

import base64
import hashlib
import json
from typing import Any

import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from signing import body_hash, sign

KEY = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r"
OTHER_KEY = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
URL = "https://example.com/hooks/orders?id=1&id=2"
NOW_S = 1_700_000_000

any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates included


def segment(token: str, number: int) -> bytes:
    text = token.split(".")[number]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def decoded(token: str, key: str = KEY) -> dict[str, Any]:
    """The claims by PyJWT, whose clock is not ours: all checks but those of time."""
    return jwt.decode(
        token,
        key,
        algorithms=["HS256"],
        issuer="Upstash",
        options={
            "require": ["iss", "sub", "iat", "nbf", "exp", "jti", "body"],
            "verify_exp": False,
            "verify_nbf": False,
            "verify_iat": False,
        },
    )


def test_a_token_states_destination_times_id_and_body_hash() -> None:
    token = sign(key=KEY, url=URL, body=b"hello", now_s=NOW_S, jti="jwt_1")
    assert decoded(token) == {
        "iss": "Upstash",
        "sub": URL,
        "iat": NOW_S,
        "nbf": 0,
        "exp": NOW_S + 300,
        "jti": "jwt_1",
        "body": "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
    }


def test_the_header_is_exactly_the_documented_one() -> None:
    token = sign(key=KEY, url=URL, body=b"", now_s=NOW_S, jti="jwt_1")
    assert segment(token, 0) == b'{"alg":"HS256","typ":"JWT"}'


def test_a_token_has_three_segments_without_padding() -> None:
    for length in range(12):
        token = sign(key=KEY, url="https://e.com/" + "a" * length, body=b"", now_s=NOW_S, jti="jwt_1")
        assert token.count(".") == 2
        assert "=" not in token


def test_an_empty_body_is_hashed_like_any_other() -> None:
    assert body_hash(b"") == "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="


def test_a_token_is_refused_under_any_other_key() -> None:
    token = sign(key=KEY, url=URL, body=b"", now_s=NOW_S, jti="jwt_1")
    with pytest.raises(jwt.InvalidSignatureError):
        decoded(token, OTHER_KEY)


@settings(deadline=None)
@given(
    url=any_text,
    body=st.binary(max_size=300),
    jti=any_text,
    now_s=st.integers(min_value=0, max_value=2**40),
)
@example(url='https://e.com/"\\/\b\f\n\r\t\x00\x1f\x7f', body=b"\xff\x00", jti='"},{"', now_s=0)
@example(url="https://münchen.example/\u2028?q=\U0001f600", body=b"", jti="jwt_1", now_s=1)
@example(url='x","sub":"https://evil.example', body=b"{}", jti="jwt_1", now_s=1)
@example(url="\ud800", body=b"", jti="\udfff", now_s=1)
def test_pyjwt_reads_every_token_back_as_it_was_meant(url: str, body: bytes, jti: str, now_s: int) -> None:
    claims = decoded(sign(key=KEY, url=url, body=body, now_s=now_s, jti=jti))
    assert claims == {
        "iss": "Upstash",
        "sub": url,
        "iat": now_s,
        "nbf": 0,
        "exp": now_s + 300,
        "jti": jti,
        "body": base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode(),
    }


@settings(deadline=None)
@given(url=any_text, jti=any_text)
def test_no_url_or_id_can_add_or_repeat_a_claim(url: str, jti: str) -> None:
    token = sign(key=KEY, url=url, body=b"", now_s=NOW_S, jti=jti)
    names = json.loads(segment(token, 1), object_pairs_hook=lambda pairs: [name for name, _ in pairs])
    assert sorted(names) == ["body", "exp", "iat", "iss", "jti", "nbf", "sub"]


@settings(deadline=None)
@given(key=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=32, max_size=200))
def test_a_key_of_any_length_signs_as_pyjwt_does(key: str) -> None:
    # HMAC hashes keys above its block of 64 bytes first, so both sides of that length matter.
    token = sign(key=key, url=URL, body=b"hello", now_s=NOW_S, jti="jwt_1")
    payload = segment(token, 1)
    by_pyjwt = jwt.PyJWS(algorithms=["HS256"]).encode(payload, key, algorithm="HS256", sort_headers=True)
    assert token == by_pyjwt

"""Which scheme a request is judged by, and with which keys."""

import os
import subprocess
import sys

import pytest

from signing import (
    Claims,
    KeyPair,
    MalformedSignatureError,
    MissingSignatureError,
    PrivateKey,
    SignatureExpiredError,
    UrlMismatchError,
    Verifier,
    Webhook,
    WrongKeyError,
    sign,
    sign_standard,
    webhook_secret,
)
from signing.standard import signed_content

PAIR = KeyPair("sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs")
OTHER = "sig_7GVPjvuwsfqF65iC8fSrs1dfYruM"
URL = "https://example.com/hook"
BODY = b'{"order": 1}'
NOW_S = 1_700_000_000
VERIFIER = Verifier(PAIR.current, PAIR.next)


def by_qstash(key: str = PAIR.current) -> dict[str, str]:
    return {"Upstash-Signature": sign(key=key, url=URL, body=BODY, now_s=NOW_S, jti="jwt_1")}


def by_standard(key: str = PAIR.current) -> dict[str, str]:
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(NOW_S),
        "webhook-signature": sign_standard(key=key, id="msg_1", now_s=NOW_S, body=BODY),
    }


def verify(
    headers: dict[str, str], *, verifier: Verifier = VERIFIER, url: str | None = None, now_s: int = NOW_S
) -> Claims | Webhook:
    return verifier.verify(headers=headers, body=BODY, url=url, now_s=now_s)


def test_the_two_signing_keys_verify_both_schemes() -> None:
    for key in (PAIR.current, PAIR.next):
        assert isinstance(verify(by_qstash(key)), Claims)
        assert isinstance(verify(by_standard(key)), Webhook)
    for headers in (by_qstash(OTHER), by_standard(OTHER)):
        with pytest.raises(WrongKeyError):
            verify(headers)


def test_one_signing_key_is_enough() -> None:
    alone = Verifier(PAIR.current)
    assert isinstance(verify(by_qstash(), verifier=alone), Claims)
    assert isinstance(verify(by_standard(), verifier=alone), Webhook)
    with pytest.raises(WrongKeyError):
        verify(by_qstash(PAIR.next), verifier=alone)


def test_keys_of_standard_webhooks_verify_that_scheme_alone() -> None:
    verifier = Verifier(webhook_secret(PAIR.current), PrivateKey.derived(OTHER).public)
    assert isinstance(verify(by_standard(), verifier=verifier), Webhook)
    by_ed25519 = by_standard() | {
        "webhook-signature": PrivateKey.derived(OTHER).sign(signed_content("msg_1", NOW_S, BODY))
    }
    assert isinstance(verify(by_ed25519, verifier=verifier), Webhook)
    assert isinstance(verify(by_standard() | by_qstash(), verifier=verifier), Webhook)
    with pytest.raises(MissingSignatureError):
        verify(by_qstash(), verifier=verifier)


def test_a_request_with_both_signatures_is_judged_by_the_one_that_states_the_url() -> None:
    assert isinstance(verify(by_standard() | by_qstash(), url=URL), Claims)
    with pytest.raises(WrongKeyError):
        verify(by_standard() | by_qstash(OTHER))


def test_where_the_url_is_checked_a_signature_that_does_not_state_it_is_refused() -> None:
    assert isinstance(verify(by_qstash(), url=URL), Claims)
    with pytest.raises(UrlMismatchError):
        verify(by_qstash(), url=URL + "/other")
    with pytest.raises(MissingSignatureError, match="for which URL"):
        verify(by_standard(), url=URL)
    with pytest.raises(MissingSignatureError):
        verify({}, url=URL)
    with pytest.raises(ValueError, match="does not sign the URL"):
        verify(by_standard(), url=URL, verifier=Verifier(webhook_secret(PAIR.current)))


def test_late_requests_are_refused_by_either_scheme() -> None:
    for headers in (by_qstash(), by_standard()):
        with pytest.raises(SignatureExpiredError):
            verify(headers, now_s=NOW_S + 301)


def test_header_names_may_be_written_in_any_case() -> None:
    for headers in (by_qstash(), by_standard()):
        verify({name.upper(): value for name, value in headers.items()})
        verify({name.lower(): value for name, value in headers.items()})


@pytest.mark.parametrize("headers", [by_qstash(), by_standard()])
def test_a_header_that_comes_twice_is_refused(headers: dict[str, str]) -> None:
    for name, value in headers.items():
        with pytest.raises(MalformedSignatureError, match="more than once"):
            VERIFIER.verify(
                headers=[*headers.items(), (name.title(), value + "x")], body=BODY, url=None, now_s=NOW_S
            )


def test_a_third_signing_key_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="two signing keys"):
        Verifier(PAIR.current, PAIR.next, OTHER)


def built_with(**variables: str) -> str:
    """What a program prints that builds a verifier without keys, in an environment with these variables."""
    program = """
from signing import Verifier
try:
    print("knows" if Verifier().knows_urls else "lacks")
except ValueError as problem:
    print(problem)
"""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("QSTASH_")}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=bare | variables, capture_output=True, text=True, check=True
    )
    return ran.stdout.strip()


def test_without_keys_those_of_the_environment_count() -> None:
    assert built_with(QSTASH_CURRENT_SIGNING_KEY=PAIR.current, QSTASH_NEXT_SIGNING_KEY=PAIR.next) == "knows"


def test_without_keys_anywhere_it_is_said_which_variables_are_missing() -> None:
    assert built_with(QSTASH_CURRENT_SIGNING_KEY=PAIR.current, QSTASH_NEXT_SIGNING_KEY="") == (
        "No keys were given, and the environment does not set QSTASH_NEXT_SIGNING_KEY."
    )
    assert "QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY" in built_with()

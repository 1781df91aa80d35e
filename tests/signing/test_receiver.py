"""What our own receiver accepts, and the reason it gives for everything else."""

import doctest
import hmac
import json
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from typing import cast

import jwt
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import signing
from signing import (
    AlgorithmRefusedError,
    BodyMismatchError,
    Claims,
    InvalidClaimError,
    KeyPair,
    MalformedSignatureError,
    MissingSignatureError,
    Receiver,
    SignatureError,
    SignatureExpiredError,
    SignatureNotYetValidError,
    UrlMismatchError,
    WrongKeyError,
    body_hash,
    generate_key,
    rotate,
    sign,
)

PAIR = KeyPair("sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs")
RECEIVER = Receiver(PAIR.current, PAIR.next)
URL = "https://example.com/hooks/orders?id=1"
BODY = b'{"order": 1}'
NOW_S = 1_700_000_000

any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates included
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def a_token(*, key: str = PAIR.current, url: str = URL, body: bytes = BODY, now_s: int = NOW_S) -> str:
    return sign(key=key, url=url, body=body, now_s=now_s, jti="jwt_1")


def the_claims(**changed: object) -> dict[str, object]:
    return {
        "iss": "Upstash",
        "sub": URL,
        "iat": NOW_S,
        "nbf": 0,
        "exp": NOW_S + 300,
        "jti": "jwt_1",
        "body": body_hash(BODY),
    } | changed


def signed_bytes(payload: bytes) -> str:
    """A token whose payload is not claims, or not JSON, made with the right key."""
    return jwt.PyJWS().encode(payload, PAIR.current, algorithm="HS256")


def signed_claims(claims: object) -> str:
    return signed_bytes(json.dumps(claims).encode())


def as_segment(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def verify(
    signature: str | None, *, body: bytes | str = BODY, url: str | None = None, now_s: int = NOW_S
) -> Claims:
    return RECEIVER.verify(signature=signature, body=body, url=url, now_s=now_s)


# Accepted


def test_a_signature_by_the_current_key_yields_its_claims() -> None:
    assert verify(a_token(), url=URL) == Claims(
        iss="Upstash",
        sub=URL,
        iat=NOW_S,
        nbf=0,
        exp=NOW_S + 300,
        jti="jwt_1",
        body=body_hash(BODY),
    )


def test_a_signature_by_the_next_key_is_accepted() -> None:
    assert verify(a_token(key=PAIR.next)).sub == URL


def test_a_str_body_stands_for_its_utf8_bytes() -> None:
    assert verify(a_token(body="grüße ☃".encode()), body="grüße ☃").body == body_hash("grüße ☃".encode())


def test_an_empty_body_is_verified_like_any_other() -> None:
    assert verify(a_token(body=b""), body=b"").body == body_hash(b"")
    with pytest.raises(BodyMismatchError):
        verify(a_token(body=b""), body=b" ")


@pytest.mark.parametrize("padding", ["", "=", "=="])
def test_padding_of_the_body_claim_does_not_matter(padding: str) -> None:
    claim = body_hash(BODY).rstrip("=") + padding
    assert verify(signed_claims(the_claims(body=claim))).body == claim


def test_claims_nobody_asked_for_are_ignored() -> None:
    assert verify(signed_claims(the_claims(aud="", extra={"a": [1]}))).jti == "jwt_1"


def test_the_clock_is_read_when_no_time_is_given() -> None:
    fresh = a_token(now_s=int(time.time()))
    assert RECEIVER.verify(signature=fresh, body=BODY).sub == URL
    with pytest.raises(SignatureExpiredError):
        RECEIVER.verify(signature=a_token(now_s=int(time.time()) - 301), body=BODY)


@settings(deadline=None)
@given(url=any_text, body=st.binary(max_size=200))
@example(url="https://münchen.example/\ud800", body=b"\xff\xfe")
def test_whatever_was_signed_verifies_with_its_url_and_bytes(url: str, body: bytes) -> None:
    assert verify(a_token(url=url, body=body), url=url, body=body).sub == url


# Keys


def test_a_receiver_survives_one_rotation_and_not_two() -> None:
    once = rotate(PAIR, generate_key())
    twice = rotate(once, generate_key())
    assert verify(a_token(key=once.current)).sub == URL
    with pytest.raises(WrongKeyError):
        verify(a_token(key=twice.current))


def test_a_receiver_with_the_new_pair_refuses_the_retired_key() -> None:
    new = rotate(PAIR, generate_key())
    with pytest.raises(WrongKeyError, match="neither the current nor the next"):
        Receiver(new.current, new.next).verify(signature=a_token(), body=BODY, now_s=NOW_S)


def test_a_key_without_its_prefix_is_another_key() -> None:
    with pytest.raises(WrongKeyError):
        verify(a_token(key=PAIR.current.removeprefix("sig_")))


def test_a_receiver_without_a_usable_key_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="The next signing key is empty"):
        Receiver(PAIR.current, "")


# Refused tokens


@pytest.mark.parametrize("absent", [None, ""])
def test_an_absent_signature_is_called_missing(absent: str | None) -> None:
    with pytest.raises(MissingSignatureError, match="carries no signature"):
        verify(absent)


@pytest.mark.parametrize("thing", [0, 1, 1.5, True, False, b"a.b.c", b"", ["a"], {}, object()])
def test_a_signature_that_is_no_string_is_malformed(thing: object) -> None:
    with pytest.raises(MalformedSignatureError, match="not a string"):
        verify(cast(str, thing))


@pytest.mark.parametrize(
    "garbage",
    ["x", ".", "..", "a.b.c", "a.b.c.d", "\ud800", "é.é.é", "\x00", a_token() + "\n", a_token() + "."],
)
def test_text_that_is_no_token_is_malformed(garbage: str) -> None:
    with pytest.raises(MalformedSignatureError):
        verify(garbage)


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"9" * 10_000, b'{"b64":false}'],
    ids=lambda header: str(header[:20]),
)
def test_a_header_that_cannot_be_read_is_malformed(header: bytes) -> None:
    with pytest.raises(MalformedSignatureError, match="not a readable JSON web token"):
        verify(f"{as_segment(header)}.e30.e30")


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "HS384", "HS512", "RS256", "hs256", "", None, [], 7]
)
def test_every_algorithm_but_hs256_is_refused(algorithm: object) -> None:
    signed = f"{as_segment(json.dumps({'alg': algorithm}).encode())}.{as_segment(b'{}')}."
    with pytest.raises(AlgorithmRefusedError, match="other than HS256"):
        verify(signed)


def test_a_token_without_an_algorithm_is_refused() -> None:
    with pytest.raises(AlgorithmRefusedError):
        verify(f"{as_segment(b'{}')}.{as_segment(json.dumps(the_claims()).encode())}.")


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_a_genuine_signature_of_another_strength_is_refused(algorithm: str) -> None:
    header = as_segment(json.dumps({"typ": "JWT", "alg": algorithm}).encode())
    signed = f"{header}.{as_segment(json.dumps(the_claims()).encode())}"
    mac = hmac.digest(PAIR.current.encode(), signed.encode(), algorithm.replace("HS", "sha"))
    with pytest.raises(AlgorithmRefusedError):
        verify(f"{signed}.{as_segment(mac)}")


def test_an_unsigned_token_with_perfect_claims_is_refused() -> None:
    unsigned = jwt.encode(the_claims(), "", algorithm="none")
    with pytest.raises(AlgorithmRefusedError):
        verify(unsigned)


def test_a_stripped_signature_is_refused() -> None:
    with pytest.raises(WrongKeyError):
        verify(a_token().rpartition(".")[0] + ".")


def test_a_detached_payload_is_refused() -> None:
    token = jwt.PyJWS().encode(b"{}", PAIR.current, algorithm="HS256", is_payload_detached=True)
    with pytest.raises(MalformedSignatureError):
        verify(token)


@settings(deadline=None)
@given(place=st.integers(min_value=0), character=st.characters(min_codepoint=0x20, max_codepoint=0x7E))
def test_no_character_of_a_token_can_be_changed(place: int, character: str) -> None:
    token = a_token()
    place %= len(token)
    assume(token[place] != character)
    with pytest.raises(SignatureError):
        verify(token[:place] + character + token[place + 1 :])


# Refused claims


@pytest.mark.parametrize("name", ["iss", "sub", "iat", "nbf", "exp", "jti", "body"])
def test_every_claim_is_required_and_named_when_it_is_not_there(name: str) -> None:
    claims = the_claims()
    del claims[name]
    with pytest.raises(InvalidClaimError, match=f"lacks the claim '{name}'"):
        verify(signed_claims(claims))
    with pytest.raises(InvalidClaimError, match=f"lacks the claim '{name}'"):
        verify(signed_claims(the_claims(**{name: None})))


@pytest.mark.parametrize("name", ["iss", "sub", "jti", "body"])
@pytest.mark.parametrize("value", [1, 1.5, True, ["a"], {"a": "b"}])
def test_a_text_claim_of_another_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidClaimError, match=f"The claim '{name}' of the signature is not a string"):
        verify(signed_claims(the_claims(**{name: value})))


@pytest.mark.parametrize("name", ["iat", "nbf", "exp"])
@pytest.mark.parametrize("value", ["1", 1.5, float("inf"), float("nan"), True, [1], {"a": 1}])
def test_a_time_that_is_no_whole_number_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidClaimError, match=f"The claim '{name}' of the signature is not a whole number"):
        verify(signed_claims(the_claims(**{name: value})))


@pytest.mark.parametrize("issuer", ["", "upstash", "Upstash ", "Somebody"])
def test_a_foreign_issuer_is_refused(issuer: str) -> None:
    with pytest.raises(InvalidClaimError, match="'iss'"):
        verify(signed_claims(the_claims(iss=issuer)))


@pytest.mark.parametrize("audience", ["somebody", ["somebody"], {"a": 1}])
def test_a_token_for_an_audience_is_refused(audience: object) -> None:
    with pytest.raises(InvalidClaimError, match="'aud'"):
        verify(signed_claims(the_claims(aud=audience)))


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"9" * 10_000, b"[" * 100_000])
def test_a_signed_payload_that_is_not_json_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidClaimError, match="not JSON"):
        verify(signed_bytes(payload))


@pytest.mark.parametrize("payload", [b"[]", b"null", b"1", b'"text"'])
def test_signed_json_that_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidClaimError, match="not a JSON object"):
        verify(signed_bytes(payload))


# Time


def test_a_signature_lives_for_300_seconds_exactly() -> None:
    assert verify(a_token(), now_s=NOW_S + 299).exp == NOW_S + 300
    with pytest.raises(SignatureExpiredError, match="expired"):
        verify(a_token(), now_s=NOW_S + 300)


def test_a_signature_from_the_future_is_not_yet_valid() -> None:
    assert verify(a_token(), now_s=NOW_S).iat == NOW_S
    with pytest.raises(SignatureNotYetValidError, match="not valid yet"):
        verify(a_token(), now_s=NOW_S - 1)


def test_not_before_counts_as_well_as_issued_at() -> None:
    token = signed_claims(the_claims(nbf=NOW_S + 10))
    assert verify(token, now_s=NOW_S + 10).nbf == NOW_S + 10
    with pytest.raises(SignatureNotYetValidError):
        verify(token, now_s=NOW_S + 9)


def test_the_tolerance_widens_both_ends_by_that_many_seconds() -> None:
    def tolerant(now_s: int) -> Claims:
        return RECEIVER.verify(signature=a_token(), body=BODY, clock_tolerance_s=5, now_s=now_s)

    assert tolerant(NOW_S - 5) == tolerant(NOW_S + 304)
    with pytest.raises(SignatureNotYetValidError):
        tolerant(NOW_S - 6)
    with pytest.raises(SignatureExpiredError):
        tolerant(NOW_S + 305)


def test_a_negative_tolerance_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="clock_tolerance_s must not be negative"):
        RECEIVER.verify(signature=a_token(), body=BODY, clock_tolerance_s=-1, now_s=NOW_S)


# Body and URL


@pytest.mark.parametrize("other", [b'{"order":1}', b'{"order": 1}\n', b"", '{"order": 2}', "\ud800"])
def test_another_body_is_refused_however_alike(other: bytes | str) -> None:
    with pytest.raises(BodyMismatchError, match="another body"):
        verify(a_token(), body=other)


@pytest.mark.parametrize("claim", ["", "=", "é", "\ud800", body_hash(b"other"), body_hash(BODY)[:-2]])
def test_a_body_claim_that_is_no_hash_of_the_body_is_refused(claim: str) -> None:
    with pytest.raises(BodyMismatchError):
        verify(signed_claims(the_claims(body=claim)))


@pytest.mark.parametrize("thing", [None, {"order": 1}, ["a"], 1])
def test_a_body_that_is_not_raw_is_a_mistake_of_the_caller(thing: object) -> None:
    with pytest.raises(TypeError, match="body must be the raw request body"):
        verify(a_token(), body=cast(bytes, thing))


@pytest.mark.parametrize(
    "other", ["", URL + "&", URL.upper(), "http://example.com/hooks/orders?id=1", "\ud800"]
)
def test_another_url_is_refused_when_the_url_is_checked(other: str) -> None:
    with pytest.raises(UrlMismatchError, match="another URL"):
        verify(a_token(), url=other)


# Nothing else comes out


def outcome(signature: str) -> Claims | str:
    """The claims, or the sentence of the refusal; anything else that is raised fails the test that asks."""
    try:
        return RECEIVER.verify(signature=signature, body=BODY, url=URL, now_s=NOW_S)
    except SignatureError as error:
        return str(error)


@settings(deadline=None)
@given(any_text | st.lists(any_text, min_size=2, max_size=4).map(".".join))
def test_arbitrary_text_raises_nothing_but_a_signature_error(text: str) -> None:
    with pytest.raises(SignatureError):
        RECEIVER.verify(signature=text, body=BODY)


@settings(deadline=None)
@given(header=any_json | st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64"]), any_json))
def test_an_arbitrary_header_raises_nothing_but_a_signature_error(header: object) -> None:
    segment = as_segment(json.dumps(header).encode())
    with pytest.raises(SignatureError):
        RECEIVER.verify(signature=f"{segment}.{as_segment(b'{}')}.{as_segment(b'mac')}", body=BODY)


@settings(deadline=None)
@given(
    any_json
    | st.builds(
        lambda name, value: the_claims(**{name: value}), st.sampled_from(sorted(the_claims())), any_json
    )
)
def test_arbitrary_signed_claims_raise_nothing_but_a_signature_error(claims: object) -> None:
    match outcome(signed_claims(claims)):
        case Claims() as accepted:
            assert (accepted.iss, accepted.sub) == ("Upstash", URL)
            assert accepted.body.rstrip("=") == body_hash(BODY).rstrip("=")
            assert accepted.iat <= NOW_S < accepted.exp
        case sentence:
            assert sentence.endswith(".")
            assert PAIR.current not in sentence


def test_each_refusal_is_a_signature_error() -> None:
    reasons = {
        AlgorithmRefusedError,
        BodyMismatchError,
        InvalidClaimError,
        MalformedSignatureError,
        MissingSignatureError,
        SignatureExpiredError,
        SignatureNotYetValidError,
        UrlMismatchError,
        WrongKeyError,
    }
    assert set(SignatureError.__subclasses__()) == reasons


# The package


def test_the_example_of_the_package_is_true() -> None:
    examples = doctest.testmod(signing)
    assert examples.attempted > 0
    assert examples.failed == 0


def loaded_after(program: str) -> set[str]:
    """The top-level modules a fresh interpreter holds once it has run `program`."""
    listing = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", f"{program}\n{listing}"], capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_signing_loads_nothing_beyond_the_standard_library() -> None:
    program = "import signing; signing.sign(key='k', url='u', body=b'', now_s=1, jti='j')"
    assert loaded_after(program) - loaded_after("") - sys.stdlib_module_names == {"signing"}


def test_a_receiver_loads_nothing_but_pyjwt() -> None:
    # PyJWT takes in `cryptography` where that is installed; HS256 needs none of it.
    loaded = loaded_after("import signing; signing.Receiver('k', 'n')")
    assert "jwt" in loaded
    assert not {"relay", "storage", "aiohttp", "msgspec"} & loaded

"""Verification of QStash signatures, for the application that receives the requests.

The rules a receiver lives by:

- **Raw body.** Verify the bytes as they came over the wire, before any parsing. JSON that was parsed and
  written again has other spaces, key order or escapes, hence another hash. A `str` body stands for its UTF-8
  bytes, so it only works for bodies that were UTF-8; bytes work for all.
- **Key rotation.** Both keys of the pair are accepted. After one rotation the pair held here still works,
  because its next key is the one that signs then. Fetch the new pair before a second rotation, which this
  one would not survive.
- **URL.** Checking it is optional, and keeps a request signed for one endpoint from being replayed at another
  that shares the keys. Pass the URL that was published, not what a proxy in front made of it.
"""

import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from signing.errors import (
    AlgorithmRefusedError,
    BodyMismatchError,
    InvalidClaimError,
    MalformedSignatureError,
    MissingSignatureError,
    SignatureExpiredError,
    SignatureNotYetValidError,
    UrlMismatchError,
    WrongKeyError,
)
from signing.keys import KeyPair
from signing.qstash import ISSUER, body_hash

_ALGORITHMS = ["HS256"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a verified signature says, under the names the token gives them. Times are Unix seconds.

    `jti` differs with every attempt, retries of one message included: it recognises a replayed request, not a
    repeated message, which the header `Upstash-Message-Id` does.
    """

    iss: str
    sub: str
    iat: int
    nbf: int
    exp: int
    jti: str
    body: str


class Receiver:
    """Verifies requests signed with either of two keys; holds no other state and may be shared by threads."""

    def __init__(self, current: str, next: str) -> None:  # noqa: A002 - the word of the key pair
        """Both keys whole, `sig_` included. `ValueError` for what `KeyPair` refuses, such as an empty one."""
        # Not above: PyJWT takes longer to import than the rest of this package, and a signer never needs it.
        import jwt

        self._keys = KeyPair(current=current, next=next)
        self._jws = jwt.PyJWS(algorithms=_ALGORITHMS)

    def verify(
        self,
        *,
        signature: str | None,
        body: bytes | str,
        url: str | None = None,
        clock_tolerance_s: int = 0,
        now_s: int | None = None,
    ) -> Claims:
        """The claims of a signature that was made for this request, or a `SignatureError` that says why not.

        `signature` is the value of the header `Upstash-Signature`, `None` where the request has none. `url`
        is compared with the signed destination when given. `now_s` is Unix time, by default the clock's. The
        signature is good from `nbf` and `iat` on and until the second before `exp`; `clock_tolerance_s`
        widens both ends, for hosts whose clocks differ.

        A mistake of the caller is no `SignatureError`: `TypeError` for a body that is not raw (a parsed one),
        `ValueError` for a negative tolerance.
        """
        if clock_tolerance_s < 0:
            raise ValueError("clock_tolerance_s must not be negative.")
        if not isinstance(body, bytes | str):
            raise TypeError(
                f"body must be the raw request body as bytes or str, not {type(body).__name__}: "
                "what was signed are the bytes on the wire."
            )
        if signature is None or signature == "":
            raise MissingSignatureError("The request carries no signature.")
        claims = _claims(self._authentic_payload(signature))
        _check_time(claims, now_s=int(time.time()) if now_s is None else now_s, tolerance_s=clock_tolerance_s)
        if url is not None and not _same(claims.sub, url):
            raise UrlMismatchError("The signature was made for another URL than the one given to verify.")
        if not _same(claims.body.rstrip("="), _hash(body).rstrip("=")):
            raise BodyMismatchError(
                "The signature was made for another body: it was altered, or is not the raw body as received."
            )
        return claims

    def _authentic_payload(self, signature: object) -> bytes:
        """The claims as they were signed, once one of the two keys is known to have signed them."""
        import jwt

        # PyJWT encodes the token before it looks at it; a lone surrogate makes that a bare ValueError.
        if not isinstance(signature, str) or not signature.isascii():
            raise MalformedSignatureError("The signature is not a string of ASCII characters.")
        for key in (self._keys.current, self._keys.next):
            try:
                payload: bytes = self._jws.decode(signature, key, algorithms=_ALGORITHMS)
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidAlgorithmError as error:
                raise AlgorithmRefusedError("The signature names an algorithm other than HS256.") from error
            except (jwt.InvalidTokenError, RecursionError) as error:
                # PyJWT 2.10 lets the RecursionError of a deeply nested header through.
                raise MalformedSignatureError("The signature is not a readable JSON web token.") from error
            return payload
        raise WrongKeyError("The signature was made with neither the current nor the next signing key.")


def _claims(payload: bytes) -> Claims:
    try:
        stated = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InvalidClaimError("The claims of the signature are not JSON.") from error
    if not isinstance(stated, dict):
        raise InvalidClaimError("The claims of the signature are not a JSON object.")
    if stated.get("aud"):
        # RFC 7519, 4.1.3: whoever is not in the audience must refuse, and receivers have no name here.
        raise InvalidClaimError(
            "The claim 'aud' of the signature names an audience, and this scheme has none."
        )
    claims = Claims(
        iss=_text(stated, "iss"),
        sub=_text(stated, "sub"),
        iat=_seconds(stated, "iat"),
        nbf=_seconds(stated, "nbf"),
        exp=_seconds(stated, "exp"),
        jti=_text(stated, "jti"),
        body=_text(stated, "body"),
    )
    if claims.iss != ISSUER:
        raise InvalidClaimError(f"The claim 'iss' of the signature is not {ISSUER}.")
    return claims


def _text(stated: Mapping[str, Any], name: str) -> str:
    value = _present(stated, name)
    if not isinstance(value, str):
        raise InvalidClaimError(f"The claim '{name}' of the signature is not a string.")
    return value


def _seconds(stated: Mapping[str, Any], name: str) -> int:
    value = _present(stated, name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidClaimError(f"The claim '{name}' of the signature is not a whole number of seconds.")
    return value


def _present(stated: Mapping[str, Any], name: str) -> object:
    value: object = stated.get(name)
    if value is None:
        raise InvalidClaimError(f"The signature lacks the claim '{name}'.")
    return value


def _check_time(claims: Claims, *, now_s: int, tolerance_s: int) -> None:
    if claims.exp <= now_s - tolerance_s:
        raise SignatureExpiredError("The signature has expired.")
    if max(claims.nbf, claims.iat) > now_s + tolerance_s:
        raise SignatureNotYetValidError(
            "The signature is not valid yet: it lies in the future of this clock."
        )


def _hash(body: bytes | str) -> str:
    # A lone surrogate has no UTF-8: pass it, and the hash simply matches nothing that was sent.
    return body_hash(body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass"))


def _same(stated: str, expected: str) -> bool:
    """Equality in a time that does not tell how much of `stated` was right."""
    return hmac.compare_digest(
        stated.encode("utf-8", "surrogatepass"), expected.encode("utf-8", "surrogatepass")
    )

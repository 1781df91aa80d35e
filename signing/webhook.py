"""Verification of Standard Webhooks signatures, for the application that receives the requests.

The rules are those of `signing.receiver`, with two differences. The scheme does not sign the URL, so a request made
for one endpoint passes at another that shares the keys. And its signature covers id, time and body at once: there
is no telling which of them was altered.
"""

import hmac
import time
from base64 import b64decode
from dataclasses import dataclass

from signing.ed25519 import PUBLIC_PREFIX, PublicKey
from signing.errors import (
    MalformedSignatureError,
    MissingSignatureError,
    SignatureExpiredError,
    SignatureNotYetValidError,
    WrongKeyError,
)
from signing.standard import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    TOLERANCE_S,
    hmac_signature,
    secret_bytes,
)

#: Checking a signature takes time; a request has one or two for each of a sender's keys.
_MAX_SIGNATURES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """What a verified signature says. `id` is the same for every attempt of a message, so repeated messages are
    known by it; `timestamp` is the Unix second of this attempt."""

    id: str
    timestamp: int


class WebhookReceiver:
    """Verifies requests signed with any of its keys; holds no other state and may be shared by threads."""

    def __init__(self, *keys: str) -> None:
        """Each key is a `whsec_` secret, a `whpk_` public key, or a signing key of the relay, `sig_` included.

        `ValueError` for no key, an empty or an unreadable one; `Ed25519MissingError` for a public key without the
        package it needs.
        """
        if not keys:
            raise ValueError("At least one key is needed to verify with.")
        self._public = [PublicKey(key) for key in keys if key.startswith(PUBLIC_PREFIX)]
        self._secrets = [secret_bytes(key) for key in keys if not key.startswith(PUBLIC_PREFIX)]

    def verify(
        self,
        *,
        id: str | None,
        timestamp: str | None,
        signature: str | None,
        body: bytes | str,
        clock_tolerance_s: int = 0,
        now_s: int | None = None,
    ) -> Webhook:
        """What a signature that was made for this request says, or a `SignatureError` that says why not.

        `id`, `timestamp` and `signature` are the values of `webhook-id`, `webhook-timestamp` and
        `webhook-signature`, `None` where the request has none. One signature that holds is enough, and versions
        nobody knows are passed over, so that senders can move on. A signature is good for five minutes around its
        time; `clock_tolerance_s` widens both ends. `now_s` is Unix time, by default the clock's.

        An id with a full stop is refused: with one, part of a body could be passed off as a new time.

        `TypeError` for a body that is not raw, `ValueError` for a negative tolerance.
        """
        if clock_tolerance_s < 0:
            raise ValueError("clock_tolerance_s must not be negative.")
        if not isinstance(body, bytes | str):
            raise TypeError(f"body must be the raw request body as bytes or str, not {type(body).__name__}.")
        if not signature:
            raise MissingSignatureError("The request carries no signature.")
        if not id:
            raise MissingSignatureError(f"The request carries a signature but no {ID_HEADER}.")
        if not timestamp:
            raise MissingSignatureError(f"The request carries a signature but no {TIMESTAMP_HEADER}.")
        if not id.isascii() or "." in id:
            raise MalformedSignatureError(f"The {ID_HEADER} holds a full stop or is not ASCII.")
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
            raise MalformedSignatureError(f"The {TIMESTAMP_HEADER} is not a Unix time in whole seconds.")
        content = f"{id}.{timestamp}.".encode() + (
            body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
        )
        self._require_genuine(signature, content)
        made_at = int(timestamp)
        _check_time(made_at, int(time.time()) if now_s is None else now_s, TOLERANCE_S + clock_tolerance_s)
        return Webhook(id=id, timestamp=made_at)

    def _require_genuine(self, signature: str, content: bytes) -> None:
        given = signature.split()
        if not signature.isascii() or len(given) > _MAX_SIGNATURES:
            raise MalformedSignatureError(
                f"The {SIGNATURE_HEADER} is not ASCII, or more than {_MAX_SIGNATURES} signatures."
            )
        known = [each for each in given if each.startswith(("v1,", "v1a,"))]
        if not known:
            raise MalformedSignatureError(f"The {SIGNATURE_HEADER} holds no signature of a known version.")
        expected = [hmac_signature(secret, content) for secret in self._secrets]
        for each in known:
            version, _, encoded = each.partition(",")
            if version == "v1":
                if any(hmac.compare_digest(each, right) for right in expected):
                    return
            elif self._public:
                made = _decoded(encoded)
                if any(key.verifies(made, content) for key in self._public):
                    return
        raise WrongKeyError(
            "The signature was made with none of the keys, or for another id, time or body than these."
        )


def _decoded(encoded: str) -> bytes:
    """The bytes of a signature; none, which no key verifies, for what is not base64."""
    try:
        return b64decode(encoded, validate=True)
    except ValueError:
        return b""


def _check_time(made_at: int, now_s: int, tolerance_s: int) -> None:
    if made_at < now_s - tolerance_s:
        raise SignatureExpiredError("The signature has expired.")
    if made_at > now_s + tolerance_s:
        raise SignatureNotYetValidError(
            "The signature is not valid yet: it lies in the future of this clock."
        )

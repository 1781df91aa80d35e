"""The Standard Webhooks signature: HMAC-SHA256 over the id, the time and the raw body of a message.

Rules: the specification at https://www.standardwebhooks.com. A request carries three headers: `webhook-id`, the
same for every attempt; `webhook-timestamp`, Unix seconds of this attempt; `webhook-signature`, one or several
signatures with a blank between them, each a version, a comma and base64. `v1` is the HMAC made here, `v1a` the
Ed25519 signature of `signing.ed25519`. What is signed is id, time and body with a full stop between them.

The scheme needs no secret of its own. A signing key is one already, spelled `whsec_` and the base64 of its bytes
for libraries of the scheme. No signature of one scheme can be taken for one of the other: what a QStash token
signs begins with a JSON header in base64 and has no time in second place, what this scheme signs begins with an
id, which is no such header.
"""

import hmac
from base64 import b64decode, b64encode

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

SECRET_PREFIX = "whsec_"  # noqa: S105 - what a secret begins with
#: Receivers believe a signature this long, and as much from their future.
TOLERANCE_S = 300


def webhook_secret(key: str) -> str:
    """A signing key as libraries of the scheme want it: `whsec_` and the base64 of its bytes, `sig_` included."""
    return SECRET_PREFIX + b64encode(key.encode()).decode()


def secret_bytes(key: str) -> bytes:
    """The HMAC key of a `whsec_` secret or a signing key; `ValueError` for an empty or unreadable one."""
    secret = key_bytes(key, SECRET_PREFIX) if key.startswith(SECRET_PREFIX) else key.encode()
    if not secret:
        raise ValueError("A webhook secret is empty: anyone could sign.")
    return secret


def key_bytes(text: str, prefix: str) -> bytes:
    """What follows `prefix`, out of base64 with or without its padding. `ValueError` that does not show the key."""
    encoded = text.removeprefix(prefix).rstrip("=")
    try:
        return b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        raise ValueError(f"What follows {prefix} is not base64.") from None


def signed_content(id: str, timestamp_s: int, body: bytes) -> bytes:
    """The bytes that every version signs."""
    return f"{id}.{timestamp_s}.".encode() + body


def sign_standard(*, key: str, id: str, now_s: int, body: bytes) -> str:
    """The `v1` signature of one attempt. `key` is a signing key or a `whsec_` secret.

    `id` stays the same for all attempts and holds no full stop, `now_s` is the value of `webhook-timestamp`, `body`
    what goes over the wire, byte for byte.
    """
    return hmac_signature(secret_bytes(key), signed_content(id, now_s, body))


def hmac_signature(secret: bytes, content: bytes) -> str:
    """`v1`, a comma, and the base64 of the HMAC."""
    return "v1," + b64encode(hmac.digest(secret, content, "sha256")).decode()

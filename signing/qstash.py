"""The QStash signature: a compact HS256 token over the destination URL and the hash of the raw body.

This is the signing half and runs once per delivery attempt, so it spells the token itself over `hmac` instead
of paying a token library several times the price. `signing.receiver` is the verifying half.
"""

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode

ISSUER = "Upstash"
LIFETIME_S = 300

_HEADER_SEGMENT = urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
_quote = (
    json.JSONEncoder().encode
)  # for a str: straight to the C escaper, ASCII only, lone surrogates included


def body_hash(body: bytes) -> str:
    """The `body` claim: base64url of the SHA-256 of the raw body, with padding. An empty body has one too."""
    return urlsafe_b64encode(hashlib.sha256(body).digest()).decode()


def sign(*, key: str, url: str, body: bytes, now_s: int, jti: str) -> str:
    """The value of `Upstash-Signature` for one attempt to send `body` to `url`.

    `key` is the current key of the pair, its `sig_` prefix being part of the secret. `url` is the
    destination exactly as requested, query included. `body` is what goes over the wire, byte for byte: JSON
    that is parsed and written again no longer matches. `now_s` is Unix time in whole seconds, rounded down,
    as receivers refuse an `iat` that lies in their future. `jti`, conventionally `jwt_` and something random,
    tells attempts apart.

    The token expires 300 s after `now_s`, so each attempt needs one of its own. Its `nbf` is the epoch and
    never the present, so that a receiver's slow clock has one claim less to stumble over.
    """
    claims = (
        f'{{"iss":"{ISSUER}","sub":{_quote(url)},"exp":{now_s + LIFETIME_S},"nbf":0,"iat":{now_s},'
        f'"jti":{_quote(jti)},"body":"{body_hash(body)}"}}'
    )
    signed = _HEADER_SEGMENT + b"." + urlsafe_b64encode(claims.encode()).rstrip(b"=")
    mac = hmac.digest(key.encode(), signed, "sha256")
    return (signed + b"." + urlsafe_b64encode(mac).rstrip(b"=")).decode()

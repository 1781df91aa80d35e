"""Ed25519 keys for Standard Webhooks: derived from signing keys, so that receivers need know no secret.

Needs the package `cryptography` (the extra `ed25519`), and only once a key is used.
"""

import hmac
import json
from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from signing.standard import key_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

PRIVATE_PREFIX = "whsk_"
PUBLIC_PREFIX = "whpk_"
#: From a published key whoever likes can try out guesses at the key it was derived from: only keys that nobody can
#: guess may have one. This is the length of a generated key.
MIN_KEY_LENGTH = 32

_PURPOSE = b"relay standard webhooks ed25519"
_SEED_BYTES = 32


class Ed25519MissingError(ImportError):
    """The package that Ed25519 needs is not installed; the message says how to get it."""


class PrivateKey:
    """Signs by `v1a`. `repr` gives nothing away."""

    def __init__(self, seed: bytes) -> None:
        """From the 32 secret bytes. Raises `Ed25519MissingError`."""
        self._seed = seed
        self._key: ed25519.Ed25519PrivateKey = _ed25519().Ed25519PrivateKey.from_private_bytes(seed)

    @staticmethod
    def derives_from(key: str) -> bool:
        """Whether a signing key is long enough to have one."""
        return len(key) >= MIN_KEY_LENGTH

    @classmethod
    def derived(cls, key: str) -> "PrivateKey":
        """The one that belongs to a signing key: HKDF-SHA256 (RFC 5869) of its bytes, no salt, a fixed purpose.

        The same on every node and after every restart, with nothing to store; it rotates when the key does. From
        it, and all the more from its public half, the signing key cannot be found. `ValueError` for a key of fewer
        than `MIN_KEY_LENGTH` characters, which could be guessed.
        """
        if not cls.derives_from(key):
            raise ValueError(
                f"A signing key of fewer than {MIN_KEY_LENGTH} characters has no Ed25519 key: with a published one "
                "anyone could try out guesses at it."
            )
        extracted = hmac.digest(bytes(_SEED_BYTES), key.encode(), "sha256")
        return cls(hmac.digest(extracted, _PURPOSE + b"\x01", "sha256"))

    @classmethod
    def read(cls, text: str) -> "PrivateKey":
        """From `whsk_` and the base64 of the secret bytes, with or without the public ones behind them."""
        if not text.startswith(PRIVATE_PREFIX):
            raise ValueError(f"An Ed25519 private key begins with {PRIVATE_PREFIX}.")
        content = key_bytes(text, PRIVATE_PREFIX)
        if len(content) not in (_SEED_BYTES, 2 * _SEED_BYTES):
            raise ValueError("An Ed25519 private key has 32 bytes, or 64 with the public key.")
        key = cls(content[:_SEED_BYTES])
        if content[_SEED_BYTES:] not in (b"", key._public_bytes()):
            raise ValueError("The halves of an Ed25519 private key do not belong together.")
        return key

    @property
    def text(self) -> str:
        """`whsk_` and the base64 of the secret and the public bytes: keep it secret."""
        return PRIVATE_PREFIX + b64encode(self._seed + self._public_bytes()).decode()

    @property
    def public(self) -> str:
        """`whpk_` and the base64 of the public key: what receivers are given."""
        return PUBLIC_PREFIX + b64encode(self._public_bytes()).decode()

    @property
    def jwk(self) -> dict[str, str]:
        """The public key as a JSON web key (RFC 8037), named by its thumbprint (RFC 7638)."""
        required = {"crv": "Ed25519", "kty": "OKP", "x": _base64url(self._public_bytes())}
        thumbprint = sha256(json.dumps(required, separators=(",", ":"), sort_keys=True).encode()).digest()
        return required | {"kid": _base64url(thumbprint), "alg": "EdDSA", "use": "sig"}

    def sign(self, content: bytes) -> str:
        """`v1a`, a comma, and the base64 of the signature of `signing.standard.signed_content`."""
        return "v1a," + b64encode(self._key.sign(content)).decode()

    def _public_bytes(self) -> bytes:
        return self._key.public_key().public_bytes_raw()


class PublicKey:
    """Verifies what the private key signed."""

    def __init__(self, text: str) -> None:
        """From `whpk_` and base64. `ValueError` for anything else, `Ed25519MissingError` without the package."""
        content = key_bytes(text, PUBLIC_PREFIX)
        if len(content) != _SEED_BYTES:
            raise ValueError("An Ed25519 public key has 32 bytes.")
        self._key: ed25519.Ed25519PublicKey = _ed25519().Ed25519PublicKey.from_public_bytes(content)

    def verifies(self, signature: bytes, content: bytes) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, content)
        except InvalidSignature:
            return False
        return True


def available() -> bool:
    """Whether the package that Ed25519 needs is installed."""
    try:
        _ed25519()
    except Ed25519MissingError:
        return False
    return True


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise Ed25519MissingError(
            "Ed25519 signatures need the package cryptography: pip install '.[ed25519]' in Relay's source tree"
        ) from None
    return ed25519


def _base64url(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()

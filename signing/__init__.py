"""Signing and verifying HTTP messages, for the relay that sends them and the applications that receive them.

Needs nothing but PyJWT, and that only once a `Receiver` is built; Ed25519 keys need `cryptography` as well. The
modules of `signing.adapters` verify in one line for web frameworks. Without one, in an application:

>>> from signing import Receiver, SignatureError
>>> receiver = Receiver("sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs")
>>> try:
...     receiver.verify(signature=None, body=b"the raw request body", url="https://example.com/hook")
... except SignatureError as error:
...     print(error)
The request carries no signature.
"""

from signing.ed25519 import Ed25519MissingError, PrivateKey, PublicKey
from signing.errors import (
    AlgorithmRefusedError,
    BodyMismatchError,
    InvalidClaimError,
    MalformedSignatureError,
    MissingSignatureError,
    SignatureError,
    SignatureExpiredError,
    SignatureNotYetValidError,
    UrlMismatchError,
    WrongKeyError,
)
from signing.keys import KeyPair, generate_key, rotate
from signing.qstash import body_hash, sign
from signing.receiver import Claims, Receiver
from signing.standard import sign_standard, webhook_secret
from signing.verifier import Verifier
from signing.webhook import Webhook, WebhookReceiver

__all__ = [
    "AlgorithmRefusedError",
    "BodyMismatchError",
    "Claims",
    "Ed25519MissingError",
    "InvalidClaimError",
    "KeyPair",
    "MalformedSignatureError",
    "MissingSignatureError",
    "PrivateKey",
    "PublicKey",
    "Receiver",
    "SignatureError",
    "SignatureExpiredError",
    "SignatureNotYetValidError",
    "UrlMismatchError",
    "Verifier",
    "Webhook",
    "WebhookReceiver",
    "WrongKeyError",
    "body_hash",
    "generate_key",
    "rotate",
    "sign",
    "sign_standard",
    "webhook_secret",
]

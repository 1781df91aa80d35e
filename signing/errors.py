"""Why a signature is refused: one exception per reason, `SignatureError` above them all.

Every message is a sentence that is safe to log. None contains a key, a body or a token.
"""


class SignatureError(Exception):
    """A request that must not be trusted. Answer 401 or 403 and do not act on its body."""


class MissingSignatureError(SignatureError):
    """The request carries no signature at all."""


class MalformedSignatureError(SignatureError):
    """The signature cannot be read as a token; nothing can be said about who made it."""


class AlgorithmRefusedError(SignatureError):
    """The token names an algorithm other than the one this scheme signs with, `none` included."""


class WrongKeyError(SignatureError):
    """Neither key made this signature: it is forged, was altered, or the keys were rotated twice."""


class InvalidClaimError(SignatureError):
    """One of our keys made the token, but a claim is missing, is of the wrong type or names another party."""


class SignatureExpiredError(SignatureError):
    """The signature was valid once: the request is late or replayed, or the local clock is ahead."""


class SignatureNotYetValidError(SignatureError):
    """The signature lies in the future: the local clock is behind the one of the signer."""


class UrlMismatchError(SignatureError):
    """The signature was made for a request to another URL."""


class BodyMismatchError(SignatureError):
    """The signature was made for other body bytes."""

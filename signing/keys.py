"""Signing keys: a pair of which one signs and two verify, so that rotation interrupts nobody."""

import secrets
import string
from dataclasses import dataclass, field

KEY_PREFIX = "sig_"
_KEY_CHARACTERS = string.ascii_letters + string.digits
_RANDOM_LENGTH = 28  # with the prefix 32 bytes, the least RFC 7518 allows for HS256; 166 random bits


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The key that signs now and the one that will after the next rotation.

    `ValueError` for a key that is empty or holds anything but visible ASCII: an empty secret lets anyone
    sign, and a line break left over from a secrets file makes every verification fail for no visible cause.
    The keys are kept out of `repr`, so that a logged pair gives nothing away.
    """

    current: str = field(repr=False)
    next: str = field(repr=False)

    def __post_init__(self) -> None:
        for name, key in (("current", self.current), ("next", self.next)):
            if not key:
                raise ValueError(f"The {name} signing key is empty.")
            if not all("!" <= character <= "~" for character in key):
                raise ValueError(f"The {name} signing key holds white space or a character outside ASCII.")


def rotate(pair: KeyPair, fresh: str) -> KeyPair:
    """The pair after a rotation: `next` starts to sign, `fresh` waits behind it, `current` is gone.

    A receiver that still holds the old pair keeps verifying, because its `next` is the key that signs now.
    A second rotation signs with a key it has never seen: give every receiver the new pair before that.
    """
    return KeyPair(current=pair.next, next=fresh)


def generate_key() -> str:
    """A fresh signing key from the operating system's randomness: `sig_` and 28 letters and digits."""
    return KEY_PREFIX + "".join(secrets.choice(_KEY_CHARACTERS) for _ in range(_RANDOM_LENGTH))

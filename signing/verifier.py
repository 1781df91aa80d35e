"""Verification of a whole request, by whichever scheme it was signed.

A request that carries `Upstash-Signature` is judged by that and nothing else, when there is a key for it: it is the
stronger one, since it says for which URL it was made. Otherwise the headers of Standard Webhooks count.
"""

import os
from collections.abc import Iterable, Mapping

from signing.ed25519 import PUBLIC_PREFIX
from signing.errors import MalformedSignatureError, MissingSignatureError
from signing.receiver import Claims, Receiver
from signing.standard import ID_HEADER, SECRET_PREFIX, SIGNATURE_HEADER, TIMESTAMP_HEADER
from signing.webhook import Webhook, WebhookReceiver

QSTASH_HEADER = "Upstash-Signature"
#: Where keys are looked for when none are given: the variables of the official SDKs.
KEY_VARIABLES = ("QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY")

_QSTASH = QSTASH_HEADER.lower()
_WANTED = frozenset({_QSTASH, ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER})


class Verifier:
    """Verifies requests of both schemes; holds no other state than its keys and may be shared by threads."""

    def __init__(self, *keys: str) -> None:
        """Signing keys (`sig_...`) verify both schemes, `whsec_` secrets and `whpk_` public keys Standard Webhooks.

        Two signing keys at most, current and next. Without any key, the two that the environment names in
        `QSTASH_CURRENT_SIGNING_KEY` and `QSTASH_NEXT_SIGNING_KEY`. `ValueError` when keys are missing, empty or
        unreadable.
        """
        keys = keys or _from_environment()
        signing_keys = [key for key in keys if not key.startswith((SECRET_PREFIX, PUBLIC_PREFIX))]
        if len(signing_keys) > 2:
            raise ValueError("There are two signing keys at most, the current and the next one.")
        self._qstash = Receiver(signing_keys[0], signing_keys[-1]) if signing_keys else None
        self._standard = WebhookReceiver(*keys)

    @property
    def knows_urls(self) -> bool:
        """Whether there is a key for the scheme that signs the URL."""
        return self._qstash is not None

    def verify(
        self,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        body: bytes,
        url: str | None = None,
        clock_tolerance_s: int = 0,
        now_s: int | None = None,
    ) -> Claims | Webhook:
        """What the signature of this request says, or a `SignatureError` that says why it is not to be believed.

        `headers` are the request's, in any case; a header of a signature that comes twice is refused, since the
        application might read the other one. `body` is raw. With `url` only `Upstash-Signature` counts, as Standard
        Webhooks does not say for which URL it signed; `ValueError` when there is no key for it. The rest is as with
        `Receiver.verify`.
        """
        found = _wanted(headers.items() if isinstance(headers, Mapping) else headers)
        if url is not None and self._qstash is None:
            raise ValueError("Standard Webhooks does not sign the URL: to check it, a signing key is needed.")
        if self._qstash is not None and (url is not None or _QSTASH in found):
            if _QSTASH not in found and SIGNATURE_HEADER in found:
                raise MissingSignatureError(
                    f"The request carries no {QSTASH_HEADER}, which alone says for which URL it was made."
                )
            return self._qstash.verify(
                signature=found.get(_QSTASH),
                body=body,
                url=url,
                clock_tolerance_s=clock_tolerance_s,
                now_s=now_s,
            )
        return self._standard.verify(
            id=found.get(ID_HEADER),
            timestamp=found.get(TIMESTAMP_HEADER),
            signature=found.get(SIGNATURE_HEADER),
            body=body,
            clock_tolerance_s=clock_tolerance_s,
            now_s=now_s,
        )


def _from_environment() -> tuple[str, ...]:
    missing = [name for name in KEY_VARIABLES if not os.environ.get(name)]
    if missing:
        raise ValueError(f"No keys were given, and the environment does not set {' and '.join(missing)}.")
    return tuple(os.environ[name] for name in KEY_VARIABLES)


def _wanted(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        lowered = name.lower()
        if lowered in _WANTED:
            if lowered in found:
                raise MalformedSignatureError(f"The request carries {name} more than once.")
            found[lowered] = value
    return found

"""What every adapter decides the same way: whether a request may pass, and what is answered otherwise."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from signing.errors import SignatureError
from signing.verifier import Verifier

#: A message has up to 1 MiB by default. A callback carries two, the answer and the message, in base64.
MAX_BODY_BYTES = 4 << 20

Request = TypeVar("Request")
#: The published URL: a fixed one, or made from the request; None leaves it unchecked.
Url = str | Callable[[Request], str] | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer for a request that may not pass; `body` is JSON."""

    status: int
    body: bytes


class Gate:
    """Says who may pass. The keys are those of `Verifier`."""

    def __init__(
        self, keys: tuple[str, ...], *, checks_url: bool, max_body_bytes: int, clock_tolerance_s: int
    ) -> None:
        """`ValueError` for what no request could be judged by, so that it shows at the start."""
        self._verifier = Verifier(*keys)
        self.max_body_bytes = max_body_bytes
        self._clock_tolerance_s = clock_tolerance_s
        if max_body_bytes < 1:
            raise ValueError("max_body_bytes must be positive.")
        if clock_tolerance_s < 0:
            raise ValueError("clock_tolerance_s must not be negative.")
        if checks_url and not self._verifier.knows_urls:
            raise ValueError("Standard Webhooks does not sign the URL: to check it, a signing key is needed.")

    def too_large(self, length: int | None) -> Refusal | None:
        """What to answer when the body has, or announces, this many bytes."""
        if length is None or length <= self.max_body_bytes:
            return None
        return self.refused_as_too_large()

    def refused_as_too_large(self) -> Refusal:
        return Refusal(413, _error("The body is larger than this endpoint reads."))

    def refusal(
        self,
        headers: Mapping[str, str] | Iterable[tuple[str, str]],
        body: bytes,
        url: str | None,
    ) -> Refusal | None:
        """What to answer a request instead of handling it; None for a genuine one."""
        if (large := self.too_large(len(body))) is not None:
            return large
        try:
            self._verifier.verify(
                headers=headers, body=body, url=url, clock_tolerance_s=self._clock_tolerance_s
            )
        except SignatureError as reason:
            return Refusal(401, _error(str(reason)))
        return None


def url_for(url: Url[Request], request: Request) -> str | None:
    """The URL that this request must have been published to."""
    return url(request) if callable(url) else url


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()

"""Whom a request speaks for.

A token comes as `Authorization: Bearer` or as `?qstash_token=`. Either valid one admits, so that the unrelated
Authorization header of a webhook sender does no harm; when both are valid, the header's identity counts.
"""

from collections.abc import Iterator
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple, Protocol
from urllib.parse import unquote

from msgspec import Struct

from relay.clock import Clock
from relay.domain.errors import Forbidden, Unauthorized
from relay.domain.message import TenantId
from relay.domain.tenant import Limits, Principal, token_id
from relay.fresh import Fresh
from relay.log import Log

#: On every node a token that was revoked fails, and what was changed about its account counts, within this time.
_BELIEVED_MS = 1_000
#: Bounds the memory of a second in which more tokens than this are used.
_REMEMBERED = 1_024
_INDEX_BYTES = 8
_SCHEME = "bearer "
_PARAMETER = "qstash_token"


class Caller(Struct, frozen=True, kw_only=True):
    """Whom the request speaks for, what it may ask for, and whether its Authorization header is what said so: then
    it is a secret between the caller and the relay, and no destination may see it."""

    principal: Principal
    limits: Limits
    authorization_is_ours: bool

    @property
    def tenant(self) -> TenantId:
        return self.principal.tenant

    def require_write(self) -> None:
        if self.principal.read_only:
            raise Forbidden("the token is read-only")


class Tokens(Protocol):
    """The part of storage that knows tokens."""

    async def principal(self, token_hash: bytes) -> Principal | None: ...


def token_hash(token: str) -> bytes:
    """The only form in which a token is kept."""
    return sha256(token.encode(errors="surrogateescape")).digest()


class _Known(NamedTuple):
    digest: bytes
    principal: Principal
    limits: Limits


class Authenticator:
    """Remembers for a second whom a token speaks for; unknown tokens are never remembered.

    `limits` are those of the relay, from which an account may differ. The log hears of tokens that were good
    and are no more, by the id that `relay tokens list` shows.
    """

    def __init__(self, tokens: Tokens, clock: Clock, limits: Limits, log: Log) -> None:
        self._tokens = tokens
        self._clock = clock
        self._limits = limits
        self._log = log
        #: Found by a piece of the hash; the whole hash is compared in constant time.
        self._fresh: Fresh[bytes, _Known] = Fresh(clock, fresh_ms=_BELIEVED_MS, most=_REMEMBERED)

    async def caller(self, authorization: str | None, query: str) -> Caller:
        """Raises `Unauthorized` unless the Authorization header or the raw query holds a valid token, `Forbidden`
        when it is one of an account that is disabled."""
        for token, in_header in _presented(authorization, query):
            known = await self._known_by(token)
            if known is not None:
                if known.principal.disabled:
                    raise Forbidden("the account is disabled")
                return Caller(principal=known.principal, limits=known.limits, authorization_is_ours=in_header)
        raise Unauthorized(
            "a valid token is required: Authorization: Bearer <token>, or the query parameter qstash_token"
        )

    async def _known_by(self, token: str) -> _Known | None:
        digest = token_hash(token)
        index = digest[:_INDEX_BYTES]
        known = self._fresh.known(index)
        if known is None or not compare_digest(known.digest, digest):
            known = await self._fresh.fetch(index, lambda: self._ask(digest))
        if known is None or not compare_digest(known.digest, digest):
            return None
        expires_at = known.principal.expires_at
        return known if expires_at is None or self._clock.now() < expires_at else None

    async def _ask(self, digest: bytes) -> _Known | None:
        principal = await self._tokens.principal(digest)
        if principal is not None:
            return _Known(digest, principal, principal.limits.within(self._limits))
        before = self._fresh.last(digest[:_INDEX_BYTES])
        if before is not None and compare_digest(before.digest, digest):
            self._log.warning(
                "token.void",
                token=token_id(digest),
                tenant=before.principal.tenant,
                hint="revoked, or replaced by a start with another RELAY_TOKEN",
            )
        return None


def _presented(authorization: str | None, query: str) -> Iterator[tuple[str, bool]]:
    """The tokens of a request, each with whether the header held it."""
    if authorization is not None and authorization[: len(_SCHEME)].lower() == _SCHEME:
        yield authorization[len(_SCHEME) :].strip(), True
    if _PARAMETER in query:
        for parameter in query.split("&"):
            name, _, value = parameter.partition("=")
            if name == _PARAMETER:
                # Not unquote_plus: a base64 token may hold a "+" that its sender did not encode.
                yield unquote(value), False

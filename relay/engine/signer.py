"""Signs for a tenant with the key that is current, which it asks storage for now and then."""

from collections.abc import Callable
from functools import cached_property

from relay.clock import Clock
from relay.domain.message import Headers, Message, SignedBy, TenantId
from relay.fresh import Fresh
from relay.ids import text_of
from signing import PrivateKey, sign
from signing.ed25519 import available
from signing.standard import (
    ID_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    hmac_signature,
    signed_content,
)
from storage.protocol import Catalog

#: A rotation reaches this process at once, by `forget`, and every other one within this time.
_FRESH_MS = 2_000


class Signer:
    """Keeps the current key of each tenant for `_FRESH_MS`; `random_name` makes the token ids."""

    def __init__(self, catalog: Catalog, *, clock: Clock, random_name: Callable[[str], str]) -> None:
        self._catalog = catalog
        self._clock = clock
        self._random_name = random_name
        self._keys: Fresh[TenantId, _Keys] = Fresh(clock, fresh_ms=_FRESH_MS, most=10_000)

    def forget(self, tenant: TenantId) -> None:
        """The tenant's keys were rotated: a receiver that holds the new pair already does not know the old one."""
        self._keys.forget(tenant)

    async def sign(self, message: Message) -> Headers:
        """The headers that sign an attempt to send this message, good for five minutes from now.

        Raises `Unavailable` when the key has to be fetched and storage does not answer, and `KeyError` for a
        tenant that does not exist.
        """
        tenant = message.tenant
        keys = self._keys.known(tenant) or await self._keys.fetch(tenant, lambda: self._current(tenant))
        if keys is None:
            raise KeyError(tenant)
        signed_by = message.signed_by or SignedBy.QSTASH
        now_s = self._clock.now() // 1000
        headers: Headers = ()
        if signed_by is not SignedBy.STANDARD:
            request = message.request
            jti = self._random_name("jwt_")
            token = sign(key=keys.current, url=request.url, body=request.body, now_s=now_s, jti=jti)
            headers = (("Upstash-Signature", token),)
        if signed_by is not SignedBy.QSTASH:
            headers += _standard(keys, message, now_s)
        return headers

    async def _current(self, tenant: TenantId) -> "_Keys | None":
        stored = await self._catalog.tenant(tenant)
        return None if stored is None else _Keys(stored.current_key)


class _Keys:
    """The key that signs for a tenant, and the one derived from it, which most never need."""

    def __init__(self, current: str) -> None:
        self.current = current

    @cached_property
    def private(self) -> PrivateKey | None:
        """None where the package it needs is not installed, and for a key that could be guessed."""
        if not PrivateKey.derives_from(self.current) or not available():
            return None
        return PrivateKey.derived(self.current)


def _standard(keys: _Keys, message: Message, now_s: int) -> Headers:
    """The headers of Standard Webhooks: an id for all attempts, the time of this one, all signatures there are."""
    id = text_of("msg_", message.id)
    content = signed_content(id, now_s, message.request.body)
    # The bytes of the key as they are: a configured one may begin like a secret of the scheme.
    signatures = [hmac_signature(keys.current.encode(), content)]
    if keys.private is not None:
        signatures.append(keys.private.sign(content))
    return (
        (ID_HEADER, id),
        (TIMESTAMP_HEADER, str(now_s)),
        (SIGNATURE_HEADER, " ".join(signatures)),
    )

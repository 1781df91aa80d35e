"""Signs for a tenant that is not disabled, with its current key; it asks storage for both now and then."""

from collections.abc import Callable
from functools import cached_property

from relay.clock import Clock
from relay.domain.message import Headers, Message, SignedBy, TenantId
from relay.domain.tenant import Tenant
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

#: What a disabled tenant has waiting is looked at again after as long as it has been disabled, within these bounds:
#: a short pause ends soon, and the backlog of a long one costs next to nothing.
_SHORTEST_HOLD_MS = 10_000
_LONGEST_HOLD_MS = 3_600_000


class Signer:
    """Believes what it knows of a tenant for `_FRESH_MS`; `random_name` makes the token ids."""

    def __init__(self, catalog: Catalog, *, clock: Clock, random_name: Callable[[str], str]) -> None:
        self._catalog = catalog
        self._clock = clock
        self._random_name = random_name
        self._tenants: Fresh[TenantId, _Signing] = Fresh(clock, fresh_ms=_FRESH_MS, most=10_000)

    def forget(self, tenant: TenantId) -> None:
        """The tenant's keys were rotated: a receiver that holds the new pair already does not know the old one."""
        self._tenants.forget(tenant)

    async def held_until(self, tenant: TenantId) -> int | None:
        """When a delivery of this tenant, which is disabled, may be looked at again; None: send it now.

        Raises like `sign`.
        """
        disabled_at = (await self._signing(tenant)).tenant.disabled_at
        if disabled_at is None:
            return None
        now = self._clock.now()
        return now + min(max(now - disabled_at, _SHORTEST_HOLD_MS), _LONGEST_HOLD_MS)

    async def is_limited(self, tenant: TenantId) -> bool:
        """Whether deliveries of this tenant need one of so many permits. Raises like `sign`."""
        return (await self._signing(tenant)).tenant.limits.max_parallelism is not None

    async def sign(self, message: Message) -> Headers:
        """The headers that sign an attempt to send this message, good for five minutes from now.

        Raises `Unavailable` when the tenant has to be fetched and storage does not answer, and `KeyError` for a
        tenant that does not exist.
        """
        signing = await self._signing(message.tenant)
        signed_by = message.signed_by or signing.tenant.signed_by
        now_s = self._clock.now() // 1000
        headers: Headers = ()
        if signed_by is not SignedBy.STANDARD:
            request = message.request
            jti = self._random_name("jwt_")
            key = signing.tenant.current_key
            token = sign(key=key, url=request.url, body=request.body, now_s=now_s, jti=jti)
            headers = (("Upstash-Signature", token),)
        if signed_by is not SignedBy.QSTASH:
            headers += _standard(signing, message, now_s)
        return headers

    async def _signing(self, id: TenantId) -> "_Signing":
        signing = self._tenants.known(id) or await self._tenants.fetch(id, lambda: self._stored(id))
        if signing is None:
            raise KeyError(id)
        return signing

    async def _stored(self, id: TenantId) -> "_Signing | None":
        tenant = await self._catalog.tenant(id)
        return None if tenant is None else _Signing(tenant)


class _Signing:
    """A tenant, and the key derived from its current one, which most never need."""

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant

    @cached_property
    def private(self) -> PrivateKey | None:
        """None where the package it needs is not installed, and for a key that could be guessed."""
        key = self.tenant.current_key
        return PrivateKey.derived(key) if PrivateKey.derives_from(key) and available() else None


def _standard(signing: _Signing, message: Message, now_s: int) -> Headers:
    """The headers of Standard Webhooks: an id for all attempts, the time of this one, all signatures there are."""
    id = text_of("msg_", message.id)
    content = signed_content(id, now_s, message.request.body)
    # The bytes of the key as they are: a configured one may begin like a secret of the scheme.
    signatures = [hmac_signature(signing.tenant.current_key.encode(), content)]
    if signing.private is not None:
        signatures.append(signing.private.sign(content))
    return (
        (ID_HEADER, id),
        (TIMESTAMP_HEADER, str(now_s)),
        (SIGNATURE_HEADER, " ".join(signatures)),
    )

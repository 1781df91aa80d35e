"""Signs for a tenant that is not disabled, with its current key; it asks storage for both now and then."""

from collections.abc import Callable

from relay.clock import Clock
from relay.domain.message import TenantId
from relay.domain.tenant import Tenant
from relay.fresh import Fresh
from signing import sign
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
        self._tenants: Fresh[TenantId, Tenant] = Fresh(clock, fresh_ms=_FRESH_MS, most=10_000)

    def forget(self, tenant: TenantId) -> None:
        """The tenant's keys were rotated: a receiver that holds the new pair already does not know the old one."""
        self._tenants.forget(tenant)

    async def held_until(self, tenant: TenantId) -> int | None:
        """When a delivery of this tenant, which is disabled, may be looked at again; None: send it now.

        Raises like `sign`.
        """
        disabled_at = (await self._tenant(tenant)).disabled_at
        if disabled_at is None:
            return None
        now = self._clock.now()
        return now + min(max(now - disabled_at, _SHORTEST_HOLD_MS), _LONGEST_HOLD_MS)

    async def sign(self, tenant: TenantId, *, url: str, body: bytes) -> str:
        """The value of Upstash-Signature for this request, valid for five minutes from now.

        Raises `Unavailable` when the tenant has to be fetched and storage does not answer, and `KeyError` for a
        tenant that does not exist.
        """
        key = (await self._tenant(tenant)).current_key
        now_s = self._clock.now() // 1000
        return sign(key=key, url=url, body=body, now_s=now_s, jti=self._random_name("jwt_"))

    async def _tenant(self, id: TenantId) -> Tenant:
        tenant = self._tenants.known(id) or await self._tenants.fetch(id, lambda: self._catalog.tenant(id))
        if tenant is None:
            raise KeyError(id)
        return tenant

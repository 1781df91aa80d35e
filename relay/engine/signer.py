"""Signs for a tenant with the key that is current, which it asks storage for now and then."""

from collections.abc import Callable

from relay.clock import Clock
from relay.domain.message import TenantId
from relay.fresh import Fresh
from signing import sign
from storage.protocol import Catalog

#: A rotation reaches this process at once, by `forget`, and every other one within this time.
_FRESH_MS = 2_000


class Signer:
    """Keeps the current key of each tenant for `_FRESH_MS`; `random_name` makes the token ids."""

    def __init__(self, catalog: Catalog, *, clock: Clock, random_name: Callable[[str], str]) -> None:
        self._catalog = catalog
        self._clock = clock
        self._random_name = random_name
        self._keys: Fresh[TenantId, str] = Fresh(clock, fresh_ms=_FRESH_MS, most=10_000)

    def forget(self, tenant: TenantId) -> None:
        """The tenant's keys were rotated: a receiver that holds the new pair already does not know the old one."""
        self._keys.forget(tenant)

    async def sign(self, tenant: TenantId, *, url: str, body: bytes) -> str:
        """The value of Upstash-Signature for this request, valid for five minutes from now.

        Raises `Unavailable` when the key has to be fetched and storage does not answer, and `KeyError` for a
        tenant that does not exist.
        """
        key = self._keys.known(tenant) or await self._keys.fetch(tenant, lambda: self._current_key(tenant))
        if key is None:
            raise KeyError(tenant)
        now_s = self._clock.now() // 1000
        return sign(key=key, url=url, body=body, now_s=now_s, jti=self._random_name("jwt_"))

    async def _current_key(self, tenant: TenantId) -> str | None:
        stored = await self._catalog.tenant(tenant)
        return None if stored is None else stored.current_key

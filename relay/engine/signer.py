"""Signs for a tenant with the key that is current, which it asks storage for now and then."""

from collections.abc import Callable

from relay.clock import Clock
from relay.domain.message import TenantId
from signing import sign
from storage.protocol import Catalog

#: A rotation reaches every process within this time. Receivers hold both keys, so none of them notices.
_FRESH_MS = 2_000


class Signer:
    """Keeps the current key of each tenant for `_FRESH_MS`; `random_name` makes the token ids."""

    def __init__(self, catalog: Catalog, *, clock: Clock, random_name: Callable[[str], str]) -> None:
        self._catalog = catalog
        self._clock = clock
        self._random_name = random_name
        self._keys: dict[TenantId, tuple[str, int]] = {}

    async def sign(self, tenant: TenantId, *, url: str, body: bytes) -> str:
        """The value of Upstash-Signature for this request, valid for five minutes from now.

        Raises `Unavailable` when the key has to be fetched and storage does not answer, and `KeyError` for a
        tenant that does not exist.
        """
        now = self._clock.now()
        known = self._keys.get(tenant)
        if known is None or not 0 <= now - known[1] < _FRESH_MS:
            known = await self._fetch(tenant, now)
        return sign(key=known[0], url=url, body=body, now_s=now // 1000, jti=self._random_name("jwt_"))

    async def _fetch(self, tenant: TenantId, now: int) -> tuple[str, int]:
        stored = await self._catalog.tenant(tenant)
        if stored is None:
            raise KeyError(tenant)
        if len(self._keys) >= 10_000:
            self._keys.clear()
        self._keys[tenant] = (stored.current_key, now)
        return self._keys[tenant]

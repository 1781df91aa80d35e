"""The public keys that Standard Webhooks signatures are verified with, for whoever asks.

Each account has a key set of its own, since whoever trusts a set believes everybody who signs with a key in it. The
plain path is the set of the relay's first account, the one its configuration speaks of; another account is asked
for by its name. So the number of accounts and their names stay untold; who knows a name learns that there is one.
"""

from aiohttp import web

from relay.api.answer import Answer, error_answer, json_answer
from relay.api.services import Services
from relay.domain.tenant import DEFAULT_TENANT, Tenant
from signing import Ed25519MissingError, PrivateKey

#: A rotation moves the next key, which is in the set already, up: an old set does for as long as an old pair.
_FRESH = (("Cache-Control", "public, max-age=300"),)
_MAX_NAME_LENGTH = 256


async def show(services: Services, request: web.Request) -> Answer:
    """The current and the next key; a signing key that could be guessed has none."""
    name = request.query.get("tenant")
    tenant = await (services.storage.tenant(DEFAULT_TENANT) if name is None else _named(services, name))
    if tenant is None or tenant.disabled_at is not None:
        return error_answer(404, "there is no account of that name with public keys")
    pair = (tenant.current_key, tenant.next_key)
    try:
        keys = [PrivateKey.derived(key).jwk for key in pair if PrivateKey.derives_from(key)]
    except Ed25519MissingError as missing:
        return error_answer(404, f"this relay has no public keys. {missing}")
    return json_answer({"keys": keys}, headers=_FRESH)


async def _named(services: Services, name: str) -> Tenant | None:
    # What storage could not compare is nobody's name.
    if len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        return None
    return await services.storage.tenant_named(name)

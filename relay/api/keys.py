"""The keys that sign this tenant's deliveries."""

from aiohttp import web

from relay.api.answer import Answer, json_answer
from relay.api.auth import Caller
from relay.api.services import Services
from relay.domain.errors import Unauthorized
from relay.domain.tenant import Tenant


async def show(services: Services, caller: Caller, request: web.Request) -> Answer:
    return _pair(await services.storage.tenant(caller.tenant))


async def rotate(services: Services, caller: Caller, request: web.Request) -> Answer:
    """current := next, next := a fresh one."""
    rotated = await services.storage.rotate_keys(caller.tenant, fresh=services.generate_key())
    services.keys_changed(caller.tenant)
    return _pair(rotated)


def _pair(tenant: Tenant | None) -> Answer:
    if tenant is None:
        raise Unauthorized("the account of this token is gone")
    return json_answer({"current": tenant.current_key, "next": tenant.next_key})

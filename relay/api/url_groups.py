"""URL groups, which the paths of the API call topics: put and remove endpoints, look, delete, set headers."""

from aiohttp import web

from relay.api.answer import DONE, Answer, json_answer
from relay.api.auth import Caller
from relay.api.services import Services
from relay.domain.errors import NotFound, OverLimit, quoted
from relay.wire.groups import parse_endpoint_refs, parse_endpoints, parse_headers_patch
from relay.wire.headers import parse_group_headers
from relay.wire.json import url_group_json
from relay.wire.target import parse_group_name, refuse_address


async def index(services: Services, caller: Caller, request: web.Request) -> Answer:
    groups = await services.storage.url_groups(caller.tenant)
    return json_answer([url_group_json(group) for group in groups])


async def show(services: Services, caller: Caller, request: web.Request) -> Answer:
    name = _name(request)
    group = await services.storage.url_group(caller.tenant, name)
    if group is None:
        raise _unknown(name)
    return json_answer(url_group_json(group))


async def put_endpoints(services: Services, caller: Caller, request: web.Request) -> Answer:
    name = _name(request)
    endpoints = parse_endpoints(await _body(services, request))
    for endpoint in endpoints:
        refuse_address(endpoint.url, "url", services.refusal)
    limits = caller.limits
    # The first bound keeps the work small that the second one costs.
    if len(endpoints) > limits.max_endpoints or not await services.storage.put_endpoints(
        caller.tenant,
        name,
        endpoints,
        max_groups=limits.max_url_groups,
        max_endpoints=limits.max_endpoints,
        now=services.clock.now(),
    ):
        raise OverLimit(
            "endpoints",
            f"there can be at most {limits.max_endpoints} in a URL group, "
            f"and at most {limits.max_url_groups} URL groups",
        )
    return DONE


async def remove_endpoints(services: Services, caller: Caller, request: web.Request) -> Answer:
    name = _name(request)
    removed = parse_endpoint_refs(await _body(services, request))
    if len(removed) > caller.limits.max_endpoints:
        raise OverLimit("endpoints", f"has more than {caller.limits.max_endpoints}")
    if not await services.storage.remove_endpoints(caller.tenant, name, removed, now=services.clock.now()):
        raise _unknown(name)
    return DONE


async def patch(services: Services, caller: Caller, request: web.Request) -> Answer:
    """Replace the headers that every publish to the group begins with."""
    name = _name(request)
    now = services.clock.now()
    headers = parse_group_headers(
        parse_headers_patch(await _body(services, request)),
        now=now,
        limits=caller.limits,
        refusal=services.refusal,
    )
    if not await services.storage.put_group_headers(caller.tenant, name, headers, now=now):
        raise _unknown(name)
    return DONE


async def delete(services: Services, caller: Caller, request: web.Request) -> Answer:
    """What is not there is deleted already: clients delete before they begin."""
    await services.storage.delete_url_group(caller.tenant, _name(request))
    return DONE


def _name(request: web.Request) -> str:
    return parse_group_name(request.match_info["name"])


async def _body(services: Services, request: web.Request) -> bytes:
    return await services.bodies.read(request, services.limits.max_message_bytes, "the request body")


def _unknown(name: str) -> NotFound:
    return NotFound(f"URL group {quoted(name)}")

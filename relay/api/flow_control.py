"""Flow-control keys: look, pause, resume, pin limits, reset the rate; and what is in flight altogether."""

from collections.abc import Sequence

from aiohttp import web

from relay.api.answer import DONE, Answer, json_answer
from relay.api.auth import Caller
from relay.api.incoming import query_of
from relay.api.services import Services
from relay.domain.errors import Invalid, NotFound, OverLimit, quoted
from relay.domain.gates import Configure, GateChange, GateKind, Pin, ResetRate, Unpin
from relay.wire.json import flow_key_json
from relay.wire.settings import MAX_FLOW_LIMIT, MAX_FLOW_PERIOD_MS
from relay.wire.texts import MAX_INDEXED_BYTES, is_indexable

#: Keys in one list; there is no next page in the protocol, but `search`.
_LONGEST_LIST = 10_000
_TOKEN = "qstash_token"  # noqa: S105 - the name, not a secret


async def index(services: Services, caller: Caller, request: web.Request) -> Answer:
    given = _parameters(request, ("search",))
    now = services.clock.now()
    found = await services.storage.flow_keys(
        caller.tenant, search=given.get("search", ""), limit=_LONGEST_LIST, now=now
    )
    return json_answer([flow_key_json(key, now=now) for key in found])


async def show(services: Services, caller: Caller, request: web.Request) -> Answer:
    name, now = _key(request), services.clock.now()
    found = await services.storage.flow_key(caller.tenant, name, now=now)
    if found is None:
        raise NotFound(f"flow-control key {quoted(name)}")
    return json_answer(flow_key_json(found, now=now))


async def pause(services: Services, caller: Caller, request: web.Request) -> Answer:
    """A key that no message has used yet can be paused, and pinned, before they come."""
    return await _change(services, caller, request, Configure(paused=True), create=True)


async def resume(services: Services, caller: Caller, request: web.Request) -> Answer:
    return await _change(services, caller, request, Configure(paused=False))


async def pin(services: Services, caller: Caller, request: web.Request) -> Answer:
    """The period is in seconds."""
    given = _parameters(request, ("parallelism", "rate", "period"))
    if not given:
        raise Invalid("parallelism", "is required when neither rate nor period is pinned")
    period_s = _number(given, "period")
    if period_s is not None and period_s * 1000 > MAX_FLOW_PERIOD_MS:
        raise OverLimit("period", "is above the maximum of one week")
    change = Pin(
        parallelism=_number(given, "parallelism"),
        rate=_number(given, "rate"),
        period_ms=None if period_s is None else period_s * 1000,
    )
    return await _change(services, caller, request, change, create=True)


async def unpin(services: Services, caller: Caller, request: web.Request) -> Answer:
    given = _parameters(request, ("parallelism", "rate"))
    change = Unpin(parallelism=_boolean(given, "parallelism"), rate=_boolean(given, "rate"))
    return await _change(services, caller, request, change)


async def reset_rate(services: Services, caller: Caller, request: web.Request) -> Answer:
    return await _change(services, caller, request, ResetRate())


async def in_flight(services: Services, caller: Caller, request: web.Request) -> Answer:
    count = await services.storage.in_flight(caller.tenant, now=services.clock.now())
    return json_answer({"parallelismMax": caller.limits.max_parallelism, "parallelismCount": count})


async def _change(
    services: Services, caller: Caller, request: web.Request, change: GateChange, *, create: bool = False
) -> Answer:
    await services.storage.change_gate(
        caller.tenant, GateKind.FLOW, _key(request), change, create=create, now=services.clock.now()
    )
    return DONE


def _key(request: web.Request) -> str:
    """The key in the path, by the rules of the header that names it."""
    key = request.match_info["key"]
    try:
        key.encode()
    except UnicodeEncodeError:
        raise Invalid("flowControlKey", "is not percent-encoded UTF-8") from None
    if not (key.isprintable() and is_indexable(key)):
        raise Invalid(
            "flowControlKey", f"must be visible characters, 1 to {MAX_INDEXED_BYTES} bytes in UTF-8"
        )
    return key


def _parameters(request: web.Request, known: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in query_of(request.rel_url.raw_query_string):
        if name == _TOKEN:
            continue
        if name not in known:
            raise Invalid(quoted(name), f"is not one of {', '.join(known)}")
        if name in given:
            raise Invalid(name, "is given twice")
        given[name] = value
    return given


def _number(given: dict[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= MAX_FLOW_LIMIT):
        raise Invalid(name, f"{quoted(text)} is not a number from 1 to {MAX_FLOW_LIMIT}")
    return int(text)


def _boolean(given: dict[str, str], name: str) -> bool:
    text = given.get(name, "false")
    if text not in ("true", "false"):
        raise Invalid(name, f"{quoted(text)} is neither true nor false")
    return text == "true"

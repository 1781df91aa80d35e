"""Schedules: create or replace, look, pause, resume, delete."""

from collections.abc import Sequence

from aiohttp import web
from msgspec.structs import replace

from relay.api.answer import DONE, Answer, json_answer
from relay.api.auth import Caller
from relay.api.incoming import caller_address, destination_of, headers_of, queue_room
from relay.api.services import Services
from relay.domain.cron import Cron
from relay.domain.errors import Invalid, NotFound, OverLimit, quoted
from relay.domain.schedule import Schedule
from relay.ids import random_name
from relay.wire.headers import parse_schedule
from relay.wire.json import schedule_json
from relay.wire.target import Target, split_target
from relay.wire.texts import is_storable

_PREFIX = "/v2/schedules/"
_FIRST_REVISION = 1


async def create(services: Services, caller: Caller, request: web.Request) -> Answer:
    body = await services.bodies.read(request, caller.limits.max_message_bytes, "the message body")
    headers = headers_of(request)
    target = split_target(request.raw_path, _PREFIX)
    return await put(
        services, caller, target, headers, body, caller_address(services, request.remote, headers)
    )


async def put(
    services: Services,
    caller: Caller,
    target: Target,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    caller_ip: str | None,
    *,
    queue: str | None = None,
) -> Answer:
    """Create the schedule that the headers describe, or replace the one whose id they name. Its messages go to
    `queue`, or to the one that the headers name."""
    now = services.clock.now()
    wanted = parse_schedule(
        headers,
        to=await destination_of(services, caller, target),
        body=body,
        caller_ip=caller_ip,
        now=now,
        limits=caller.limits,
        refusal=services.refusal,
        config=target.config,
        authorization_is_ours=caller.authorization_is_ours,
    )
    draft = wanted.draft if queue is None else replace(wanted.draft, queue=queue)
    if draft.queue is not None:
        (await queue_room(services, caller, {draft.queue})).require(draft.queue)
    schedule = Schedule(
        tenant=caller.tenant,
        id=wanted.schedule_id or random_name("scd_"),
        cron=wanted.cron.text,
        draft=draft,
        created_at=now,
        revision=_FIRST_REVISION,
        catch_up=wanted.catch_up,
        overlap=wanted.overlap,
        next_at=wanted.cron.next_after(now),
    )
    if await services.storage.put_schedule(schedule, limit=caller.limits.max_schedules) is None:
        raise OverLimit("schedules", f"there are {caller.limits.max_schedules} already, which is the maximum")
    services.schedules_changed()
    return json_answer({"scheduleId": schedule.id})


async def index(services: Services, caller: Caller, request: web.Request) -> Answer:
    views = await services.storage.schedules(caller.tenant)
    return json_answer([schedule_json(view) for view in views])


async def show(services: Services, caller: Caller, request: web.Request) -> Answer:
    schedule_id = _schedule_id(request)
    view = await services.storage.schedule(caller.tenant, schedule_id)
    if view is None:
        raise _unknown(schedule_id)
    return json_answer(schedule_json(view))


async def delete(services: Services, caller: Caller, request: web.Request) -> Answer:
    schedule_id = _schedule_id(request)
    if not await services.storage.delete_schedule(caller.tenant, schedule_id):
        raise _unknown(schedule_id)
    return DONE


async def pause(services: Services, caller: Caller, request: web.Request) -> Answer:
    schedule_id = _schedule_id(request)
    if not await services.storage.pause_schedule(caller.tenant, schedule_id, paused=True, next_at=None):
        raise _unknown(schedule_id)
    return DONE


async def resume(services: Services, caller: Caller, request: web.Request) -> Answer:
    """Ticks of the pause are over; the next one is the first after now."""
    schedule_id = _schedule_id(request)
    view = await services.storage.schedule(caller.tenant, schedule_id)
    if view is None:
        raise _unknown(schedule_id)
    try:
        next_at = Cron.parse(view.schedule.cron).next_after(services.clock.now())
    except ValueError as problem:  # its time zone is no more
        raise Invalid("cron", str(problem)) from None
    if not await services.storage.pause_schedule(caller.tenant, schedule_id, paused=False, next_at=next_at):
        raise _unknown(schedule_id)
    services.schedules_changed()
    return DONE


def _schedule_id(request: web.Request) -> str:
    """The id in the path; one that no schedule can have is `NotFound`."""
    schedule_id = request.match_info["schedule_id"]
    if not is_storable(schedule_id):
        raise _unknown(schedule_id)
    return schedule_id


def _unknown(schedule_id: str) -> NotFound:
    return NotFound(f"schedule {quoted(schedule_id)}")

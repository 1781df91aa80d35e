"""The dead-letter queue: look, delete, and send once more."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from aiohttp import web

from relay.api.answer import DONE, Answer, json_answer
from relay.api.auth import Caller
from relay.api.incoming import headers_of, query_of
from relay.api.services import Services
from relay.domain.dead_letter import DeadLetter, DeadLetterId
from relay.domain.errors import NotFound, quoted
from relay.domain.message import Message, MessageId, TenantId
from relay.domain.publish import redrive
from relay.domain.selection import Order, Selection
from relay.ids import dead_letter_number, dead_letter_text
from relay.wire.headers import parse_override
from relay.wire.json import PAGE_BYTES, Json, dead_letter_json, dead_letter_page, receipt_json
from relay.wire.selection import Endpoint, Page, select
from relay.wire.target import split_query
from storage.protocol import Receipt

#: Dead letters read at once: with the largest bodies they still fit in memory.
_BITE = 25


async def index(services: Services, caller: Caller, request: web.Request) -> Answer:
    selection, page = select(Endpoint.LIST_DEAD_LETTERS, query_of(request.rel_url.raw_query_string))
    step = 1 if page.order is Order.EARLIEST_FIRST else -1
    count = page.count or _BITE
    rows: list[DeadLetter] = []
    start, size = page.start, 0
    # One more than fits, to know where the next page begins.
    while len(rows) <= count and size <= PAGE_BYTES:
        limit = min(count + 1 - len(rows), _BITE)
        bite = await services.storage.dead_letters(
            caller.tenant, selection, order=page.order, start=start, limit=limit
        )
        rows += bite
        if len(bite) < limit:
            break
        start = DeadLetterId(bite[-1].id + step)
        size += sum(len(row.message.request.body) + len(row.attempt.body) for row in bite[:-1])
    return _page_answer("messages", *dead_letter_page(rows, count=count))


async def show(services: Services, caller: Caller, request: web.Request) -> Answer:
    return json_answer(dead_letter_json(await _dead_letter(services, caller, request)))


async def delete(services: Services, caller: Caller, request: web.Request) -> Answer:
    text, dead_letter_id = _dead_letter_id(request)
    if not await services.storage.delete_dead_letters(caller.tenant, (dead_letter_id,)):
        raise _unknown(text)
    return DONE


async def delete_selected(services: Services, caller: Caller, request: web.Request) -> Answer:
    """Ids that do not exist are passed over; only what existed is counted."""
    selection, page = await _selected(services, request, request.rel_url.raw_query_string)
    deleted = 0

    async def take(ids: Sequence[DeadLetterId]) -> None:
        nonlocal deleted
        deleted += len(await services.storage.delete_dead_letters(caller.tenant, ids))

    if selection.dead_letter_ids is not None:
        await take(_ids(selection.dead_letter_ids))
        return _page_answer("deleted", deleted, None)

    async def take_rows(rows: Sequence[DeadLetter]) -> None:
        await take([row.id for row in rows])

    cursor = await _take_page(services, caller.tenant, selection, page, take_rows)
    return _page_answer("deleted", deleted, cursor)


async def retry(services: Services, caller: Caller, request: web.Request) -> Answer:
    override = _override(services, caller, request, split_query(request.rel_url.raw_query_string).config)
    dead_letter = await _dead_letter(services, caller, request)
    responses = await _redrive(services, caller.tenant, (dead_letter,), override)
    if not responses:
        raise _unknown(dead_letter_text(dead_letter.id))
    return json_answer(responses[0], status=201)


async def retry_selected(services: Services, caller: Caller, request: web.Request) -> Answer:
    """When one of the ids that were given does not exist, nothing is retried."""
    query = split_query(request.rel_url.raw_query_string)
    override = _override(services, caller, request, query.config)
    selection, page = await _selected(services, request, query.rest)
    responses: list[Json] = []

    async def take(rows: Sequence[DeadLetter]) -> None:
        responses.extend(await _redrive(services, caller.tenant, rows, override))

    if selection.dead_letter_ids is None:
        cursor = await _take_page(services, caller.tenant, selection, page, take)
        return _page_answer("responses", responses, cursor, status=201)
    ids = _ids(selection.dead_letter_ids)
    await _require_all(services, caller.tenant, ids)
    async for rows in _rows_of(services, caller.tenant, ids):
        await take(rows)
    return _page_answer("responses", responses, None, status=201)


# --- which ones


def _dead_letter_id(request: web.Request) -> tuple[str, DeadLetterId]:
    text = request.match_info["dlq_id"]
    number = dead_letter_number(text)
    if number is None:
        raise _unknown(text)
    return text, DeadLetterId(number)


async def _dead_letter(services: Services, caller: Caller, request: web.Request) -> DeadLetter:
    text, dead_letter_id = _dead_letter_id(request)
    dead_letter = await services.storage.dead_letter(caller.tenant, dead_letter_id)
    if dead_letter is None:
        raise _unknown(text)
    return dead_letter


async def _selected(services: Services, request: web.Request, query: str) -> tuple[Selection, Page]:
    body = await services.bodies.read(request, services.limits.max_message_bytes, "the request body")
    return select(Endpoint.TAKE_DEAD_LETTERS, query_of(query), body)


async def _take_page(
    services: Services,
    tenant: TenantId,
    selection: Selection,
    page: Page,
    take: Callable[[Sequence[DeadLetter]], Awaitable[None]],
) -> str | None:
    """Hand a page of dead letters to `take`, some at a time; returns the cursor to what comes after them."""
    left, start = page.count or _BITE, page.start
    while True:
        limit = min(left, _BITE)
        rows = await services.storage.dead_letters(
            tenant, selection, order=page.order, start=start, limit=limit + 1
        )
        if rows:
            await take(rows[:limit])
        if len(rows) <= limit:
            return None
        start = rows[limit].id
        left -= limit
        if left == 0:
            return dead_letter_text(start)


async def _rows_of(
    services: Services, tenant: TenantId, ids: Sequence[DeadLetterId]
) -> AsyncIterator[Sequence[DeadLetter]]:
    for first in range(0, len(ids), _BITE):
        selection = Selection(dead_letter_ids=tuple(ids[first : first + _BITE]))
        yield await services.storage.dead_letters(
            tenant, selection, order=Order.EARLIEST_FIRST, start=None, limit=_BITE
        )


async def _require_all(services: Services, tenant: TenantId, ids: Sequence[DeadLetterId]) -> None:
    missing = dict.fromkeys(ids)
    async for rows in _rows_of(services, tenant, ids):
        for row in rows:
            missing.pop(row.id)
    if missing:
        raise _unknown(dead_letter_text(next(iter(missing))))
    if not ids:
        raise NotFound("any dead letter of these ids")


# --- what is done with them


def _override(
    services: Services, caller: Caller, request: web.Request, config: Sequence[tuple[str, str]]
) -> Callable[[Message], Message]:
    return parse_override(
        headers_of(request),
        now=services.clock.now(),
        limits=caller.limits,
        refusal=services.refusal,
        config=config,
    )


async def _redrive(
    services: Services,
    tenant: TenantId,
    dead_letters: Sequence[DeadLetter],
    override: Callable[[Message], Message],
) -> list[Json]:
    """Send them once more; those that someone else has taken meanwhile are not among the answers."""
    now = services.clock.now()
    pairs = [
        (
            dead_letter.id,
            redrive(dead_letter.message, id=MessageId(services.ids.next(now)), now=now, override=override),
        )
        for dead_letter in dead_letters
    ]
    published = set(await services.storage.redrive(tenant, pairs, now=now))
    return [
        receipt_json(Receipt(message_id=message.id), message.request.url)
        for _, message in pairs
        if message.id in published
    ]


def _page_answer(name: str, value: object, cursor: str | None, *, status: int = 200) -> Answer:
    answer: Json = {name: value}
    if cursor is not None:
        answer["cursor"] = cursor
    return json_answer(answer, status=status)


def _ids(numbers: Sequence[int]) -> Sequence[DeadLetterId]:
    return [DeadLetterId(number) for number in numbers]


def _unknown(text: str) -> NotFound:
    return NotFound(f"dead letter {quoted(text)}")

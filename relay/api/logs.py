"""The log: what happened to messages, one entry for every change of state."""

from aiohttp import web

from relay.api.answer import Answer, json_answer
from relay.api.auth import Caller
from relay.api.incoming import query_of
from relay.api.services import Services
from relay.domain.event import Event
from relay.domain.message import TenantId
from relay.domain.selection import Selection
from relay.wire.json import PAGE_BYTES, Json, log_page
from relay.wire.selection import Endpoint, Page, select

#: Rows read at once: with the largest bodies they still fit in memory.
_BITE = 100


async def events(services: Services, caller: Caller, request: web.Request) -> Answer:
    return _answer(("events",), *await _page_of(services, caller, request))


async def logs(services: Services, caller: Caller, request: web.Request) -> Answer:
    """The same under the documented name as well as the one the official clients read."""
    return _answer(("logs", "events"), *await _page_of(services, caller, request))


def _answer(names: tuple[str, ...], entries: list[Json], cursor: str | None) -> Answer:
    answer: Json = dict.fromkeys(names, entries)
    if cursor is not None:
        answer["cursor"] = cursor
    return json_answer(answer)


async def _page_of(services: Services, caller: Caller, request: web.Request) -> tuple[list[Json], str | None]:
    selection, page = select(Endpoint.LOGS, query_of(request.rel_url.raw_query_string))
    rows, next_position = await _rows(services, caller.tenant, selection, page)
    return log_page(rows, page, selection.states, next_position=next_position)


async def _rows(
    services: Services, tenant: TenantId, selection: Selection, page: Page
) -> tuple[list[Event], int | None]:
    """Rows for the page, and the position behind them at which to go on, if there is any.

    They fill the page, unless the search had to look at so many rows that the client is better asked to come back.
    """
    wanted = (page.count or _BITE) + 1
    rows: list[Event] = []
    start, size = page.start, 0
    while True:
        limit = min(wanted - len(rows), _BITE)
        bite = await services.storage.events(
            tenant, selection, order=page.order, start=start, limit=limit, walk=services.walk
        )
        rows += bite.events
        start = bite.next_position
        size += sum(len(row.message.request.body) + len(row.response_body) for row in bite.events)
        if start is None or len(bite.events) < limit or len(rows) == wanted or size > PAGE_BYTES:
            return rows, start

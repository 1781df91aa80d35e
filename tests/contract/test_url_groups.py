"""URL groups: kept as they were put, one change after the other, and each account's own."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from relay.domain.message import Headers, Request
from relay.domain.publish import Draft
from relay.domain.selection import Selection
from relay.domain.url_group import Endpoint, EndpointRef, UrlGroup
from storage.protocol import Storage
from tests.builders import NOW, OTHER_TENANT, TENANT, a_message
from tests.contract.steps import accept, bury, graves, happenings
from tests.contract.test_schedules import a_schedule, put

A, B, C = (Endpoint(url=f"https://{host}.example") for host in "abc")


async def upsert(
    storage: Storage,
    *endpoints: Endpoint,
    name: str = "group",
    now: int = NOW,
    max_groups: int = 100,
    max_endpoints: int = 100,
) -> bool:
    return await storage.put_endpoints(
        TENANT, name, endpoints, max_groups=max_groups, max_endpoints=max_endpoints, now=now
    )


def a_group(
    *endpoints: Endpoint,
    name: str = "group",
    created_at: int = NOW,
    updated_at: int = NOW,
    headers: Headers = (),
) -> UrlGroup:
    return UrlGroup(
        tenant=TENANT,
        name=name,
        created_at=created_at,
        updated_at=updated_at,
        endpoints=endpoints,
        headers=headers,
    )


async def test_a_group_begins_with_its_first_endpoints(storage: Storage) -> None:
    assert await storage.url_group(TENANT, "group") is None
    named = Endpoint(url="https://n.example/ü?a=b", name="größe \u2603")
    assert await upsert(storage, A, named)
    assert await storage.url_group(TENANT, "group") == a_group(A, named)


async def test_changes_are_made_to_what_is_there(storage: Storage) -> None:
    await upsert(storage, A, Endpoint(url="https://n.example", name="n"))
    moved = Endpoint(url="https://m.example", name="n")
    assert await upsert(storage, moved, C, now=NOW + 5)
    assert await storage.url_group(TENANT, "group") == a_group(A, moved, C, updated_at=NOW + 5)


async def test_removing_leaves_the_others_and_the_last_one_takes_the_group_along(storage: Storage) -> None:
    await upsert(storage, A, B, C)
    removed = [EndpointRef(url=A.url), EndpointRef(name="nobody")]
    assert await storage.remove_endpoints(TENANT, "group", removed, now=NOW + 5)
    assert await storage.url_group(TENANT, "group") == a_group(B, C, updated_at=NOW + 5)
    rest = [EndpointRef(url=B.url), EndpointRef(url=C.url)]
    assert await storage.remove_endpoints(TENANT, "group", rest, now=NOW)
    assert await storage.url_group(TENANT, "group") is None
    assert not await storage.remove_endpoints(TENANT, "group", rest, now=NOW)


async def test_headers_are_replaced_and_survive_changes_of_the_endpoints(storage: Storage) -> None:
    headers = (("Upstash-Retries", "3"), ("Upstash-Forward-X", "\u00e4"), ("Upstash-Forward-X", "b"))
    assert not await storage.put_group_headers(TENANT, "group", headers, now=NOW)
    await upsert(storage, A)
    assert await storage.put_group_headers(TENANT, "group", (("A", "b"),), now=NOW + 1)
    assert await storage.put_group_headers(TENANT, "group", headers, now=NOW + 2)
    await upsert(storage, B, now=NOW + 3)
    await storage.remove_endpoints(TENANT, "group", [EndpointRef(url=A.url)], now=NOW + 4)
    assert await storage.url_group(TENANT, "group") == a_group(B, updated_at=NOW + 4, headers=headers)
    assert await storage.put_group_headers(TENANT, "group", (), now=NOW + 5)
    assert await storage.url_group(TENANT, "group") == a_group(B, updated_at=NOW + 5)


async def test_a_group_that_begins_again_has_nothing_of_the_one_before(storage: Storage) -> None:
    await upsert(storage, A)
    await storage.put_group_headers(TENANT, "group", (("A", "b"),), now=NOW)
    assert await storage.delete_url_group(TENANT, "group")
    assert not await storage.delete_url_group(TENANT, "group")
    await upsert(storage, B, now=NOW + 9)
    assert await storage.url_group(TENANT, "group") == a_group(B, created_at=NOW + 9, updated_at=NOW + 9)


async def test_groups_are_listed_oldest_first_and_found_by_name(storage: Storage) -> None:
    await upsert(storage, A, name="late", now=NOW + 1)
    await upsert(storage, B, name="b")
    await upsert(storage, C, name="A")
    assert [group.name for group in await storage.url_groups(TENANT)] == ["A", "b", "late"]
    found = await storage.url_groups(TENANT, ["late", "b", "nobody", "B"])
    assert sorted(group.name for group in found) == ["b", "late"]
    assert await storage.url_groups(TENANT, []) == []
    many = [f"n{number}" for number in range(1200)]
    assert [group.name for group in await storage.url_groups(TENANT, ["b", *many])] == ["b"]


async def test_no_account_sees_or_changes_the_groups_of_another(storage: Storage) -> None:
    await upsert(storage, A)
    assert await storage.url_group(OTHER_TENANT, "group") is None
    assert await storage.url_groups(OTHER_TENANT) == []
    assert await storage.url_groups(OTHER_TENANT, ["group"]) == []
    assert not await storage.remove_endpoints(OTHER_TENANT, "group", [EndpointRef(url=A.url)], now=NOW)
    assert not await storage.put_group_headers(OTHER_TENANT, "group", (("A", "b"),), now=NOW)
    assert not await storage.delete_url_group(OTHER_TENANT, "group")
    await storage.put_endpoints(OTHER_TENANT, "group", [B], max_groups=1, max_endpoints=1, now=NOW)
    assert await storage.url_group(TENANT, "group") == a_group(A)


async def test_bounds_refuse_what_would_grow_beyond_them_and_nothing_is_written(storage: Storage) -> None:
    assert not await upsert(storage, A, B, max_endpoints=1)
    assert await storage.url_groups(TENANT) == []
    assert await upsert(storage, A, B, max_groups=1, max_endpoints=2)
    assert not await upsert(storage, C, max_endpoints=2, now=NOW + 5)
    assert not await upsert(storage, C, name="second", max_groups=1)
    assert await storage.url_groups(TENANT) == [a_group(A, B)]
    # What does not grow may change.
    assert await upsert(storage, Endpoint(url=A.url, name="n"), max_groups=1, max_endpoints=2)


async def test_changes_at_the_same_time_all_count(storage: Storage) -> None:
    endpoints = [Endpoint(url=f"https://{number}.example") for number in range(20)]
    assert all(await asyncio.gather(*(upsert(storage, endpoint) for endpoint in endpoints)))
    group = await storage.url_group(TENANT, "group")
    assert group is not None
    assert sorted(one.url for one in group.endpoints) == sorted(one.url for one in endpoints)
    gone = await asyncio.gather(
        *(
            storage.remove_endpoints(TENANT, "group", [EndpointRef(url=endpoint.url)], now=NOW)
            for endpoint in endpoints
        )
    )
    assert all(gone)
    assert await storage.url_group(TENANT, "group") is None


async def test_groups_survive_a_restart(storage: Storage, reopen: Callable[[], Awaitable[Storage]]) -> None:
    await upsert(storage, A)
    await storage.put_group_headers(TENANT, "group", (("A", "b"),), now=NOW)
    assert await (await reopen()).url_groups(TENANT) == [a_group(A, headers=(("A", "b"),))]


async def test_messages_keep_the_group_and_the_endpoint_they_were_published_to(storage: Storage) -> None:
    message = a_message(url_group="group", endpoint="größe", max_retries=0)
    letter = await bury(storage, message)
    await accept(storage, a_message(url_group="other"), a_message())
    assert await storage.message(TENANT, message.id) == message
    assert letter.message.origin == message.origin
    of_group = Selection(url_groups=("group", "nobody"))
    assert [one.message for one in await graves(storage, of_group)] == [message]
    assert {event.message.id for event in await happenings(storage, of_group)} == {message.id}
    assert len(await storage.cancel(TENANT, Selection(url_groups=("other",)), limit=None, now=NOW)) == 1


@pytest.mark.parametrize("name", ["group", None])
async def test_a_due_schedule_comes_with_its_group_as_it_is_now(storage: Storage, name: str | None) -> None:
    await upsert(storage, A)
    await upsert(storage, B, name="other")
    url = "" if name else "https://example.com"
    schedule = await put(storage, a_schedule(draft=Draft(request=Request(url=url), url_group=name)))
    await upsert(storage, C)
    ((due,), _) = await storage.due_schedules(now=NOW, limit=10)
    assert due.schedule == schedule
    assert due.group == (a_group(A, C) if name else None)
    await storage.delete_url_group(TENANT, "group")
    ((due,), _) = await storage.due_schedules(now=NOW, limit=10)
    assert due.group is None

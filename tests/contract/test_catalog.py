"""Tenants, tokens and settings."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from relay.domain.message import SignedBy, TenantId
from relay.domain.tenant import Principal, Tenant, TenantLimits, Token
from storage.protocol import Storage
from tests.builders import NOW, OTHER_TENANT, TENANT

HASH, OTHER_HASH, THIRD_HASH = b"h" * 32, b"o" * 32, b"\x00" * 32


def a_tenant(user_id: str = "user") -> Tenant:
    return Tenant(id=TENANT, user_id=user_id, current_key="sig_1", next_key="sig_2")


async def test_a_token_speaks_for_whom_it_was_put(storage: Storage) -> None:
    assert await storage.principal(HASH) is None
    await storage.put_token(HASH, Principal(tenant=TENANT), now=NOW)
    await storage.put_token(OTHER_HASH, Principal(tenant=OTHER_TENANT, read_only=True), now=NOW)
    assert await storage.principal(HASH) == Principal(tenant=TENANT)
    assert await storage.principal(OTHER_HASH) == Principal(tenant=OTHER_TENANT, read_only=True)


async def test_putting_a_token_again_replaces_whom_it_speaks_for(storage: Storage) -> None:
    await storage.put_token(HASH, Principal(tenant=TENANT), now=NOW)
    await storage.put_token(HASH, Principal(tenant=OTHER_TENANT, read_only=True), now=NOW)
    assert await storage.principal(HASH) == Principal(tenant=OTHER_TENANT, read_only=True)


async def test_tokens_of_one_kind_and_tenant_are_deleted_but_for_the_kept_one(storage: Storage) -> None:
    full, reader = Principal(tenant=TENANT), Principal(tenant=TENANT, read_only=True)
    theirs = Principal(tenant=OTHER_TENANT)
    await storage.put_token(HASH, full, now=NOW)
    await storage.put_token(OTHER_HASH, full, now=NOW)
    await storage.put_token(THIRD_HASH, reader, now=NOW)
    await storage.put_token(b"t" * 32, theirs, now=NOW)
    assert await storage.delete_tokens(TENANT, read_only=False, keep=HASH) == 1
    assert await storage.principal(OTHER_HASH) is None
    assert await storage.principal(HASH) == full
    assert await storage.delete_tokens(TENANT, read_only=False, keep=None) == 1
    assert await storage.delete_tokens(TENANT, read_only=False, keep=None) == 0
    assert await storage.principal(THIRD_HASH) == reader
    assert await storage.principal(b"t" * 32) == theirs


async def test_a_tenant_is_created_and_replaced(storage: Storage) -> None:
    assert await storage.tenant(TENANT) is None
    assert list(await storage.tenants()) == []
    await storage.put_tenant(a_tenant(), now=NOW)
    other = Tenant(id=OTHER_TENANT, user_id="other", current_key="a", next_key="b")
    await storage.put_tenant(other, now=NOW)
    await storage.put_tenant(a_tenant("renamed"), now=NOW)
    assert await storage.tenant(TENANT) == a_tenant("renamed")
    assert await storage.tenants() == [a_tenant("renamed"), other]


async def test_of_several_that_create_a_tenant_at_once_one_does_and_all_learn_which(storage: Storage) -> None:
    learned = await asyncio.gather(*(storage.create_tenant(a_tenant(f"u{n}"), now=NOW) for n in range(4)))
    stored = await storage.tenant(TENANT)
    assert stored in [a_tenant(f"u{n}") for n in range(4)]
    assert learned == [stored] * 4
    assert await storage.create_tenant(a_tenant("late"), now=NOW) == stored


async def test_keys_are_swapped_only_for_those_that_were_read(storage: Storage) -> None:
    old = a_tenant()
    assert not await storage.swap_keys(old, current_key="a", next_key="b")
    await storage.put_tenant(old, now=NOW)
    swapped = await asyncio.gather(
        *(storage.swap_keys(old, current_key=f"a{n}", next_key=f"b{n}") for n in range(3))
    )
    assert sorted(swapped) == [False, False, True]
    winner = swapped.index(True)
    assert await storage.tenant(TENANT) == Tenant(
        id=TENANT, user_id="user", current_key=f"a{winner}", next_key=f"b{winner}"
    )


async def test_a_rotation_moves_the_next_key_up(storage: Storage) -> None:
    assert await storage.rotate_keys(TENANT, fresh="sig_3") is None
    await storage.put_tenant(a_tenant(), now=NOW)
    rotated = await storage.rotate_keys(TENANT, fresh="sig_3")
    assert rotated == Tenant(id=TENANT, user_id="user", current_key="sig_2", next_key="sig_3")
    assert await storage.tenant(TENANT) == rotated


async def test_two_simultaneous_rotations_are_two_rotations(storage: Storage) -> None:
    await storage.put_tenant(a_tenant(), now=NOW)
    await asyncio.gather(*(storage.rotate_keys(TENANT, fresh=f"fresh_{n}") for n in range(2)))
    tenant = await storage.tenant(TENANT)
    assert tenant is not None
    assert {tenant.current_key, tenant.next_key} == {"fresh_0", "fresh_1"}


async def test_settings_are_kept_and_replaced(
    storage: Storage, reopen: Callable[[], Awaitable[Storage]]
) -> None:
    assert await storage.setting("name") is None
    await storage.put_setting("name", "one")
    await storage.put_setting("name", "two")
    assert await storage.setting("name") == "two"
    assert await (await reopen()).setting("name") == "two"


@pytest.mark.parametrize("old", [None, "old"])
async def test_of_several_that_swap_a_setting_at_once_one_does(storage: Storage, old: str | None) -> None:
    if old is not None:
        assert not await storage.swap_setting("name", old=old, new="new")
        await storage.put_setting("name", old)
    swapped = await asyncio.gather(*(storage.swap_setting("name", old=old, new=f"new {n}") for n in range(4)))
    assert sorted(swapped) == [False, False, False, True]
    assert await storage.setting("name") == f"new {swapped.index(True)}"


async def test_one_token_is_forgotten_and_no_other(storage: Storage) -> None:
    for one in (HASH, OTHER_HASH):
        await storage.put_token(one, Principal(tenant=TENANT), now=NOW)
    await storage.delete_token(HASH)
    await storage.delete_token(THIRD_HASH)
    assert await storage.principal(HASH) is None
    assert await storage.principal(OTHER_HASH) is not None


async def test_a_ping_is_a_commit_and_leaves_no_trace_for_others(storage: Storage) -> None:
    await storage.ping()
    await storage.ping()
    assert list(await storage.tenants()) == []
    assert (await storage.stats()).live == 0


async def test_a_tenant_is_found_by_its_name_unless_another_has_the_same(storage: Storage) -> None:
    tenants = [
        Tenant(id=TenantId(number), user_id=user_id, current_key="sig_1", next_key="sig_2")
        for number, user_id in ((1001, "ünï"), (1002, "twice"), (1003, "twice"))
    ]
    for tenant in tenants:
        await storage.put_tenant(tenant, now=NOW)
    assert await storage.tenant_named("ünï") == tenants[0]
    assert await storage.tenant_named("twice") is None
    assert await storage.tenant_named("nobody") is None


# --- what an operator does ---------------------------------------------------------------------------------------


def a_token(hash_: bytes = HASH, *, tenant: TenantId = TENANT, created_at: int = NOW, **rest: Any) -> Token:
    return Token(hash=hash_, tenant=tenant, created_at=created_at, **{"read_only": False, **rest})


async def create(storage: Storage, user_id: str = "acme") -> Tenant:
    tenant = await storage.add_tenant(user_id, current_key="sig_1", next_key="sig_2", now=NOW)
    assert tenant is not None
    return tenant


async def test_a_created_tenant_has_a_number_no_start_will_give_away(storage: Storage) -> None:
    first, second = await create(storage), await create(storage, "umbrella")
    assert first == Tenant(id=first.id, user_id="acme", current_key="sig_1", next_key="sig_2")
    assert 100 < first.id < second.id
    assert await storage.tenants() == [first, second]


async def test_a_name_is_one_tenants(storage: Storage) -> None:
    await storage.put_tenant(a_tenant("acme"), now=NOW)
    assert await storage.add_tenant("acme", current_key="a", next_key="b", now=NOW) is None
    assert await storage.tenants() == [a_tenant("acme")]


async def test_of_many_created_at_once_each_has_its_own_number_and_a_name_goes_to_one(
    storage: Storage,
) -> None:
    names = ["acme", "umbrella", "acme", "initech", "umbrella", "acme"]
    created = await asyncio.gather(
        *(storage.add_tenant(name, current_key="a", next_key="b", now=NOW) for name in names)
    )
    tenants = await storage.tenants()
    assert sorted(tenant.user_id for tenant in tenants) == ["acme", "initech", "umbrella"]
    assert sorted(one.id for one in created if one) == [tenant.id for tenant in tenants]


async def test_limits_are_a_tenants_own_and_reach_whoever_speaks_for_it(storage: Storage) -> None:
    tenant, other = await create(storage), await create(storage, "umbrella")
    await storage.issue_token(a_token(tenant=tenant.id))
    limits = TenantLimits(max_message_bytes=10, max_retries=0, max_parallelism=2, dlq_retention_ms=5)
    assert await storage.put_limits(tenant.id, limits, now=NOW)
    assert await storage.principal(HASH) == Principal(tenant=tenant.id, limits=limits)
    assert await storage.tenants() == [replace(tenant, limits=limits), other]
    assert await storage.put_limits(tenant.id, TenantLimits(), now=NOW)
    assert await storage.tenant(tenant.id) == tenant
    assert not await storage.put_limits(TenantId(other.id + 1), limits, now=NOW)


async def test_how_a_tenant_signs_is_its_own_and_outlives_starts_and_rotations(storage: Storage) -> None:
    tenant, other = await create(storage), await create(storage, "umbrella")
    assert tenant.signed_by is SignedBy.QSTASH
    for signed_by in (SignedBy.STANDARD, SignedBy.BOTH):
        assert await storage.put_signed_by(tenant.id, signed_by)
        assert await storage.tenants() == [replace(tenant, signed_by=signed_by), other]
    await storage.put_tenant(replace(tenant, user_id="renamed"), now=NOW)
    rotated = await storage.rotate_keys(tenant.id, fresh="sig_3")
    assert rotated is not None
    assert (rotated.user_id, rotated.signed_by) == ("renamed", SignedBy.BOTH)
    assert not await storage.put_signed_by(TenantId(other.id + 1), SignedBy.BOTH)


async def test_a_tenant_is_disabled_since_the_first_time_until_it_is_enabled(storage: Storage) -> None:
    tenant = await create(storage)
    await storage.issue_token(a_token(tenant=tenant.id))
    assert await storage.put_disabled(tenant.id, at=NOW)
    assert await storage.put_disabled(tenant.id, at=NOW + 5)
    assert await storage.tenant(tenant.id) == replace(tenant, disabled_at=NOW)
    assert await storage.principal(HASH) == Principal(tenant=tenant.id, disabled=True)
    assert await storage.put_disabled(tenant.id, at=None)
    assert await storage.tenant(tenant.id) == tenant
    assert not await storage.put_disabled(TenantId(tenant.id + 1), at=NOW)


async def test_what_a_start_puts_and_a_rotation_leave_limits_and_disabling_alone(storage: Storage) -> None:
    await storage.put_tenant(a_tenant(), now=NOW)
    limits = TenantLimits(max_retries=1)
    await storage.put_limits(TENANT, limits, now=NOW)
    await storage.put_disabled(TENANT, at=NOW)
    await storage.put_tenant(a_tenant("renamed"), now=NOW)
    rotated = await storage.rotate_keys(TENANT, fresh="sig_3")
    assert rotated is not None
    assert (rotated.user_id, rotated.limits, rotated.disabled_at) == ("renamed", limits, NOW)
    assert await storage.tenant(TENANT) == rotated


async def test_issued_tokens_are_listed_with_all_that_is_known_of_them(storage: Storage) -> None:
    later = a_token(OTHER_HASH, read_only=True, created_at=NOW + 1, expires_at=NOW + 9, label="ci")
    await storage.issue_token(later)
    await storage.issue_token(a_token(THIRD_HASH, tenant=OTHER_TENANT))
    await storage.put_token(HASH, Principal(tenant=TENANT), now=NOW)
    assert await storage.tokens(TENANT) == [a_token(issued=False), later]
    assert await storage.principal(OTHER_HASH) == Principal(tenant=TENANT, read_only=True, expires_at=NOW + 9)


async def test_a_revoked_token_speaks_for_nobody(storage: Storage) -> None:
    await storage.issue_token(a_token())
    await storage.put_token(OTHER_HASH, Principal(tenant=TENANT), now=NOW)
    for one in (HASH, OTHER_HASH):
        assert await storage.delete_token(one)
        assert await storage.principal(one) is None
        assert not await storage.delete_token(one)
    assert list(await storage.tokens(TENANT)) == []


async def test_a_start_deletes_no_issued_token(storage: Storage) -> None:
    await storage.issue_token(a_token())
    await storage.put_token(OTHER_HASH, Principal(tenant=TENANT), now=NOW)
    assert await storage.delete_tokens(TENANT, read_only=False, keep=None) == 1
    assert await storage.principal(HASH) == Principal(tenant=TENANT)


async def test_an_issued_token_that_a_start_puts_is_the_starts_from_then_on(storage: Storage) -> None:
    await storage.issue_token(a_token(expires_at=NOW + 1))
    await storage.put_token(HASH, Principal(tenant=TENANT), now=NOW)
    assert await storage.tokens(TENANT) == [a_token(issued=False)]
    assert await storage.delete_tokens(TENANT, read_only=False, keep=None) == 1

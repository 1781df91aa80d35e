"""Who may speak to a relay that starts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.accounts import (
    Credentials,
    development,
    make_token,
    production,
    remember_shown,
    to_tell,
    token_hash,
    user_id_of,
)
from relay.clock import Clock, FakeClock, SystemClock
from relay.config import Config
from relay.domain.message import TenantId
from relay.domain.tenant import DEFAULT_TENANT, Principal, Token
from relay.ids import random_name
from signing import generate_key
from storage.protocol import CannotOpen, Storage
from storage.sqlite import open_sqlite

NOW = 1_800_000_000_000
TOKEN = "a-token-of-our-own"
READER = "a-token-that-only-reads"
PUBLISHED = [
    make_token("defaultUser", "defaultPassword"),
    *(make_token(f"testUser{number}", "testPassword") for number in (1, 2, 3)),
]


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await open_sqlite(f"sqlite:///{tmp_path}/relay.db")
    yield opened
    await opened.close()


async def start(storage: Storage, config: Config | None = None, clock: Clock | None = None) -> Credentials:
    """As far as to what is printed."""
    made = await production(
        storage, config or Config(), now=NOW, fresh_key=generate_key, fresh_name=random_name
    )
    return await to_tell(storage, made, clock=clock or FakeClock(NOW))


async def may_speak(storage: Storage, token: str) -> bool:
    return await storage.principal(token_hash(token)) is not None


async def test_the_four_published_identities_speak_each_for_itself(storage: Storage) -> None:
    credentials = await development(storage, now=NOW)
    assert credentials.token == "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0="
    tenants = set()
    for user, password in [
        ("defaultUser", "defaultPassword"),
        ("testUser1", "testPassword"),
        ("testUser2", "testPassword"),
        ("testUser3", "testPassword"),
    ]:
        principal = await storage.principal(token_hash(make_token(user, password)))
        assert principal is not None
        assert not principal.read_only
        tenants.add(principal.tenant)
    assert len(tenants) == 4


async def test_a_restart_in_development_keeps_rotated_keys(storage: Storage) -> None:
    await development(storage, now=NOW)
    await storage.rotate_keys(DEFAULT_TENANT, fresh="sig_fresh")
    await development(storage, now=NOW)
    tenant = await storage.tenant(DEFAULT_TENANT)
    assert tenant is not None
    assert tenant.next_key == "sig_fresh"


async def test_development_tells_the_keys_that_sign_after_a_rotation(storage: Storage) -> None:
    first = await development(storage, now=NOW)
    await storage.rotate_keys(DEFAULT_TENANT, fresh="sig_fresh")
    again = await development(storage, now=NOW)
    assert (again.current_key, again.next_key) == (first.next_key, "sig_fresh")


async def keys_of(storage: Storage) -> list[str]:
    tenants = [await storage.tenant(TenantId(number)) for number in (1, 2, 3, 4)]
    return [key for tenant in tenants if tenant for key in (tenant.current_key, tenant.next_key)]


async def test_production_shuts_the_published_identities_out_and_retires_their_keys(storage: Storage) -> None:
    await development(storage, now=NOW)
    published = await keys_of(storage)
    assert len(set(published)) == 8
    credentials = await start(storage)
    assert [token for token in PUBLISHED if await may_speak(storage, token)] == []
    fresh = await keys_of(storage)
    assert len(set(fresh)) == 8
    assert set(fresh).isdisjoint(published)
    assert fresh[:2] == [credentials.current_key, credentials.next_key]
    await remember_shown(storage, credentials)
    await start(storage)
    assert await keys_of(storage) == fresh


async def test_production_retires_the_published_key_that_a_rotation_left(storage: Storage) -> None:
    published = (await development(storage, now=NOW)).next_key
    await storage.rotate_keys(DEFAULT_TENANT, fresh="sig_fresh")
    credentials = await start(storage)
    assert credentials.next_key == "sig_fresh"
    assert credentials.current_key not in (published, "sig_fresh")


async def test_configured_keys_count_on_a_database_of_development_too(storage: Storage) -> None:
    told = await development(storage, now=NOW)
    config = Config(token=TOKEN, current_signing_key=told.current_key, next_signing_key="sig_configured_next")
    credentials = await start(storage, config)
    assert (credentials.current_key, credentials.next_key) == (told.current_key, "sig_configured_next")
    assert await start(storage, config) == credentials


@pytest.mark.parametrize("config", [Config(), Config(token=TOKEN), Config(token=PUBLISHED[0])])
async def test_development_leaves_a_database_of_production_alone(storage: Storage, config: Config) -> None:
    await start(storage, config)
    keys = await keys_of(storage)
    with pytest.raises(CannotOpen, match="production"):
        await development(storage, now=NOW)
    assert await keys_of(storage) == keys
    speaking = [token for token in PUBLISHED if await may_speak(storage, token)]
    assert speaking == [token for token in PUBLISHED if token == config.token]


async def test_a_published_token_is_no_way_into_an_account_whose_own_token_was_told(
    storage: Storage,
) -> None:
    first = await start(storage)
    await remember_shown(storage, first)
    await storage.put_token(token_hash(PUBLISHED[0]), Principal(tenant=DEFAULT_TENANT), now=NOW)
    again = await start(storage)
    assert again.token is None
    assert first.token is not None
    assert await may_speak(storage, first.token)
    assert not await may_speak(storage, PUBLISHED[0])


async def test_a_start_says_which_settings_took_a_token_from_somebody(storage: Storage) -> None:
    assert (await start(storage, Config(token=TOKEN, readonly_token=READER))).replaced == ()
    assert (await start(storage, Config(token=TOKEN, readonly_token=READER))).replaced == ()
    assert (await start(storage)).replaced == ()
    assert (await start(storage, Config(token="another-token"))).replaced == ("RELAY_TOKEN",)
    assert (await start(storage, Config(readonly_token="another-reader"))).replaced == (
        "RELAY_READONLY_TOKEN",
    )


async def test_a_configured_token_that_replaces_a_made_one_is_said_to(storage: Storage) -> None:
    await remember_shown(storage, await start(storage))
    assert (await start(storage, Config(token=TOKEN))).replaced == ("RELAY_TOKEN",)


async def test_a_token_beside_issued_ones_replaces_none(storage: Storage) -> None:
    await start(storage, Config(token=TOKEN))
    issued = Token(hash=b"issued", tenant=DEFAULT_TENANT, read_only=False, created_at=NOW)
    await storage.issue_token(issued)
    assert (await start(storage, Config(token=TOKEN))).replaced == ()


async def test_the_first_start_makes_a_token_in_the_documented_shape_and_tells_it_once(
    storage: Storage,
) -> None:
    first = await start(storage)
    assert first.token is not None
    tenant = await storage.tenant(DEFAULT_TENANT)
    assert tenant is not None
    assert user_id_of(first.token) == tenant.user_id
    assert (first.current_key, first.next_key) == (tenant.current_key, tenant.next_key)
    await remember_shown(storage, first)
    second = await start(storage)
    assert second.token is None
    assert await may_speak(storage, first.token)


async def test_a_token_nobody_has_seen_is_made_again_when_nobody_can_be_about_to_print_it(
    storage: Storage,
) -> None:
    lost = await start(storage)
    clock = FakeClock(NOW)
    waiting = asyncio.create_task(start(storage, clock=clock))
    while not waiting.done():
        await asyncio.sleep(0)
        clock.advance(1)
    assert clock.now() >= NOW + 10_000
    again = await waiting
    assert again.token is not None
    assert lost.token is not None
    assert again.token != lost.token
    assert await may_speak(storage, again.token)
    assert not await may_speak(storage, lost.token)


async def test_of_several_starts_at_once_one_tells_a_token_and_all_have_its_keys(storage: Storage) -> None:
    starts = [asyncio.create_task(start(storage, clock=SystemClock())) for _ in range(5)]
    first, _ = await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
    (told,) = (task.result() for task in first)
    assert told.token is not None
    await remember_shown(storage, told)
    assert [one.token for one in await asyncio.gather(*starts) if one is not told] == [None] * 4
    assert {(one.current_key, one.next_key) for one in await asyncio.gather(*starts)} == {
        (told.current_key, told.next_key)
    }
    assert await may_speak(storage, told.token)


async def test_a_published_token_is_shut_out_before_anything_is_told(storage: Storage) -> None:
    await development(storage, now=NOW)
    await production(storage, Config(), now=NOW, fresh_key=generate_key, fresh_name=random_name)
    assert [token for token in PUBLISHED if await may_speak(storage, token)] == []


async def test_a_configured_token_replaces_every_other_at_once(storage: Storage) -> None:
    generated = await start(storage)
    await remember_shown(storage, generated)
    configured = await start(storage, Config(token=TOKEN))
    assert configured.token is None
    assert await may_speak(storage, TOKEN)
    assert generated.token is not None
    assert not await may_speak(storage, generated.token)


async def issue(
    storage: Storage, token: str, *, read_only: bool = False, expires_at: int | None = None
) -> None:
    await storage.issue_token(
        Token(
            hash=token_hash(token),
            tenant=DEFAULT_TENANT,
            read_only=read_only,
            created_at=NOW,
            expires_at=expires_at,
        )
    )


@pytest.mark.parametrize(
    "config", [Config(), Config(token=TOKEN), Config(token=TOKEN, readonly_token=READER)]
)
async def test_tokens_that_were_issued_outlive_every_start(storage: Storage, config: Config) -> None:
    await start(storage)
    await issue(storage, "issued")
    await issue(storage, "issued-to-read", read_only=True)
    await start(storage, config)
    assert await may_speak(storage, "issued")
    assert await may_speak(storage, "issued-to-read")


async def test_a_generated_token_that_was_revoked_is_replaced_unless_another_was_issued(
    storage: Storage,
) -> None:
    first = await start(storage)
    await remember_shown(storage, first)
    assert first.token is not None
    await storage.delete_token(token_hash(first.token))
    await issue(storage, "only-to-read", read_only=True)
    await issue(storage, "long-gone", expires_at=NOW)
    second = await start(storage)
    await remember_shown(storage, second)
    assert second.token is not None
    await storage.delete_token(token_hash(second.token))
    await issue(storage, "issued")
    third = await start(storage)
    assert (third.token, third.untold_keys) == (None, False)
    assert (third.current_key, third.next_key) == (first.current_key, first.next_key)
    assert [token.issued for token in await storage.tokens(DEFAULT_TENANT)] == [True] * 3


async def test_a_token_that_the_configuration_replaced_is_not_made_again_without_it(storage: Storage) -> None:
    first = await start(storage)
    await remember_shown(storage, first)
    await start(storage, Config(token=TOKEN))
    again = await start(storage)
    assert again.token is None
    assert first.token is not None
    assert not await may_speak(storage, first.token)
    assert await may_speak(storage, TOKEN)


async def test_keys_made_for_a_configured_token_are_said_to_be_untold_once(storage: Storage) -> None:
    assert (await start(storage, Config(token=TOKEN))).untold_keys
    assert not (await start(storage, Config(token=TOKEN))).untold_keys


async def test_keys_made_in_place_of_published_ones_are_said_to_be_untold_once(storage: Storage) -> None:
    await development(storage, now=NOW)
    assert (await start(storage, Config(token=TOKEN))).untold_keys
    assert not (await start(storage, Config(token=TOKEN))).untold_keys


async def test_configured_and_printed_keys_are_no_untold_ones(storage: Storage) -> None:
    keys = Config(
        token=TOKEN, current_signing_key="sig_configured_current", next_signing_key="sig_configured_next"
    )
    assert not (await start(storage, keys)).untold_keys


async def test_keys_that_are_printed_are_no_untold_ones(storage: Storage) -> None:
    assert not (await start(storage)).untold_keys


async def test_a_start_that_has_lost_its_configuration_shuts_nobody_out(storage: Storage) -> None:
    await start(storage, Config(token=TOKEN, readonly_token=READER))
    reader = await storage.principal(token_hash(READER))
    assert reader is not None
    assert reader.read_only
    after = await start(storage)
    assert after.token is None
    assert await may_speak(storage, TOKEN)
    assert await may_speak(storage, READER)


async def test_configured_keys_are_taken_over_when_they_are_new(storage: Storage) -> None:
    await start(storage)
    config = Config(
        token=TOKEN, current_signing_key="sig_configured_current", next_signing_key="sig_configured_next"
    )
    credentials = await start(storage, config)
    assert (credentials.current_key, credentials.next_key) == (
        "sig_configured_current",
        "sig_configured_next",
    )


async def test_a_rotation_outlives_a_restart_with_the_same_configured_keys(storage: Storage) -> None:
    config = Config(
        token=TOKEN, current_signing_key="sig_configured_current", next_signing_key="sig_configured_next"
    )
    await start(storage, config)
    await storage.rotate_keys(DEFAULT_TENANT, fresh="sig_fresh")
    credentials = await start(storage, config)
    assert (credentials.current_key, credentials.next_key) == ("sig_configured_next", "sig_fresh")


@pytest.mark.parametrize(
    "token", ["", "not base64!", "bm90IGpzb24=", "W10=", "eyJVc2VySUQiOjF9", "eyJVc2VySUQiOiIifQ=="]
)
def test_a_token_of_another_shape_names_nobody(token: str) -> None:
    assert user_id_of(token) is None

"""Which key signs, and how soon a rotation counts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from relay.clock import FakeClock
from relay.domain.message import TenantId
from relay.domain.tenant import Tenant
from relay.engine.signer import Signer
from signing import KeyPair, Receiver, WrongKeyError
from storage.protocol import Catalog, Storage
from storage.sqlite import open_sqlite
from tests.builders import NOW, TENANT

FIRST, SECOND, THIRD = (f"sig_{word:0<28}" for word in ("first", "second", "third"))
BEFORE, AFTER = KeyPair(FIRST, SECOND), KeyPair(SECOND, THIRD)
URL = "https://example.com/hook"


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await open_sqlite(f"sqlite:///{tmp_path}/relay.db")
    await opened.put_tenant(Tenant(id=TENANT, user_id="u", current_key=FIRST, next_key=SECOND), now=0)
    yield opened
    await opened.close()


def a_signer(catalog: Catalog, clock: FakeClock) -> Signer:
    return Signer(catalog, clock=clock, random_name=lambda prefix: prefix + "1")


def accepts(pair: KeyPair, signature: str) -> bool:
    """Whether a receiver that holds this pair takes a signature of now for genuine."""
    try:
        Receiver(pair.current, pair.next).verify(
            signature=signature, body=b"body", url=URL, now_s=NOW // 1000, clock_tolerance_s=10
        )
    except WrongKeyError:
        return False
    return True


async def test_receivers_with_the_new_pair_accept_what_is_signed_after_a_rotation(storage: Storage) -> None:
    signer = a_signer(storage, FakeClock(NOW))
    assert not accepts(AFTER, await signer.sign(TENANT, url=URL, body=b"body"))
    await storage.rotate_keys(TENANT, fresh=THIRD)
    signer.forget(TENANT)
    signature = await signer.sign(TENANT, url=URL, body=b"body")
    assert accepts(AFTER, signature)
    assert accepts(BEFORE, signature)


async def test_a_rotation_elsewhere_counts_after_two_seconds(storage: Storage) -> None:
    clock = FakeClock(NOW)
    signer = a_signer(storage, clock)
    await signer.sign(TENANT, url=URL, body=b"body")
    await storage.rotate_keys(TENANT, fresh=THIRD)
    clock.advance(1_999)
    assert not accepts(AFTER, await signer.sign(TENANT, url=URL, body=b"body"))
    clock.advance(1)
    assert accepts(AFTER, await signer.sign(TENANT, url=URL, body=b"body"))


class Slow:
    """A catalog whose answers take a while, and tell of the moment they were asked for."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def tenant(self, tenant: TenantId) -> Tenant | None:
        found = await self._storage.tenant(tenant)
        self.asked.set()
        await self.answers.wait()
        return found


async def test_a_key_that_was_read_before_a_rotation_is_not_remembered_after_it(storage: Storage) -> None:
    slow = Slow(storage)
    signer = a_signer(cast(Catalog, slow), FakeClock(NOW))
    early = asyncio.create_task(signer.sign(TENANT, url=URL, body=b"body"))
    await slow.asked.wait()
    await storage.rotate_keys(TENANT, fresh=THIRD)
    signer.forget(TENANT)
    late = asyncio.create_task(signer.sign(TENANT, url=URL, body=b"body"))
    slow.answers.set()
    assert not accepts(AFTER, await early)
    assert accepts(AFTER, await late)
    assert accepts(AFTER, await signer.sign(TENANT, url=URL, body=b"body"))


async def test_nobody_signs_for_an_account_that_does_not_exist(storage: Storage) -> None:
    with pytest.raises(KeyError):
        await a_signer(storage, FakeClock(NOW)).sign(TenantId(77), url=URL, body=b"body")


async def test_each_account_signs_with_its_own_keys_and_rotates_them_alone(storage: Storage) -> None:
    theirs = tuple(f"sig_{word:0<28}" for word in ("theirfirst", "theirsecond"))
    other = await storage.add_tenant("acme", current_key=theirs[0], next_key=theirs[1], now=NOW)
    assert other is not None
    clock = FakeClock(NOW)
    signer = a_signer(storage, clock)
    assert accepts(KeyPair(*theirs), await signer.sign(other.id, url=URL, body=b"body"))
    assert not accepts(BEFORE, await signer.sign(other.id, url=URL, body=b"body"))
    await storage.rotate_keys(other.id, fresh=THIRD)
    clock.advance(2_000)
    assert accepts(KeyPair(theirs[1], THIRD), await signer.sign(other.id, url=URL, body=b"body"))
    assert not accepts(AFTER, await signer.sign(TENANT, url=URL, body=b"body"))
    assert accepts(BEFORE, await signer.sign(TENANT, url=URL, body=b"body"))


async def test_what_a_disabled_account_has_waiting_is_held_for_as_long_as_it_was_disabled(
    storage: Storage,
) -> None:
    clock = FakeClock(NOW)
    signer = a_signer(storage, clock)
    assert await signer.held_until(TENANT) is None
    await storage.put_disabled(TENANT, at=NOW)
    clock.advance(2_000)
    held = []
    for hold_ms in (10_000, 30_000, 3_600_000, 3_600_000):
        clock.advance(hold_ms)
        until = await signer.held_until(TENANT)
        assert until is not None
        held.append(until - clock.now())
    assert held == [12_000, 42_000, 3_600_000, 3_600_000]
    await storage.put_disabled(TENANT, at=None)
    clock.advance(2_000)
    assert await signer.held_until(TENANT) is None


async def test_what_was_disabled_a_moment_ago_is_held_for_ten_seconds(storage: Storage) -> None:
    await storage.put_disabled(TENANT, at=NOW)
    assert await a_signer(storage, FakeClock(NOW)).held_until(TENANT) == NOW + 10_000

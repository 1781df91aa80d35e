"""Which key signs, and how soon a rotation counts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from relay.clock import FakeClock
from relay.domain.message import Headers, Message, MessageId, SignedBy, TenantId
from relay.domain.tenant import Tenant, TenantLimits
from relay.engine.signer import Signer
from relay.ids import text_of
from signing import KeyPair, PrivateKey, Verifier, Webhook, WebhookReceiver, WrongKeyError, webhook_secret
from storage.protocol import Catalog, Storage
from storage.sqlite import open_sqlite
from tests.builders import NOW, TENANT, a_message

FIRST, SECOND, THIRD = (f"sig_{word:0<28}" for word in ("first", "second", "third"))
BEFORE, AFTER = KeyPair(FIRST, SECOND), KeyPair(SECOND, THIRD)
URL = "https://example.com/hook"
MESSAGE = MessageId(NOW << 20)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    opened = await open_sqlite(f"sqlite:///{tmp_path}/relay.db")
    await opened.put_tenant(Tenant(id=TENANT, user_id="u", current_key=FIRST, next_key=SECOND), now=0)
    yield opened
    await opened.close()


def a_signer(catalog: Catalog, clock: FakeClock) -> Signer:
    return Signer(catalog, clock=clock, random_name=lambda prefix: prefix + "1")


def signed(by: SignedBy | None = None, *, body: bytes = b"body", tenant: TenantId = TENANT) -> Message:
    return a_message(id=MESSAGE, tenant=tenant, url=URL, body=body, signed_by=by)


def accepts(pair: KeyPair, headers: Headers) -> bool:
    """Whether a receiver that holds this pair takes a signature of now for genuine."""
    try:
        Verifier(pair.current, pair.next).verify(
            headers=headers, body=b"body", url=URL, now_s=NOW // 1000, clock_tolerance_s=10
        )
    except WrongKeyError:
        return False
    return True


async def test_receivers_with_the_new_pair_accept_what_is_signed_after_a_rotation(storage: Storage) -> None:
    signer = a_signer(storage, FakeClock(NOW))
    assert not accepts(AFTER, await signer.sign(signed()))
    await storage.rotate_keys(TENANT, fresh=THIRD)
    signer.forget(TENANT)
    headers = await signer.sign(signed())
    assert accepts(AFTER, headers)
    assert accepts(BEFORE, headers)


async def test_a_rotation_elsewhere_counts_after_two_seconds(storage: Storage) -> None:
    clock = FakeClock(NOW)
    signer = a_signer(storage, clock)
    await signer.sign(signed())
    await storage.rotate_keys(TENANT, fresh=THIRD)
    clock.advance(1_999)
    assert not accepts(AFTER, await signer.sign(signed()))
    clock.advance(1)
    assert accepts(AFTER, await signer.sign(signed()))


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
    early = asyncio.create_task(signer.sign(signed()))
    await slow.asked.wait()
    await storage.rotate_keys(TENANT, fresh=THIRD)
    signer.forget(TENANT)
    late = asyncio.create_task(signer.sign(signed()))
    slow.answers.set()
    assert not accepts(AFTER, await early)
    assert accepts(AFTER, await late)
    assert accepts(AFTER, await signer.sign(signed()))


async def test_nobody_signs_for_an_account_that_does_not_exist(storage: Storage) -> None:
    with pytest.raises(KeyError):
        await a_signer(storage, FakeClock(NOW)).sign(signed(tenant=TenantId(77)))


def as_webhook(headers: Headers, *keys: str, body: bytes = b"body", now_s: int = NOW // 1000) -> Webhook:
    """What a receiver of Standard Webhooks with these keys makes of a request of now."""
    found = dict(headers)
    return WebhookReceiver(*keys).verify(
        id=found["webhook-id"],
        timestamp=found["webhook-timestamp"],
        signature=found["webhook-signature"],
        body=body,
        now_s=now_s,
    )


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (None, ["Upstash-Signature"]),
        (SignedBy.QSTASH, ["Upstash-Signature"]),
        (SignedBy.STANDARD, ["webhook-id", "webhook-timestamp", "webhook-signature"]),
        (SignedBy.BOTH, ["Upstash-Signature", "webhook-id", "webhook-timestamp", "webhook-signature"]),
    ],
)
async def test_a_message_is_signed_by_the_schemes_it_asked_for(
    storage: Storage, by: SignedBy | None, names: list[str]
) -> None:
    headers = await a_signer(storage, FakeClock(NOW)).sign(signed(by))
    assert [name for name, _ in headers] == names
    if "Upstash-Signature" in names:
        assert accepts(BEFORE, headers)
    if "webhook-id" in names:
        for key in (FIRST, PrivateKey.derived(FIRST).public):
            assert as_webhook(headers, key) == Webhook(id=text_of("msg_", MESSAGE), timestamp=NOW // 1000)
        with pytest.raises(WrongKeyError):
            as_webhook(headers, THIRD, PrivateKey.derived(SECOND).public)


async def test_what_does_not_say_how_is_signed_as_its_account_has_it_when_it_is_sent(
    storage: Storage,
) -> None:
    clock = FakeClock(NOW)
    signer = a_signer(storage, clock)
    await signer.sign(signed())
    await storage.put_signed_by(TENANT, SignedBy.STANDARD)
    clock.advance(2_000)
    assert "Upstash-Signature" not in dict(await signer.sign(signed()))
    as_webhook(await signer.sign(signed()), FIRST)
    assert list(dict(await signer.sign(signed(SignedBy.QSTASH)))) == ["Upstash-Signature"]


async def test_a_retry_has_the_id_of_the_first_attempt_and_a_time_of_its_own(storage: Storage) -> None:
    clock = FakeClock(NOW)
    signer = a_signer(storage, clock)
    first = as_webhook(await signer.sign(signed(SignedBy.STANDARD)), FIRST)
    clock.advance(3_600_000)
    later_s = clock.now() // 1000
    second = as_webhook(await signer.sign(signed(SignedBy.STANDARD)), FIRST, now_s=later_s)
    assert second.id == first.id
    assert (first.timestamp, second.timestamp) == (NOW // 1000, later_s)


async def test_a_rotation_rotates_the_keys_of_both_schemes(storage: Storage) -> None:
    signer = a_signer(storage, FakeClock(NOW))
    await signer.sign(signed(SignedBy.BOTH))
    await storage.rotate_keys(TENANT, fresh=THIRD)
    signer.forget(TENANT)
    headers = await signer.sign(signed(SignedBy.BOTH))
    assert accepts(AFTER, headers)
    for key in (SECOND, PrivateKey.derived(SECOND).public):
        as_webhook(headers, key)


@pytest.mark.parametrize("key", ["shortkey", "whsec_no-base64-secret"])
async def test_any_configured_key_signs_standard_webhooks_but_a_short_one_gets_no_public_key(
    storage: Storage, key: str
) -> None:
    await storage.put_tenant(Tenant(id=TENANT, user_id="u", current_key=key, next_key=SECOND), now=0)
    headers = await a_signer(storage, FakeClock(NOW)).sign(signed(SignedBy.STANDARD))
    assert " " not in dict(headers)["webhook-signature"]
    as_webhook(headers, webhook_secret(key))


async def test_each_account_signs_with_its_own_keys_and_rotates_them_alone(storage: Storage) -> None:
    theirs = tuple(f"sig_{word:0<28}" for word in ("theirfirst", "theirsecond"))
    other = await storage.add_tenant("acme", current_key=theirs[0], next_key=theirs[1], now=NOW)
    assert other is not None
    clock = FakeClock(NOW)
    signer = a_signer(storage, clock)
    assert accepts(KeyPair(*theirs), await signer.sign(signed(tenant=other.id)))
    assert not accepts(BEFORE, await signer.sign(signed(tenant=other.id)))
    await storage.rotate_keys(other.id, fresh=THIRD)
    clock.advance(2_000)
    assert accepts(KeyPair(theirs[1], THIRD), await signer.sign(signed(tenant=other.id)))
    assert not accepts(AFTER, await signer.sign(signed()))
    assert accepts(BEFORE, await signer.sign(signed()))


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


async def test_a_limit_on_what_is_in_flight_is_noticed_within_two_seconds(storage: Storage) -> None:
    clock = FakeClock(NOW)
    signer = a_signer(storage, clock)
    assert not await signer.is_limited(TENANT)
    for limit in (5, None):
        await storage.put_limits(TENANT, TenantLimits(max_parallelism=limit), now=NOW)
        clock.advance(2_000)
        assert await signer.is_limited(TENANT) == (limit is not None)

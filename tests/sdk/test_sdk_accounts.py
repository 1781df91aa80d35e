"""Who the official SDK speaks for: tokens, signing keys, and accounts that see nothing of each other."""

import pytest
from qstash import AsyncQStash, Receiver
from qstash.log import LogState

from tests.live import Live
from tests.sdk.asking import history_until, publish, refused
from tests.sdk.clients import DEFAULT_USER, TEST_USER_1, TEST_USER_2, TEST_USER_3, Clients
from tests.sdk.endpoint import Endpoint, an_endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

DESTINATION = "https://example.com"


async def test_the_greeting_is_the_first_development_identity(relay: Live) -> None:
    assert relay.environment == {
        "QSTASH_URL": relay.url,
        "QSTASH_TOKEN": DEFAULT_USER.token,
        "QSTASH_CURRENT_SIGNING_KEY": DEFAULT_USER.current_key,
        "QSTASH_NEXT_SIGNING_KEY": DEFAULT_USER.next_key,
    }


async def test_the_keys_are_the_ones_that_were_printed(client: AsyncQStash, relay: Live) -> None:
    keys = await client.signing_key.get()
    assert keys.current == relay.environment["QSTASH_CURRENT_SIGNING_KEY"]
    assert keys.next == relay.environment["QSTASH_NEXT_SIGNING_KEY"]


@pytest.mark.parametrize("identity", [TEST_USER_1, TEST_USER_2])
async def test_every_development_identity_signs_with_keys_of_its_own(
    clients: Clients, kind: str, identity: tuple[str, str, str]
) -> None:
    token, current, next_ = identity
    keys = await clients.of(kind, token).signing_key.get()
    assert (keys.current, keys.next) == (current, next_)


async def test_receivers_verify_with_the_old_pair_after_a_rotation_and_with_the_new_one(
    clients: Clients, kind: str
) -> None:
    client = clients.of(kind, TEST_USER_3.token)
    before = await client.signing_key.get()
    after = await client.signing_key.rotate()
    assert after.current == before.next
    assert after.next not in (before.current, before.next)
    assert after.next.startswith("sig_")
    assert await client.signing_key.get() == after
    for keys in (before, after):
        async with an_endpoint(Receiver(keys.current, keys.next)) as endpoint:
            await publish(client, url=endpoint.url, body="signed")
            assert (await endpoint.delivery()).body == b"signed"


async def test_a_receiver_with_the_keys_of_another_account_refuses(client: AsyncQStash) -> None:
    async with an_endpoint(TEST_USER_1.receiver) as endpoint:
        await publish(client, url=endpoint.url)
        await endpoint.delivery()
        (problem,) = endpoint.problems
        assert "Signature verification failed" in problem
        endpoint.problems.clear()


async def test_an_account_sees_nothing_of_another(
    clients: Clients, kind: str, client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    other = clients.of(kind, TEST_USER_1.token)
    message_id = await publish(client, url=endpoint.url, label=label, deduplication_id=label)
    await history_until(client, message_id, LogState.DELIVERED)
    schedule_id = await client.schedule.create(destination=DESTINATION, cron="@yearly", schedule_id=label)
    assert (await other.log.list(filter={"label": label})).logs == []
    with refused(404):
        await other.message.get(message_id)
    with refused(404):
        await other.schedule.get(schedule_id)
    with refused(404):
        await other.schedule.delete(schedule_id)
    # Nor does its deduplication reach over.
    async with an_endpoint(TEST_USER_1.receiver) as theirs:
        await publish(other, url=theirs.url, body="mine", deduplication_id=label)
        assert (await theirs.delivery()).body == b"mine"
    await client.schedule.delete(schedule_id)


@pytest.mark.parametrize("token", ["nonsense", TEST_USER_1.token[:-1]])
async def test_an_unknown_token_may_do_nothing(clients: Clients, kind: str, token: str) -> None:
    stranger = clients.of(kind, token)
    with refused(401, "token"):
        await stranger.message.publish(url=DESTINATION)
    with refused(401, "token"):
        await stranger.schedule.list()

"""`relay serve` and the official SDK: the first start, restarts, kill -9, the read-only token, the egress guard."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from qstash import Receiver
from qstash.log import LogState

from tests.live import Live, a_relay
from tests.sdk.asking import dead_letter, history, history_until, publish, refused, states
from tests.sdk.clients import Clients
from tests.sdk.endpoint import an_endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

LOOPBACK = {"RELAY_ALLOW_NETWORKS": "127.0.0.0/8"}
TOKEN = "a-token-of-some-length"
READ_ONLY = "another-token-of-some-length"


async def test_what_was_printed_once_works_after_kill_9_and_nothing_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    with a_relay(mode="serve", directory=tmp_path, environment=LOOPBACK) as live:
        printed = live.environment
        receiver = Receiver(printed["QSTASH_CURRENT_SIGNING_KEY"], printed["QSTASH_NEXT_SIGNING_KEY"])
        clients = Clients(live.url)
        client = clients.of("async", live.token)
        keys = await client.signing_key.get()
        assert (keys.current, keys.next) == (
            printed["QSTASH_CURRENT_SIGNING_KEY"],
            printed["QSTASH_NEXT_SIGNING_KEY"],
        )
        async with an_endpoint(receiver) as endpoint:
            delayed = [await publish(client, url=endpoint.url, body=str(n), delay="1s") for n in range(20)]
            schedule_id = await client.schedule.create(destination=endpoint.url, cron="@yearly", body="s")
            live.kill()
            await clients.close()
            with a_relay(mode="serve", directory=tmp_path, environment=LOOPBACK) as again:
                assert again.greeting == f"Relay is running at {again.url}\n"
                clients = Clients(again.url)
                client = clients.of("sync", printed["QSTASH_TOKEN"])
                for message_id in delayed:
                    await history_until(client, message_id, LogState.DELIVERED)
                assert {int(delivery.body) for delivery in endpoint.deliveries} == set(range(20))
                assert (await client.schedule.get(schedule_id)).body == "s"
                await clients.close()
                assert again.stop() == 0


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Live]:
    with a_relay(
        mode="serve",
        directory=tmp_path,
        environment={"RELAY_TOKEN": TOKEN, "RELAY_READONLY_TOKEN": READ_ONLY},
    ) as live:
        yield live


async def test_a_configured_relay_keeps_its_tokens_to_itself_and_calls_no_private_address(
    kind: str, configured: Live, unused_tcp_port: int
) -> None:
    first, second = configured.greeting.splitlines()
    assert first == f"Relay is running at {configured.url}"
    assert second.endswith("relay keys show prints them.")
    clients = Clients(configured.url)
    client, reader = clients.of(kind, TOKEN), clients.of(kind, READ_ONLY)
    with refused(400, "destination", "127.0.0.1", "RELAY_ALLOW_NETWORKS"):
        await publish(client, url=f"http://127.0.0.1:{unused_tcp_port}", retries=0)
    message_id = await publish(client, url=f"http://localhost:{unused_tcp_port}", retries=0)
    letter = await dead_letter(reader, message_id)
    assert letter.response_status == 0
    rows = await history(reader, message_id)
    assert states(rows) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    assert "RELAY_ALLOW_NETWORKS" in str(rows[2].error)
    assert (await reader.message.get(message_id)).message_id == message_id
    assert await reader.schedule.list() == []
    with refused(403, "read-only"):
        await reader.message.publish(url="https://example.com")
    with refused(403, "read-only"):
        await reader.message.cancel_all()
    with refused(403, "read-only"):
        await reader.dlq.delete(letter.dlq_id)
    with refused(403, "read-only"):
        await reader.signing_key.rotate()
    with refused(403, "read-only"):
        await reader.signing_key.get()
    assert (await client.dlq.get(letter.dlq_id)) == letter
    await clients.close()
    assert TOKEN.encode() not in configured.log.read_bytes()

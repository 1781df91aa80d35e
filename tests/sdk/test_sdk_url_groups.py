"""URL groups by the official SDK: kept, changed, and delivered to every endpoint that is in them."""

import json
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence
from uuid import uuid4

import pytest
import pytest_asyncio
from qstash import AsyncQStash
from qstash.log import LogState
from qstash.message import BatchResponse, BatchUrlGroupResponse, PublishUrlGroupResponse
from qstash.url_group import Endpoint as GroupEndpoint

from tests.sdk.asking import dead_letter, eventually, history_until, now_ms, refused
from tests.sdk.clients import DEFAULT_USER
from tests.sdk.endpoint import Answer, Endpoint, an_endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def other() -> AsyncIterator[Endpoint]:
    """A second destination."""
    async with an_endpoint(DEFAULT_USER.receiver) as endpoint:
        yield endpoint


@pytest_asyncio.fixture(loop_scope="session")
async def group(client: AsyncQStash) -> AsyncIterator[str]:
    """The name of a group that does not exist, and will be deleted."""
    name = f"group-{uuid4().hex}"
    yield name
    await client.url_group.delete(name)


async def publish(
    client: AsyncQStash, group: str, body: str = "", **arguments: object
) -> Sequence[PublishUrlGroupResponse]:
    answers = await client.message.publish(url_group=group, body=body, **arguments)  # type: ignore[arg-type]
    assert isinstance(answers, list)
    return answers


async def test_a_group_is_kept_as_it_was_put(client: AsyncQStash, group: str) -> None:
    before = now_ms()
    with refused(404, group):
        await client.url_group.get(group)
    await client.url_group.upsert_endpoints(
        group, [{"url": "https://a.example"}, {"url": "https://b.example?x=y", "name": "b"}]
    )
    found = await client.url_group.get(group)
    assert found.name == group
    assert found.endpoints == [
        GroupEndpoint(url="https://a.example", name=None),
        GroupEndpoint(url="https://b.example?x=y", name="b"),
    ]
    assert before <= found.created_at == found.updated_at <= now_ms()
    assert found in await client.url_group.list()


async def test_endpoints_are_changed_by_name_and_by_url_and_removed_by_either(
    client: AsyncQStash, group: str
) -> None:
    await client.url_group.upsert_endpoints(
        group, [{"url": "https://a.example"}, {"url": "https://b.example", "name": "b"}]
    )
    await client.url_group.upsert_endpoints(
        group, [{"url": "https://c.example", "name": "b"}, {"url": "https://a.example", "name": "a"}]
    )
    assert (await client.url_group.get(group)).endpoints == [
        GroupEndpoint(url="https://a.example", name="a"),
        GroupEndpoint(url="https://c.example", name="b"),
    ]
    await client.url_group.remove_endpoints(group, [{"name": "a"}])
    assert [one.name for one in (await client.url_group.get(group)).endpoints] == ["b"]
    await client.url_group.remove_endpoints(group, [{"url": "https://c.example"}])
    with refused(404, group):
        await client.url_group.remove_endpoints(group, [{"name": "b"}])
    assert group not in [one.name for one in await client.url_group.list()]


async def test_a_group_may_be_deleted_before_it_exists(client: AsyncQStash, group: str) -> None:
    await client.url_group.delete(group)
    await client.url_group.upsert_endpoints(group, [{"url": "https://a.example"}])
    await client.url_group.delete(group)
    with refused(404, group):
        await client.url_group.get(group)
    with refused(404, group):
        await client.message.publish(url_group=group)


async def test_a_publish_reaches_every_endpoint_with_a_message_of_its_own(
    client: AsyncQStash, endpoint: Endpoint, other: Endpoint, group: str
) -> None:
    await client.url_group.upsert_endpoints(
        group, [{"url": endpoint.url}, {"url": other.url, "name": "other"}]
    )
    first, second = await publish(client, group, "hello", headers={"X-Mine": "1"}, method="PUT")
    assert [(one.url, one.deduplicated) for one in (first, second)] == [
        (endpoint.url, False),
        (other.url, False),
    ]
    for answer, destination, name in ((first, endpoint, None), (second, other, "other")):
        delivery = await destination.delivery()
        assert (delivery.method, delivery.body, delivery.headers["X-Mine"]) == ("PUT", b"hello", "1")
        assert delivery.headers["Upstash-Message-Id"] == answer.message_id
        assert delivery.headers["Upstash-Topic-Name"] == group
        rows = await history_until(client, answer.message_id, LogState.DELIVERED)
        assert {(row.url_group, row.endpoint) for row in rows} == {(group, name)}
        message = await client.message.get(answer.message_id)
        assert (message.url_group, message.endpoint) == (group, name)
    assert len(endpoint.deliveries) == len(other.deliveries) == 1


async def test_a_json_publish_reaches_every_endpoint_as_json(
    client: AsyncQStash, endpoint: Endpoint, other: Endpoint, group: str
) -> None:
    await client.url_group.upsert_endpoints(group, [{"url": endpoint.url}, {"url": other.url}])
    answers = await client.message.publish_json(url_group=group, body={"ä": 1})
    assert isinstance(answers, list)
    for destination in (endpoint, other):
        delivery = await destination.delivery()
        assert delivery.headers["Content-Type"] == "application/json"
        assert json.loads(delivery.body) == {"ä": 1}


async def test_every_endpoint_is_spared_its_own_duplicates_only(
    client: AsyncQStash, endpoint: Endpoint, other: Endpoint, group: str, label: str
) -> None:
    await client.url_group.upsert_endpoints(group, [{"url": endpoint.url}])
    (first,) = await publish(client, group, deduplication_id=label)
    await client.url_group.upsert_endpoints(group, [{"url": other.url}])
    again, second = await publish(client, group, deduplication_id=label)
    assert (again.message_id, again.deduplicated) == (first.message_id, True)
    assert not second.deduplicated
    await other.delivery()
    await history_until(client, first.message_id, LogState.DELIVERED)
    assert len(endpoint.deliveries) == 1


async def test_an_item_of_a_batch_to_a_group_is_answered_with_a_list(
    client: AsyncQStash, endpoint: Endpoint, other: Endpoint, group: str
) -> None:
    await client.url_group.upsert_endpoints(group, [{"url": endpoint.url}, {"url": other.url}])
    single, several = await client.message.batch(
        [{"url": f"{endpoint.url}/single", "body": "one"}, {"url_group": group, "body": "all"}]
    )
    assert isinstance(single, BatchResponse)
    assert isinstance(several, list)
    assert all(isinstance(one, BatchUrlGroupResponse) for one in several)
    assert [one.url for one in several] == [endpoint.url, other.url]
    await endpoint.delivery(1)
    assert {delivery.body for delivery in endpoint.deliveries} == {b"one", b"all"}
    assert (await other.delivery()).headers["Upstash-Message-Id"] == several[1].message_id


async def test_a_dead_letter_of_a_group_knows_where_it_was_to_go_and_calls_back(
    client: AsyncQStash, endpoint: Endpoint, other: Endpoint, group: str
) -> None:
    endpoint.answers(Answer(404, b"gone"), Answer(200))
    await client.url_group.upsert_endpoints(group, [{"url": endpoint.url, "name": "end"}])
    (answer,) = await publish(client, group, "x", retries=0, failure_callback=other.url)
    entry = await dead_letter(client, answer.message_id)
    assert (entry.url_group, entry.endpoint, entry.url) == (group, "end", endpoint.url)
    report = json.loads((await other.delivery()).body)
    assert (report["topicName"], report["endpointName"], report["dlqId"]) == (group, "end", entry.dlq_id)
    assert b64decode(report["body"]) == b"gone"
    page = await client.dlq.list(filter={"url_group": group})
    assert [one.dlq_id for one in page.messages] == [entry.dlq_id]
    page_of_others = await client.dlq.list(filter={"url_group": f"{group}-other"})
    assert page_of_others.messages == []


async def test_logs_are_found_by_the_group(client: AsyncQStash, endpoint: Endpoint, group: str) -> None:
    await client.url_group.upsert_endpoints(group, [{"url": endpoint.url}])
    (answer,) = await publish(client, group)
    page = await eventually(
        lambda: client.log.list(filter={"url_group": group, "state": LogState.DELIVERED}),
        lambda page: page.logs,
    )
    assert [row.message_id for row in page.logs] == [answer.message_id]


async def test_a_schedule_may_name_a_group(client: AsyncQStash, endpoint: Endpoint, group: str) -> None:
    with refused(404, group):
        await client.schedule.create(destination=group, cron="@yearly")
    await client.url_group.upsert_endpoints(group, [{"url": endpoint.url}])
    schedule_id = await client.schedule.create(destination=group, cron="@yearly", retries=1)
    schedule = await client.schedule.get(schedule_id)
    assert (schedule.destination, schedule.retries) == (group, 1)
    await client.schedule.delete(schedule_id)


async def test_what_cannot_be_a_group_is_refused(client: AsyncQStash, group: str) -> None:
    with refused(400, "name"):
        await client.url_group.upsert_endpoints("a group", [{"url": "https://a.example"}])
    with refused(400, "url"):
        await client.url_group.upsert_endpoints(group, [{"url": "nowhere"}])
    with refused(400, "endpoints"):
        await client.url_group.upsert_endpoints(group, [])

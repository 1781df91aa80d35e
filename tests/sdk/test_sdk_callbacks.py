"""Callbacks asked for with the official SDK: what another endpoint is told, signed like every delivery."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from qstash import AsyncQStash
from qstash.log import LogState

from tests.sdk.asking import dead_letter, history_until, publish, refused, states
from tests.sdk.clients import DEFAULT_USER
from tests.sdk.endpoint import Answer, Delivery, Endpoint, an_endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def listener() -> AsyncIterator[Endpoint]:
    """Where the callbacks go; it verifies their signatures, too."""
    async with an_endpoint(DEFAULT_USER.receiver) as endpoint:
        yield endpoint


def told(delivery: Delivery) -> dict[str, Any]:
    body = json.loads(delivery.body)
    assert isinstance(body, dict)
    return body


async def test_a_callback_tells_of_a_success(
    client: AsyncQStash, endpoint: Endpoint, listener: Endpoint
) -> None:
    endpoint.answers(Answer(201, b"made", {"X-Answer": "yes"}))
    message_id = await publish(
        client,
        url=f"{endpoint.url}?a=b",
        body="größer",
        method="PUT",
        content_type="text/plain",
        headers={"X-Mine": "1"},
        retries=2,
        callback=f"{listener.url}?c=d",
        callback_headers={"Forward-X-Theirs": "2"},
        failure_callback=f"{listener.origin}/failed",
    )
    report = await listener.delivery()
    assert (report.method, report.target) == ("POST", "/hook?c=d")
    assert report.headers["Content-Type"] == "application/json"
    assert report.headers["X-Theirs"] == "2"
    assert "X-Mine" not in report.headers
    assert report.headers["Upstash-Message-Id"] != message_id
    said = told(report)
    header = said.pop("header")
    assert header["X-Answer"] == ["yes"]
    message = await client.message.get(message_id)
    assert said == {
        "status": 201,
        "body": base64.b64encode(b"made").decode(),
        "maxRetries": 2,
        "sourceMessageId": message_id,
        "url": f"{endpoint.url}?a=b",
        "method": "PUT",
        "sourceHeader": {"Content-Type": ["text/plain"], "X-Mine": ["1"]},
        "sourceBody": base64.b64encode("größer".encode()).decode(),
        "notBefore": message.not_before,
        "createdAt": message.created_at,
        "callerIP": "127.0.0.1",
    }
    assert (message.callback, message.failure_callback) == (
        f"{listener.url}?c=d",
        f"{listener.origin}/failed",
    )
    assert (message.callback_headers, message.failure_callback_headers) == ({"X-Theirs": ["2"]}, None)
    rows = await history_until(client, report.headers["Upstash-Message-Id"], LogState.DELIVERED)
    assert states(rows) == ["CREATED", "ACTIVE", "DELIVERED"]
    assert len(listener.deliveries) == 1


async def test_every_attempt_is_told_and_the_end_of_a_failure_once_more_with_its_dead_letter(
    client: AsyncQStash, endpoint: Endpoint, listener: Endpoint
) -> None:
    endpoint.answers(Answer(500, b"first"), Answer(503, b"second"))
    message_id = await publish(
        client,
        url=endpoint.url,
        retries=1,
        retry_delay="10",
        callback=listener.url,
        failure_callback=f"{listener.origin}/failed",
        failure_callback_headers={"Method": "PATCH", "Forward-Authorization": "Bearer theirs"},
    )
    await listener.delivery(2)
    entry = await dead_letter(client, message_id)
    attempts = [told(report) for report in listener.deliveries if report.target == "/hook"]
    (failure,) = [report for report in listener.deliveries if report.target == "/failed"]
    attempts.sort(key=lambda said: said.get("retried", 0))
    assert [(said["status"], said.get("retried"), base64.b64decode(said["body"])) for said in attempts] == [
        (500, None, b"first"),
        (503, 1, b"second"),
    ]
    assert told(failure) | {"dlqId": ""} == attempts[1] | {"dlqId": ""}
    assert told(failure)["dlqId"] == entry.dlq_id
    assert (failure.method, failure.headers["Authorization"]) == ("PATCH", "Bearer theirs")
    assert entry.failure_callback == f"{listener.origin}/failed"
    assert entry.failure_callback_headers == {"Authorization": ["Bearer theirs"]}


async def test_a_callback_is_retried_on_its_own_terms_and_ends_as_a_dead_letter_of_its_own(
    client: AsyncQStash, endpoint: Endpoint, listener: Endpoint
) -> None:
    listener.answers(Answer(500, b"not now"))
    await publish(
        client,
        url=endpoint.url,
        callback=listener.url,
        callback_headers={"Retries": "1", "Retry-Delay": "10"},
    )
    report = await listener.delivery(1)
    assert report.headers["Upstash-Retried"] == "1"
    callback_id = report.headers["Upstash-Message-Id"]
    entry = await dead_letter(client, callback_id)
    assert (entry.url, entry.response_status, entry.response_body) == (listener.url, 500, "not now")
    assert json.loads(entry.body or "")["status"] == 200
    assert len(endpoint.deliveries) == 1


async def test_a_callback_can_have_a_failure_callback(
    client: AsyncQStash, endpoint: Endpoint, listener: Endpoint
) -> None:
    await publish(
        client,
        url=endpoint.url,
        callback="http://127.0.0.1:9/nobody",
        callback_headers={
            "Retries": "0",
            "Failure-Callback": listener.url,
            "Failure-Callback-Forward-X-Deep": "yes",
        },
    )
    report = await listener.delivery()
    said = told(report)
    assert report.headers["X-Deep"] == "yes"
    assert (said["status"], said["body"], said["url"]) == (0, "", "http://127.0.0.1:9/nobody")
    assert (await client.dlq.get(said["dlqId"])).message_id == said["sourceMessageId"]
    source = json.loads(base64.b64decode(said["sourceBody"]))
    assert source["url"] == endpoint.url


async def test_items_of_a_batch_call_back_where_each_says(
    client: AsyncQStash, endpoint: Endpoint, listener: Endpoint
) -> None:
    await client.message.batch_json(
        [
            {"url": endpoint.url, "body": number, "callback": f"{listener.origin}/{number}"}
            for number in range(3)
        ]
    )
    await listener.delivery(2)
    said = {report.target: told(report)["sourceBody"] for report in listener.deliveries}
    assert {target: base64.b64decode(body) for target, body in said.items()} == {
        "/0": b"0",
        "/1": b"1",
        "/2": b"2",
    }


async def test_a_schedule_shows_its_callbacks(client: AsyncQStash, listener: Endpoint) -> None:
    schedule_id = await client.schedule.create(
        destination="https://example.com",
        cron="@yearly",
        callback=listener.url,
        callback_headers={"Forward-X-A": "1"},
        failure_callback=f"{listener.origin}/failed",
    )
    schedule = await client.schedule.get(schedule_id)
    assert (schedule.callback, schedule.callback_headers) == (listener.url, {"X-A": ["1"]})
    assert (schedule.failure_callback, schedule.failure_callback_headers) == (
        f"{listener.origin}/failed",
        None,
    )
    await client.schedule.delete(schedule_id)


async def test_a_canceled_message_calls_nobody_back(
    client: AsyncQStash, endpoint: Endpoint, listener: Endpoint, label: str
) -> None:
    endpoint.answers(Answer(500))
    message_id = await publish(
        client,
        url=endpoint.url,
        label=label,
        callback=listener.url,
        failure_callback=f"{listener.origin}/failed",
    )
    await listener.delivery()
    await history_until(client, message_id, LogState.RETRY)
    await client.message.cancel(message_id)
    assert (await client.message.cancel_many([message_id])) == 0
    await history_until(client, message_id, LogState.CANCELED)
    assert [report.target for report in listener.deliveries] == ["/hook"]


async def test_a_wrong_callback_is_refused_by_its_header(client: AsyncQStash, endpoint: Endpoint) -> None:
    with refused(400, "Upstash-Callback: "):
        await client.message.publish(url=endpoint.url, callback="nowhere")
    with refused(400, "Upstash-Failure-Callback-Retries: "):
        await client.message.publish(url=endpoint.url, failure_callback_headers={"Retries": "1"})
    with refused(400, "Upstash-Callback-Delay: "):
        await client.message.publish(
            url=endpoint.url, callback=endpoint.url, callback_headers={"Delay": "1s"}
        )
    with refused(412, "Upstash-Callback-Retries: "):
        await client.message.publish(
            url=endpoint.url, callback=endpoint.url, callback_headers={"Retries": "1000000"}
        )

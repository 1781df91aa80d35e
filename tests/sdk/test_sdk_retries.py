"""Failed attempts and what follows from them, published and watched with the official SDK."""

import time
from email.utils import formatdate

import pytest
from qstash import AsyncQStash
from qstash.log import Log, LogState

from tests.sdk.asking import dead_letter, history_until, publish, states
from tests.sdk.endpoint import Answer, Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

FAILED_ONCE = ["CREATED", "ACTIVE", "ERROR", "RETRY"]


def delays_ms(rows: list[Log]) -> list[int]:
    """How long each retry was put off."""
    return [
        row.next_delivery_time - row.time
        for row in rows
        if row.state is LogState.RETRY and row.next_delivery_time is not None
    ]


async def test_a_message_is_tried_again_until_it_is_delivered(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    endpoint.answers(
        Answer(status=500, body=b"down", headers={"Retry-After": "1", "X-Why": "maintenance"}), Answer()
    )
    message_id = await publish(client, url=endpoint.url, body="try me")
    rows = await history_until(client, message_id, LogState.DELIVERED)
    assert states(rows) == [*FAILED_ONCE, "ACTIVE", "DELIVERED"]
    assert delays_ms(rows) == [1000]
    error = rows[2]
    assert (error.response_status, error.response_body) == (500, "ZG93bg==")
    assert (error.response_headers or {})["X-Why"] == ["maintenance"]
    assert "500" in str(error.error)
    first, second = endpoint.deliveries
    assert second.at - first.at >= 1000
    assert (first.body, second.body) == (b"try me", b"try me")
    for number, delivery in enumerate((first, second)):
        assert delivery.headers["Upstash-Retried"] == str(number)
        assert delivery.headers["Upstash-Message-Id"] == message_id
    assert first.headers["Upstash-Signature"] != second.headers["Upstash-Signature"]


@pytest.mark.parametrize(
    ("header", "value", "delay_ms"),
    [
        ("Retry-After", "3600", 3_600_000),
        ("Retry-After", "6m5.5s", 365_500),
        ("Retry-After", "500ms", 500),
        ("X-RateLimit-Reset", "120", 120_000),
        ("X-RateLimit-Reset-Requests", "1h30m", 5_400_000),
        ("X-RateLimit-Reset-Tokens", "90s", 90_000),
    ],
)
async def test_an_answer_says_when_to_come_back(
    client: AsyncQStash, endpoint: Endpoint, header: str, value: str, delay_ms: int
) -> None:
    """Whatever the message itself asked for."""
    endpoint.answers(Answer(status=429, headers={header: value}))
    message_id = await publish(client, url=endpoint.url, retry_delay="5000")
    rows = await history_until(client, message_id, LogState.RETRY)
    assert delays_ms(rows)[0] == delay_ms
    await client.message.cancel(message_id)


async def test_an_answer_may_name_the_time_to_come_back_at(client: AsyncQStash, endpoint: Endpoint) -> None:
    due = int(time.time()) + 3600
    endpoint.answers(Answer(status=503, headers={"Retry-After": formatdate(due, usegmt=True)}))
    message_id = await publish(client, url=endpoint.url)
    rows = await history_until(client, message_id, LogState.RETRY)
    assert rows[-1].next_delivery_time == due * 1000
    await client.message.cancel(message_id)


async def test_a_retry_delay_expression_is_evaluated_for_every_retry(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    endpoint.answers(Answer(status=500))
    message_id = await publish(client, url=endpoint.url, retries=2, retry_delay="100 * (1 + retried)")
    rows = await history_until(client, message_id, LogState.FAILED)
    assert states(rows) == [*FAILED_ONCE, "ACTIVE", "ERROR", "RETRY", "ACTIVE", "ERROR", "FAILED"]
    assert delays_ms(rows) == [100, 200]
    assert {row.retry_delay_expression for row in rows} == {"100 * (1 + retried)"}
    assert [delivery.headers["Upstash-Retried"] for delivery in endpoint.deliveries] == ["0", "1", "2"]
    letter = await dead_letter(client, message_id)
    assert (letter.retry_delay_expression, letter.max_retries) == ("100 * (1 + retried)", 2)


async def test_without_any_wish_the_first_retry_comes_after_12_seconds(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    endpoint.answers(Answer(status=500))
    message_id = await publish(client, url=endpoint.url)
    rows = await history_until(client, message_id, LogState.RETRY)
    (delay_ms,) = delays_ms(rows)
    assert 12_000 <= delay_ms < 12_400  # e to the power of 2.5 seconds
    await client.message.cancel(message_id)


async def test_a_message_without_retries_is_tried_once(client: AsyncQStash, endpoint: Endpoint) -> None:
    endpoint.answers(Answer(status=500, headers={"Retry-After": "0"}))
    message_id = await publish(client, url=endpoint.url, retries=0)
    rows = await history_until(client, message_id, LogState.FAILED)
    assert states(rows) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    assert len(endpoint.deliveries) == 1


async def test_489_with_its_marker_goes_straight_to_the_dead_letters(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    endpoint.answers(Answer(status=489, body=b"never", headers={"Upstash-NonRetryable-Error": "true"}))
    message_id = await publish(client, url=endpoint.url, retries=5)
    rows = await history_until(client, message_id, LogState.FAILED)
    assert states(rows) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    letter = await dead_letter(client, message_id)
    assert (letter.response_status, letter.response_body) == (489, "never")


@pytest.mark.parametrize(
    "answer", [Answer(status=489), Answer(status=500, headers={"Upstash-NonRetryable-Error": "true"})]
)
async def test_489_or_its_marker_alone_is_an_ordinary_failure(
    client: AsyncQStash, endpoint: Endpoint, answer: Answer
) -> None:
    endpoint.answers(answer)
    message_id = await publish(client, url=endpoint.url)
    assert states(await history_until(client, message_id, LogState.RETRY)) == FAILED_ONCE
    await client.message.cancel(message_id)


async def test_a_redirect_is_a_failed_attempt_and_is_not_followed(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    endpoint.answers(Answer(status=302, headers={"Location": f"{endpoint.url}/moved"}))
    message_id = await publish(client, url=endpoint.url, retries=0)
    assert (await dead_letter(client, message_id)).response_status == 302
    assert [delivery.target for delivery in endpoint.deliveries] == ["/hook"]


async def test_an_endpoint_without_tls_is_a_readable_failure_of_an_https_message(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    message_id = await publish(client, url=endpoint.url.replace("http:", "https:"), retries=0)
    rows = await history_until(client, message_id, LogState.FAILED)
    assert "TLS" in str(rows[2].error)
    assert endpoint.deliveries == []

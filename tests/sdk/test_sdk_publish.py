"""What the official SDK publishes arrives, and arrives as it was meant."""

import asyncio
import base64
import json
import time
from hashlib import sha256
from typing import Any

import pytest
from qstash import AsyncQStash
from qstash.log import LogState
from qstash.message import PublishResponse

from tests.sdk.asking import dead_letter, eventually, history, history_until, now_ms, publish, refused, states
from tests.sdk.endpoint import Answer, Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOT_UTF_8 = bytes(range(256))


async def test_a_message_arrives_once_with_what_the_protocol_promises(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    message_id = await publish(client, url=endpoint.url, body="hello", content_type="text/plain")
    rows = await history_until(client, message_id, LogState.DELIVERED)
    assert states(rows) == ["CREATED", "ACTIVE", "DELIVERED"]
    (delivery,) = endpoint.deliveries
    assert (delivery.method, delivery.target, delivery.body) == ("POST", "/hook", b"hello")
    headers = {name.lower(): value for name, value in delivery.headers.items()}
    assert headers.pop("upstash-signature")
    assert headers == {
        "host": f"127.0.0.1:{endpoint.port}",
        "content-type": "text/plain",
        "content-length": "5",
        "user-agent": "Upstash-QStash",
        "upstash-message-id": message_id,
        "upstash-retried": "0",
        "upstash-caller-ip": "127.0.0.1",
        "upstash-region": "EU-CENTRAL-1",
    }


async def test_a_json_body_arrives_as_json(client: AsyncQStash, endpoint: Endpoint) -> None:
    body = {"text": "größer ☃", "numbers": [1, 2.5, None]}
    answer = await client.message.publish_json(url=endpoint.url, body=body)
    assert isinstance(answer, PublishResponse)
    delivery = await endpoint.delivery()
    assert json.loads(delivery.body) == body
    assert delivery.headers["Content-Type"] == "application/json"
    assert delivery.headers["Upstash-Message-Id"] == answer.message_id


@pytest.mark.parametrize(
    "body",
    [None, b"", b"\0", NOT_UTF_8, "größer ☃".encode(), b"x" * 2**20],
    ids=["none", "empty", "nul", "not UTF-8", "UTF-8", "as large as may be"],
)
async def test_any_bytes_arrive_identical(
    client: AsyncQStash, endpoint: Endpoint, body: bytes | None
) -> None:
    await publish(client, url=endpoint.url, body=body)
    assert (await endpoint.delivery()).body == (body or b"")


async def test_a_body_beyond_the_limit_is_refused_and_the_client_goes_on(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    with refused(413, "1048576"):
        await client.message.publish(url=endpoint.url, body=b"x" * (2**20 + 1))
    await publish(client, url=endpoint.url, body="after it")
    assert (await endpoint.delivery()).body == b"after it"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_every_method_takes_a_body_along(client: AsyncQStash, endpoint: Endpoint, method: str) -> None:
    await publish(client, url=endpoint.url, body="with a body", method=method)
    delivery = await endpoint.delivery()
    assert (delivery.method, delivery.body) == (method, b"with a body")


async def test_headers_for_the_destination_arrive_and_the_token_does_not(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    await publish(
        client,
        url=endpoint.url,
        headers={
            "X-Plain": "one, two",
            "Upstash-Forward-X-Prefixed": "three",
            "Authorization": "Bearer theirs",
            "content-type": "text/x-forwarded",
        },
    )
    headers = (await endpoint.delivery()).headers
    assert headers["X-Plain"] == "one, two"
    assert headers["X-Prefixed"] == "three"
    assert headers.getall("Authorization") == ["Bearer theirs"]
    assert headers["Content-Type"] == "text/x-forwarded"
    assert not [name for name in headers if name.lower().startswith("upstash-forward")]


async def test_headers_that_frame_a_request_are_not_sent_on(client: AsyncQStash, endpoint: Endpoint) -> None:
    """An application that forwards every header it was called with must not cut its next body short."""
    await publish(
        client,
        url=endpoint.url,
        body="a longer body",
        headers={
            "Content-Length": "2",
            "Host": "elsewhere.example",
            "Transfer-Encoding": "chunked",
            "Connection": "close",
            "Upstash-Signature": "stale",
        },
    )
    delivery = await endpoint.delivery()
    assert delivery.body == b"a longer body"
    assert delivery.headers["Content-Length"] == "13"
    assert delivery.headers["Host"] == f"127.0.0.1:{endpoint.port}"
    assert delivery.headers.getall("Upstash-Signature") != ["stale"]
    assert "Transfer-Encoding" not in delivery.headers


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "/"),
        ("/", "/"),
        ("/a//b", "/a//b"),
        ("/a%2Fb%20c", "/a%2Fb%20c"),
        ("/größe", "/gr%C3%B6%C3%9Fe"),
        ("/?asdasd=ooo", "/?asdasd=ooo"),
        ("/?a=1&b=%2B+%26&a=2&empty=&bare", "/?a=1&b=%2B+%26&a=2&empty=&bare"),
        ("/?url=https://example.com/?x=1,y=2", "/?url=https://example.com/?x=1,y=2"),
        ("/?a=1&upstash-retries=7&b=2", "/?a=1&b=2"),
    ],
)
async def test_the_destination_is_called_and_shown_as_it_was_given(
    client: AsyncQStash, endpoint: Endpoint, path: str, target: str
) -> None:
    url = endpoint.origin + (target if path else "")
    endpoint.published_as = url
    message_id = await publish(client, url=endpoint.origin + path)
    assert (await endpoint.delivery()).target == target
    shown = await client.message.get(message_id)
    assert shown.url == url
    assert shown.max_retries == (7 if "retries" in path else 3)


# --- later


async def test_a_delayed_message_arrives_when_its_delay_is_over(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    message_id = await publish(client, url=endpoint.url, body="later", delay=1)
    message = await client.message.get(message_id)
    assert message.not_before == message.created_at + 1000
    (created,) = await history(client, message_id)
    assert (created.state, created.next_delivery_time) == (LogState.CREATED, message.not_before)
    delivery = await endpoint.delivery()
    assert message.not_before <= delivery.at < message.not_before + 1000
    assert (delivery.body, delivery.headers["Upstash-Retried"]) == (b"later", "0")


@pytest.mark.parametrize(
    ("delay", "seconds"), [(3600, 3600), ("1h30m3s", 5403), ("1d10h30m", 124_200), ("3650d", 315_360_000)]
)
async def test_every_spelling_of_a_delay_is_understood(
    client: AsyncQStash, delay: str | int, seconds: int
) -> None:
    message_id = await publish(client, url="https://example.com", delay=delay)
    message = await client.message.get(message_id)
    assert message.not_before - message.created_at == seconds * 1000
    await client.message.cancel(message_id)


async def test_a_message_waits_until_not_before(client: AsyncQStash, endpoint: Endpoint) -> None:
    not_before = int(time.time()) + 1
    message_id = await publish(client, url=endpoint.url, not_before=not_before)
    assert (await client.message.get(message_id)).not_before == not_before * 1000
    assert (await endpoint.delivery()).at >= not_before * 1000


async def test_not_before_wins_over_a_delay_and_the_past_means_now(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    await publish(client, url=endpoint.url, body="now", not_before=int(time.time()) - 60, delay="1h")
    assert (await endpoint.delivery()).body == b"now"


# --- once


async def test_a_deduplication_id_lets_one_message_through(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    first = await client.message.publish(url=endpoint.url, body="first", deduplication_id=label)
    again = await client.message.publish(url=endpoint.url, body="again", deduplication_id=label)
    assert isinstance(first, PublishResponse)
    assert isinstance(again, PublishResponse)
    assert (first.deduplicated, again.deduplicated) == (False, True)
    assert first.message_id == again.message_id
    await history_until(client, first.message_id, LogState.DELIVERED)
    assert [delivery.body for delivery in endpoint.deliveries] == [b"first"]


async def test_content_based_deduplication_compares_body_destination_and_headers(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    async def answer(**change: Any) -> PublishResponse:
        arguments = {"url": endpoint.url, "body": label, "headers": {"X": "1"}, "content_type": "text/plain"}
        answer = await client.message.publish(**{**arguments, **change}, content_based_deduplication=True)
        assert isinstance(answer, PublishResponse)
        return answer

    first = await answer()
    again = await answer()
    assert (again.message_id, again.deduplicated) == (first.message_id, True)
    others = [
        await answer(body=label + "."),
        await answer(url=endpoint.url + "?other"),
        await answer(headers={"X": "2"}),
        await answer(content_type="text/html"),
    ]
    assert [other.deduplicated for other in others] == [False] * 4
    await endpoint.delivery(4)
    arrived = {delivery.headers["Upstash-Message-Id"] for delivery in endpoint.deliveries}
    assert arrived == {first.message_id, *(other.message_id for other in others)}


async def test_content_based_deduplication_that_is_off_lets_everything_through(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    for _ in range(2):
        await publish(client, url=endpoint.url, body=label, content_based_deduplication=False)
    assert (await endpoint.delivery(1)).body == label.encode()


# --- settings


async def test_an_endpoint_slower_than_the_timeout_is_a_failed_attempt(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    never = asyncio.Event()
    endpoint.answers(Answer(after=never))
    message_id = await publish(client, url=endpoint.url, timeout=1, retries=0)
    rows = await history_until(client, message_id, LogState.FAILED)
    never.set()
    assert states(rows) == ["CREATED", "ACTIVE", "ERROR", "FAILED"]
    assert {row.timeout for row in rows} == {1000}
    assert 1000 <= rows[2].time - rows[1].time < 2000
    assert "1000 ms" in str(rows[2].error)
    assert (await dead_letter(client, message_id)).response_status == 0


async def test_a_label_is_on_the_message_and_on_every_row_of_its_history(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    message_id = await publish(client, url=endpoint.url, label=label)
    rows = await history_until(client, message_id, LogState.DELIVERED)
    assert [row.label for row in rows] == [label] * 3
    assert (await client.message.get(message_id)).label == label


async def test_redacted_fields_reach_the_destination_and_nobody_else(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    endpoint.answers(Answer(status=500))
    message_id = await publish(
        client,
        url=endpoint.url,
        body="a secret body",
        headers={"X-Secret": "a secret header", "X-Open": "no secret"},
        redact={"body": True, "header": ["x-secret"]},
        retries=0,
    )
    delivery = await endpoint.delivery()
    assert delivery.body == b"a secret body"
    assert delivery.headers["X-Secret"] == "a secret header"
    body = f"REDACTED:{sha256(b'a secret body').hexdigest()}"
    headers = {"X-Secret": [f"REDACTED:{sha256(b'a secret header').hexdigest()}"], "X-Open": ["no secret"]}
    message = await client.message.get(message_id)
    assert (message.body, message.body_base64, message.headers) == (body, None, headers)
    letter = await dead_letter(client, message_id)
    assert (letter.body, letter.body_base64, letter.headers) == (body, None, headers)
    for row in await history(client, message_id):
        assert (row.body_base64, row.headers) == (body, headers)


async def test_all_headers_can_be_redacted(client: AsyncQStash, endpoint: Endpoint) -> None:
    message_id = await publish(
        client,
        url=endpoint.url,
        body="open",
        headers={"X-Secret": "1"},
        content_type="text/plain",
        redact={"header": True},
    )
    message = await client.message.get(message_id)
    assert message.body == "open"
    assert message.headers == {
        "Content-Type": [f"REDACTED:{sha256(b'text/plain').hexdigest()}"],
        "X-Secret": [f"REDACTED:{sha256(b'1').hexdigest()}"],
    }


@pytest.mark.parametrize(
    ("status", "header", "arguments"),
    [
        (400, "Upstash-Delay", {"delay": "soon"}),
        (400, "Upstash-Not-Before", {"not_before": "tomorrow"}),
        (400, "Upstash-Retries", {"retries": -1}),
        (412, "Upstash-Retries", {"retries": 1_000_000}),
        (400, "Upstash-Retry-Delay", {"retry_delay": "pow(2"}),
        (400, "Upstash-Retry-Delay", {"retry_delay": "__import__('os')"}),
        (400, "Upstash-Timeout", {"timeout": "long"}),
        (412, "Upstash-Timeout", {"timeout": "13h"}),
        (412, "Upstash-Delay", {"delay": "20000d"}),
        (400, "Upstash-Method", {"method": "TRACE"}),
        (400, "destination", {"url": "example.com"}),
        (400, "destination", {"url": "ftp://example.com"}),
    ],
)
async def test_what_cannot_be_done_is_refused_by_its_name(
    client: AsyncQStash, status: int, header: str, arguments: dict[str, Any]
) -> None:
    with refused(status, header):
        await client.message.publish(**{"url": "https://example.com", **arguments})


async def test_a_destination_that_refuses_connections_is_a_dead_letter_of_status_0(
    client: AsyncQStash, unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/hook"
    message_id = await publish(client, url=url, body=NOT_UTF_8, retries=0)
    rows = await history_until(client, message_id, LogState.FAILED)
    assert rows[2].error == f"127.0.0.1:{unused_tcp_port} refused the connection"
    assert rows[2].response_status is None
    letter = await dead_letter(client, message_id)
    assert (letter.response_status, letter.response_body, letter.response_headers) == (0, None, None)
    assert letter.body_base64 == base64.b64encode(NOT_UTF_8).decode()
    assert letter.created_at <= now_ms()


async def test_many_publishes_at_once_all_arrive_once(
    client: AsyncQStash, endpoint: Endpoint, label: str
) -> None:
    ids = await asyncio.gather(
        *(publish(client, url=endpoint.url, body=str(number), label=label) for number in range(50))
    )
    await endpoint.delivery(49)
    page = await eventually(
        lambda: client.log.list(filter={"label": label, "state": LogState.DELIVERED}),
        lambda page: len(page.logs) >= 50,
    )
    assert {row.message_id for row in page.logs} == set(ids)
    assert sorted(int(delivery.body) for delivery in endpoint.deliveries) == list(range(50))

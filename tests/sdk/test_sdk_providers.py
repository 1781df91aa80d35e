"""Destinations that the official SDK composes for providers of language models."""

import json
from typing import Any

import pytest
from qstash import AsyncQStash
from qstash.chat import custom, openai
from qstash.log import LogState
from qstash.message import BatchResponse, PublishResponse

from tests.sdk.asking import history_until, refused
from tests.sdk.endpoint import Answer, Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = {"model": "m", "messages": [{"role": "user", "content": "größer?"}]}


async def test_a_provider_of_ones_own_is_called_with_its_token(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    api: Any = {"name": "llm", "provider": custom(base_url=endpoint.origin, token="theirs")}
    await client.message.publish_json(api=api, body=PROMPT)
    await client.message.batch_json([{"api": api, "body": PROMPT}])
    for number in range(2):
        delivery = await endpoint.delivery(number)
        assert (delivery.method, delivery.target) == ("POST", "/v1/chat/completions")
        assert delivery.headers["Authorization"] == "Bearer theirs"
        assert delivery.headers["Content-Type"] == "application/json"
        assert json.loads(delivery.body) == PROMPT


async def test_a_message_to_openai_is_the_request_it_expects(client: AsyncQStash) -> None:
    api: Any = {"name": "llm", "provider": openai(token="sk")}
    published = await client.message.publish_json(api=api, body=PROMPT, delay="1h")
    assert isinstance(published, PublishResponse)
    (item,) = await client.message.batch_json([{"api": api, "body": PROMPT, "delay": "1h"}])
    assert isinstance(item, BatchResponse)
    for message_id in (published.message_id, item.message_id):
        message = await client.message.get(message_id)
        assert (message.url, message.method) == ("https://api.openai.com/v1/chat/completions", "POST")
        assert message.headers == {"Authorization": ["Bearer sk"], "Content-Type": ["application/json"]}
        assert json.loads(message.body or "") == PROMPT
        await client.message.cancel(message_id)


async def test_a_provider_that_is_overloaded_says_when_to_call_again(
    client: AsyncQStash, endpoint: Endpoint
) -> None:
    headers = {"x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "6m0s"}
    endpoint.answers(Answer(status=429, headers=headers))
    answer = await client.message.publish_json(
        api={"name": "llm", "provider": custom(base_url=endpoint.origin, token="theirs")}, body=PROMPT
    )
    assert isinstance(answer, PublishResponse)
    retry = (await history_until(client, answer.message_id, LogState.RETRY))[-1]
    assert retry.next_delivery_time == retry.time + 360_000
    await client.message.cancel(answer.message_id)


async def test_a_hosted_model_is_refused_with_what_to_do_instead(client: AsyncQStash) -> None:
    with refused(400, "api/llm", "provider"):
        await client.message.publish(url="api/llm", body="{}")
    with refused(400, "api/llm", "provider"):
        await client.message.batch([{"url": "api/llm", "body": "{}"}])

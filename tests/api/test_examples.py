"""The examples of openapi.yaml are true: what they ask is done, and what they quote is said."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from relay.api.bodies import Bodies
from relay.domain.errors import Unavailable
from tests.api.rig import AUTHORIZATION, READ_ONLY, Reply, Rig, next_reply, running
from tests.api.specification import Specification

URL = "https://example.com/hook"
OPERATIONS = tuple(Specification().operations())

#: Only a relay can say what these are, so its own stand in for those of the examples.
OURS = {"message_id": "msg_01kb4m3z8r0g0", "dlq_id": "1790000000000-0"}


async def furnish(rig: Rig) -> Mapping[str, str]:
    """Make what the examples speak of; the ids of what has one of the relay's."""
    await rig.put_group("https://example.org/hook", name="orders", shop=URL)
    await rig.schedule(headers={"Upstash-Schedule-Id": "scd_4k2jd8s9w0x7y6z5a1bc"})
    await rig.call_json("POST", "/v2/queues", {"queueName": "orders"})
    flow = {"Upstash-Flow-Control-Key": "customer-17", "Upstash-Flow-Control-Value": "rate=10"}
    _, dlq_id = await rig.dead_letter()
    return {"message_id": await rig.publish(headers=flow), "dlq_id": dlq_id}


def examples_of(parameter: Mapping[str, Any]) -> list[Any]:
    """All examples of a parameter, wherever OpenAPI lets them be."""
    named = [example["value"] for example in parameter.get("examples", {}).values()]
    own = [parameter["example"]] if "example" in parameter else []
    return [*own, *named, *parameter["schema"].get("examples", ())]


def with_ours(value: Any, ours: Mapping[str, str]) -> Any:
    """A body in which the relay's ids stand for those of the example."""
    if isinstance(value, dict):
        return {name: with_ours(member, ours) for name, member in value.items()}
    if isinstance(value, list):
        return [with_ours(item, ours) for item in value]
    names = [name for name, example in OURS.items() if value == example]
    return ours[names[0]] if names else value


def target_of(specification: Specification, method: str, path: str, ours: Mapping[str, str]) -> str:
    """The path, and the query, with the examples of its parameters; a schedule is made at a destination."""
    target = path
    for name, parameter in specification.described(method, path, "path").items():
        example = ours.get(name) or examples_of(parameter)[0]
        if (method, name) == ("POST", "schedule_id") and path.endswith("}"):
            example = URL
        target = target.replace(f"{{{name}}}", example if "://" in example else quote(example, safe=""))
    query = [
        f"{name}={example}"
        for name, parameter in specification.described(method, path, "query").items()
        for example in examples_of(parameter)
    ]
    return f"{target}?{'&'.join(query)}" if query else target


def required(parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        name: examples_of(parameter)[0] for name, parameter in parameters.items() if parameter.get("required")
    }


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_what_an_example_asks_is_done(
    rig: Rig, specification: Specification, method: str, path: str
) -> None:
    ours = await furnish(rig)
    target = target_of(specification, method, path, ours)
    headers = required(specification.described(method, path, "header"))
    examples = list(specification.request_examples(method, path)) or [None]
    for example in examples:
        if isinstance(example, str):
            reply = await rig.call(method, target, body=example.encode(), headers=headers)
        elif example is not None:
            reply = await rig.call_json(method, target, with_ours(example, ours), headers=headers)
        else:
            reply = await rig.call(method, target, headers=headers)
        assert reply.status in (200, 201, 308), (reply, example)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_every_example_of_a_parameter_is_accepted(
    rig: Rig, specification: Specification, method: str, path: str
) -> None:
    parameters = specification.described(method, path, "header")
    flow = {"Upstash-Flow-Control-Key": "customer-17", "Upstash-Flow-Control-Value": "rate=10"}
    for name, parameter in parameters.items():
        for example in examples_of(parameter):
            ours = await furnish(rig)
            headers = {**required(parameters), **(flow if name in flow else {}), name: example}
            reply = await rig.call(method, target_of(specification, method, path, ours), headers=headers)
            assert reply.status in (200, 201, 202), (name, example, reply)


async def test_every_sentence_of_an_example_is_said(tmp_path: Path, specification: Specification) -> None:
    quoted = {sentence for _, _, example in specification.examples() for sentence in sentences_of(example)}
    async with running(tmp_path / "relay.db", specification, bodies=Bodies(idle_s=0.05)) as rig:
        said = {reply.error for reply in await refusals(rig)}
    # Nobody wants to wait for the 30 s of a relay that is not in a hurry.
    said = {sentence.replace("within 0.05 s", "within 30 s") for sentence in said}
    assert quoted - said == set()
    assert len(quoted) > 8


def sentences_of(example: Any) -> Iterator[str]:
    for item in example if isinstance(example, list) else [example]:
        if isinstance(item, dict) and "error" in item and "time" not in item:
            yield item["error"]


async def refusals(rig: Rig) -> list[Reply]:
    replies = [
        await rig.call("POST", f"/v2/publish/{URL}", headers={"Upstash-Delay": "soon"}),
        await rig.call("POST", f"/v2/publish/{URL}", headers={"Upstash-Retries": "1000000"}),
        await rig.call("POST", f"/v2/publish/{URL}", body=b" " * ((1 << 20) + 1)),
        await rig.call("GET", "/v2/keys", token=None),
        await rig.call("POST", "/v2/keys/rotate", token=READ_ONLY),
        await rig.call("GET", "/v2/messages/msg_01kb4m3z8r0g0"),
        await rig.call("GET", "/v2/topics/orders"),
        await rig.call("GET", "/docs/start.css"),
    ]
    reader, writer = await rig.connect()
    head = f"POST /v2/batch HTTP/1.1\r\nHost: a\r\nAuthorization: {AUTHORIZATION}\r\n"
    writer.write(f"{head}Content-Length: 100\r\n\r\n".encode())
    replies.append(await next_reply(reader))
    writer.close()
    rig.problems.append("storage does not answer")
    replies.append(await rig.call("GET", "/readyz"))
    rig.publisher.fault = Unavailable("storage is locked")
    replies.append(await rig.call("POST", f"/v2/publish/{URL}"))
    return replies

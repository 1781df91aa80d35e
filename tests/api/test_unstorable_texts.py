"""A text that no database can hold is the client's mistake, wherever it is given, on either backend.

Every operation of openapi.yaml is asked with a NUL in every parameter of its path and its query, in every header it
has, and in every text of its body. What a new operation has is asked as well.
"""

import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from relay.wire.texts import MAX_INDEXED_BYTES
from storage.postgres import open_postgres
from storage.protocol import Storage
from storage.sqlite import open_sqlite
from tests import postgres_server
from tests.api.rig import Rig, running
from tests.api.specification import Specification

URL = "https://example.com/hook"
#: As a path or a query spells it, and as JSON does.
ENCODED, TEXT = ("%00", "a%00b", "%FF%00"), "a\0b"
TOO_LONG = "键" * (MAX_INDEXED_BYTES // 3 + 1)

#: Taken as it came over the wire, where it is still percent-encoded.
RAW = "destination"
#: A body of any bytes, as text.
ANY_TEXT = "body"
#: Which of the texts of a path are called otherwise where they are refused.
CALLED = {"key": "flowControlKey", "queue": "queueName"}
#: What is looked at before the path is.
NEEDED = {"/v2/flowControl/{key}/pin": "?rate=1"}
#: OpenAPI has one name for the parameter of one path, whatever the method makes of it.
CREATE_SCHEDULE = ("POST", "/v2/schedules/{schedule_id}")
#: It is looked at before anything else is, and what is no token is no more than that.
TOKEN = "qstash_token"


class Question(NamedTuple):
    """A request with something in it that cannot be, and what that is called."""

    name: str
    method: str
    target: str
    body: object = None


async def _postgres(path: str) -> Storage:
    return await open_postgres(postgres_server.url())


@pytest.fixture(params=["sqlite", "postgres"])
async def rig(
    request: pytest.FixtureRequest, tmp_path: Path, specification: Specification
) -> AsyncIterator[Rig]:
    backends: dict[str, Callable[[str], Awaitable[Storage]]] = {"sqlite": open_sqlite, "postgres": _postgres}
    path, backend = tmp_path / "relay.db", backends[request.param]
    async with running(path, specification, backend=backend) as rig:
        yield rig


def questions(specification: Specification) -> Iterator[Question]:
    for method, path in specification.operations():
        in_path = specification.described(method, path, "path")
        filled = {name: URL if name == RAW else "x" for name in in_path}
        called = CALLED
        if (method, path) == CREATE_SCHEDULE:
            filled["schedule_id"] = URL
            called = {"schedule_id": RAW}
        target = path.format(**filled)
        example = next(iter(specification.request_examples(method, path)), None)
        body = example if isinstance(example, dict | list) else None
        for name in in_path:
            for text in ENCODED:
                given = {**filled, name: text}
                asked = path.format(**given) + NEEDED.get(path, "")
                yield Question(called.get(name, name), method, asked, body)
        for name in specification.described(method, path, "query"):
            if name != TOKEN:
                for text in ENCODED:
                    yield Question(name, method, f"{target}?{name}={text}", body)
        for name, others in settings(specification, method, path):
            given = {**others, name: ENCODED[1]}
            query = "&".join(f"{name.lower()}={value}" for name, value in given.items())
            yield Question(name, method, f"{target}?{query}", body)
        if body is not None:
            schema = specification.request_schema(method, path)
            for name, spoiled in spoilings(specification, schema, body):
                yield Question(name, method, target, spoiled)


def settings(specification: Specification, method: str, path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The headers of an operation that can be given in its query, those of callbacks among them, each with what it
    needs beside it."""
    names = [name for name in specification.described(method, path, "header") if name.startswith("Upstash-")]
    needed = {"Upstash-Cron": "@daily"} if "Upstash-Cron" in names else {}
    for name in names:
        yield name, needed
    if "Upstash-Callback" in names:
        for kind in ("Callback", "Failure-Callback", "Callback-Failure-Callback"):
            urls = {"Upstash-Callback": URL, f"Upstash-{kind}": URL}
            for name in ("Method", "Flow-Control-Key", "Forward-X"):
                yield f"Upstash-{kind}-{name}", {**needed, **urls}


def spoilings(
    specification: Specification, schema: dict[str, Any], example: Any
) -> Iterator[tuple[str, Any]]:
    """The example with each text that the schema knows replaced, one at a time, and what it is called."""
    schema = specification.resolved(schema)
    for part in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
        yield from spoilings(specification, part, example)
    if "items" in schema:
        items = example if isinstance(example, list) and example else [{}]
        for name, item in spoilings(specification, schema["items"], items[0]):
            yield name, [item]
    known = schema.get("properties", {})
    if isinstance(schema.get("additionalProperties"), dict):
        known = dict.fromkeys(("Upstash-Label", "Upstash-Forward-X"), schema["additionalProperties"])
    for name, part in known.items():
        if name != ANY_TEXT:
            given = copy.deepcopy(example) if isinstance(example, dict) else {}
            for deeper, value in spoilings(specification, part, given.get(name)):
                yield deeper or name, {**given, name: value}
    if "string" in schema.get("type", ()) and not known:
        yield "", TEXT


async def test_a_text_that_no_database_can_hold_is_refused_by_its_name_or_not_found(
    rig: Rig, specification: Specification
) -> None:
    # What is asked about has to be there: else some would only hear that it is not.
    await rig.put_group(URL, name="x")
    asked: set[str] = set()
    wrong = []
    for question in questions(specification):
        body = None if question.body is None else json.dumps(question.body).encode()
        reply = await rig.call(question.method, question.target, body=body)
        named = reply.status == 400 and question.name.lower() in reply.error.lower()
        if not named and reply.status != 404:
            wrong.append((reply.status, reply.body[:200], question))
        asked.add(f"{question.method} {question.name}")
    assert wrong == [], "\n".join(map(str, wrong))
    assert asked >= {
        "GET schedule_id",
        "PATCH schedule_id",
        "DELETE message_id",
        "GET search",
        "POST queue",
        "POST queueName",
        "POST Upstash-Callback-Flow-Control-Key",
        "POST Upstash-Label",
        "PATCH Upstash-Forward-X",
        "DELETE name",
        "DELETE label",
    }


async def test_a_queue_that_cannot_be_spoils_only_its_own_item_of_a_batch(rig: Rig) -> None:
    items = [{"destination": URL, "queue": TEXT}, {"destination": URL, "queue": "q"}, {"destination": URL}]
    reply = await rig.call_json("POST", "/v2/batch", items)
    assert reply.status == 200
    assert [sorted(item) for item in reply.json] == [["error"], ["messageId", "url"], ["messageId", "url"]]


FLOW = {"Upstash-Flow-Control-Key": TOO_LONG, "Upstash-Flow-Control-Value": "parallelism=1"}
CALLBACK = {
    "Upstash-Callback": URL,
    "Upstash-Callback-Flow-Control-Key": TOO_LONG,
    "Upstash-Callback-Flow-Control-Value": "parallelism=1",
}
FAILURE = {
    "Upstash-Failure-Callback": URL,
    "Upstash-Failure-Callback-Flow-Control-Key": TOO_LONG,
    "Upstash-Failure-Callback-Flow-Control-Value": "parallelism=1",
}


@pytest.mark.parametrize("headers", [FLOW, CALLBACK, FAILURE], ids=["own", "callback", "failure"])
async def test_a_key_that_is_too_long_for_an_index_is_refused_at_every_door(
    rig: Rig, headers: dict[str, str]
) -> None:
    await rig.put_group(URL)
    _, dlq_id = await rig.dead_letter(URL, headers={"Upstash-Retries": "0"})
    (name,) = (name for name, value in headers.items() if value == TOO_LONG)
    problem = f"{name}: must have 1 to {MAX_INDEXED_BYTES} bytes in UTF-8"
    for target in (
        f"/v2/publish/{URL}",
        "/v2/publish/group",
        f"/v2/enqueue/q/{URL}",
        f"/v2/dlq/retry/{dlq_id}",
    ):
        reply = await rig.call("POST", target, headers=headers)
        assert (reply.status, reply.error) == (400, problem), target
    cron = {**headers, "Upstash-Cron": "* * * * *"}
    for target in (f"/v2/schedules/{URL}", "/v2/schedules/group", f"/v2/publish/{URL}"):
        reply = await rig.call("POST", target, headers=cron)
        assert (reply.status, reply.error) == (400, problem), target
    reply = await rig.call_json("POST", "/v2/batch", [{"destination": URL, "headers": headers}])
    assert (reply.status, reply.error) == (400, problem)
    reply = await rig.call_json("PATCH", "/v2/topics/group", {"headers": headers})
    assert (reply.status, reply.error) == (400, problem)
    reply = await rig.call("POST", "/v2/dlq/retry", headers=headers)
    assert (reply.status, reply.error) == (400, problem)


async def test_the_longest_key_is_taken_at_every_door_and_found(rig: Rig) -> None:
    key = TOO_LONG[: MAX_INDEXED_BYTES // 3] + "k" * (MAX_INDEXED_BYTES % 3)
    headers = {
        "Upstash-Flow-Control-Key": key,
        "Upstash-Flow-Control-Value": "parallelism=1",
        "Upstash-Label": ",".join(f"{number:02}{'🌍' * 254}" for number in range(20)),
        "Upstash-Schedule-Id": "s" * 256,
    }
    schedule = {**headers, "Upstash-Cron": "* * * * *", "Upstash-Queue-Name": "q" * 256}
    assert (await rig.call("POST", f"/v2/schedules/{URL}", headers=schedule)).status == 200
    assert await rig.fire("s" * 256) is not None
    del headers["Upstash-Schedule-Id"]
    await rig.publish(URL, headers=headers)
    for method, path in (("GET", ""), ("POST", "/pause"), ("POST", "/pin?rate=1"), ("POST", "/resume")):
        reply = await rig.call(method, f"/v2/flowControl/{_quoted(key)}{path}")
        assert reply.status == 200
    reply = await rig.call("GET", f"/v2/flowControl/{_quoted(TOO_LONG)}")
    assert reply.status == 400
    assert reply.error.startswith("flowControlKey: ")


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())

"""openapi.yaml describes the API: all of it, and nothing that is not there.

Every test of the API holds each answer to the description; here the description is held to the answers: one tour
must meet every status and every member it promises, and miss each member that may be absent.
"""

import asyncio
import json
import re
import tomllib
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from relay.api.app import OPEN_ROUTES, ROUTES
from relay.api.bodies import Bodies
from relay.domain.errors import Unavailable
from relay.domain.tenant import Limits
from tests.api.rig import AUTHORIZATION, DISABLED, READ_ONLY, Rig, next_reply, running
from tests.api.specification import ALIASES, PATH, Specification

PUBLISH = "/v2/publish/https://example.com/hook"
SCHEDULES = "/v2/schedules/https://example.com/hook"
ENDPOINTS = "/v2/topics/{name}/endpoints"
CRON = {"Upstash-Cron": "*/10 * * * *"}
JWKS = "/.well-known/jwks.json"
CRON_OF = {"/v2/schedules/{schedule_id}": CRON}

#: May be absent, but not where every client has an address.
ALWAYS_HERE = {f"#/components/schemas/Schedule/{member}" for member in ("callerIP", "callerIp")}

#: A request of every operation that can be refused for who asks.
EVERYTHING = [
    ("POST", PUBLISH),
    ("POST", "/v2/batch"),
    ("DELETE", "/v2/messages"),
    ("GET", "/v2/messages/{message_id}"),
    ("DELETE", "/v2/messages/{message_id}"),
    ("GET", "/v2/schedules"),
    ("POST", SCHEDULES),
    ("GET", "/v2/schedules/{schedule_id}"),
    ("DELETE", "/v2/schedules/{schedule_id}"),
    ("PATCH", "/v2/schedules/{schedule_id}/pause"),
    ("POST", "/v2/schedules/{schedule_id}/pause"),
    ("PATCH", "/v2/schedules/{schedule_id}/resume"),
    ("POST", "/v2/schedules/{schedule_id}/resume"),
    ("GET", "/v2/topics"),
    ("GET", "/v2/topics/{name}"),
    ("PATCH", "/v2/topics/{name}"),
    ("DELETE", "/v2/topics/{name}"),
    ("POST", "/v2/topics/{name}/endpoints"),
    ("DELETE", "/v2/topics/{name}/endpoints"),
    ("GET", "/v2/dlq"),
    ("DELETE", "/v2/dlq"),
    ("POST", "/v2/dlq/retry"),
    ("POST", "/v2/dlq/retry/{dlq_id}"),
    ("GET", "/v2/dlq/{dlq_id}"),
    ("DELETE", "/v2/dlq/{dlq_id}"),
    ("GET", "/v2/events"),
    ("GET", "/v2/logs"),
    ("GET", "/v2/keys"),
    ("POST", "/v2/keys/rotate"),
]
#: The same, where what does not exist is made or is no error.
GATES = [
    ("POST", "/v2/enqueue/q/https://example.com/hook"),
    ("GET", "/v2/queues"),
    ("POST", "/v2/queues"),
    ("GET", "/v2/queues/{queue}"),
    ("DELETE", "/v2/queues/{queue}"),
    ("POST", "/v2/queues/{queue}/pause"),
    ("POST", "/v2/queues/{queue}/resume"),
    ("GET", "/v2/flowControl"),
    ("GET", "/v2/flowControl/{key}"),
    ("POST", "/v2/flowControl/{key}/pause"),
    ("POST", "/v2/flowControl/{key}/resume"),
    ("POST", "/v2/flowControl/{key}/pin?rate=1"),
    ("POST", "/v2/flowControl/{key}/unpin"),
    ("POST", "/v2/flowControl/{key}/resetRate"),
    ("POST", "/v2/flowControl/{key}/reset"),
    ("GET", "/v2/globalParallelism"),
]


#: What is asked of a URL group, where that takes a body.
BODIES = {
    (
        "POST",
        ENDPOINTS,
    ): b'{"endpoints": [{"url": "https://a.example", "name": "a"}, {"url": "https://b.example"}]}',
    ("DELETE", ENDPOINTS): b'{"endpoints": [{"name": "a"}]}',
    ("PATCH", "/v2/topics/{name}"): b'{"headers": {"Upstash-Retries": "0"}}',
}


def test_the_description_is_valid_openapi() -> None:
    OpenAPIV31SpecValidator(Specification().document).validate()


def test_every_example_agrees_with_its_schema() -> None:
    specification = Specification()
    examples = list(specification.examples())
    assert len(examples) > 50
    for where, schema, example in examples:
        assert specification.agrees(schema, example), where


async def test_every_error_shown_as_an_example_is_what_is_answered(
    tmp_path: Path, specification: Specification
) -> None:
    locked = "the database is locked by another process"
    async with running(tmp_path / "relay.db", specification, bodies=Bodies(idle_s=0.05)) as rig:
        await rig.call("POST", PUBLISH, headers={"Upstash-Delay": "soon"})
        await rig.call("POST", PUBLISH, headers={"Upstash-Retries": "1000000"})
        await rig.call("POST", PUBLISH, token=None)
        await rig.call("POST", PUBLISH, token=READ_ONLY)
        await rig.call("POST", PUBLISH, body=b" " * ((1 << 20) + 1))
        await rig.call("POST", "/v2/publish/orders")
        await rig.call("GET", "/v2/messages/msg_01kb4m3z8r0g0")
        await rig.call("GET", f"{JWKS}?tenant=nobody")
        await rig.call("GET", "/docs/start.css")
        reader, writer = await rig.connect()
        head = f"POST /v2/batch HTTP/1.1\r\nHost: a\r\nAuthorization: {AUTHORIZATION}\r\n"
        writer.write(f"{head}Content-Length: 9\r\n\r\n".encode())
        await next_reply(reader)
        writer.close()
        rig.publisher.fault = Unavailable(locked)
        await rig.call("POST", PUBLISH)
        rig.problems.append(f"storage is unavailable: {locked}")
        await rig.call("GET", "/readyz")
        rig.silent.append("worker 1 does not answer")
        await rig.call("GET", "/healthz")
    shown = {
        example["error"]
        for _, _, example in specification.examples()
        if isinstance(example, dict) and example.keys() == {"error"}
    }
    assert len(shown) == 13
    assert {error.replace("within 0.05 s", "within 30 s") for error in specification.errors} == shown


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    routes = {(route.method, _template(route.path)) for route in ROUTES}
    routes |= {("GET", path) for path, _ in OPEN_ROUTES}
    assert set(Specification().operations()) == routes


def test_every_operation_says_what_it_is() -> None:
    specification = Specification()
    operations = [specification.operation(*operation) for operation in specification.operations()]
    assert all(operation["summary"] for operation in operations)
    identifiers = [operation["operationId"] for operation in operations]
    assert len(set(identifiers)) == len(identifiers)
    known = {tag["name"] for tag in specification.document["tags"]}
    assert {tag for operation in operations for tag in operation["tags"]} == known


def test_the_description_has_the_version_of_the_package() -> None:
    project = tomllib.loads((PATH.parent / "pyproject.toml").read_text())["project"]
    assert Specification().document["info"]["version"] == project["version"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v2/messages"),
        ("GET", "/v2/dlq"),
        ("DELETE", "/v2/dlq"),
        ("POST", "/v2/dlq/retry"),
        ("GET", "/v2/events"),
        ("GET", "/v2/logs"),
    ],
)
async def test_exactly_the_described_filters_are_accepted(
    tmp_path: Path, specification: Specification, method: str, path: str
) -> None:
    everywhere = {
        name
        for operation in specification.operations()
        for name in specification.parameters(*operation, "query")
    }
    async with running(tmp_path / "relay.db", specification) as rig:
        for name in everywhere:
            reply = await rig.call(method, f"{path}?{name}=1-1")
            refused = reply.status == 400 and "is not a parameter of this endpoint" in reply.error
            assert refused == (name not in specification.parameters(method, path, "query")), name


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("POST", "/v2/publish/{destination}", PUBLISH),
        ("POST", "/v2/schedules/{schedule_id}", SCHEDULES),
        ("POST", "/v2/dlq/retry", "/v2/dlq/retry"),
        ("POST", "/v2/dlq/retry/{dlq_id}", "/v2/dlq/retry/1-1"),
    ],
)
async def test_exactly_the_described_settings_are_accepted(
    tmp_path: Path, specification: Specification, method: str, path: str, target: str
) -> None:
    everywhere = {
        name
        for operation in specification.operations()
        for name in specification.parameters(*operation, "header")
        if name.startswith(("Upstash-", "Relay-"))
    }
    described = specification.parameters(method, path, "header")
    async with running(tmp_path / "relay.db", specification) as rig:
        # With a cron it is a schedule that is published.
        for name in everywhere - ({"Upstash-Cron"} if path.startswith("/v2/publish/") else set()):
            reply = await rig.call(method, target, headers={**CRON_OF.get(path, {}), name: "?"})
            refused = reply.status == 400 and "cannot be used with" in reply.error
            assert refused == (name not in described), name


@pytest.fixture
def specification() -> Specification:
    return Specification()


async def test_every_promised_status_and_member_is_met(tmp_path: Path, specification: Specification) -> None:
    async with running(
        tmp_path / "tour.db", specification, bodies=Bodies(idle_s=0.05), max_closing_s=0.05
    ) as rig:
        await successes(rig)
        await gates(rig)
        await refusals(rig)
        await gate_refusals(rig)
        await stalls(rig)
        await outage(rig)
    async with running(
        tmp_path / "small.db", specification, limits=Limits(max_batch_bytes=10, max_queues=0)
    ) as rig:
        assert (await rig.call("POST", "/v2/queues/q/pause")).status == 412
        reply = await rig.call("POST", "/v2/batch", body=b" " * 11)
        assert reply.status == 413
    assert specification.promised() - specification.answered == set()
    assert specification.promised_members() - specification.members == set()
    assert specification.promised_absences() - specification.absences == ALWAYS_HERE


async def successes(rig: Rig) -> None:
    """Everything that can be shown."""
    every_setting = {
        "Content-Type": "text/plain",
        "Upstash-Forward-X": "y",
        "Upstash-Label": "a,b",
        "Upstash-Timeout": "5s",
        "Upstash-Retry-Delay": "1000",
        "Upstash-Delay": "1s",
        "Relay-Signature": "both",
        "Upstash-Callback": "https://example.com/callback",
        "Upstash-Callback-Forward-X": "y",
        "Upstash-Failure-Callback": "https://example.com/failed",
        "Upstash-Failure-Callback-Forward-X": "y",
    }
    for path in ("/openapi.yaml", "/docs", "/docs/start.js"):
        reply = await rig.call("GET", path)
        assert reply.status == 200
        known = {"If-None-Match": reply.headers["ETag"]}
        assert (await rig.call("GET", path, headers=known)).status == 304
    assert (await rig.call("GET", "/docs/")).status == 308
    for path in ("/healthz", "/readyz", "/metrics", JWKS, "/v2/keys", "/v2/schedules", "/v2/dlq"):
        assert (await rig.call("GET", path)).status == 200
    schedule_id = await rig.schedule(headers=every_setting, body=b"text")
    await rig.schedule(body=b"\xff")
    assert (await rig.call("POST", PUBLISH, headers=CRON)).status == 200
    message_id = await rig.fire(schedule_id)
    assert message_id is not None
    await rig.show(message_id)
    await rig.show(await rig.publish(body=b"\xff"))
    await rig.call("GET", "/v2/schedules")
    await url_groups(rig)
    await rig.fire(schedule_id, error="a reason")
    await rig.show_schedule(schedule_id)
    for verb in ("pause", "resume"):
        for method in ("PATCH", "POST"):
            assert (await rig.call(method, f"/v2/schedules/{schedule_id}/{verb}")).status == 200
            await rig.show_schedule(schedule_id)
    rig.clock.advance(60_000)
    await rig.attempt(500, headers=(("a", "b"),), body=b"\xff")
    for path in ("/v2/events", "/v2/logs"):
        assert (await rig.call("GET", path)).status == 200
        assert "cursor" in (await rig.call("GET", f"{path}?count=1")).json
    once = {"Upstash-Deduplication-Id": "once"}
    assert [(await rig.call("POST", PUBLISH, headers=once)).status for _ in "12"] == [200, 202]
    batch = [{"destination": "https://a.b", "headers": once}, {"destination": "?"}]
    assert (await rig.call_json("POST", "/v2/batch", batch)).status == 200
    waiting = await rig.publish(headers={"Upstash-Delay": "1h"})
    assert (await rig.call("DELETE", f"/v2/messages/{waiting}")).status == 200
    assert (await rig.call("DELETE", "/v2/messages")).status == 200
    assert (await rig.call("DELETE", f"/v2/schedules/{schedule_id}")).status == 200
    await rig.publish(headers={"Upstash-Callback": "https://example.com/callback", "Upstash-Retries": "1"})
    for _ in range(3):
        await rig.attempt(500)
        rig.clock.advance(60_000)
    for status, body in ((404, b"text"), (404, b"\xff"), (None, b"")):
        for _ in range(4):
            await rig.publish(headers={"Upstash-Retries": "0"})
        await rig.attempt(status, headers=(("a", "b"),), body=body, error=None if status else "refused")
    ids = await rig.dead_letter_ids()
    assert (await rig.call("GET", "/v2/dlq")).status == 200
    assert "cursor" in (await rig.call("GET", "/v2/dlq?count=1")).json
    assert (await rig.call("GET", f"/v2/dlq/{ids[0]}")).status == 200
    assert (await rig.call("DELETE", f"/v2/dlq/{ids[0]}")).status == 200
    assert (await rig.call("POST", f"/v2/dlq/retry/{ids[1]}")).status == 201
    assert "cursor" in (await rig.call("POST", "/v2/dlq/retry?count=1")).json
    assert "cursor" in (await rig.call("DELETE", "/v2/dlq?count=1")).json
    assert "cursor" not in (await rig.call("POST", "/v2/dlq/retry")).json
    assert "cursor" not in (await rig.call("DELETE", "/v2/dlq")).json
    assert (await rig.call("POST", "/v2/keys/rotate")).status == 200


async def url_groups(rig: Rig) -> None:
    """A group with everything a group can have, and messages to it; one of its dead letters is shown."""
    for method, template in (("POST", ENDPOINTS), ("PATCH", "/v2/topics/{name}")):
        reply = await rig.call(method, template.format(name="group"), body=BODIES[method, template])
        assert reply.status == 200
    for path in ("/v2/topics", "/v2/topics/group"):
        assert (await rig.call("GET", path)).status == 200
    once = {"Upstash-Deduplication-Id": "once in a group"}
    replies = [await rig.call("POST", "/v2/publish/group", headers=once) for _ in "12"]
    assert [reply.status for reply in replies] == [200, 202]
    await rig.show(replies[0].json[0]["messageId"])
    batch = [{"destination": "group", "headers": once}, {"destination": "group"}]
    assert (await rig.call_json("POST", "/v2/batch", batch)).status == 200
    for name in ("group", "nobody"):
        assert (await rig.call("DELETE", f"/v2/topics/{name}")).status == 200
    await rig.put_group("https://a.example", "https://b.example")
    assert "headers" not in (await rig.call("GET", "/v2/topics/group")).json
    remove = await rig.call(
        "DELETE", "/v2/topics/group/endpoints", body=b'{"endpoints": [{"url": "https://a.example"}]}'
    )
    assert remove.status == 200


async def gates(rig: Rig) -> None:
    """Queues and flow-control keys, and messages and schedules that name them."""
    flow = {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "parallelism=3, rate=5, period=1m"}
    target = "/v2/enqueue/q/https://example.com/hook"
    once = {**flow, "Upstash-Deduplication-Id": "queued", "Upstash-Retries": "0"}
    replies = [await rig.call("POST", target, headers=once) for _ in "12"]
    assert [reply.status for reply in replies] == [200, 202]
    await rig.show(replies[0].json["messageId"])
    assert (await rig.call("POST", target, headers=CRON)).status == 200
    schedule_id = await rig.schedule(headers={**flow, "Upstash-Queue-Name": "q"})
    await rig.show_schedule(schedule_id)
    for method, template in GATES:
        if method == "GET" or "/pause" in template or "/resume" in template or "flowControl" in template:
            assert (await rig.call(method, template.format(queue="q", key="k"))).status == 200
    await rig.call_json("POST", "/v2/queues", {"queueName": "q", "parallelism": 1, "paused": False})
    await rig.attempt(404)
    assert (await rig.call("GET", "/v2/events?queueName=q&flowControlKey=k")).json["events"] != []
    assert (await rig.call("GET", "/v2/dlq?queueName=q")).json["messages"] != []
    assert (await rig.call("DELETE", "/v2/queues/q")).status == 200


async def gate_refusals(rig: Rig) -> None:
    """What can be wrong with a queue, a key, or with who asks."""
    for method, template in GATES:
        target = template.format(queue="nothing", key="nothing")
        assert (await rig.call(method, target, token=None)).status == 401
        assert (await rig.call(method, target, token=DISABLED)).status == 403
        if method != "GET":
            assert (await rig.call(method, target, token=READ_ONLY)).status == 403
        wrong = template.replace("/q/", "/%21/").format(queue="%21", key="%00")
        if wrong != template:
            assert (await rig.call(method, wrong)).status == 400
    for path in ("/v2/queues/nothing", "/v2/flowControl/nothing"):
        assert (await rig.call("GET", path)).status == 404
    assert (await rig.call("GET", "/v2/flowControl?serch=a")).status == 400
    assert (await rig.call("POST", "/v2/queues", body=b"{}")).status == 400
    assert (await rig.call("POST", "/v2/queues", body=b" " * ((1 << 20) + 1))).status == 413
    many = {"queueName": "q", "parallelism": 1_000_000}
    assert (await rig.call_json("POST", "/v2/queues", many)).status == 412
    assert (await rig.call("POST", "/v2/flowControl/k/pin?period=700000")).status == 412
    target = "/v2/enqueue/q/https://example.com/hook"
    assert (await rig.call("POST", "/v2/enqueue/q/nobody")).status == 404
    assert (await rig.call("POST", target, headers={"Upstash-Retries": "1000000"})).status == 412
    assert (await rig.call("POST", target, body=b" " * ((1 << 20) + 1))).status == 413


async def refusals(rig: Rig) -> None:
    """Everything that can be wrong with a request or with who sends it."""
    unknown = {
        "message_id": "msg_0000000000001",
        "schedule_id": "scd_unknown",
        "dlq_id": "1-1",
        "name": "nobody",
    }
    assert (await rig.call("GET", "/docs/nothing.js", token=None)).status == 404
    made_or_deleted_anyway = (("POST", ENDPOINTS), ("DELETE", "/v2/topics/{name}"))
    for method, template in EVERYTHING:
        target = template.format(**unknown)
        body = BODIES.get((method, template))
        assert (await rig.call(method, target, body=body, token=None)).status == 401
        assert (await rig.call(method, target, body=body, token=DISABLED)).status == 403
        if method != "GET" or target == "/v2/keys":
            assert (await rig.call(method, target, body=body, token=READ_ONLY)).status == 403
        if template != target and (method, template) not in made_or_deleted_anyway:
            assert (await rig.call(method, target, body=body)).status == 404
    for path in ("/v2/publish/nobody", "/v2/schedules/nobody"):
        assert (await rig.call("POST", path, headers=CRON)).status == 404
    assert (await rig.call_json("POST", "/v2/batch", [{"destination": "nobody"}])).status == 404
    await refused_groups(rig)
    assert (await rig.call("GET", f"{JWKS}?tenant=nobody")).status == 404
    assert (await rig.call("POST", "/v2/dlq/retry?dlqIds=1-1")).status == 404
    for method, path in (
        ("DELETE", "/v2/messages"),
        ("GET", "/v2/dlq"),
        ("DELETE", "/v2/dlq"),
        ("POST", "/v2/dlq/retry"),
        ("GET", "/v2/events"),
        ("GET", "/v2/logs"),
    ):
        assert (await rig.call(method, f"{path}?labeel=a")).status == 400
    large = b" " * ((1 << 20) + 1)
    for method, path, headers in (
        ("POST", PUBLISH, {}),
        ("POST", SCHEDULES, CRON),
        ("POST", "/v2/dlq/retry", {}),
        ("POST", "/v2/dlq/retry/1-1", {}),
    ):
        for value, status in (("many", 400), ("1000000", 412)):
            refused = await rig.call(method, path, headers={**headers, "Upstash-Retries": value})
            assert refused.status == status
    for method, path in (
        ("POST", PUBLISH),
        ("POST", SCHEDULES),
        ("DELETE", "/v2/messages"),
        ("DELETE", "/v2/dlq"),
        ("POST", "/v2/dlq/retry"),
    ):
        assert (await rig.call(method, path, body=large)).status == 413
    for retries, status in (("many", 400), ("1000000", 412)):
        item = {"destination": "https://a.b", "headers": {"Upstash-Retries": retries}}
        assert (await rig.call_json("POST", "/v2/batch", [item])).status == status
    await unreadable_cron(rig)


async def refused_groups(rig: Rig) -> None:
    too_many = json.dumps({"endpoints": [{"url": "https://a.example"}] * 101}).encode()
    over_limit = b'{"headers": {"Upstash-Retries": "1000000"}}'
    for method, path, beyond in (
        ("POST", "/v2/topics/group/endpoints", too_many),
        ("DELETE", "/v2/topics/group/endpoints", too_many),
        ("PATCH", "/v2/topics/group", over_limit),
    ):
        for body, status in ((b"?", 400), (beyond, 412), (b" " * ((1 << 20) + 1), 413)):
            assert (await rig.call(method, path, body=body)).status == status
    for method in ("GET", "DELETE"):
        assert (await rig.call(method, "/v2/topics/no%20name")).status == 400


async def unreadable_cron(rig: Rig) -> None:
    """A schedule in a time zone that was abolished after it was made."""
    schedule_id = await rig.schedule()
    await rig.spoil_cron(schedule_id)
    for method in ("PATCH", "POST"):
        assert (await rig.call(method, f"/v2/schedules/{schedule_id}/resume")).status == 400


async def stalls(rig: Rig) -> None:
    """Bodies that never come; large ones, since small publishes are cut off without a word."""
    for method, path in (
        ("POST", PUBLISH),
        ("POST", "/v2/enqueue/q/https://example.com/hook"),
        ("POST", "/v2/batch"),
        ("POST", "/v2/queues"),
        ("POST", SCHEDULES),
        ("DELETE", "/v2/messages"),
        ("DELETE", "/v2/dlq"),
        ("POST", "/v2/dlq/retry"),
        ("POST", "/v2/topics/group/endpoints"),
        ("DELETE", "/v2/topics/group/endpoints"),
        ("PATCH", "/v2/topics/group"),
    ):
        reader, writer = await rig.connect()
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {AUTHORIZATION}\r\n"
        writer.write(f"{head}Content-Length: 1000000\r\n\r\na".encode())
        assert (await next_reply(reader)).status == 408
        writer.close()


async def outage(rig: Rig) -> None:
    """Storage is gone; the callers are still known for a second."""
    ids = {"message_id": await rig.publish(), "schedule_id": "scd_unknown", "dlq_id": "1-1", "name": "group"}
    ids |= {"queue": "q", "key": "k"}
    await rig.storage.close()
    rig.publisher.fault = Unavailable("the relay is stopping")
    rig.problems.append("storage does not answer")
    rig.silent.append("worker 1 does not answer")
    bodies = {
        **BODIES,
        ("POST", "/v2/batch"): b'[{"destination":"https://a.b"}]',
        ("POST", "/v2/queues"): b'{"queueName":"q"}',
    }
    requests = [
        (method, template.format(**ids), bodies.get((method, template)))
        for method, template in (*EVERYTHING, *GATES)
    ]
    replies = await asyncio.gather(
        rig.call("GET", "/healthz"),
        rig.call("GET", "/readyz"),
        rig.call("GET", JWKS),
        *(
            rig.call(method, target, body=body, headers=CRON if target == SCHEDULES else None)
            for method, target, body in requests
        ),
    )
    assert {reply.status for reply in replies} == {503}


def _template(path: str) -> str:
    """A route's path as OpenAPI spells it: parameters without the pattern they must match."""
    template = re.sub(r"\{(\w+)(:[^}]*)?\}", r"{\1}", path)
    return ALIASES.get(template, template)

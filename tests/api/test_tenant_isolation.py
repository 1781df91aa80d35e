"""Accounts do not exist for each other."""

import pytest

from relay.api.app import ROUTES
from tests.api.rig import FOREIGN, TOKEN, Reply, Rig

#: Answers to a foreign account for which nothing of the first one may exist.
NOTHING: dict[tuple[str, str], object] = {
    ("DELETE", "/v2/messages"): {"cancelled": 0},
    ("GET", "/v2/schedules"): [],
    ("GET", "/v2/topics"): [],
    ("DELETE", "/v2/topics/{name}"): {},
    ("GET", "/v2/queues"): [],
    ("DELETE", "/v2/queues/{queue}"): {},
    ("POST", "/v2/queues/{queue}/pause"): {},
    ("POST", "/v2/queues/{queue}/resume"): {},
    ("GET", "/v2/flowControl"): [],
    ("POST", "/v2/flowControl/{key}/pause"): {},
    ("POST", "/v2/flowControl/{key}/resume"): {},
    ("POST", "/v2/flowControl/{key}/unpin"): {},
    ("POST", "/v2/flowControl/{key}/resetRate"): {},
    ("POST", "/v2/flowControl/{key}/reset"): {},
    ("GET", "/v2/dlq"): {"messages": []},
    ("DELETE", "/v2/dlq"): {"deleted": 0},
    ("POST", "/v2/dlq/retry"): {"responses": []},
    ("GET", "/v2/events"): {"events": []},
    ("GET", "/v2/logs"): {"logs": [], "events": []},
}
#: They make something, or show what is the account's own: tested by themselves.
OWN = {"/v2/publish", "/v2/batch", "/v2/keys", "/v2/keys/rotate", "/v2/globalParallelism"}
#: Without them a request says nothing.
BODIES = {
    ("DELETE", "/v2/topics/{name}/endpoints"): b'{"endpoints": [{"url": "https://a.example"}]}',
    ("PATCH", "/v2/topics/{name}"): b'{"headers": {"Upstash-Retries": "1"}}',
}


class Belongings:
    """One of everything, belonging to the first account."""

    def __init__(self, message_id: str, schedule_id: str, dlq_id: str) -> None:
        self.ids = {
            "message_id": message_id,
            "schedule_id": schedule_id,
            "dlq_id": dlq_id,
            "name": "group",
            "queue": "q",
            "key": "k",
        }

    def path_of(self, template: str) -> str:
        head, brace, rest = template.partition("{")
        if not brace:
            return head
        name, _, tail = rest.partition("}")
        return head + self.ids[name.partition(":")[0]] + tail.rpartition("}")[2]


async def belongings_of(rig: Rig) -> Belongings:
    _, dlq_id = await rig.dead_letter()
    schedule_id = await rig.schedule()
    await rig.put_group("https://a.example")
    flow = {"Upstash-Flow-Control-Key": "k", "Upstash-Flow-Control-Value": "parallelism=3"}
    await rig.call("POST", "/v2/enqueue/q/https://example.com", headers={**flow, "Upstash-Delay": "1h"})
    return Belongings(await rig.publish(headers={"Upstash-Delay": "1h"}), schedule_id, dlq_id)


async def everything(rig: Rig) -> list[Reply]:
    """What the first account sees, request ids aside."""
    paths = ["/v2/schedules", "/v2/topics", "/v2/dlq", "/v2/events?count=1000", "/v2/keys"]
    paths += ["/v2/queues", "/v2/flowControl"]
    return [(await rig.call("GET", path))._replace(headers={}) for path in paths]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (route.method, route.path)
        for route in ROUTES
        if route.path.partition("/{")[0] not in OWN
        and "{destination" not in route.path
        and (route.method, route.path) != ("POST", "/v2/topics/{name}/endpoints")
        and (route.method, route.path) != ("POST", "/v2/queues")
        and not route.path.endswith("/pin")
    ],
)
async def test_another_accounts_things_are_not_found(rig: Rig, method: str, path: str) -> None:
    belongings = await belongings_of(rig)
    before = await everything(rig)
    body = BODIES.get((method, path))
    reply = await rig.call(method, belongings.path_of(path), body=body, token=FOREIGN)
    if (method, path) in NOTHING:
        assert reply.status in (200, 201)
        assert reply.json == NOTHING[method, path]
    else:
        assert reply.status == 404
    assert await everything(rig) == before
    # The same request is possible for the account whose things they are.
    assert (await rig.call(method, belongings.path_of(path), body=body)).status in (200, 201)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("DELETE", "/v2/messages?messageIds={message_id}"),
        ("GET", "/v2/dlq?dlqIds={dlq_id}"),
        ("DELETE", "/v2/dlq?dlqIds={dlq_id}"),
        ("GET", "/v2/events?messageId={message_id}"),
        ("GET", "/v2/events?label=shared"),
        ("GET", "/v2/events?scheduleId={schedule_id}"),
    ],
)
async def test_naming_another_accounts_things_does_not_find_them(rig: Rig, method: str, target: str) -> None:
    belongings = await belongings_of(rig)
    await rig.publish(headers={"Upstash-Label": "shared"})
    before = await everything(rig)
    reply = await rig.call(method, target.format(**belongings.ids), token=FOREIGN)
    assert reply.status == 200
    assert set(map(str, reply.json.values())) <= {"0", "[]"}
    assert await everything(rig) == before


async def test_another_accounts_dead_letter_cannot_be_retried_by_its_id(rig: Rig) -> None:
    belongings = await belongings_of(rig)
    reply = await rig.call("POST", f"/v2/dlq/retry?dlqIds={belongings.ids['dlq_id']}", token=FOREIGN)
    assert reply.status == 404
    assert await rig.dead_letter_ids() == [belongings.ids["dlq_id"]]


async def test_a_deduplication_id_is_an_accounts_own(rig: Rig) -> None:
    headers = {"Upstash-Deduplication-Id": "once"}
    first = await rig.publish(headers=headers)
    assert await rig.publish(headers=headers, token=FOREIGN) != first


async def test_a_url_group_is_an_accounts_own(rig: Rig) -> None:
    await rig.put_group("https://a.example")
    for path in ("/v2/publish/group", "/v2/schedules/group"):
        reply = await rig.call("POST", path, headers={"Upstash-Cron": "@daily"}, token=FOREIGN)
        assert reply.status == 404
    assert (await rig.call_json("POST", "/v2/batch", [{"destination": "group"}], token=FOREIGN)).status == 404
    await rig.put_group("https://b.example", token=FOREIGN)
    (mine,) = (await rig.call("POST", "/v2/publish/group")).json
    (theirs,) = (await rig.call("POST", "/v2/publish/group", token=FOREIGN)).json
    assert (mine["url"], theirs["url"]) == ("https://a.example", "https://b.example")


async def test_a_schedule_id_is_an_accounts_own(rig: Rig) -> None:
    headers = {"Upstash-Schedule-Id": "mine"}
    await rig.schedule("https://example.com/first", headers=headers)
    await rig.schedule("https://example.org/second", headers=headers, token=FOREIGN)
    assert (await rig.show_schedule("mine"))["destination"] == "https://example.com/first"
    assert (await rig.call("DELETE", "/v2/schedules/mine", token=FOREIGN)).status == 200
    assert (await rig.show_schedule("mine", token=TOKEN))["destination"] == "https://example.com/first"


async def test_gates_of_one_name_are_each_accounts_own(rig: Rig) -> None:
    await belongings_of(rig)
    before = await everything(rig)
    wanted = {"queueName": "q", "parallelism": 5, "paused": True}
    assert (await rig.call_json("POST", "/v2/queues", wanted, token=FOREIGN)).status == 200
    assert (await rig.call("POST", "/v2/flowControl/k/pin?parallelism=9", token=FOREIGN)).status == 200
    assert await everything(rig) == before
    assert (await rig.call("GET", "/v2/queues/q", token=FOREIGN)).json["parallelism"] == 5
    assert (await rig.call("GET", "/v2/globalParallelism", token=FOREIGN)).json["parallelismCount"] == 0

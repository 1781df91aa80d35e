"""Queues and flow-control keys through the front door: how many there may be, what enters them, how they look."""

from pathlib import Path

import pytest

from relay.domain.tenant import Limits
from tests.api.rig import FOREIGN, Rig, running
from tests.api.specification import Specification
from tests.builders import NOW

URL = "https://example.com/hook"
CRON = {"Upstash-Cron": "* * * * *"}


async def names(rig: Rig) -> list[str]:
    return [queue["name"] for queue in (await rig.call("GET", "/v2/queues")).json]


async def test_no_more_queues_are_made_by_messages_than_an_account_may_have(
    tmp_path: Path, specification: Specification
) -> None:
    async with running(tmp_path / "relay.db", specification, limits=Limits(max_queues=2)) as rig:
        for name, status in (("a", 200), ("b", 200), ("c", 412), ("a", 200)):
            reply = await rig.call("POST", f"/v2/enqueue/{name}/{URL}")
            assert reply.status == status
        assert (await rig.call("POST", f"/v2/enqueue/c/{URL}")).error.startswith("queues:")
        assert (await rig.call("POST", f"/v2/enqueue/c/{URL}", headers=CRON)).status == 412
        assert (
            await rig.call("POST", f"/v2/schedules/{URL}", headers={**CRON, "Upstash-Queue-Name": "c"})
        ).status == 412
        assert (await rig.call("POST", f"/v2/enqueue/a/{URL}", headers=CRON)).status == 200
        assert (await rig.call("POST", f"/v2/enqueue/c/{URL}", token=FOREIGN)).status == 200
        assert await names(rig) == ["a", "b"]


async def test_a_batch_makes_as_many_queues_as_there_is_room_for(
    tmp_path: Path, specification: Specification
) -> None:
    async with running(tmp_path / "relay.db", specification, limits=Limits(max_queues=2)) as rig:
        await rig.call("POST", f"/v2/enqueue/a/{URL}")
        items = [{"destination": URL, "queue": name} for name in ("b", "c", "a", "b", "d")]
        reply = await rig.call_json("POST", "/v2/batch", items)
        assert reply.status == 200
        assert ["error" in entry for entry in reply.json] == [False, True, False, False, True]
        assert await names(rig) == ["a", "b"]
        only = await rig.call_json("POST", "/v2/batch", [{"destination": URL, "queue": "e"}])
        assert only.status == 412


async def test_a_url_group_goes_into_a_queue_with_a_place_for_each_endpoint(rig: Rig) -> None:
    await rig.put_group("https://a.example", "https://b.example")
    reply = await rig.call("POST", "/v2/enqueue/q/group")
    assert reply.status == 200
    assert [entry["url"] for entry in reply.json] == ["https://a.example", "https://b.example"]
    batch = [{"destination": "group", "queue": "q"}]
    assert [len(entry) for entry in (await rig.call_json("POST", "/v2/batch", batch)).json] == [2]
    queue = (await rig.call("GET", "/v2/queues/q")).json
    assert queue == {
        "name": "q",
        "createdAt": NOW,
        "updatedAt": NOW,
        "parallelism": 1,
        "lag": 4,
        "paused": False,
    }
    shown = await rig.show(reply.json[1]["messageId"])
    assert (shown["queueName"], shown["topicName"]) == ("q", "group")


async def test_a_tick_goes_into_the_queue_of_its_schedule_and_leaves_its_settings_alone(rig: Rig) -> None:
    await rig.call_json("POST", "/v2/queues", {"queueName": "q", "parallelism": 7})
    schedule_id = await rig.schedule(headers={"Upstash-Queue-Name": "q", "Upstash-Flow-Control-Key": "k",
                                              "Upstash-Flow-Control-Value": "rate=3"})  # fmt: skip
    message_id = await rig.fire(schedule_id)
    assert message_id is not None
    shown = await rig.show(message_id)
    assert (shown["queueName"], shown["flowControlKey"], shown["rate"]) == ("q", "k", 3)
    queue = (await rig.call("GET", "/v2/queues/q")).json
    assert (queue["parallelism"], queue["lag"]) == (7, 1)
    assert (await rig.call("GET", "/v2/flowControl/k")).json["rateMax"] == 3


async def test_callbacks_have_flow_control_of_their_own(rig: Rig) -> None:
    headers = {
        "Upstash-Callback": "https://example.com/called",
        "Upstash-Callback-Flow-Control-Key": "c",
        "Upstash-Callback-Flow-Control-Value": "parallelism=2",
        "Upstash-Failure-Callback": "https://example.com/failed",
        "Upstash-Failure-Callback-Flow-Control-Key": "f",
        "Upstash-Failure-Callback-Flow-Control-Value": "rate=4, period=1m",
        "Upstash-Retries": "0",
    }
    assert (await rig.call("POST", f"/v2/enqueue/q/{URL}", headers=headers)).status == 200
    assert (await rig.call("GET", "/v2/flowControl")).json == []
    await rig.attempt(500)
    found = {key["flowControlKey"]: key for key in (await rig.call("GET", "/v2/flowControl")).json}
    assert (found["c"]["parallelismMax"], found["c"]["waitListSize"]) == (2, 1)
    assert (found["f"]["rateMax"], found["f"]["ratePeriod"], found["f"]["waitListSize"]) == (4, 60, 1)
    assert (await rig.call("GET", "/v2/queues/q")).json["lag"] == 1


@pytest.mark.parametrize(
    ("header", "value", "problem"),
    [
        ("Upstash-Callback-Flow-Control-Key", "k", "needs Upstash-Callback-Flow-Control-Value"),
        ("Upstash-Failure-Callback-Flow-Control-Value", "rate=0", "is not a number from 1"),
        ("Upstash-Callback-Queue-Name", "q", "cannot be used with a callback"),
    ],
)
async def test_flow_control_of_a_callback_that_cannot_be_is_refused(
    rig: Rig, header: str, value: str, problem: str
) -> None:
    urls = {"Upstash-Callback": URL, "Upstash-Failure-Callback": URL}
    reply = await rig.call("POST", f"/v2/publish/{URL}", headers={**urls, header: value})
    assert reply.status == 400
    assert reply.error.startswith(f"{header}:")
    assert problem in reply.error

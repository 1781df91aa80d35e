"""/v2/topics, and what a publish, a batch and a schedule make of a URL group."""

import json
from pathlib import Path
from typing import Any

import pytest

from relay.domain.tenant import Limits
from tests.api.rig import FOREIGN, Rig, running
from tests.api.specification import Specification

A, B = "https://a.example/hook", "https://b.example/hook?x=y"


@pytest.fixture(params=[True, False], ids=["lane", "router"])
def lane(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def shown(rig: Rig, name: str = "group") -> Any:
    reply = await rig.call("GET", f"/v2/topics/{name}")
    assert reply.status == 200, reply.body
    return reply.json


async def publish(rig: Rig, **arguments: Any) -> list[dict[str, Any]]:
    reply = await rig.call("POST", "/v2/publish/group", **arguments)
    assert reply.status == 200, reply.body
    assert isinstance(reply.json, list)
    return reply.json


# --- the group itself


async def test_a_group_is_what_was_put_into_it(rig: Rig) -> None:
    created_at = rig.clock.now()
    await rig.put_group(A, named=B)
    rig.clock.advance(5)
    await rig.put_group("https://c.example", name="other.Group_1-a")
    assert await shown(rig) == {
        "name": "group",
        "createdAt": created_at,
        "updatedAt": created_at,
        "endpoints": [{"url": A}, {"url": B, "name": "named"}],
    }
    await rig.put_group(named="https://c.example")
    group = await shown(rig)
    assert group["endpoints"] == [{"url": A}, {"url": "https://c.example", "name": "named"}]
    assert (group["createdAt"], group["updatedAt"]) == (created_at, created_at + 5)
    listed = (await rig.call("GET", "/v2/topics")).json
    assert [group["name"] for group in listed] == ["group", "other.Group_1-a"]
    assert listed[0] == group


async def test_an_endpoint_without_a_name_may_say_so(rig: Rig) -> None:
    body = {"endpoints": [{"url": A, "name": None}]}
    assert (await rig.call_json("POST", "/v2/topics/group/endpoints", body)).status == 200
    assert (await shown(rig))["endpoints"] == [{"url": A}]


async def test_urls_of_endpoints_are_spelled_as_destinations_are(rig: Rig) -> None:
    await rig.put_group("HTTPS://münchen.example/ä#top")
    (endpoint,) = (await shown(rig))["endpoints"]
    assert endpoint == {"url": "https://xn--mnchen-3ya.example/%C3%A4"}
    (answer,) = await publish(rig)
    assert answer["url"] == endpoint["url"]
    body = {"endpoints": [{"url": "https://münchen.example/ä"}]}
    assert (await rig.call_json("DELETE", "/v2/topics/group/endpoints", body)).status == 200
    assert (await rig.call("GET", "/v2/topics/group")).status == 404


async def test_endpoints_are_removed_and_the_last_one_takes_the_group_along(rig: Rig) -> None:
    await rig.put_group(A, named=B)
    remove = {"endpoints": [{"name": "named"}, {"url": "https://unknown.example"}]}
    assert (await rig.call_json("DELETE", "/v2/topics/group/endpoints", remove)).status == 200
    assert (await shown(rig))["endpoints"] == [{"url": A}]
    remove = {"endpoints": [{"url": A}]}
    assert (await rig.call_json("DELETE", "/v2/topics/group/endpoints", remove)).status == 200
    assert (await rig.call("GET", "/v2/topics")).json == []
    reply = await rig.call_json("DELETE", "/v2/topics/group/endpoints", remove)
    assert (reply.status, reply.error) == (404, 'URL group "group" not found')


async def test_a_group_is_deleted_whether_it_is_there_or_not_and_its_messages_go_on(rig: Rig) -> None:
    assert (await rig.call("DELETE", "/v2/topics/group")).status == 200
    await rig.put_group(A)
    (answer,) = await publish(rig)
    assert (await rig.call("DELETE", "/v2/topics/group")).status == 200
    assert (await rig.call("GET", "/v2/topics/group")).status == 404
    assert (await rig.call("POST", "/v2/publish/group")).status == 404
    assert (await rig.show(answer["messageId"]))["topicName"] == "group"
    assert await rig.attempt(200) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/group/endpoints", b"", "body"),
        ("POST", "/group/endpoints", b"[]", "body"),
        ("POST", "/group/endpoints", b"{}", "body"),
        ("POST", "/group/endpoints", b'{"endpoints": []}', "endpoints"),
        ("POST", "/group/endpoints", b'{"endpoints": [{}]}', "body"),
        ("POST", "/group/endpoints", b'{"endpoints": [{"name": "a"}]}', "body"),
        ("POST", "/group/endpoints", b'{"endpoints": [{"url": "a"}]}', "url"),
        ("POST", "/group/endpoints", b'{"endpoints": [{"url": 1}]}', "body"),
        ("POST", "/group/endpoints", b'{"endpoints": [{"url": "https://a.b", "name": ""}]}', "body"),
        ("POST", "/group/endpoints", b'{"endpoints": [{"url": "https://a.b", "names": "a"}]}', "body"),
        ("POST", "/group/endpoints", b'{"endpoints": [{"url": "https://a.b", "name": "\\u0000"}]}', "body"),
        ("POST", "/group/endpoints", b'{"endpoints": [{"url": "https://a.b", "name": "a\\n"}]}', "body"),
        (
            "POST",
            "/group/endpoints",
            json.dumps({"endpoints": [{"url": A, "name": "n" * 257}]}).encode(),
            "body",
        ),
        ("POST", "/a%20group/endpoints", b'{"endpoints": [{"url": "https://a.b"}]}', "name"),
        ("POST", "/%00/endpoints", b'{"endpoints": [{"url": "https://a.b"}]}', "name"),
        ("DELETE", "/group/endpoints", b"", "body"),
        ("DELETE", "/group/endpoints", b'{"endpoints": []}', "endpoints"),
        ("DELETE", "/group/endpoints", b'{"endpoints": [{}]}', "endpoints"),
        ("DELETE", "/group/endpoints", b'{"endpoints": [{"url": "a"}]}', "url"),
        ("PATCH", "/group", b"", "body"),
        ("PATCH", "/group", b"{}", "body"),
        ("PATCH", "/group", b'{"headers": {"Upstash-Retries": 3}}', "body"),
        ("PATCH", "/group", b'{"headers": {"Upstash-Retries": "x"}}', "Upstash-Retries"),
        ("PATCH", "/group", b'{"headers": {"Upstash-Retries": ["1", "2"]}}', "Upstash-Retries"),
        ("PATCH", "/group", b'{"headers": {"Upstash Retries": "3"}}', "header"),
        ("PATCH", "/group", b'{"headers": {"Upstash-Cron": "* * * * *"}}', "Upstash-Cron"),
        ("PATCH", "/group", b'{"headers": {"Upstash-Callback": "nowhere"}}', "Upstash-Callback"),
        ("PATCH", "/group", json.dumps({"headers": {"X": "x" * 70_000}}).encode(), "Upstash-Forward"),
        ("GET", "/a%20group", b"", "name"),
        ("DELETE", "/a%20group", b"", "name"),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_its_name(
    rig: Rig, method: str, path: str, body: bytes, field: str
) -> None:
    await rig.put_group(A)
    before = await shown(rig)
    reply = await rig.call(method, f"/v2/topics{path}", body=body)
    assert reply.status == 400
    assert reply.error.startswith(field)
    assert (await rig.call("GET", "/v2/topics")).json == [before]


async def test_groups_and_endpoints_are_bounded(tmp_path: Path, specification: Specification) -> None:
    limits = Limits(max_url_groups=1, max_endpoints=2)
    async with running(tmp_path / "bounded.db", specification, limits=limits) as rig:
        await rig.put_group(A, B)
        for name, count in (("group", 1), ("group", 3), ("second", 1)):
            endpoints = [{"url": f"https://{number}.example"} for number in range(count)]
            reply = await rig.call_json("POST", f"/v2/topics/{name}/endpoints", {"endpoints": endpoints})
            assert (reply.status, reply.error) == (
                412,
                "endpoints: there can be at most 2 in a URL group, and at most 1 URL groups",
            )
        remove = {"endpoints": [{"url": A}, {"url": A}, {"url": A}]}
        assert (await rig.call_json("DELETE", "/v2/topics/group/endpoints", remove)).status == 412
        await rig.put_group(A, token=FOREIGN)
        assert len((await shown(rig))["endpoints"]) == 2


# --- publishing to it


async def test_a_publish_to_a_group_is_a_message_to_every_endpoint(rig: Rig) -> None:
    await rig.put_group(A, named=B)
    first, second = await publish(
        rig, body=b"hello", headers={"Upstash-Retries": "1", "Upstash-Forward-X": "y"}
    )
    assert [(one["url"], set(one)) for one in (first, second)] == [
        (A, {"messageId", "url"}),
        (B, {"messageId", "url"}),
    ]
    messages = [await rig.show(one["messageId"]) for one in (first, second)]
    assert [message.pop("endpointName", None) for message in messages] == [None, "named"]
    assert [(message.pop("messageId"), message.pop("url")) for message in messages] == [
        (first["messageId"], A),
        (second["messageId"], B),
    ]
    assert messages[0] == messages[1]
    assert messages[0]["topicName"] == "group"
    assert (messages[0]["body"], messages[0]["maxRetries"], messages[0]["header"]) == (
        "hello",
        1,
        {"X": ["y"]},
    )


async def test_a_group_of_one_is_answered_like_a_group(rig: Rig) -> None:
    await rig.put_group(A)
    assert len(await publish(rig)) == 1


async def test_every_endpoint_has_a_decision_about_duplicates_of_its_own(rig: Rig) -> None:
    await rig.put_group(A)
    once = {"Upstash-Deduplication-Id": "once"}
    (first,) = await publish(rig, headers=once)
    await rig.put_group(B)
    again, other = await publish(rig, headers=once)
    assert again == {**first, "deduplicated": True}
    assert other["url"] == B
    assert "deduplicated" not in other
    reply = await rig.call("POST", "/v2/publish/group", headers=once)
    assert reply.status == 202
    assert [one["messageId"] for one in reply.json] == [first["messageId"], other["messageId"]]
    content = {"Upstash-Content-Based-Deduplication": "true"}
    assert len({one["messageId"] for one in await publish(rig, headers=content)}) == 2


async def test_messages_of_a_group_are_found_by_its_name_everywhere(rig: Rig) -> None:
    await rig.put_group(named=A)
    await rig.publish(headers={"Upstash-Retries": "0"})
    (answer,) = await publish(rig, headers={"Upstash-Retries": "0"})
    await rig.attempt(500)
    of_group = {"topicName": "group", "endpointName": "named"}
    (entry,) = (await rig.call("GET", "/v2/dlq?topicName=group")).json["messages"]
    assert of_group.items() <= entry.items()
    events = (await rig.call("GET", "/v2/events?topicName=group")).json["events"]
    assert {event["messageId"] for event in events} == {answer["messageId"]}
    assert all(of_group.items() <= event.items() for event in events)
    retried = (await rig.call("POST", f"/v2/dlq/retry/{entry['dlqId']}")).json
    assert of_group.items() <= (await rig.show(retried["messageId"])).items()
    await rig.publish()
    assert (await rig.call("DELETE", "/v2/messages?topicName=group")).json == {"cancelled": 1}


async def test_a_callback_tells_the_group_and_the_endpoint(rig: Rig) -> None:
    await rig.put_group(named=A)
    await publish(rig, headers={"Upstash-Callback": "https://example.com/callback"})
    await rig.attempt(200)
    (event,) = (await rig.call("GET", "/v2/events?url=https://example.com/callback")).json["events"]
    told = json.loads((await rig.show(event["messageId"]))["body"])
    assert (told["topicName"], told["endpointName"]) == ("group", "named")


async def test_bodies_of_a_group_are_bounded_together(tmp_path: Path, specification: Specification) -> None:
    limits = Limits(max_batch_bytes=100)
    async with running(tmp_path / "bounded.db", specification, limits=limits) as rig:
        await rig.put_group(A, B)
        assert len(await publish(rig, body=b"x" * 50)) == 2
        reply = await rig.call("POST", "/v2/publish/group", body=b"x" * 51)
        assert reply.status == 413
        assert reply.error == (
            "the message body, once for each endpoint of group, is larger than the limit of 100 bytes"
        )


# --- its headers


async def test_headers_of_a_group_count_where_a_publish_says_nothing(rig: Rig) -> None:
    await rig.put_group(A)
    headers = {
        "Upstash-Retries": "7",
        "upstash-delay": "1h",
        "Upstash-Header-Forward": ["true"],
        "Upstash-Forward-X": ["one", "two"],
        "Content-Type": "text/x-group",
        "X-Group": "g",
    }
    assert (await rig.call_json("PATCH", "/v2/topics/group", {"headers": headers})).status == 200
    assert (await shown(rig))["headers"] == {
        "Upstash-Retries": ["7"],
        "Upstash-Delay": ["1h"],
        "Upstash-Header-Forward": ["true"],
        "Upstash-Forward-X": ["one", "two"],
        "Content-Type": ["text/x-group"],
        "X-Group": ["g"],
    }
    (plain,) = await publish(rig)
    message = await rig.show(plain["messageId"])
    assert (message["maxRetries"], message["notBefore"]) == (7, rig.clock.now() + 3_600_000)
    header = message["header"]
    assert (header["X"], header["Content-Type"], header["X-Group"]) == (["one, two"], ["text/x-group"], ["g"])
    reply = await rig.call(
        "POST",
        "/v2/publish/group?upstash-delay=5s",
        headers={"upstash-retries": "1", "Content-Type": "text/plain", "upstash-forward-x": "mine"},
    )
    message = await rig.show(reply.json[0]["messageId"])
    assert (message["maxRetries"], message["notBefore"]) == (1, rig.clock.now() + 5_000)
    assert (message["header"]["X"], message["header"]["Content-Type"]) == (["mine"], ["text/plain"])
    items = [{"destination": "group"}, {"destination": "group", "headers": {"Upstash-Retries": "2"}}]
    answers = (await rig.call_json("POST", "/v2/batch", items)).json
    retries = [(await rig.show(one["messageId"]))["maxRetries"] for (one,) in answers]
    assert retries == [7, 2]


async def test_headers_of_a_group_are_replaced_as_a_whole(rig: Rig) -> None:
    await rig.put_group(A)
    for headers in ({"Upstash-Retries": "7"}, {"Upstash-Delay": "1h"}, {}):
        assert (await rig.call_json("PATCH", "/v2/topics/group", {"headers": headers})).status == 200
    assert "headers" not in await shown(rig)
    assert (await rig.show((await publish(rig))[0]["messageId"]))["maxRetries"] == 3
    assert (await rig.call_json("PATCH", "/v2/topics/none", {"headers": {}})).status == 404


async def test_no_header_of_a_group_counts_for_another_destination(rig: Rig) -> None:
    await rig.put_group(A)
    await rig.call_json("PATCH", "/v2/topics/group", {"headers": {"Upstash-Retries": "7"}})
    assert (await rig.show(await rig.publish(A)))["maxRetries"] == 3


# --- batches and schedules


async def test_an_item_to_a_group_is_answered_with_a_list_in_its_place(rig: Rig) -> None:
    await rig.put_group(A, B)
    items = [
        {"destination": A},
        {"destination": "group", "body": "to all"},
        {"destination": "nobody"},
        {"destination": "group", "headers": {"Upstash-Delay": "soon"}},
        {"destination": "group"},
    ]
    answers = (await rig.call_json("POST", "/v2/batch", items)).json
    assert answers[0]["url"] == A
    assert [[one["url"] for one in answers[index]] for index in (1, 4)] == [[A, B], [A, B]]
    assert answers[2]["error"].startswith('destination: "nobody" has no http:// or https://')
    assert answers[3]["error"].startswith("Upstash-Delay: ")
    assert (await rig.show(answers[1][1]["messageId"]))["body"] == "to all"
    assert len(rig.publisher.calls) == 1
    assert len(rig.publisher.calls[0]) == 5


async def test_a_batch_to_groups_that_are_not_there_is_not_found(rig: Rig) -> None:
    reply = await rig.call_json("POST", "/v2/batch", [{"destination": "nobody"}])
    assert reply.status == 404


async def test_a_batch_is_bounded_by_what_its_groups_make_of_it(
    tmp_path: Path, specification: Specification
) -> None:
    async with running(
        tmp_path / "bounded.db", specification, limits=Limits(max_batch_bytes=5000, max_endpoints=5001)
    ) as rig:
        await rig.put_group(A, B)
        item = {"destination": "group", "body": "x" * 1000}
        answers = (await rig.call_json("POST", "/v2/batch", [item, item, item, {"destination": A}])).json
        assert [isinstance(answer, list) for answer in answers] == [True, True, False, False]
        assert answers[2]["error"].endswith("is larger than the limit of 5000 bytes")
        assert "messageId" in answers[3]
        for start in range(0, 5001, 100):
            await rig.put_group(
                *(f"https://{n}.example" for n in range(start, min(start + 100, 5001))), name="b"
            )
        answers = (await rig.call_json("POST", "/v2/batch", [{"destination": "b"}] * 2)).json
        assert len(answers[0]) == 5001
        assert answers[1]["error"] == "destination: is one too many: a batch has at most 10000 messages"


async def test_a_schedule_to_a_group_publishes_to_all_of_it(rig: Rig) -> None:
    await rig.put_group(A, named=B)
    await rig.call_json("PATCH", "/v2/topics/group", {"headers": {"Upstash-Retries": "7"}})
    schedule_id = await rig.schedule("group", body=b"tick")
    schedule = await rig.show_schedule(schedule_id)
    assert (schedule["destination"], schedule["retries"]) == ("group", 7)
    await rig.fire(schedule_id)
    states = (await rig.show_schedule(schedule_id))["lastScheduleStates"]
    messages = [await rig.show(message_id) for message_id in states]
    assert [(one["url"], one["topicName"], one["scheduleId"]) for one in messages] == [
        (A, "group", schedule_id),
        (B, "group", schedule_id),
    ]
    assert messages[1]["endpointName"] == "named"


async def test_a_schedule_to_a_group_that_is_not_there_is_refused(rig: Rig) -> None:
    for path in ("/v2/schedules/nobody", "/v2/publish/nobody"):
        reply = await rig.call("POST", path, headers={"Upstash-Cron": "* * * * *"})
        assert reply.status == 404
    assert (await rig.call("GET", "/v2/schedules")).json == []

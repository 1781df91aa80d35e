"""Accounts do not exist for each other.

Every operation of the route table is asked by another account, in two worlds: one where the first account has one
of everything, and one where it has nothing. Both must give the very same answers, and leave the first account as it
was: then no id, no name and no number of it can be seen or guessed. What a path or a query of a new route is to be
filled with has to be said here; a route about which nothing is said fails.
"""

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from relay.api.app import ROUTES
from tests.api.rig import FOREIGN, TOKEN, Reply, Rig, running
from tests.api.specification import ALIASES, Specification

GROUP, SCHEDULE, LABEL, DEDUPLICATION = "their-group", "their-schedule", "their-label", "their-deduplication"
QUEUE, KEY = "their-queue", "their-key"
URL = "https://their-host.example/their-path"
SECRETS = ("their-", "sig_")

#: Bodies of operations that say nothing without one.
BODIES = {
    ("POST", "/v2/batch"): b'[{"destination": "%s"}, {"destination": "https://a.example"}]' % GROUP.encode(),
    ("POST", "/v2/queues"): b'{"queueName": "%s", "parallelism": 7}' % QUEUE.encode(),
    ("POST", "/v2/topics/{name}/endpoints"): b'{"endpoints": [{"url": "https://a.example"}]}',
    ("DELETE", "/v2/topics/{name}/endpoints"): b'{"endpoints": [{"url": "%s"}]}' % URL.encode(),
    ("PATCH", "/v2/topics/{name}"): b'{"headers": {"Upstash-Retries": "1"}}',
}
HEADERS = {
    ("POST", "/v2/schedules/{destination}"): {"Upstash-Cron": "@daily", "Upstash-Schedule-Id": SCHEDULE}
}
#: They show what is the account's own, which the other may know by other means.
OWN = {"/v2/keys", "/v2/keys/rotate"}
_DESTINATION = "/{destination:(?s:.*)}"
_METHODS = ("GET", "DELETE", "PATCH", "POST")
#: Ids that are made for what the asking account makes itself.
_FRESH = re.compile(rb"msg_[0-9a-z]{13}|scd_[0-9a-f]{20}")


class World(NamedTuple):
    """A relay, and what the ids of the first account's things are, or would be."""

    rig: Rig
    ids: Mapping[str, str]


@pytest.fixture
async def worlds(tmp_path: Path, specification: Specification) -> AsyncIterator[tuple[World, World]]:
    """One with the things of the first account, one without."""
    for name in ("full", "empty"):
        (tmp_path / name).mkdir()
    async with (
        running(tmp_path / "full" / "relay.db", specification) as full,
        running(tmp_path / "empty" / "relay.db", specification) as empty,
    ):
        ids = await furnish(full)
        empty.clock.advance(full.clock.now() - empty.clock.now())
        # No id of the first world may be one that the other account is given in the second.
        last = full.services.ids.next(full.clock.now())
        while empty.services.ids.next(empty.clock.now()) < last:
            pass
        yield World(full, ids), World(empty, ids)


async def furnish(rig: Rig) -> Mapping[str, str]:
    """One of everything; the ids, by the names that paths and queries have for them."""
    await rig.publish(URL, headers={"Upstash-Label": LABEL})
    await rig.attempt(200)
    once = {"Upstash-Retries": "0", "Upstash-Label": LABEL}
    flow = {"Upstash-Flow-Control-Key": KEY, "Upstash-Flow-Control-Value": "parallelism=3"}
    await rig.schedule(URL, headers={**once, "Upstash-Schedule-Id": SCHEDULE})
    await rig.put_group(URL, name=GROUP)
    assert await rig.fire(SCHEDULE) is not None
    for path in (f"/v2/publish/{GROUP}", f"/v2/enqueue/{QUEUE}/{URL}"):
        assert (await rig.call("POST", path, headers={**once, **flow})).status == 200
    assert await rig.attempt(404) == 3
    failed, dlq_id = await rig.dead_letter(URL, headers=once)
    delayed = {**flow, "Upstash-Delay": "1h"}
    assert (await rig.call("POST", f"/v2/enqueue/{QUEUE}/{URL}", headers=delayed)).status == 200
    waiting = await rig.publish(
        URL,
        headers={
            "Upstash-Delay": "1h",
            "Upstash-Label": LABEL,
            "Upstash-Deduplication-Id": DEDUPLICATION,
            "Upstash-Retries": "0",
        },
    )
    return {
        "message_id": waiting,
        "schedule_id": SCHEDULE,
        "dlq_id": dlq_id,
        "name": GROUP,
        "queue": QUEUE,
        "key": KEY,
        "failed": failed,
    }


#: What a query parameter has to say to meet the first account's things; {} are their ids.
PARAMETERS = {
    "callerIp": "127.0.0.1",
    "count": "1",
    "cursor": "{dlq_id}",
    "dlqIds": "{dlq_id}",
    "flowControlKey": KEY,
    "fromDate": "0",
    "host": "their-host.example",
    "label": LABEL,
    "messageId": "{failed}",
    "messageIds": "{message_id}",
    "order": "earliestFirst",
    "parallelism": "5",
    "path": "/their-path",
    "period": "60",
    "queueName": QUEUE,
    "rate": "5",
    "responseStatus": "404",
    "scheduleId": SCHEDULE,
    "search": "their",
    "state": "FAILED",
    "toDate": "9999999999999",
    "topicName": GROUP,
    "url": URL,
}


class Question(NamedTuple):
    """A request by another account."""

    method: str
    target: str
    body: bytes | None
    headers: Mapping[str, str]


def questions(ids: Mapping[str, str], specification: Specification) -> Iterator[Question]:
    """About everything, by every path and every parameter that is offered; what makes something comes last."""
    for route in sorted(ROUTES, key=lambda route: _METHODS.index(route.method)):
        template = re.sub(r"\{(\w+)(?::(?:[^{}]|\{[^{}]*\})*)?\}", r"{\1}", route.path)
        key = route.method, template
        for destination in (GROUP, URL):
            path = template.format(**ids, destination=destination)
            question = Question(route.method, path, BODIES.get(key), HEADERS.get(key, {}))
            yield question
            deduplicated = {**question.headers, "Upstash-Deduplication-Id": DEDUPLICATION}
            yield question._replace(headers=deduplicated)
        described = specification.parameters(route.method, ALIASES.get(template, template), "query")
        for name in sorted(described - {"qstash_token"}):
            yield question._replace(target=f"{question.target}?{name}={PARAMETERS[name].format(**ids)}")


async def asked(world: World, question: Question) -> Reply:
    """The answer; what an account makes itself has ids of its own, which say nothing."""
    reply = await world.rig.call(
        question.method, question.target, body=question.body, headers=question.headers, token=FOREIGN
    )
    body = _FRESH.sub(b"a fresh id", reply.body) if reply.status < 300 else reply.body
    return reply._replace(body=body, headers={})


async def everything(rig: Rig, token: str = TOKEN) -> Any:
    """What an account has."""
    paths = ["/v2/schedules", "/v2/topics", "/v2/dlq", "/v2/logs?count=1000", "/v2/keys"]
    paths += ["/v2/queues", "/v2/flowControl"]
    return {path: (await rig.call("GET", path, token=token)).json for path in paths}


async def test_no_answer_tells_whether_another_account_has_anything(
    worlds: tuple[World, World], specification: Specification
) -> None:
    full, empty = worlds
    before = await everything(full.rig)
    assert all(before.values())
    count = 0
    for question in questions(full.ids, specification):
        there, nowhere = await asked(full, question), await asked(empty, question)
        assert there == nowhere, question
        if question.target not in OWN:
            said = there.body.decode()
            asked_for = [question.target, (question.body or b"").decode(), *question.headers.values()]
            leaked = [word for word in SECRETS if word in said and not any(word in one for one in asked_for)]
            assert leaked == [], question
        count += 1
    assert count > 2 * len(ROUTES)
    assert await everything(full.rig) == before
    assert (await full.rig.show(full.ids["message_id"]))["messageId"] == full.ids["message_id"]


async def test_every_question_finds_something_when_it_is_asked_by_the_owner(
    tmp_path: Path, specification: Specification
) -> None:
    """Otherwise the test before would ask about nothing."""
    async with running(tmp_path / "relay.db", specification) as rig:
        ids = await furnish(rig)
        for name in ("message_id", "dlq_id", "schedule_id", "name", "queue", "key"):
            paths = [
                path
                for route in ROUTES
                if route.method == "GET"
                and (path := re.sub(r"\{(\w+)(?::.*)?\}", r"{\1}", route.path)).endswith(f"{{{name}}}")
            ]
            assert paths
            for path in paths:
                assert (await rig.call("GET", path.format(**ids))).status == 200
        for path, member in (("/v2/logs", "logs"), ("/v2/dlq", "messages")):
            for parameter in specification.parameters("GET", path, "query") - {"qstash_token", "cursor"}:
                value = PARAMETERS[parameter].format(**ids)
                reply = await rig.call("GET", f"{path}?{parameter}={value}")
                assert reply.status == 200
                assert reply.json[member], (path, parameter)


async def test_a_foreign_id_is_as_unknown_as_one_that_never_was(rig: Rig) -> None:
    ids = await furnish(rig)
    unknown = dict.fromkeys(ids, "nobody") | {"message_id": "msg_0000000000001", "dlq_id": "1-1"}
    for route in sorted(ROUTES, key=lambda route: _METHODS.index(route.method)):
        found = re.search(r"\{(\w+)(:[^/]*)?\}", route.path)
        if found is None or found[1] == "destination":
            continue
        template = route.path.replace(found[0], "{id}").replace(_DESTINATION, "/https://a.example")
        body = BODIES.get((route.method, re.sub(r":[^{}]*", "", route.path)))
        replies = [
            await rig.call(route.method, template.format(id=one[found[1]]), body=body, token=FOREIGN)
            for one in (ids, unknown)
        ]
        theirs, nobodys = (
            (reply.status, _FRESH.sub(b"a fresh id", reply.body.replace(one[found[1]].encode(), b"the id")))
            for reply, one in zip(replies, (ids, unknown), strict=True)
        )
        assert theirs == nobodys, route


async def test_a_deduplication_id_is_an_accounts_own(rig: Rig) -> None:
    headers = {"Upstash-Deduplication-Id": "once"}
    first = await rig.publish(headers=headers)
    assert await rig.publish(headers=headers, token=FOREIGN) != first


async def test_a_url_group_is_an_accounts_own(rig: Rig) -> None:
    await rig.put_group("https://a.example")
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


async def test_keys_are_an_accounts_own(rig: Rig) -> None:
    before = (await rig.call("GET", "/v2/keys")).json
    rotated = (await rig.call("POST", "/v2/keys/rotate", token=FOREIGN)).json
    assert (await rig.call("GET", "/v2/keys", token=FOREIGN)).json == rotated != before
    assert (await rig.call("GET", "/v2/keys")).json == before

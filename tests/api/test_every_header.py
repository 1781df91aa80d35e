"""Every header the relay reads, at every door: a value that makes no sense is refused by the header's name.

The tables are complete by test: a header that is added to `SETTINGS` is not forgotten here.
"""

import json
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import pytest

from relay.wire.settings import SETTINGS, Door
from tests.api.rig import TOKEN, Reply, Rig

#: A value that no relay can make sense of, for each header; bytes that are no text are one for any.
SENSELESS = {
    "Upstash-Method": "BREW",
    "Upstash-Timeout": "soon",
    "Upstash-Retries": "many",
    "Upstash-Retry-Delay": "1 +",
    "Upstash-Delay": "soon",
    "Upstash-Not-Before": "tomorrow",
    "Upstash-Deduplication-Id": "",
    "Upstash-Content-Based-Deduplication": "perhaps",
    "Upstash-Label": None,
    "Upstash-Redact-Fields": "everything",
    "Upstash-Header-Forward": "perhaps",
    "Upstash-Flow-Control-Key": "",
    "Upstash-Flow-Control-Value": "parallelism=none",
    "Upstash-Callback": "ftp://example.com",
    "Upstash-Failure-Callback": "example.com",
    "Upstash-Queue-Name": "no name",
    "Upstash-Cron": "now and then",
    "Upstash-Schedule-Id": "no id",
    "Relay-Schedule-Catch-Up": "some",
    "Relay-Schedule-Overlap": "perhaps",
    "Relay-Signature": "initials",
}
NOT_TEXT = b"\xff\xfe"

URL = "https://example.com/hook"
CRON = (b"Upstash-Cron", b"* * * * *")
CALLBACKS = ("Upstash-Callback", "Upstash-Failure-Callback")

Asked = Callable[[Rig, str, bytes], Awaitable[Reply]]


async def publish(rig: Rig, name: str, value: bytes) -> Reply:
    return await rig.raw_call("POST", f"/v2/publish/{URL}".encode(), headers=[(name.encode(), value)])


async def enqueue(rig: Rig, name: str, value: bytes) -> Reply:
    return await rig.raw_call("POST", f"/v2/enqueue/queue/{URL}".encode(), headers=[(name.encode(), value)])


async def publish_by_query(rig: Rig, name: str, value: bytes) -> Reply:
    return await rig.raw_call("POST", f"/v2/publish/{URL}?{name.lower()}={quote(value)}".encode())


async def publish_to_group(rig: Rig, name: str, value: bytes) -> Reply:
    await rig.put_group(URL)
    return await rig.raw_call("POST", b"/v2/publish/group", headers=[(name.encode(), value)])


async def schedule(rig: Rig, name: str, value: bytes) -> Reply:
    cron = [] if name == "Upstash-Cron" else [CRON]
    return await rig.raw_call(
        "POST", f"/v2/schedules/{URL}".encode(), headers=[*cron, (name.encode(), value)]
    )


async def batch(rig: Rig, name: str, value: bytes) -> Reply:
    return await rig.call_json("POST", "/v2/batch", [_item(name, value)])


async def set_group_headers(rig: Rig, name: str, value: bytes) -> Reply:
    await rig.put_group(URL)
    return await rig.call_json("PATCH", "/v2/topics/group", {"headers": _item(name, value)["headers"]})


async def retry(rig: Rig, name: str, value: bytes) -> Reply:
    return await rig.raw_call("POST", b"/v2/dlq/retry", headers=[(name.encode(), value)])


async def retry_one(rig: Rig, name: str, value: bytes) -> Reply:
    _, dlq_id = await rig.dead_letter()
    return await rig.raw_call("POST", f"/v2/dlq/retry/{dlq_id}".encode(), headers=[(name.encode(), value)])


DOORS: list[Asked] = [
    publish,
    enqueue,
    publish_by_query,
    publish_to_group,
    schedule,
    batch,
    set_group_headers,
    retry,
    retry_one,
]


def _item(name: str, value: bytes) -> dict[str, object]:
    # JSON is always text; a control character is as unfit for a header as bytes that are none.
    text = "\x01" if value == NOT_TEXT else value.decode()
    return {"destination": URL, "headers": {name: text}}


def senseless(name: str) -> list[bytes]:
    value = SENSELESS[name]
    return [NOT_TEXT] if value is None else [NOT_TEXT, value.encode()]


def require_refused(rig: Rig, reply: Reply, name: str) -> None:
    assert reply.status == 400, (name, reply)
    # In a query the names are lower case, and are given back as they came.
    assert reply.error.lower().startswith(f"{name.lower()}: "), (name, reply)
    told = rig.refusals[-1]
    assert (told["request_id"], told["status"], told["rule"]) == (
        reply.headers["X-Request-Id"],
        400,
        "Invalid",
    )
    assert str(told["field"]).lower() == name.lower()


def test_the_table_has_every_header() -> None:
    assert set(SENSELESS) == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize("door", DOORS, ids=lambda door: str(door.__name__))
async def test_a_senseless_value_is_refused_by_the_name_of_its_header(rig: Rig, door: Asked) -> None:
    # A query has the other settings of the wire protocol; the relay's own names are the destination's there.
    names = [name for name in SENSELESS if door is not publish_by_query or name.startswith("Upstash-")]
    for name in names:
        for value in senseless(name):
            rig.clock.advance(1_000)
            require_refused(rig, await door(rig, name, value), name)


@pytest.mark.parametrize("prefix", CALLBACKS)
@pytest.mark.parametrize(
    "door", [publish, enqueue, schedule, batch, retry], ids=lambda door: str(door.__name__)
)
async def test_a_senseless_value_for_a_callback_is_refused_by_the_whole_name(
    rig: Rig, door: Asked, prefix: str
) -> None:
    for setting in SETTINGS:
        if not setting.name.startswith("Upstash-"):
            continue
        name = prefix + setting.name.removeprefix("Upstash")
        rig.clock.advance(1_000)
        if Door.CALLBACK in setting.doors:
            for value in senseless(setting.name):
                # Without the callback itself there is nothing that it could be a setting of.
                require_refused(rig, await door(rig, name, value), name)
        else:
            require_refused(rig, await door(rig, name, b"1"), name)


async def test_in_a_batch_a_senseless_value_is_refused_in_its_own_place(rig: Rig) -> None:
    items = [_item(name, value) for name in SENSELESS for value in senseless(name)]
    names = [name for name in SENSELESS for _ in senseless(name)]
    reply = await rig.call_json("POST", "/v2/batch", [*items, {"destination": URL}])
    assert reply.status == 200
    *refused, accepted = reply.json
    assert [outcome["error"].partition(":")[0] for outcome in refused] == names
    assert set(accepted) == {"messageId", "url"}
    assert len(rig.publisher.calls[0]) == 1


async def test_nothing_of_a_refused_request_is_in_the_log_but_names(rig: Rig) -> None:
    await publish(rig, "Upstash-Delay", b"a-secret")
    await rig.raw_call("POST", f"/v2/publish/{URL}?upstash-timeout=a-secret".encode())
    await rig.call("GET", "/v2/a-secret")
    await rig.call("POST", "/v2/publish/a-secret")
    await rig.call("GET", "/v2/messages/a-secret")
    await rig.call("GET", "/v2/keys", token="a-secret")
    await rig.call_json("POST", "/v2/batch", [{"destination": "a-secret.example"}])
    reader, writer = await rig.connect()
    writer.write(b"a-secret\r\n\r\n")
    await reader.read()
    writer.close()
    assert [(line["status"], line["rule"], line.get("field")) for line in rig.refusals] == [
        (400, "Invalid", "Upstash-Delay"),
        (400, "Invalid", "Upstash-Timeout"),
        (404, "path", None),
        (404, "NotFound", None),
        (404, "NotFound", None),
        (401, "Unauthorized", None),
        (400, "Invalid", "destination"),
        (400, "head", None),
    ]
    assert "a-secret" not in json.dumps(rig.refusals)
    assert TOKEN not in json.dumps(rig.refusals)


async def test_who_is_refused_without_end_cannot_fill_the_log(rig: Rig) -> None:
    for _ in range(250):
        await rig.call("GET", "/v2/keys", token=None)
    assert len(rig.refusals) == 100
    rig.clock.advance(1_000)
    await rig.call("GET", "/v2/keys", token=None)
    assert rig.refusals[100]["untold"] == 150
    await rig.call("GET", "/v2/keys", token=None)
    assert "untold" not in rig.refusals[101]

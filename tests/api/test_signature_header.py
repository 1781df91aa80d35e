"""Relay-Signature: by every door a message comes in, and on all the ways it goes."""

import pytest

from tests.api.rig import Rig

URL = "https://example.com/hook"
STANDARD = {"Relay-Signature": "standard"}


async def test_a_message_shows_how_it_asked_to_be_signed_and_only_then(rig: Rig) -> None:
    for scheme in ("qstash", "standard", "both"):
        assert (await rig.show(await rig.publish(headers={"Relay-Signature": scheme})))["signature"] == scheme
    assert "signature" not in await rig.show(await rig.publish())


async def test_each_message_of_a_batch_is_signed_as_it_asks(rig: Rig) -> None:
    batch = [{"destination": URL, "headers": STANDARD}, {"destination": URL}]
    standard, plain = (await rig.call_json("POST", "/v2/batch", batch)).json
    assert (await rig.show(standard["messageId"]))["signature"] == "standard"
    assert "signature" not in await rig.show(plain["messageId"])


async def test_a_schedule_has_its_messages_signed_as_it_was_asked(rig: Rig) -> None:
    schedule_id = await rig.schedule(headers=STANDARD)
    assert (await rig.show_schedule(schedule_id))["signature"] == "standard"
    message_id = await rig.fire(schedule_id)
    assert message_id is not None
    assert (await rig.show(message_id))["signature"] == "standard"


async def test_a_url_group_may_have_a_scheme_for_all_its_messages(rig: Rig) -> None:
    await rig.put_group("https://a.example", "https://b.example")
    put = await rig.call_json("PATCH", "/v2/topics/group", {"headers": STANDARD})
    assert put.status == 200
    sent = (await rig.call("POST", "/v2/publish/group")).json
    assert [(await rig.show(one["messageId"]))["signature"] for one in sent] == ["standard"] * 2
    own = (await rig.call("POST", "/v2/publish/group", headers={"Relay-Signature": "both"})).json
    assert [(await rig.show(one["messageId"]))["signature"] for one in own] == ["both"] * 2


async def test_callbacks_and_retries_of_dead_letters_are_signed_as_the_message_was(rig: Rig) -> None:
    callbacks = {"Upstash-Callback": f"{URL}/cb", "Upstash-Failure-Callback": f"{URL}/failed"}
    _, dlq_id = await rig.dead_letter(URL, headers={**STANDARD, **callbacks})
    for path in ("cb", "failed"):
        listed = (await rig.call("GET", f"/v2/events?url={URL}/{path}&state=CREATED")).json["events"]
        assert [(await rig.show(one["messageId"]))["signature"] for one in listed] == ["standard"]
    assert (await rig.call("GET", f"/v2/dlq/{dlq_id}")).json["signature"] == "standard"
    again = (await rig.call("POST", f"/v2/dlq/retry/{dlq_id}")).json["messageId"]
    assert (await rig.show(again))["signature"] == "standard"


async def test_a_retry_of_a_dead_letter_may_choose_another_scheme(rig: Rig) -> None:
    _, dlq_id = await rig.dead_letter(headers=STANDARD)
    retried = await rig.call("POST", f"/v2/dlq/retry/{dlq_id}", headers={"Relay-Signature": "qstash"})
    assert (await rig.show(retried.json["messageId"]))["signature"] == "qstash"


async def test_a_message_in_a_queue_is_signed_as_it_asks(rig: Rig) -> None:
    queued = (await rig.call("POST", f"/v2/enqueue/queue/{URL}", headers=STANDARD)).json
    assert (await rig.show(queued["messageId"]))["signature"] == "standard"


@pytest.mark.parametrize("path", ["/v2/publish/", "/v2/enqueue/queue/", "/v2/schedules/", "/v2/dlq/retry"])
async def test_a_scheme_nobody_knows_is_refused_by_the_name_of_the_header(rig: Rig, path: str) -> None:
    target = path if path.endswith("retry") else path + URL
    headers = {"Relay-Signature": "pgp"} | ({"Upstash-Cron": "@daily"} if "schedules" in path else {})
    reply = await rig.call("POST", target, headers=headers)
    assert (reply.status, reply.error) == (
        400,
        'Relay-Signature: "pgp" is not one of qstash, standard, both',
    )


async def test_a_scheme_nobody_knows_is_refused_in_a_batch(rig: Rig) -> None:
    batch = [{"destination": URL, "headers": {"Relay-Signature": "pgp"}}]
    reply = await rig.call_json("POST", "/v2/batch", batch)
    assert reply.status == 400
    assert "Relay-Signature" in reply.body.decode()

"""What an account may ask for, where that differs from the rest of the relay."""

import json

import pytest

from relay.domain.tenant import Limits, TenantLimits
from tests.api.rig import FOREIGN, TOKEN, Reply, Rig
from tests.builders import TENANT, a_message
from tests.contract.steps import accept, ask_permits, take

URL = "https://example.com/hook"
CRON = {"Upstash-Cron": "@daily"}
LARGE = b"x" * 101
DOORS: tuple[tuple[str, dict[str, str]], ...] = (
    (f"/v2/publish/{URL}", {}),
    (f"/v2/enqueue/queue/{URL}", {}),
    (f"/v2/schedules/{URL}", CRON),
    (f"/v2/publish/{URL}", CRON),
)


async def limit(rig: Rig, limits: TenantLimits) -> None:
    await rig.storage.put_limits(TENANT, limits, now=rig.clock.now())
    rig.clock.advance(1_000)


async def batch(rig: Rig, body: str = "", **headers: str) -> Reply:
    item = {
        "destination": URL,
        "body": body,
        "headers": {f"Upstash-{name}": headers[name] for name in headers},
    }
    return await rig.call_json("POST", "/v2/batch", [item])


async def test_a_message_is_as_large_as_its_account_may_send(rig: Rig) -> None:
    await limit(rig, TenantLimits(max_message_bytes=100))
    for path, headers in DOORS:
        refused = await rig.call("POST", path, headers=headers, body=LARGE)
        assert refused.status == 413
        assert "100" in refused.error
        assert (await rig.call("POST", path, headers=headers, body=LARGE[:100])).status == 200
        assert (await rig.call("POST", path, headers=headers, body=LARGE, token=FOREIGN)).status == 200
    assert (await batch(rig, LARGE.decode())).status == 413
    assert (await batch(rig, LARGE[:100].decode())).status == 200


async def test_a_message_to_a_url_group_is_as_large_as_its_account_may_send(rig: Rig) -> None:
    await rig.put_group("https://a.example")
    await limit(rig, TenantLimits(max_message_bytes=100))
    assert (await rig.call("POST", "/v2/publish/group", body=LARGE)).status == 413
    assert (await rig.call("POST", "/v2/publish/group", body=LARGE[:100])).status == 200


async def test_a_small_limit_for_messages_leaves_other_requests_alone(rig: Rig) -> None:
    await limit(rig, TenantLimits(max_message_bytes=1))
    await rig.put_group("https://a.example", "https://b.example")
    filters = json.dumps({"label": ["a-label-longer-than-a-byte"]}).encode()
    reply = await rig.call(
        "DELETE", "/v2/messages", body=filters, headers={"Content-Type": "application/json"}
    )
    assert reply.status == 200


async def test_an_account_may_send_more_than_others_but_never_what_could_not_be_in_flight(rig: Rig) -> None:
    relay = rig.services.limits
    await limit(rig, TenantLimits(max_message_bytes=relay.max_message_bytes + 1))
    body = b"x" * (relay.max_message_bytes + 1)
    assert (await rig.call("POST", f"/v2/publish/{URL}", body=body)).status == 200
    assert (await rig.call("POST", f"/v2/publish/{URL}", body=body, token=FOREIGN)).status == 413
    unbounded = TenantLimits(max_message_bytes=1 << 40).within(Limits(largest_message_bytes=5 << 20))
    assert unbounded.max_message_bytes == 5 << 20


async def test_retries_are_bounded_by_the_account_at_every_door(rig: Rig) -> None:
    _, dlq_id = await rig.dead_letter()
    await limit(rig, TenantLimits(max_retries=2))
    doors = (*DOORS, (f"/v2/dlq/retry/{dlq_id}", {}))
    for path, headers in doors:
        for name in ("Upstash-Retries", "Upstash-Callback-Retries"):
            asked = {**headers, "Upstash-Callback": URL, name: "3"}
            refused = await rig.call("POST", path, headers=asked)
            assert refused.status == 412
            assert refused.error.startswith(name)
            assert "2 retries" in refused.error
    for path, headers in doors:
        assert (await rig.call("POST", path, headers={**headers, "Upstash-Retries": "2"})).status in (
            200,
            201,
        )
    assert (await batch(rig, Retries="3")).status == 412
    assert (await batch(rig, Retries="2")).status == 200
    allowed = await rig.call("POST", f"/v2/publish/{URL}", headers={"Upstash-Retries": "3"}, token=FOREIGN)
    assert allowed.status == 200


@pytest.mark.parametrize(("max_retries", "expected"), [(0, 0), (2, 2), (50, 3)])
async def test_a_message_that_does_not_ask_gets_no_more_retries_than_its_account_has(
    rig: Rig, max_retries: int, expected: int
) -> None:
    await limit(rig, TenantLimits(max_retries=max_retries))
    assert (await rig.show(await rig.publish()))["maxRetries"] == expected


async def test_an_account_may_be_given_more_retries_than_others(rig: Rig) -> None:
    most = rig.services.limits.max_retries
    await limit(rig, TenantLimits(max_retries=most + 1))
    for token, status in ((TOKEN, 200), (FOREIGN, 412)):
        headers = {"Upstash-Retries": str(most + 1)}
        reply = await rig.call("POST", f"/v2/publish/{URL}", headers=headers, token=token)
        assert reply.status == status


async def test_headers_of_a_url_group_are_read_with_the_limits_of_the_day(rig: Rig) -> None:
    await rig.put_group("https://a.example")
    headers = b'{"headers": {"Upstash-Retries": "5"}}'
    assert (await rig.call("PATCH", "/v2/topics/group", body=headers)).status == 200
    await limit(rig, TenantLimits(max_retries=4))
    assert (await rig.call("PATCH", "/v2/topics/group", body=headers)).status == 412
    assert (await rig.call("POST", "/v2/publish/group")).status == 412
    assert (await rig.call("POST", "/v2/publish/group", headers={"Upstash-Retries": "4"})).status == 200


async def test_what_was_accepted_before_a_limit_goes_on(rig: Rig) -> None:
    schedule_id = await rig.schedule(body=LARGE, headers={"Upstash-Retries": "9"})
    _, dlq_id = await rig.dead_letter(body=LARGE)
    await limit(rig, TenantLimits(max_message_bytes=1, max_retries=0))
    message_id = await rig.fire(schedule_id)
    assert message_id is not None
    assert (await rig.show(message_id))["maxRetries"] == 9
    assert (await rig.call("POST", f"/v2/dlq/retry/{dlq_id}")).status == 201


async def test_an_account_sees_how_much_it_may_have_in_flight_and_has(rig: Rig) -> None:
    async def shown(token: str) -> dict[str, int]:
        shown: dict[str, int] = (await rig.call("GET", "/v2/globalParallelism", token=token)).json
        return shown

    others = await shown(FOREIGN)
    await limit(rig, TenantLimits(max_parallelism=2))
    messages = [a_message(created_at=rig.clock.now()) for _ in range(3)]
    now = rig.clock.now()
    await accept(rig.storage, *messages, now=now)
    granted, _ = await ask_permits(rig.storage, await take(rig.storage, now=now), now=now)
    assert len(granted) == 2
    assert await shown(TOKEN) == {"parallelismMax": 2, "parallelismCount": 2}
    assert await shown(FOREIGN) == others

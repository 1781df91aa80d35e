"""An address that may not be called is refused when it is published, wherever and however a URL spells it."""

import json
from ipaddress import ip_network

import pytest

from relay.engine.egress import Egress
from tests.api.rig import Reply, Rig

URL = "https://example.com/hook"
FORBIDDEN = "http://me:secret@10.0.0.1:8080/x?y=1"

#: Hosts, and the addresses that the system's resolver takes them for.
SPELLINGS = {
    "127.0.0.1": "127.0.0.1",
    "127.1": "127.0.0.1",
    "127.0.1": "127.0.0.1",
    "0177.0.0.1": "127.0.0.1",
    "0x7f.0.0.1": "127.0.0.1",
    "0X7F000001": "127.0.0.1",
    "2130706433": "127.0.0.1",
    "017700000001": "127.0.0.1",
    "0": "0.0.0.0",
    "169.254.43518": "169.254.169.254",
    "0xa9.0376.0xa9fe": "169.254.169.254",
    "%31%32%37.1": "127.0.0.1",
    "\uff11\uff12\uff17\u3002\uff11": "127.0.0.1",
    "[::1]": "::1",
    "[::]": "::",
    "[::127.0.0.1]": "::127.0.0.1",
    "[::ffff:127.0.0.1]": "::ffff:127.0.0.1",
    "[::FFFF:7f00:1]": "::FFFF:7f00:1",
    "[0:0:0:0:0:ffff:a9fe:a9fe]": "0:0:0:0:0:ffff:a9fe:a9fe",
    "[64:ff9b::10.0.0.1]": "64:ff9b::10.0.0.1",
    "[64:ff9b:1::a00:1]": "64:ff9b:1::a00:1",
    "[2002:7f00:1::]": "2002:7f00:1::",
    "[fd00:ec2::254]": "fd00:ec2::254",
}


@pytest.fixture(autouse=True)
def _judge(rig: Rig) -> None:
    rig.refusal = Egress().refusal


def refused(field: str, address: str = "10.0.0.1") -> tuple[int, str]:
    return 400, f"{field}: {address} is not a public address; add it to RELAY_ALLOW_NETWORKS to allow it"


def answer(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.error


@pytest.mark.parametrize("host", SPELLINGS)
async def test_every_spelling_of_an_address_is_that_address(rig: Rig, host: str) -> None:
    address = SPELLINGS[host]
    item: dict[str, object] = {"destination": f"http://{host}/"}
    assert answer(await rig.call_json("POST", "/v2/batch", [item])) == refused("destination", address)
    item = {"destination": URL, "headers": {"Upstash-Callback": f"https://u@{host}:8443?q"}}
    assert answer(await rig.call_json("POST", "/v2/batch", [item])) == refused("Upstash-Callback", address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f000001", "[::ffff:7f00:1]", "[64:ff9b::127.0.0.1]"]
)
async def test_an_address_of_an_allowed_network_is_taken_in_every_spelling(rig: Rig, host: str) -> None:
    rig.refusal = Egress([ip_network("127.0.0.0/8")]).refusal
    headers = {"Upstash-Callback": f"http://{host}/", "Upstash-Failure-Callback": f"http://{host}/"}
    assert (await rig.call("POST", f"/v2/publish/http://{host}:8080/", headers=headers)).status == 200


@pytest.mark.parametrize(
    "destination", [FORBIDDEN, "http://10.0.0.1", "http://10.0.0.1?x", "http:/10.0.0.1/"]
)
@pytest.mark.parametrize("path", ["/v2/publish/", "/v2/enqueue/queue/", "/v2/schedules/"])
async def test_it_cannot_be_a_destination(rig: Rig, path: str, destination: str) -> None:
    reply = await rig.call("POST", path + destination, headers={"Upstash-Cron": "* * * * *"})
    assert answer(reply) == refused("destination")


@pytest.mark.parametrize(
    "header",
    [
        "Upstash-Callback",
        "Upstash-Failure-Callback",
        "Upstash-Callback-Failure-Callback",
        "Upstash-Failure-Callback-Callback",
    ],
)
async def test_it_cannot_be_a_callback_wherever_one_is_named(rig: Rig, header: str) -> None:
    headers = {"Upstash-Callback": URL, "Upstash-Failure-Callback": URL, header: FORBIDDEN}
    schedule = {**headers, "Upstash-Cron": "* * * * *"}
    assert answer(await rig.call("POST", f"/v2/publish/{URL}", headers=headers)) == refused(header)
    assert answer(await rig.call("POST", f"/v2/enqueue/queue/{URL}", headers=headers)) == refused(header)
    assert answer(await rig.call("POST", f"/v2/schedules/{URL}", headers=schedule)) == refused(header)
    query = "&".join(f"{name}={value}" for name, value in headers.items() if value == URL)
    asked = f"/v2/publish/{URL}?{query}&{header}=http://10.1"
    assert answer(await rig.call("POST", asked.replace(f"{header}={URL}&", ""))) == refused(header)

    await rig.put_group(URL)
    body = json.dumps({"headers": headers}).encode()
    assert answer(await rig.call("PATCH", "/v2/topics/group", body=body)) == refused(header)
    assert (await rig.call("GET", "/v2/topics/group")).json.get("headers") is None

    _, dlq_id = await rig.dead_letter()
    retries = (f"/v2/dlq/retry/{dlq_id}", f"/v2/dlq/retry?dlqIds={dlq_id}")
    for path in retries:
        assert answer(await rig.call("POST", path, headers=headers)) == refused(header)
    assert await rig.dead_letter_ids() == [dlq_id]


async def test_an_item_of_a_batch_with_it_is_refused_alone(rig: Rig) -> None:
    batch = [
        {"destination": FORBIDDEN},
        {"destination": URL, "headers": {"Upstash-Failure-Callback": FORBIDDEN}},
        {"destination": "http://9.9.9.9/"},
    ]
    first, second, accepted = (await rig.call_json("POST", "/v2/batch", batch)).json
    assert (first["error"], second["error"]) == (
        refused("destination")[1],
        refused("Upstash-Failure-Callback")[1],
    )
    assert accepted["url"] == "http://9.9.9.9/"


async def test_it_cannot_become_an_endpoint_of_a_url_group(rig: Rig) -> None:
    body = json.dumps({"endpoints": [{"url": "https://a.example"}, {"url": FORBIDDEN}]}).encode()
    assert answer(await rig.call("POST", "/v2/topics/group/endpoints", body=body)) == refused("url")
    assert (await rig.call("GET", "/v2/topics/group")).status == 404


async def test_it_can_be_taken_out_of_a_url_group_that_had_it_before(rig: Rig) -> None:
    rig.refusal = Egress([ip_network("10.0.0.0/8")]).refusal
    await rig.put_group(URL, FORBIDDEN)
    rig.refusal = Egress().refusal
    body = json.dumps({"endpoints": [{"url": FORBIDDEN}]}).encode()
    assert (await rig.call("DELETE", "/v2/topics/group/endpoints", body=body)).status == 200
    assert [
        endpoint["url"] for endpoint in (await rig.call("GET", "/v2/topics/group")).json["endpoints"]
    ] == [URL]


@pytest.mark.parametrize(
    "host",
    [
        "9.9.9.9",
        "0x9.9.2313",
        "[2620:fe::fe]",
        "10.0.0.1.example",
        "10.0.0.1.5",
        "10.0.0.1.",
        "08.0.0.1",
        "10.0.0.256",
        "4294967296",
        "0x",
        "127.0.0.1x",
        "10.cafe",
        "localhost",
        "example.com/10.0.0.1",
        "example.com?u=http://10.0.0.1",
    ],
)
async def test_public_addresses_and_all_names_are_left_to_the_call(rig: Rig, host: str) -> None:
    assert (await rig.call("POST", f"/v2/publish/http://{host}")).status == 200

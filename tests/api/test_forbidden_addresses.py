"""An address that may not be called is refused when it is published, wherever a destination is named."""

import json

import pytest

from tests.api.rig import Rig

DESTINATION = "destination: 10.0.0.1 may not be called"


@pytest.fixture(autouse=True)
def _forbid(rig: Rig) -> None:
    rig.forbidden |= {"10.0.0.1", "::1"}


@pytest.mark.parametrize(
    "destination",
    ["http://10.0.0.1", "https://me:secret@10.0.0.1:8080/x?y=1", "http://10.0.0.1?x", "http:/10.0.0.1/"],
)
@pytest.mark.parametrize("path", ["/v2/publish/", "/v2/schedules/"])
async def test_a_publish_and_a_schedule_to_it_are_refused(rig: Rig, path: str, destination: str) -> None:
    reply = await rig.call("POST", path + destination, headers={"Upstash-Cron": "* * * * *"})
    assert (reply.status, reply.error) == (400, DESTINATION)
    reply = await rig.call("POST", "/v2/enqueue/queue/http://[::1]:80/")
    assert (reply.status, reply.error) == (400, "destination: ::1 may not be called")


async def test_an_item_of_a_batch_to_it_is_refused_alone(rig: Rig) -> None:
    batch = [{"destination": "http://10.0.0.1/"}, {"destination": "http://10.0.0.2/"}]
    refused, accepted = (await rig.call_json("POST", "/v2/batch", batch)).json
    assert refused == {"error": DESTINATION}
    assert accepted["url"] == "http://10.0.0.2/"


async def test_it_cannot_become_an_endpoint_of_a_url_group(rig: Rig) -> None:
    body = json.dumps({"endpoints": [{"url": "https://a.example"}, {"url": "http://10.0.0.1/"}]}).encode()
    reply = await rig.call("POST", "/v2/topics/group/endpoints", body=body)
    assert (reply.status, reply.error) == (400, "url: 10.0.0.1 may not be called")
    assert (await rig.call("GET", "/v2/topics/group")).status == 404


@pytest.mark.parametrize(
    "destination",
    [
        "http://10.0.0.2/",
        "http://10.0.0.1.example/",
        "http://10.0.0.1.5/",
        "http://example.com/10.0.0.1",
        "http://10.1/",
    ],
)
async def test_other_addresses_and_all_names_are_left_to_the_call(rig: Rig, destination: str) -> None:
    assert (await rig.call("POST", f"/v2/publish/{destination}")).status == 200

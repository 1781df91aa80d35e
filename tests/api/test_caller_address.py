"""Where a request came from: the peer, or what a trusted proxy says of it."""

from ipaddress import ip_network
from pathlib import Path

import pytest

from relay.api.address import caller_ip
from tests.api.rig import Rig, running
from tests.api.specification import Specification

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "expected"),
    [
        ("192.0.2.1", (), "192.0.2.1"),
        ("192.0.2.1", ("203.0.113.9",), "192.0.2.1"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("203.0.113.9",), "203.0.113.9"),
        ("10.0.0.1", ("1.1.1.1, 203.0.113.9",), "203.0.113.9"),
        ("10.0.0.1", ("1.1.1.1", "203.0.113.9"), "203.0.113.9"),
        ("10.0.0.1", ("1.1.1.1, 203.0.113.9, 10.0.0.2",), "203.0.113.9"),
        ("10.0.0.1", ("10.0.0.3, 10.0.0.2",), "10.0.0.3"),
        ("10.0.0.1", ("nonsense",), "10.0.0.1"),
        ("10.0.0.1", ("1.1.1.1, nonsense, 10.0.0.2",), "10.0.0.2"),
        ("10.0.0.1", ("",), "10.0.0.1"),
        ("::ffff:10.0.0.1", ("2001:db8::9",), "2001:db8::9"),
        ("fd00::1", ("::ffff:203.0.113.9",), "203.0.113.9"),
        ("fe80::1%eth0", (), "fe80::1"),
        ("", (), None),
        (None, (), None),
        (None, ("203.0.113.9",), None),
    ],
)
def test_only_what_trusted_proxies_appended_is_believed(
    peer: str | None, forwarded_for: tuple[str, ...], expected: str | None
) -> None:
    assert caller_ip(peer, forwarded_for, PROXIES) == expected


async def test_nobodys_word_is_taken_unless_configured(rig: Rig) -> None:
    message_id = await rig.publish(headers={"X-Forwarded-For": "203.0.113.9"})
    assert (await rig.show(message_id))["callerIP"] == "127.0.0.1"


async def test_the_word_of_a_trusted_proxy_is_taken(tmp_path: Path, specification: Specification) -> None:
    async with running(tmp_path / "relay.db", specification, trusted_proxies=["127.0.0.0/8"]) as rig:
        headers = {"X-Forwarded-For": "203.0.113.9"}
        message_id = await rig.publish(headers=headers)
        schedule_id = await rig.schedule(headers=headers)
        batch = await rig.call("POST", "/v2/batch", body=b'[{"destination":"https://a.b"}]', headers=headers)
        assert (await rig.show(message_id))["callerIP"] == "203.0.113.9"
        assert (await rig.show_schedule(schedule_id))["callerIP"] == "203.0.113.9"
        assert (await rig.show(batch.json[0]["messageId"]))["callerIP"] == "203.0.113.9"
        assert (await rig.call("DELETE", "/v2/messages?callerIp=203.0.113.9")).json == {"cancelled": 2}

"""The relay that made-up requests are sent to reaches its own receiver, and nobody else."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from relay.engine.egress import Refused
from tests.fuzz.sealed import OnlyReceiver, look_up_nothing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[tuple[str, str, str, Path]]:
    """Its URL, the receiver's, a token, and its log."""
    log = tmp_path / "relay.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.sealed"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "RELAY_LOG_FORMAT": "json"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as relay,
    ):
        assert relay.stdout is not None
        try:
            url, receiver, token = (relay.stdout.readline().decode().strip() for _ in range(3))
            yield url, receiver, token, log
        finally:
            relay.terminate()


async def test_a_sealed_relay_delivers_to_its_receiver_and_to_nobody_else(
    sealed: tuple[str, str, str, Path],
) -> None:
    url, receiver, token, log = sealed
    port = int(receiver.rpartition(":")[2])
    called = {
        f"{receiver}/hook": None,
        "http://127.0.0.1:9/": "127.0.0.1 is outside, and this relay is sealed",
        f"http://[::1]:{port}/": "::1 is outside, and this relay is sealed",
        f"http://127.0.0.2:{port}/": "127.0.0.2 is outside, and this relay is sealed",
        f"http://localhost:{port}/": "localhost is not looked up",
        "http://name.invalid/": "name.invalid is not looked up",
    }
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        for destination, problem in called.items():
            once = {"Upstash-Retries": "0"}
            target = URL(f"{url}/v2/publish/{destination}", encoded=True)
            async with session.post(target, headers=once) as published:
                assert published.status == 200, await published.text()
                message_id = (await published.json())["messageId"]
            final = "FAILED" if problem else "DELIVERED"
            entry = await _entry(session, url, message_id, final)
            assert problem is None or problem in entry["error"]
    assert "seal.broken" not in log.read_text()


async def _entry(session: aiohttp.ClientSession, url: str, message_id: str, state: str) -> dict[str, str]:
    """The log entry of a message's end."""
    async with asyncio.timeout(20):
        while True:
            params = {"messageId": message_id, "state": "FAILED,ERROR,DELIVERED"}
            async with session.get(f"{url}/v2/events", params=params) as listed:
                entries = (await listed.json())["events"]
            if entries and entries[0]["state"] == state:
                found: dict[str, str] = {name: text for entry in entries for name, text in entry.items()}
                return found
            await asyncio.sleep(0.01)


def test_what_the_seal_is_made_of_refuses_by_itself() -> None:
    tcp = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
    with pytest.raises(Refused):
        OnlyReceiver(80).socket((*tcp, ("127.0.0.1", 81)))
    with pytest.raises(Refused):
        look_up_nothing("localhost")
    OnlyReceiver(80).socket((*tcp, ("127.0.0.1", 80))).close()


def test_a_sealed_process_refuses_whatever_goes_round_the_relay() -> None:
    """An audit hook stays for good, so another process has to have it."""
    program = """
import socket
from relay.engine.egress import Refused
from tests.api.rig import Recorder
from tests.fuzz.sealed import seal_process
log = Recorder()
seal_process(80, log)
udp = socket.socket(type=socket.SOCK_DGRAM)
for reach in (
    lambda: socket.create_connection(("127.0.0.1", 81)),
    lambda: socket.getaddrinfo("localhost", 80),
    lambda: socket.gethostbyname("localhost"),
    lambda: udp.sendto(b"", ("127.0.0.1", 53)),
):
    try:
        reach()
    except Refused:
        continue
    raise SystemExit("reached")
print(len(log.lines))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("4\n", "")

"""Two relay processes on one PostgreSQL database, run as an operator runs them."""

import http.client
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import postgres_server
from tests.live import COMMAND, Live, a_relay, until

TOKEN = "the-token-of-both-relays"
KEYS = {
    "RELAY_TOKEN": TOKEN,
    "RELAY_CURRENT_SIGNING_KEY": "sig_0123456789abcdef",
    "RELAY_NEXT_SIGNING_KEY": "sig_fedcba9876543210",
    "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
    "RELAY_LEASE": "3s",
}


@contextmanager
def an_endpoint() -> Iterator[tuple[str, list[str]]]:
    """Its URL, and the bodies it was sent."""
    seen: list[str] = []

    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", seen
        finally:
            server.shutdown()
            serving.join()


def ask(relay: Live, method: str, path: str, body: str = "", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(relay.port), timeout=30)
    connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **headers})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def relay(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMMAND, *arguments], cwd=directory, capture_output=True, text=True, check=False, timeout=60
    )


def test_what_one_accepts_the_other_delivers_when_the_first_is_killed(tmp_path: Path) -> None:
    database = postgres_server.url()
    first_place, second_place = tmp_path / "first", tmp_path / "second"
    first_place.mkdir()
    second_place.mkdir()
    flags = ("--database", database)
    with (
        an_endpoint() as (url, seen),
        a_relay(*flags, directory=second_place, mode="serve", environment=KEYS) as second,
        a_relay(*flags, directory=first_place, mode="serve", environment=KEYS) as first,
    ):
        for n in range(20):
            assert ask(first, "POST", f"/v2/publish/{url}", f"now {n}")[0] == 200
            assert ask(second, "POST", f"/v2/publish/{url}", f"now too {n}")[0] == 200
        assert ask(first, "POST", f"/v2/publish/{url}", "later", **{"Upstash-Delay": "2s"})[0] == 200
        first.kill()
        expected = {f"now {n}" for n in range(20)} | {f"now too {n}" for n in range(20)} | {"later"}
        until(lambda: expected <= set(seen), otherwise=lambda: f"missing: {expected - set(seen)}")
        assert second.get("/readyz")[0] == 200
        assert b"\nrelay_clock_offset_seconds " in ask(second, "GET", "/metrics")[1]
        states = [
            event["state"] for event in json.loads(ask(second, "GET", "/v2/logs?count=1000")[1])["events"]
        ]
    assert states.count("CREATED") == 41
    assert states.count("DELIVERED") >= 21


def test_a_database_is_migrated_by_the_command_and_then_served_without(tmp_path: Path) -> None:
    for database in (postgres_server.url(), f"sqlite:///{tmp_path}/relay.db"):
        refused = relay("serve", "--no-migrate", "--port", "0", "--database", database, directory=tmp_path)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("relay: ")
        assert "run relay migrate first" in refused.stderr
        for _ in range(2):
            migrated = relay("migrate", "--database", database, directory=tmp_path)
            assert (migrated.returncode, migrated.stdout) == (0, "the database is up to date\n")
        with a_relay("--no-migrate", "--database", database, directory=tmp_path, mode="serve") as live:
            assert live.get("/readyz")[0] == 200

"""Every client command against a relay that really runs."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.console import Answer, Console, Server
from tests.live import Live, a_relay

ROOT = Path(__file__).parents[2]
#: Of the published development identities, one whose keys no other test looks at.
OTHER_TOKEN = "eyJVc2VySUQiOiJ0ZXN0VXNlcjMiLCJQYXNzd29yZCI6InRlc3RQYXNzd29yZCJ9"
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with a_relay(directory=tmp_path_factory.mktemp("relay")) as live:
        yield live


class Person(Console):
    """Someone at a console, with a relay, and in real time."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self.environment = {"QSTASH_URL": url, "QSTASH_TOKEN": token}
        self.now = lambda: time.time_ns() // 1_000_000
        give_up_at = self.now() + PATIENCE_MS

        def hurry(seconds: float) -> None:
            assert self.now() < give_up_at, "what the test waits for does not happen"
            time.sleep(min(seconds, 0.02))

        self.pause = hurry

    def json(self, *argv: str) -> Any:
        code, out, err = self(*argv, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    def publish(self, *argv: str) -> str:
        return str(self.json("publish", *argv)["messageId"])

    def watch(self, id: str, *, until: str) -> list[str]:
        """Follow the log of a message until it is in a state; the states it went through."""
        followed = self("logs", "--follow", "--message", id, until=lambda line: line.split()[1] == until)
        assert (followed.code, followed.err) == (130, "")
        return [line.split()[1] for line in followed.out.splitlines()]


@pytest.fixture
def person(relay: Live) -> Person:
    return Person(relay.url, relay.token)


def test_a_message_arrives_as_it_was_published(person: Person, server: Server) -> None:
    url = f"{server.url}/x//a%20b/ü?x=1&y=%C3%BC"
    id = person.publish(
        *(url, "--body", "héllo", "--method", "PUT", "-H", "X-Test: grüße", "--content-type", "text/x"),
    )
    assert person.watch(id, until="DELIVERED") == ["CREATED", "ACTIVE", "DELIVERED"]
    [request] = server.requests
    assert (request.method, request.target) == ("PUT", "/x//a%20b/%C3%BC?x=1&y=%C3%BC")
    assert request.body == "héllo".encode()
    assert request.headers["Content-Type"] == "text/x"
    # The standard library reads header bytes as Latin-1.
    assert request.headers["X-Test"].encode("latin-1").decode() == "grüße"


def test_the_terms_of_a_message_are_kept(person: Person) -> None:
    terms = ("--delay", "1h", "--retries", "7", "--retry-delay", "1000 * retried", "--timeout", "30s")
    id = person.publish("http://127.0.0.1:1/", *terms, "--label", "a", "--label", "b", "-H", "X-A: 1")
    [message] = person.json("messages", "get", id)
    assert message["notBefore"] - message["createdAt"] == 3_600_000
    assert (message["maxRetries"], message["retryDelayExpression"]) == (7, "1000 * retried")
    assert (message["labels"], message["header"]) == (["a", "b"], {"X-A": ["1"]})
    shown = person("messages", "get", id).out
    assert "labels        a, b\n" in shown
    assert re.search(r"^not before .*\(in (60 m|1 h)\)$", shown, re.MULTILINE)
    assert re.search(r"^next attempt .*\(in (60 m|1 h)\)$", shown, re.MULTILINE)


def test_a_duplicate_is_answered_with_the_first_message(person: Person) -> None:
    argv = ("publish", "http://127.0.0.1:1/", "--delay", "1h", "--deduplication-id", "only-one")
    first, second = person(*argv), person(*argv)
    assert (first.code, second.code) == (0, 0)
    assert second.out == f"{first.out.strip()}  already accepted: nothing new was sent\n"


def test_cancelled_messages_are_cancelled_once(person: Person) -> None:
    a, b, c = (
        person.publish("http://127.0.0.1:1/", "--delay", "1h", "--label", label)
        for label in ("one", "two", "two")
    )
    assert person("messages", "cancel", a) == (0, f"{a}  cancelled\n", "")
    again = person("messages", "cancel", a, b)
    assert (again.code, again.out) == (4, f"{b}  cancelled\n")
    assert again.err.startswith("relay: ")
    assert person.json("messages", "cancel", "--label", "two", "--yes") == {"cancelled": 1, "notFound": []}
    assert person.json("messages", "cancel", "--label", "two", "--yes") == {"cancelled": 0, "notFound": []}
    states = [entry["state"] for entry in person.json("logs", "--message", c)]
    assert states == ["CREATED", "CANCEL_REQUESTED", "CANCELED"]


def test_the_log_can_be_narrowed_by_every_filter(person: Person, server: Server) -> None:
    id = person.publish(f"{server.url}/narrow?q=1", "--label", "narrow")
    person.watch(id, until="DELIVERED")
    filters = {
        "--message": id,
        "--state": "DELIVERED",
        "--label": "narrow",
        "--destination": f"{server.url}/narrow?q=1",
        "--host": "127.0.0.1",
        "--path": "/narrow",
        "--since": "10m",
    }
    argv = [part for pair in filters.items() for part in pair]
    assert [entry["messageId"] for entry in person.json("logs", *argv)] == [id]
    for name in set(filters) - {"--since", "--state", "--message"}:
        other = [part for pair in (filters | {name: "/else"}).items() for part in pair]
        assert person.json("logs", *other) == [], name


def a_dead_letter(person: Person, server: Server, *flags: str) -> dict[str, Any]:
    id = person.publish(f"{server.url}/dead", "--retries", "0", *flags)
    person.watch(id, until="FAILED")
    [letter] = person.json("dlq", "list", "--message", id)
    return dict(letter)


def test_a_dead_letter_is_shown_sent_again_and_gone(person: Person, server: Server) -> None:
    server.answer = lambda request: Answer(500, b"out of order")
    letter = a_dead_letter(person, server, "--body", "precious")
    shown = person("dlq", "get", letter["dlqId"]).out
    assert "last answer    500\n" in shown
    assert "\nbody:\nprecious\n\nlast answer's body:\nout of order\n" in shown
    server.answer = lambda request: Answer()
    sent = person.json("dlq", "retry", letter["dlqId"])
    assert sent["notFound"] == []
    assert person.watch(sent["responses"][0]["messageId"], until="DELIVERED")[-1] == "DELIVERED"
    assert [request.body for request in server.requests] == [b"precious", b"precious"]
    for action in ("get", "retry", "delete"):
        gone = person("dlq", action, letter["dlqId"])
        assert (gone.code, gone.out) == (4, "")


def test_a_dead_letter_tells_why_nobody_answered(person: Person) -> None:
    id = person.publish("http://127.0.0.1:1/", "--retries", "0")
    person.watch(id, until="FAILED")
    [letter] = person.json("dlq", "list", "--message", id)
    shown = person("dlq", "get", letter["dlqId"]).out
    assert "last answer    none\nlast error     127.0.0.1:1 refused the connection\n" in shown


def test_dead_letters_are_deleted_by_filter(person: Person, server: Server) -> None:
    server.answer = lambda request: Answer(418)
    kept = a_dead_letter(person, server, "--label", "kept")
    a_dead_letter(person, server, "--label", "dropped")
    dropped = person.json("dlq", "delete", "--label", "dropped", "--status", "418", "--yes")
    assert dropped == {"deleted": 1, "notFound": []}
    assert [letter["dlqId"] for letter in person.json("dlq", "list", "--status", "418")] == [kept["dlqId"]]
    assert person("dlq", "delete", kept["dlqId"]) == (0, f"{kept['dlqId']}  deleted\n", "")


def wait_for_failures(person: Person, label: str, count: int) -> None:
    failures = iter(range(1, count + 1))
    followed = person(
        *("logs", "--follow", "--count", "1000", "--label", label, "--state", "FAILED"),
        until=lambda line: next(failures) == count,
    )
    assert followed.code == 130


def test_sending_all_dead_letters_again_ends_though_they_all_fail_again(relay: Live, server: Server) -> None:
    person = Person(relay.url, OTHER_TOKEN)
    server.answer = lambda request: Answer(500)
    count = 130
    for number in range(count):
        person("publish", f"{server.url}/{number}", "--retries", "0", "--label", "again")
    wait_for_failures(person, "again", count)
    sent = person.json("dlq", "retry", "--label", "again", "--yes")["responses"]
    assert len({response["messageId"] for response in sent}) == count
    wait_for_failures(person, "again", 2 * count)
    assert sorted(int(request.path[1:]) for request in server.requests) == sorted([*range(count)] * 2)


def test_a_schedule_lives_through_its_commands(person: Person) -> None:
    create = ("schedules", "create", "http://127.0.0.1:1/", "--cron", "CRON_TZ=Europe/Berlin 0 9 1 1 *")
    created = person(*create, "--id", "yearly", "--catch-up", "none", "--overlap", "skip", "--body", "x")
    assert created == (0, "yearly\n", "")
    [schedule] = person.json("schedules", "get", "yearly")
    assert (schedule["cron"], schedule["body"], schedule["isPaused"]) == (create[-1], "x", False)
    assert "nextScheduleTime" in schedule
    assert "yearly" in person("schedules", "list").out
    assert person("schedules", "pause", "yearly") == (0, "yearly  paused\n", "")
    assert "state        paused\n" in person("schedules", "get", "yearly").out
    assert person.json("schedules", "resume", "yearly") == {"resumed": ["yearly"], "notFound": []}
    assert person.json("schedules", "get", "yearly")[0]["isPaused"] is False
    assert person("schedules", "delete", "yearly") == (0, "yearly  deleted\n", "")
    assert person("schedules", "get", "yearly").code == 4
    assert person.json("schedules", "list") == []


def test_a_queue_lives_through_its_commands(person: Person, server: Server) -> None:
    assert "parallelism  2\n" in person("queues", "set", "jobs", "--parallelism", "2").out
    assert person("queues", "pause", "jobs") == (0, "jobs  paused\n", "")
    ids = [person.publish(f"{server.url}/{number}", "--queue", "jobs") for number in "12"]
    [queue] = person.json("queues", "get", "jobs")
    assert (queue["name"], queue["parallelism"], queue["lag"], queue["paused"]) == ("jobs", 2, 2, True)
    shown = person("queues", "get", "jobs").out
    assert "state        paused\n" in shown
    assert "unfinished   2\n" in shown
    assert person.json("queues", "set", "jobs")["parallelism"] == 2
    row = person("queues", "list").out.splitlines()[1].split()
    assert row[:4] == ["jobs", "paused", "2", "2"]
    assert person("queues", "delete", "jobs").code == 2
    assert person("queues", "delete", "jobs", typed=b"n\n").code == 130
    refused = person("queues", "delete", "jobs", "nothing", typed=b"n\n")
    assert "Delete jobs and nothing and cancel what is unfinished of 2 messages? [y/N]" in refused.err
    assert person.json("queues", "resume", "jobs") == {"resumed": ["jobs"], "notFound": []}
    assert [person.watch(id, until="DELIVERED")[-1] for id in ids] == ["DELIVERED"] * 2
    assert person("queues", "delete", "jobs", typed=b"y\n").out == "jobs  deleted\n"
    gone = person("queues", "get", "jobs")
    assert (gone.code, gone.err) == (4, 'relay: queue "jobs" not found (404)\n')
    assert person.json("queues", "delete", "jobs", "--yes") == {"deleted": ["jobs"], "notFound": []}
    assert person.json("queues", "list") == []


def test_a_url_group_lives_through_its_commands(person: Person, server: Server) -> None:
    added = person("url-groups", "add", "orders", f"{server.url}/a", f"billing={server.url}/b?x=1")
    assert added == (0, f"{server.url}/a  added\nbilling={server.url}/b?x=1  added\n", "")
    [group] = person.json("url-groups", "get", "orders")
    assert [endpoint.get("name") for endpoint in group["endpoints"]] == [None, "billing"]
    assert f"endpoint   billing={server.url}/b?x=1\n" in person("url-groups", "get", "orders").out
    assert f"{server.url}/a, billing={server.url}/b?x=1" in person("url-groups", "list").out
    ids = person("publish", "orders").out.split()
    assert [person.watch(id, until="DELIVERED")[-1] for id in ids] == ["DELIVERED"] * 2
    assert sorted(request.target for request in server.requests) == ["/a", "/b?x=1"]
    removed = person("url-groups", "remove", "orders", "billing")
    assert removed == (0, "billing  removed\n", "")
    assert person.json("url-groups", "remove", "orders", f"{server.url}/a") == {
        "removed": [{"url": f"{server.url}/a"}]
    }
    assert person("url-groups", "get", "orders").code == 4
    person("url-groups", "add", "orders", server.url)
    assert person.json("url-groups", "delete", "orders") == {"deleted": ["orders"], "notFound": []}
    assert person.json("url-groups", "list") == []


def test_a_url_group_that_schedules_send_to_says_so_when_it_is_deleted(
    person: Person, server: Server
) -> None:
    for name in ("orders", "bills", "quiet"):
        person("url-groups", "add", name, server.url)
    person("schedules", "create", "orders", "--cron", "0 0 1 1 *", "--id", "yearly")
    for number in range(6):
        person("schedules", "create", "bills", "--cron", "0 0 1 1 *", "--id", f"bill-{number}")
    assert person("url-groups", "delete", "orders", "bills", "quiet") == (
        0,
        "orders  deleted\nbills  deleted\nquiet  deleted\n",
        (
            "relay: nothing comes of schedule yearly while there is no URL group orders\n"
            "relay: nothing comes of 6 schedules while there is no URL group bills\n"
        ),
    )
    assert person.json("url-groups", "list") == []


def test_a_flow_control_key_lives_through_its_commands(person: Person, server: Server) -> None:
    key = "customer 17/ü"

    def shown() -> str:
        return re.sub("  +", "  ", person("flow-control", "get", key).out)

    assert person("flow-control", "pause", key) == (0, f"{key}  paused\n", "")
    limits = ("--flow-key", key, "--flow-limits", "parallelism=3, rate=5, period=1m")
    id = person.publish(server.url, *limits)
    assert "state  paused\n" in shown()
    assert "in flight  0 of 3\n" in shown()
    assert "started  0 of 5 in 60 s\n" in shown()
    assert "waiting  1\n" in shown()
    assert person.json("flow-control", "pin", key, "--parallelism", "1", "--rate", "9", "--period", "1h") == {
        "pinned": [key],
        "notFound": [],
    }
    [found] = person.json("flow-control", "get", key)
    assert (found["parallelismMax"], found["rateMax"], found["ratePeriod"]) == (1, 9, 3600)
    assert "pinned  parallelism, rate\n" in shown()
    assert person("flow-control", "unpin", key, "--rate") == (0, f"{key}  unpinned\n", "")
    assert "pinned  parallelism\n" in shown()
    person("flow-control", "unpin", key)
    assert "pinned" not in shown()
    assert person.json("flow-control", "resume", key) == {"resumed": [key], "notFound": []}
    assert person.watch(id, until="DELIVERED")[-1] == "DELIVERED"
    assert person.json("flow-control", "get", key)[0]["rateCount"] == 1
    assert person("flow-control", "reset", key) == (0, f"{key}  reset\n", "")
    assert person.json("flow-control", "get", key)[0]["rateCount"] == 0
    row = next(
        line for line in person("flow-control", "list", "--search", "17").out.splitlines() if key in line
    )
    assert row.split("  ")[:2] == [key, "active"]
    assert person.json("flow-control", "list", "--search", "nobody") == []
    missing = person("flow-control", "get", "nobody")
    assert (missing.code, missing.err) == (4, 'relay: flow-control key "nobody" not found (404)\n')


def test_a_schedule_publishes_into_a_queue_and_under_a_key(person: Person) -> None:
    flow = ("--queue", "jobs", "--flow-key", "k", "--flow-limits", "rate=1")
    assert (
        person("schedules", "create", "http://127.0.0.1:1/", "--cron", "@yearly", "--id", "q", *flow).code
        == 0
    )
    [schedule] = person.json("schedules", "get", "q")
    assert (schedule["queueName"], schedule["flowControlKey"], schedule["rate"]) == ("jobs", "k", 1)
    shown = person("schedules", "get", "q").out
    assert "queue        jobs\n" in shown
    assert "flow key     k\n" in shown
    assert person("schedules", "delete", "q").code == 0


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("publish", "example.com"), "http"),
        (("publish", "https://example.com", "--retries", "many"), "Upstash-Retries"),
        (("publish", "https://example.com", "--delay", "soon"), "Upstash-Delay"),
        (("publish", "https://example.com", "--not-before", "soon"), "Upstash-Not-Before"),
        (("publish", "https://example.com", "--retry-delay", "1 +"), "Upstash-Retry-Delay"),
        (("publish", "https://example.com", "--timeout", "soon"), "Upstash-Timeout"),
        (("publish", "https://example.com", "--method", "DANCE"), "Upstash-Method"),
        (("schedules", "create", "https://example.com", "--cron", "now"), "Upstash-Cron"),
        (("schedules", "create", "https://a.b", "--cron=@daily", "--overlap", "x"), "Relay-Schedule-Overlap"),
        (("schedules", "create", "https://a.b", "--cron=@daily", "--catch-up", "x"), "Relay-Schedule-Catch-Up"),
        (("publish", "https://example.com", "-H", "Upstash-Retries: many"), "Upstash-Retries"),
        (("publish", "https://example.com", "--callback", "nowhere"), "Upstash-Callback"),
        (("publish", "https://example.com", "--failure-callback", "x"), "Upstash-Failure-Callback"),
        (("publish", "https://example.com", "--flow-key", "k"), "Upstash-Flow-Control-Value"),
        (("url-groups", "add", "g", "nowhere"), "url"),
        (("logs", "--state", "LOST"), "state"),
        (("logs", "--path", "no-slash"), "path"),
        (("dlq", "list", "--status", "teapot"), "responseStatus"),
    ],
)  # fmt: skip
def test_the_relays_own_reason_for_a_refusal_is_shown(
    person: Person, argv: tuple[str, ...], named: str
) -> None:
    code, out, err = person(*argv)
    assert (code, out) == (1, "")
    assert err.startswith("relay: ")
    assert named in err
    assert err.endswith(" (400)\n")


def test_a_token_the_relay_does_not_know_is_refused(person: Person) -> None:
    code, out, err = person("logs", "--token", "not-a-token")
    assert (code, out) == (1, "")
    assert err.endswith(" (401)\n")


def test_rotated_keys_move_up(relay: Live) -> None:
    person = Person(relay.url, OTHER_TOKEN)
    before = person.json("keys", "show")
    after = person.json("keys", "rotate", "--yes")
    assert after["current"] == before["next"]
    assert after["next"] not in before.values()
    assert person.json("keys", "show") == after


def test_following_goes_on_after_the_relay_was_killed_and_started_again(
    tmp_path: Path, server: Server
) -> None:
    flags = ("--database", f"sqlite:///{tmp_path}/relay.db")
    seen: list[tuple[str, str]] = []
    published: list[str] = []

    def start_and_publish(port: str) -> Live:
        live = running.enter_context(a_relay("--port", port, *flags, directory=tmp_path))
        published.append(Person(live.url, live.token).publish(server.url))
        return live

    def on(line: str) -> bool:
        entry = json.loads(line)
        seen.append((entry["messageId"], entry["state"]))
        if entry["state"] != "DELIVERED":
            return False
        if len(published) == 1:
            first.kill()
            start_and_publish(first.port)
            return False
        return True

    with ExitStack() as running:
        first = start_and_publish("0")
        followed = Person(first.url, first.token)("logs", "--follow", "--json", until=on)
    assert followed.code == 130
    assert seen == [(id, state) for id in published for state in ("CREATED", "ACTIVE", "DELIVERED")]


@pytest.mark.parametrize("mode", ["dev", "serve"])
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--port", "many"), "--port"),
        (("--database", "mongodb://x"), "--database"),
        (("--host", "192.0.2.1", "--port", "0", "--database", "sqlite://"), "192.0.2.1"),
    ],
)
def test_a_flag_the_relay_cannot_use_stops_its_start_with_a_sentence(
    tmp_path: Path, mode: str, flags: tuple[str, ...], named: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "relay", mode, *flags],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_MS / 1000,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("relay: ")
    assert named in done.stderr.splitlines()[-1]

"""Queues and flow control on three nodes, one of which dies, as the receiver of their messages sees it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from tests import postgres_server
from tests.live import Live, a_relay, until

TOKEN = "a-token-for-all-nodes"
QUEUED, PARALLEL, RATED = 120, 60, 60
SLOTS = 3
RATE, PERIOD_MS = 20, 1_000
LEASE_MS = 3_000
#: How much the way of a request, and of a claim to the database, may differ.
SLACK_MS = 100


class Arrival(NamedTuple):
    """One request, by the receiver's clock (ms)."""

    body: str
    began: float
    ended: float


class Receiver:
    """Takes its time, and remembers what was there when; each path by itself."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self._lock = threading.Lock()
        self._arrivals: dict[str, list[Arrival]] = {}

    def take(self, path: str, body: str) -> None:
        began = time.monotonic() * 1000
        time.sleep(0.02)
        with self._lock:
            arrival = Arrival(body, began, time.monotonic() * 1000)
            self._arrivals.setdefault(path, []).append(arrival)

    def arrivals(self, path: str) -> list[Arrival]:
        """In the order they began."""
        with self._lock:
            return sorted(self._arrivals.get(path, ()), key=lambda arrival: arrival.began)

    def bodies(self, path: str) -> set[str]:
        return {arrival.body for arrival in self.arrivals(path)}


@contextmanager
def a_receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            receiver.take(self.path, self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

        def handle(self) -> None:
            # When a node is killed; what it had sent was taken all the same.
            with suppress(ConnectionError):
                super().handle()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


def call(node: Live, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", int(node.port), timeout=30)
    try:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers={"Authorization": f"Bearer {TOKEN}", **fields})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return content
    finally:
        connection.close()


def publish(nodes: Sequence[Live], receiver: Receiver) -> None:
    """Messages of each kind, by one node after the other: the queue's in an order that somebody can name."""
    for number in range(QUEUED):
        call(
            nodes[number % len(nodes)],
            "POST",
            f"/v2/enqueue/queue/{receiver.origin}/queued",
            b"%d" % number,
        )
    for count, path, key, value in (
        (PARALLEL, "parallel", "slots", f"parallelism={SLOTS}"),
        (RATED, "rated", "starts", f"rate={RATE}, period={PERIOD_MS // 1000}s"),
    ):
        for number in range(count):
            call(
                nodes[number % len(nodes)],
                "POST",
                f"/v2/publish/{receiver.origin}/{path}",
                b"%d" % number,
                Upstash_Flow_Control_Key=key,
                Upstash_Flow_Control_Value=value,
            )


def most_at_once(arrivals: Sequence[Arrival]) -> int:
    return max(sum(1 for other in arrivals if other.began <= one.began < other.ended) for one in arrivals)


def assert_kept(times: Sequence[float]) -> None:
    """A span of a little less than so many periods touches one window more, of those the relay counts in."""
    times = sorted(times)
    for periods in (1, 2):
        allowed = (periods + 1) * RATE
        spans = zip(times, times[allowed:], strict=False)
        assert all(later - earlier >= periods * PERIOD_MS - SLACK_MS for earlier, later in spans)


def test_three_nodes_keep_order_parallelism_and_rate_although_one_is_killed(tmp_path: Path) -> None:
    environment = {
        "RELAY_DATABASE_URL": postgres_server.url(),
        "RELAY_TOKEN": TOKEN,
        "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
        "RELAY_LEASE": f"{LEASE_MS // 1000}s",
    }
    with ExitStack() as stack:
        receiver = stack.enter_context(a_receiver())

        def a_node(name: str) -> Live:
            directory = tmp_path / name
            directory.mkdir()
            return stack.enter_context(a_relay(directory=directory, mode="serve", environment=environment))

        nodes = [a_node(name) for name in ("first", "second", "third")]
        # Nothing is to be over before all of it waits.
        call(nodes[0], "POST", "/v2/queues/queue/pause")
        for key in ("slots", "starts"):
            call(nodes[0], "POST", f"/v2/flowControl/{key}/pause")
        publish(nodes, receiver)
        assert json.loads(call(nodes[1], "GET", "/v2/queues/queue"))["lag"] == QUEUED
        assert receiver.arrivals("/queued") == []
        call(nodes[2], "POST", "/v2/queues/queue/resume")
        for key in ("slots", "starts"):
            call(nodes[2], "POST", f"/v2/flowControl/{key}/resume")
        until(
            lambda: len(receiver.bodies("/queued")) > QUEUED // 4,
            otherwise=lambda: f"only {len(receiver.bodies('/queued'))} arrived",
        )
        nodes.pop(1).kill()
        for path, count in (("/queued", QUEUED), ("/parallel", PARALLEL), ("/rated", RATED)):
            until(
                lambda path=path, count=count: len(receiver.bodies(path)) == count,  # type: ignore[misc]
                otherwise=lambda path=path: f"{len(receiver.bodies(path))} of {path}",  # type: ignore[misc]
            )
        until(
            lambda: json.loads(call(nodes[1], "GET", "/v2/queues/queue"))["lag"] == 0,
            otherwise=lambda: call(nodes[1], "GET", "/v2/queues/queue").decode(),
        )
        queued = receiver.arrivals("/queued")
        # Once again what was in flight when the node died, at most; and until that was over, nothing else.
        assert list(dict.fromkeys(arrival.body for arrival in queued)) == [str(n) for n in range(QUEUED)]
        assert [int(arrival.body) for arrival in queued] == sorted(int(arrival.body) for arrival in queued)
        assert len(queued) <= QUEUED + 1
        assert most_at_once(queued) == 1
        assert most_at_once(receiver.arrivals("/parallel")) <= SLOTS
        assert_kept([arrival.began for arrival in receiver.arrivals("/rated")])
        events = json.loads(
            call(nodes[0], "GET", "/v2/events?flowControlKey=starts&state=ACTIVE&count=1000")
        )["events"]
        assert len(events) >= RATED
        assert_kept([event["time"] for event in events])
        assert max(event["time"] for event in events) - min(event["time"] for event in events) >= (
            (RATED // RATE - 1) * PERIOD_MS - SLACK_MS
        )
        keys = json.loads(call(nodes[0], "GET", "/v2/flowControl"))
        assert [key["parallelismCount"] for key in keys] == [0, 0]

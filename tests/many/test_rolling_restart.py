"""A rolling restart under load: nodes are replaced one after the other, and nobody outside has lost anything."""

import http.client
import itertools
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests import postgres_server
from tests.live import Live, a_relay, until

TOKEN = "a-token-for-all-nodes"
#: Messages that must arrive while a step lasts, so that it has happened under load.
ENOUGH = 60


class Endpoint:
    """Answers 200, and knows how often each body came."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/"
        self._lock = threading.Lock()
        self._arrived: Counter[str] = Counter()

    def arrive(self, body: str) -> None:
        with self._lock:
            self._arrived[body] += 1

    def arrived(self) -> Counter[str]:
        with self._lock:
            return self._arrived.copy()


@contextmanager
def an_endpoint() -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            endpoint.arrive(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = Endpoint(server.server_port)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()


class Publishers:
    """A few clients behind a proxy: each asks one node after the other until one accepts its message.

    A message keeps its deduplication id on the way, as a client that was cut off in the middle should do.
    """

    def __init__(self, endpoint: Endpoint, nodes: Sequence[Live]) -> None:
        self.nodes = list(nodes)
        self.accepted: list[str] = []
        self._endpoint = endpoint
        self._numbers = itertools.count()
        self._done = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            for thread in threads:
                thread.join()

    def _run(self) -> None:
        while not self._done.is_set():
            number = next(self._numbers)
            # Some are accepted by one node and due when it has gone.
            delay = "2s" if number % 4 == 0 else "0s"
            for turn in itertools.count(number):
                nodes = self.nodes
                if self._publish(nodes[turn % len(nodes)], f"message {number}", delay):
                    break
            self.accepted.append(f"message {number}")

    def _publish(self, node: Live, body: str, delay: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", int(node.port), timeout=30)
        try:
            connection.request(
                "POST",
                f"/v2/publish/{self._endpoint.url}",
                body=body,
                headers={
                    "Authorization": f"Bearer {TOKEN}",
                    "Upstash-Delay": delay,
                    "Upstash-Deduplication-Id": body,
                },
            )
            answer = connection.getresponse()
            answer.read()
            assert answer.status in (200, 503), answer.status
            return answer.status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def test_nodes_are_replaced_one_after_the_other_and_nothing_is_lost(tmp_path: Path) -> None:
    environment = {
        "RELAY_DATABASE_URL": postgres_server.url(),
        "RELAY_TOKEN": TOKEN,
        "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
    }

    with ExitStack() as stack:
        endpoint = stack.enter_context(an_endpoint())

        def a_node(name: str) -> Live:
            directory = tmp_path / name
            directory.mkdir()
            return stack.enter_context(a_relay(directory=directory, mode="serve", environment=environment))

        first, second = a_node("first"), a_node("second")
        publishers = Publishers(endpoint, [first, second])

        def more_arrive(where: str) -> None:
            seen = sum(endpoint.arrived().values())
            until(
                lambda: sum(endpoint.arrived().values()) >= seen + ENOUGH,
                otherwise=lambda: f"nothing arrives {where}",
            )

        with publishers.at_work():
            more_arrive("with both nodes")
            for old, left, name in ((first, second, "third"), (second, None, "fourth")):
                # The publishers notice that a node has gone when it refuses them.
                assert old.stop() == 0
                left = left or publishers.nodes[-1]
                publishers.nodes = [left]
                more_arrive(f"without {old.log.parent.name}")
                publishers.nodes = [left, a_node(name)]
                more_arrive(f"with {name}")

        def missing() -> set[str]:
            return set(publishers.accepted) - set(endpoint.arrived())

        until(lambda: not missing(), otherwise=lambda: f"lost: {sorted(missing())}")
        arrived = endpoint.arrived()
        assert len(publishers.accepted) == len(set(publishers.accepted))
        assert [body for body, times in arrived.items() if times > 1] == []
        for node in publishers.nodes:
            until(lambda node=node: _live(node) == 0, otherwise=node.log.read_text)  # type: ignore[misc]


def _live(node: Live) -> float:
    name = "relay_messages_live "
    (line,) = (line for line in node.get("/metrics")[1].decode().splitlines() if line.startswith(name))
    return float(line.removeprefix(name))

"""A tenant that may have only so much in flight, on two nodes of which one dies, as the receiver sees it."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests import postgres_server
from tests.cli.console import Console
from tests.live import Live, a_relay, until
from tests.many.test_accounts_beside_relays import ask
from tests.many.test_gates_of_many_nodes import a_receiver, most_at_once

TOKEN = "a-token-for-all-nodes"
COUNT, FREE, LAST = 90, 30, 12
LIMIT = 3
PATH, OTHERS = "/acme", "/others"


def test_a_limited_tenant_has_no_more_in_flight_than_it_may_whichever_nodes_there_are(tmp_path: Path) -> None:
    environment = {
        "RELAY_DATABASE_URL": postgres_server.url(),
        "RELAY_TOKEN": TOKEN,
        "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
        "RELAY_LEASE": "3s",
    }
    console = Console()
    console.environment = {"RELAY_DATABASE_URL": environment["RELAY_DATABASE_URL"]}

    def tell(*argv: str) -> Any:
        done = console(*argv, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def publish(node: Live, token: str, path: str, body: str, door: str = "publish/") -> None:
        target = f"/v2/{door}{receiver.origin}{path}"
        status, answer = ask(node, token, "POST", target, body)
        assert status == 200, answer

    def in_flight(node: Live) -> Any:
        return json.loads(ask(node, acme, "GET", "/v2/globalParallelism", "")[1])

    def until_all_came(path: str, count: int) -> None:
        until(
            lambda: len(receiver.bodies(path)) == count,
            otherwise=lambda: f"{len(receiver.bodies(path))} of {count}",
        )

    with ExitStack() as stack:
        receiver = stack.enter_context(a_receiver())

        def a_node(name: str) -> Live:
            directory = tmp_path / name
            directory.mkdir()
            return stack.enter_context(a_relay(directory=directory, mode="serve", environment=environment))

        nodes = [a_node("first"), a_node("second")]
        created = tell("tenants", "create", "acme", "--max-parallelism", str(LIMIT))
        assert created["limits"] == {"maxParallelism": LIMIT}
        acme = tell("tokens", "create", "acme")["token"]
        for number in range(COUNT):
            door = "enqueue/q/" if number % 5 == 0 else "publish/"
            publish(nodes[number % 2], acme, PATH, str(number), door)
        assert in_flight(nodes[0])["parallelismMax"] == LIMIT
        # Nobody else waits for acme.
        for number in range(FREE):
            publish(nodes[number % 2], TOKEN, OTHERS, str(number))
        until_all_came(OTHERS, FREE)
        until(
            lambda: len(receiver.bodies(PATH)) > COUNT // 3,
            otherwise=lambda: f"only {len(receiver.bodies(PATH))} arrived",
        )
        nodes.pop(1).kill()
        until_all_came(PATH, COUNT)
        assert most_at_once(receiver.arrivals(PATH)) == LIMIT
        until(
            lambda: in_flight(nodes[0]) == {"parallelismMax": LIMIT, "parallelismCount": 0},
            otherwise=lambda: str(in_flight(nodes[0])),
        )
        assert tell("tenants", "set", "acme", "--max-parallelism", "1")["limits"] == {"maxParallelism": 1}
        nodes.append(a_node("third"))
        for number in range(LAST):
            publish(nodes[number % 2], acme, "/one", str(number))
        until_all_came("/one", LAST)
        assert most_at_once(receiver.arrivals("/one")) == 1

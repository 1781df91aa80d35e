"""Several nodes that start together on a database nobody has used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests import postgres_server
from tests.live import Live, a_relay

NODES = 4


@contextmanager
def nodes_at_once(directory: Path, environment: dict[str, str]) -> Iterator[list[Live]]:
    with ExitStack() as stack, ThreadPoolExecutor(NODES) as pool:

        def a_node(number: int) -> Live:
            own = directory / str(number)
            own.mkdir()
            return stack.enter_context(a_relay(directory=own, mode="serve", environment=environment))

        yield list(pool.map(a_node, range(NODES)))


def test_one_of_them_tells_the_credentials_and_all_of_them_take_those(tmp_path: Path) -> None:
    with nodes_at_once(tmp_path, {"RELAY_DATABASE_URL": postgres_server.url()}) as nodes:
        (told,) = (node.environment for node in nodes if node.environment)
        expected = (
            f'{{"current":"{told["QSTASH_CURRENT_SIGNING_KEY"]}","next":"{told["QSTASH_NEXT_SIGNING_KEY"]}"}}'
        )
        keys = [node.get("/v2/keys", token=told["QSTASH_TOKEN"]) for node in nodes]
        assert keys == [(200, expected.encode())] * NODES
        assert [node.greeting.count("\n") for node in nodes if not node.environment] == [1] * (NODES - 1)

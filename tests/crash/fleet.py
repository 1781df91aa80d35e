"""Several relays on one database, and the way publishers reach them: one after the other, as behind a proxy."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.crash.node import Node, a_node


class Fleet:
    """`nodes` of one time and one database; the address is that of another at each request."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self._turn = 0

    @property
    def url(self) -> str:
        """The next of those that answer; when none does, of one that did."""
        self._turn += 1
        answering = [node for node in self.nodes if node.up.is_set()] or self.nodes
        return answering[self._turn % len(answering)].url

    async def answering(self) -> None:
        """Wait for a node that answers."""
        waiting = [asyncio.ensure_future(node.answering()) for node in self.nodes]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    async def end(self) -> None:
        """Whatever they are doing."""
        for node in self.nodes:
            await node.end()


@asynccontextmanager
async def a_fleet(
    directory: Path, database: str, environment: Mapping[str, str], count: int
) -> AsyncIterator[Fleet]:
    """Not started yet. The first keeps its log in the directory, others in one of their own below it."""
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(count):
            own = directory / f"node-{number}" if number else directory
            own.mkdir(exist_ok=True)
            nodes.append(await stack.enter_async_context(a_node(own, database, environment)))
        for node in nodes:
            node.epoch = nodes[0].epoch
        yield Fleet(nodes)

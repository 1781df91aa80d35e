"""What a power cut may leave of a SQLite file and its log, made from what a killed relay left.

The promise: the relay opens it, holds every transaction up to the first damaged byte of the log, and nothing of the
one that byte belongs to, nor of any later one. A frame that was torn while it was written belongs to a transaction
that was never acknowledged, since 2xx waits for the flush.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.crash.ledger import Kind
from tests.crash.world import World


@dataclass(frozen=True, slots=True)
class Remains:
    """A database whose log holds one commit after the other, and where each of them ended, in order."""

    directory: Path
    commits: list[tuple[str, int]]

    def copy(self, directory: Path) -> tuple[str, Path]:
        """The URL of a copy of it, and the log beside it."""
        shutil.copytree(self.directory, directory)
        return f"sqlite:///{directory}/relay.db", directory / "relay.db-wal"

    def whole(self, size: int) -> set[str]:
        """The message ids of the commits within the first `size` bytes of the log."""
        return {message_id for message_id, end in self.commits if end <= size}


async def remains(world: World, *, messages: int) -> Remains:
    """A relay killed when it had accepted so many messages, one by one, none of them due."""
    database = Path(world.node.database.removeprefix("sqlite:///"))
    log = Path(f"{database}-wal")
    commits: list[tuple[str, int]] = []
    await world.node.serve()
    for _ in range(messages):
        assert await world.client.publish(Kind.DISTANT) == 200
        (newest,) = world.ledger.promised() - {message_id for message_id, _ in commits}
        commits.append((newest, log.stat().st_size))
    await world.killed()
    return Remains(database.parent, commits)

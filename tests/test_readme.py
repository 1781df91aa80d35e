"""The tour of the README, taken by a shell block by block, with other ports and directories than its reader's."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.live import a_relay, until

ROOT = Path(__file__).parents[1]
VERIFIED = "received and verified: "
DONE = "that was the block"

#: What a block begins with, and what its reader sees before going on to the next one.
TOUR: Sequence[tuple[str, Sequence[str]]] = (
    ("make run", ()),  # installs; here, this is done
    ("export QSTASH_URL", ()),
    ("cat > /tmp/receiver.py", ()),
    ("curl", ('"messageId":"msg_', VERIFIED + "hello")),
    ("pip install", ("msg_", VERIFIED + '{"from": "the SDK"}')),
    ("relay publish", ("msg_", VERIFIED + "a little later")),
    ("relay logs", ("CREATED", "ACTIVE", "DELIVERED")),
    ("relay schedules create", ("tour", "* * * * *", "active")),
    ("relay schedules delete", ("deleted",)),
    (
        "relay queues set",
        (
            *(VERIFIED + body for body in ("first", "second", "gently", "to all of you")),
            "jobs",
            "customer-17",
        ),
    ),
    ("relay url-groups delete", ("everyone", "deleted")),
    ("kill $RECEIVER", ("ERROR", "refused the connection", "RETRY", "next attempt")),
    ("python /tmp/receiver.py", (VERIFIED + "are you there?",)),
    ("kill $RECEIVER", ("DEAD LETTER", "WHY", "refused the connection")),
    ("python /tmp/receiver.py", ("1 sent again", VERIFIED + "nobody home")),
    ("relay dev --database", ("msg_",)),
    ("relay dev --database", tuple(f"{VERIFIED}message {number}" for number in range(1, 6))),
    ("kill $RELAY $RECEIVER", ("relay.stopped",)),
)


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Reader:
    """Someone at a shell, who waits for each block to show what it should."""

    def __init__(self, directory: Path, relay_port: str) -> None:
        self.hook_port = a_free_port()
        self._output = directory / "terminal"
        self._replaced = {
            "/tmp/": f"{directory}/",
            "3000": str(self.hook_port),
            "http://127.0.0.1:8080": f"http://127.0.0.1:{relay_port}",
            "relay dev ": f"relay dev --port {relay_port} ",
            "$PWD/.venv/bin": str(Path(sys.executable).parent),
            "--delay 10s": "--delay 6s",
            # Time enough for a reader; a busy machine may need more.
            "sleep 1\n": f"until curl -so /dev/null http://localhost:{self.hook_port}; do sleep 0.1; done\n",
        }
        with self._output.open("w") as output:
            self._shell = subprocess.Popen(
                ["sh"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                start_new_session=True,
            )

    def types(self, block: str, sees: Sequence[str]) -> None:
        for theirs, ours in self._replaced.items():
            block = block.replace(theirs, ours)
        before = len(self._output.read_text())
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{block}echo {DONE}\n")
        self._shell.stdin.flush()

        def shown() -> str:
            return self._output.read_text()[before:]

        until(
            lambda: all(text in shown() for text in (DONE, *sees)),
            otherwise=lambda: f"not all of {sees} after:\n{block}\n{shown()}",
        )

    def leaves(self) -> int:
        """Close the shell, and whatever a tour that was broken off has left running; the shell's exit status."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        try:
            return self._shell.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._shell.pid, signal.SIGKILL)


def test_the_tour_of_the_readme_works_to_the_letter(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    begin = readme.index("## The tour\n")
    tour = readme[begin : readme.index("\n## ", begin)]
    blocks = re.findall(r"```sh\n(.*?)```", tour, re.DOTALL)
    assert len(blocks) == len(TOUR)
    for block, (beginning, _) in zip(blocks, TOUR, strict=True):
        assert block.startswith(beginning)
    plug = tour.count("```sh", 0, tour.index("### Pull the plug"))

    with ExitStack() as leaving, a_relay(directory=tmp_path) as live:
        reader = Reader(tmp_path, live.port)
        leaving.callback(reader.leaves)
        for block, (_, sees) in list(zip(blocks, TOUR, strict=True))[1:plug]:
            reader.types(block, sees)
            if "receiver.py &" in block:
                until(lambda: answers(reader.hook_port), otherwise=lambda: "the receiver does not listen")
        assert live.stop() == 0
        for block, (_, sees) in list(zip(blocks, TOUR, strict=True))[plug:]:
            reader.types(block, sees)
        assert reader.leaves() == 0

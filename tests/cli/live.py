"""A real relay as a process of its own, on a port of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Live(NamedTuple):
    url: str
    token: str
    process: "subprocess.Popen[str]"

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]


@contextmanager
def a_relay(*flags: str, log: Path) -> Iterator[Live]:
    """`relay dev` until the end of the block; what it logs goes to the file `log`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    with (
        log.open("a") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "relay", "dev", *flags],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            exports: dict[str, str] = {}
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("export "):
                    name, _, value = line.removeprefix("export ").strip().partition("=")
                    exports[name] = value
                if "QSTASH_NEXT_SIGNING_KEY" in exports:
                    break
            assert exports, f"the relay did not start: {log.read_text()}"
            yield Live(exports["QSTASH_URL"], exports["QSTASH_TOKEN"], process)
        finally:
            process.terminate()

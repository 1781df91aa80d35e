"""The relay as its users run it: the real command, as a process of its own."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

#: The installed command, next to the interpreter that runs the tests.
COMMAND = str(Path(sys.executable).with_name("relay"))

_PATIENCE_S = 30


class Live:
    """A relay that is ready. `greeting` is what it printed, `environment` what that told its user to export."""

    def __init__(self, process: "subprocess.Popen[bytes]", greeting: str, log: Path) -> None:
        self.process = process
        self.greeting = greeting
        self.log = log
        self.url = _announced(greeting)
        exports = (
            line.removeprefix("export ") for line in greeting.splitlines() if line.startswith("export ")
        )
        self.environment = {name: value for name, _, value in (line.partition("=") for line in exports)}

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    @property
    def token(self) -> str:
        return self.environment["QSTASH_TOKEN"]

    def get(self, path: str, *, token: str | None = None) -> tuple[int, bytes]:
        """Status and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", int(self.port), timeout=_PATIENCE_S)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def stop(self) -> int:
        """End it as an operator would; its exit status."""
        self.process.terminate()
        return self.process.wait(_PATIENCE_S)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait(_PATIENCE_S)


@contextmanager
def a_relay(
    *flags: str,
    directory: Path,
    mode: Literal["dev", "serve"] = "dev",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Live]:
    """The relay, working in `directory`, until the end of the block or of the process, whichever is first.

    It listens on a free port unless the flags name one, and knows no `RELAY_` and `QSTASH_` variables but those
    of `environment`. Its log is appended to `relay.log` in the directory.
    """
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "QSTASH_"))
    }
    if "--port" not in flags:
        flags = ("--port", "0", *flags)
    output, log = directory / "relay.out", directory / "relay.log"
    with (
        output.open("wb") as stdout,
        log.open("ab") as stderr,
        subprocess.Popen(
            [COMMAND, mode, *flags],
            cwd=directory,
            env={**inherited, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        ) as process,
    ):
        try:
            yield _ready(process, output, log)
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def until(condition: Callable[[], bool], *, otherwise: Callable[[], str]) -> None:
    """Return as soon as the condition holds; fail with what `otherwise` says when it does not in time."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.01)


def _ready(process: "subprocess.Popen[bytes]", output: Path, log: Path) -> Live:
    def is_announced_or_over() -> bool:
        return b"\n" in output.read_bytes() or process.poll() is not None

    until(is_announced_or_over, otherwise=lambda: f"the relay announced nothing: {log.read_text()}")
    assert process.poll() is None, f"the relay did not start: {log.read_text()}"
    live = Live(process, output.read_text(), log)
    until(
        lambda: live.get("/readyz")[0] == 200,
        otherwise=lambda: f"the relay did not get ready: {log.read_text()}",
    )
    return live


def _announced(greeting: str) -> str:
    return greeting.partition("\n")[0].rpartition(" ")[2]

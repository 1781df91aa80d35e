"""The programs that are measured, each a child process: the relay by its own command, and the stock floor."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import machine

TOKEN = "eyJVc2VySUQiOiJiZW5jaCIsIlBhc3N3b3JkIjoiYmVuY2gtcGFzc3dvcmQtb2YtdGhlLWxvYWQifQ=="

_ROOT = Path(__file__).parents[2]
_START_SECONDS = 30
_STOP_SECONDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A running program that accepts publishes."""

    name: str
    pid: int
    port: int
    log: Path

    def get(self, path: str) -> bytes:
        """The body of a GET; raises when the answer is not 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"GET {path} answered {response.status}: {body[:300]!r}")
        return body

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def metric(self, name: str) -> float:
        """One value from `/metrics`; `name` includes its labels."""
        for line in self.get("/metrics").decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise RuntimeError(f"{name} is not among the metrics")

    def cpu(self) -> float:
        """CPU seconds so far: every process and thread, user and system."""
        return machine.cpu_seconds(self.pid)


@contextmanager
def relay(database: Path, *, profile: Path | None = None) -> Iterator[System]:
    """`relay serve` on this SQLite file with default settings, ready; stopped as an operator would at the end.

    With `profile`, under cProfile, which writes that file at the stop (and makes every call several times
    dearer: look at shares, not at sums).
    """
    command = [str(Path(sys.executable).with_name("relay"))]
    if profile is not None:
        command = [sys.executable, "-m", "cProfile", "-o", str(profile), *command]
    command += ["serve", "--host", "127.0.0.1", "--port", "0", "--database", f"sqlite:///{database}"]
    settings = {"RELAY_TOKEN": TOKEN, "RELAY_ALLOW_NETWORKS": "127.0.0.0/8"}
    with _running("relay", command, settings, database.with_suffix(".log")) as system:
        yield system


@contextmanager
def floor(directory: Path) -> Iterator[System]:
    """The stock floor, ready."""
    command = [sys.executable, "-m", "tests.bench.floor"]
    with _running("stock floor", command, {}, directory / "floor.log") as system:
        yield system


@contextmanager
def workspace(parent: Path | None = None) -> Iterator[Path]:
    """A directory for databases and logs on the disk that is to be measured; gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="relay-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _running(name: str, command: Sequence[str], settings: dict[str, str], log: Path) -> Iterator[System]:
    # A clean environment: settings of the shell must not take part in a measurement.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
    with log.open("wb") as output, machine.on_core(machine.SYSTEM_CORE):
        child = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=environment | settings,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _ready(name, child, log)
    finally:
        _stop(child)


def _ready(name: str, child: subprocess.Popen[bytes], log: Path) -> System:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        found = re.search(rb"http://127\.0\.0\.1:(\d+)", log.read_bytes())
        if found is not None:
            system = System(name=name, pid=child.pid, port=int(found[1]), log=log)
            try:
                system.get("/readyz")
            except (OSError, RuntimeError, http.client.HTTPException):
                pass
            else:
                return system
        time.sleep(0.02)
    raise RuntimeError(f"{name} did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"process {child.pid} did not stop within {_STOP_SECONDS} s and is killed", file=sys.stderr)
        child.kill()
        child.wait()


def stop_on_sigterm() -> None:
    """Let SIGTERM unwind the stack like Ctrl-C does, so that children are stopped and files removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

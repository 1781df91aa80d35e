"""A database that hangs, instead of saying no, keeps nobody waiting who asks how the relay is."""

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import postgres_server
from tests.live import a_relay, until

#: Less than what probes wait for.
PROBE_S = 3.0


@pytest.fixture
def server() -> Iterator[postgres_server.Server]:
    server = postgres_server.Server()
    server.start()
    yield server
    server.remove()


@contextmanager
def stopped(server: postgres_server.Server) -> Iterator[None]:
    """All of it, as by a machine that is suspended."""
    pids = [server.pid, *children(server.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [1, 3])
def test_readiness_tells_in_time_that_it_is_the_database(
    tmp_path: Path, server: postgres_server.Server, workers: int
) -> None:
    environment = {"RELAY_DATABASE_URL": server.url(), "RELAY_SHUTDOWN_TIMEOUT": "1s"}
    with a_relay(
        "--workers", str(workers), directory=tmp_path, mode="serve", environment=environment
    ) as live:
        with stopped(server):
            for _ in range(6):
                began_at = time.monotonic()
                status, body = live.get("/readyz")
                assert time.monotonic() - began_at < PROBE_S
                assert status == 503
                assert b"storage is unavailable" in body
                assert not re.search(rb"worker \d does not answer", body)
            began_at = time.monotonic()
            assert live.get("/metrics")[0] == 200
            assert time.monotonic() - began_at < 2 * PROBE_S
        until(lambda: live.get("/readyz")[0] == 200, otherwise=lambda: live.get("/readyz")[1].decode())

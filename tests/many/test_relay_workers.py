"""`relay serve --workers N` is one relay: one port, one greeting, one answer to probes and scrapes."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.cli import main
from tests import postgres_server
from tests.live import COMMAND, Live, a_relay, until

WORKERS = 3


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def lines(live: Live, event: str) -> Sequence[dict[str, object]]:
    found = [json.loads(line) for line in live.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def publish(live: Live, destination: str) -> str:
    request = urllib.request.Request(
        f"{live.url}/v2/publish/{destination}",
        method="POST",
        headers={"Authorization": f"Bearer {live.token}", "Upstash-Delay": "1h"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.loads(answer.read())["messageId"])


def metric(live: Live, name: str) -> float:
    for line in live.get("/metrics")[1].decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError("no such metric")


def published(live: Live) -> float:
    return metric(live, "relay_messages_published_total")


@contextmanager
def a_relay_of_several(
    directory: Path, *, workers: int = WORKERS, environment: Mapping[str, str] | None = None
) -> Iterator[Live]:
    with a_relay(
        "--workers",
        str(workers),
        directory=directory,
        mode="serve",
        environment={
            "RELAY_DATABASE_URL": postgres_server.url(),
            "RELAY_SHUTDOWN_TIMEOUT": "5s",
            **(environment or {}),
        },
    ) as live:
        yield live


def test_several_processes_are_one_relay_until_it_is_stopped(tmp_path: Path) -> None:
    with a_relay_of_several(tmp_path) as live:
        assert live.greeting.count("QSTASH_TOKEN") == 1
        pids = children(live.process.pid)
        assert len(pids) == WORKERS
        for _ in range(12):
            assert publish(live, "http://example.invalid/").startswith("msg_")
        # Each request is a connection of its own, and the kernel chooses who gets it.
        for _ in range(12):
            assert published(live) == 12
            assert b"\nrelay_messages_live 12.0\n" in live.get("/metrics")[1]
            assert live.get("/readyz") == (200, b'{"status":"ready"}')
            assert live.get("/healthz") == (200, b'{"status":"ok"}')
        assert live.stop() == 0
        assert not any(alive(pid) for pid in pids)
        assert len(lines(live, "worker.started")) == WORKERS


def test_a_killed_worker_is_replaced_and_no_number_gets_smaller(tmp_path: Path) -> None:
    with a_relay_of_several(tmp_path) as live:
        for _ in range(10):
            publish(live, "http://example.invalid/")
        assert published(live) == 10
        victim = children(live.process.pid)[0]
        os.kill(victim, signal.SIGKILL)

        def replaced() -> bool:
            try:
                assert published(live) == 10
                return bool(lines(live, "worker.replaced")) and live.get("/readyz")[0] == 200
            except ConnectionError:  # the kernel had given this one to the worker that died
                return False

        until(replaced, otherwise=live.log.read_text)
        pids = children(live.process.pid)
        assert victim not in pids
        assert len(pids) == WORKERS
        publish(live, "http://example.invalid/")
        assert published(live) == 11


def test_a_stopped_worker_is_named_and_holds_no_probe_up(tmp_path: Path) -> None:
    with a_relay_of_several(tmp_path) as live:
        frozen = children(live.process.pid)[0]
        os.kill(frozen, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(12) as askers:
                answers = list(askers.map(lambda _: _ask(live, "/readyz"), range(12)))
                answers += askers.map(lambda _: _ask(live, "/healthz"), range(12))
        finally:
            os.kill(frozen, signal.SIGCONT)
        # What the kernel gave to the stopped one is not answered; everybody else says who is missing.
        heard = [answer for answer in answers if answer is not None]
        assert heard
        for status, body in heard:
            assert status == 503
            assert b"does not answer" in body


def test_a_stopped_worker_is_told_of_killed_and_replaced(tmp_path: Path) -> None:
    with a_relay_of_several(tmp_path, workers=2, environment={"RELAY_LEASE": "6s"}) as live:
        frozen = children(live.process.pid)[0]
        assert metric(live, "relay_worker_restarts_total") == 0
        os.kill(frozen, signal.SIGSTOP)
        until(lambda: bool(lines(live, "worker.replaced")), otherwise=live.log.read_text)
        (silent,) = lines(live, "worker.silent")
        (killed,) = lines(live, "worker.killed")
        assert silent["pid"] == killed["pid"] == frozen
        assert silent["worker"] == killed["worker"]
        assert killed["reason"] == "it has given no sign of life for 6 seconds"
        assert not alive(frozen)
        pids = children(live.process.pid)
        assert len(pids) == 2
        until(lambda: live.get("/readyz")[0] == 200, otherwise=live.log.read_text)
        for _ in range(8):
            assert metric(live, "relay_worker_restarts_total") == 1
        assert live.stop() == 0


def test_a_relay_is_ready_while_one_of_its_two_workers_is_being_replaced(tmp_path: Path) -> None:
    with a_relay_of_several(tmp_path, workers=2) as live:
        # Always the youngest: the longer it goes on dying, the longer is the pause before the next.
        for deaths in (1, 2, 3):
            os.kill(children(live.process.pid)[-1], signal.SIGKILL)
            while len(lines(live, "worker.died")) < deaths:
                _is_ready_or_cut_off(live)
            answered = 0
            while len(lines(live, "worker.replaced")) < deaths:
                answered += _is_ready_or_cut_off(live)
            assert answered
            for _ in range(8):
                assert live.get("/readyz") == (200, b'{"status":"ready"}')
        assert metric(live, "relay_worker_restarts_total") == 3


def test_a_relay_with_a_worker_that_hangs_stops_before_its_supervisor_loses_patience(tmp_path: Path) -> None:
    with a_relay_of_several(tmp_path, workers=2, environment={"RELAY_SHUTDOWN_TIMEOUT": "1s"}) as live:
        pids = children(live.process.pid)
        os.kill(pids[0], signal.SIGSTOP)
        began = time.monotonic()
        assert live.stop() == 1
        # What deploy/ allows beside RELAY_SHUTDOWN_TIMEOUT is twenty seconds.
        assert time.monotonic() - began < 1 + 20
        assert not any(alive(pid) for pid in pids)
        (killed,) = lines(live, "worker.killed")
        assert (killed["pid"], killed["reason"]) == (pids[0], "it did not end")
        assert lines(live, "relay.stopped")


def test_workers_end_with_a_parent_that_was_killed_and_the_next_one_clears_up(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        environment = {"TMPDIR": temporary}
        with a_relay_of_several(tmp_path, workers=2, environment=environment) as live:
            pids = children(live.process.pid)
            (left,) = Path(temporary).iterdir()
            live.kill()
            until(lambda: not any(alive(pid) for pid in pids), otherwise=live.log.read_text)
            assert left.exists()
        with a_relay_of_several(tmp_path, workers=2, environment=environment) as live:
            (place,) = Path(temporary).iterdir()
            assert place != left
            assert live.stop() == 0
            assert list(Path(temporary).iterdir()) == []


def test_a_second_signal_ends_everybody_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with a_relay(
            "--workers",
            "2",
            directory=tmp_path,
            mode="serve",
            environment={
                "RELAY_DATABASE_URL": postgres_server.url(),
                "RELAY_SHUTDOWN_TIMEOUT": "10m",
                "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
            },
        ) as live:
            pids = children(live.process.pid)
            request = urllib.request.Request(
                f"{live.url}/v2/publish/{url}",
                method="POST",
                headers={"Authorization": f"Bearer {live.token}"},
            )
            urllib.request.urlopen(request, timeout=30).close()
            # The delivery has come, and is never answered: draining would take ten minutes.
            silent.settimeout(30)
            with silent.accept()[0]:
                live.process.send_signal(signal.SIGTERM)
                until(lambda: bool(lines(live, "relay.stopping")), otherwise=live.log.read_text)
                live.process.send_signal(signal.SIGTERM)
                assert live.process.wait(30) == 1
                until(lambda: not any(alive(pid) for pid in pids), otherwise=live.log.read_text)


def test_a_relay_is_told_to_stop_while_its_workers_start(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    with subprocess.Popen(
        [COMMAND, "serve", "--workers", "2", "--port", "0", "--database", postgres_server.url()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 30
        while not children(process.pid):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.wait(30) == 0, process.stderr.read()


def test_a_port_somebody_listens_on_ends_the_start_with_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [COMMAND, "serve", "--workers", "2", "--port", port, "--database", postgres_server.url()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("relay: ")
    assert "in use" in line


def test_on_sqlite_more_than_one_worker_is_refused_with_the_reason_and_the_way_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--workers", "2", "--database", "sqlite:///relay.db"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "postgresql://" in line
    assert "one writer" in line
    assert "0.96" in line


def _is_ready_or_cut_off(live: Live) -> bool:
    """Whether an answer came, and then it is ready: the kernel may have chosen a worker that died just now."""
    try:
        assert live.get("/readyz") == (200, b'{"status":"ready"}')
    except ConnectionError:
        return False
    return True


def _ask(live: Live, path: str) -> tuple[int, bytes] | None:
    """The answer, None when none comes soon."""
    try:
        with socket.create_connection(("127.0.0.1", int(live.port)), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            received = b""
            connection.settimeout(3)
            while more := connection.recv(65536):
                received += more
    except TimeoutError:
        return None
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body

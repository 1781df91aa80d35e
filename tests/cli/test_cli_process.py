"""The command as a process: how it starts, and how a shell ends it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.console import Request, Server
from tests.cli.shapes import a_letter, an_entry

ROOT = Path(__file__).parents[2]


def started(server: Server, *argv: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "relay", *argv],
        env={**os.environ, "QSTASH_URL": server.url, "QSTASH_TOKEN": "a-token"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_client_command_never_waits_for_the_libraries_of_the_relay() -> None:
    """They would be most of its start: aiohttp and msgspec alone take several times as long as the command."""
    program = (
        "import sys, relay.cli\n"
        "relay.cli.main(['logs', '--url', 'http://127.0.0.1:1', '--token', 'x'])\n"
        "slow = {'aiohttp', 'asyncio', 'msgspec', 'rich', 'dataclasses', 'importlib.metadata'}\n"
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_an_interrupt_ends_a_follower_quietly_with_130(server: Server) -> None:
    polled = threading.Event()

    def answer(request: Request) -> object:
        if dict(request.query).get("order") == "earliestFirst":
            polled.set()
        return Server.json({"events": [an_entry()]})

    server.answer = answer  # type: ignore[assignment]
    with started(server, "logs", "--follow") as process:
        assert polled.wait(30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert out.count(b"CREATED") == 1


def test_a_reader_that_leaves_ends_the_command_without_a_word(server: Server) -> None:
    server.says({"messages": [a_letter(url="https://example.com/" + "x" * 1000)] * 100})
    with started(server, "dlq", "list") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # More is printed than a pipe holds, so the command is still writing when its reader goes.
        assert process.stdout.readline().startswith(b"DEAD LETTER")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal_that_cannot_show_a_character_gets_it_spelled_out(server: Server, encoding: str) -> None:
    server.says({"messages": [a_letter(url="https://bücher.example/")]})
    done = subprocess.run(
        [sys.executable, "-m", "relay", "dlq", "list"],
        env={**os.environ, "QSTASH_URL": server.url, "QSTASH_TOKEN": "x", "PYTHONIOENCODING": encoding},
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    assert "https://bücher.example/".encode(encoding, "backslashreplace") in done.stdout

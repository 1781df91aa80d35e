"""A console to type commands into, and small HTTP servers to talk to."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

from relay.cli import run
from relay.cli.shell import Shell

#: 2027-01-15T08:00:00Z
NOW = 1_800_000_000_000


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Keyboard(io.BytesIO):
    def isatty(self) -> bool:
        return True


class _Watched(io.StringIO):
    """Interrupts the command, as a person would, when it has printed what the person was waiting for."""

    def __init__(self, until: Callable[[str], bool]) -> None:
        super().__init__()
        self._until = until

    def write(self, text: str) -> int:
        written = super().write(text)
        if text.strip() and self._until(text):
            raise KeyboardInterrupt
        return written


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Console:
    """Runs command lines as a shell would, in this process. `pause` is what a command's waiting does."""

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self.now: Callable[[], int] = lambda: NOW
        self.pause: Callable[[float], None] = lambda seconds: None

    def __call__(
        self,
        *argv: str,
        stdin: bytes = b"",
        typed: bytes | None = None,
        terminal: bool = False,
        until: Callable[[str], bool] | None = None,
    ) -> Result:
        """`typed`: what a person answers at a terminal, instead of `stdin`. `until`: when to interrupt."""
        stdout = _Terminal() if terminal else io.StringIO() if until is None else _Watched(until)
        stderr = io.StringIO()
        shell = Shell(
            environment=self.environment,
            stdin=io.BytesIO(stdin) if typed is None else _Keyboard(typed),
            stdout=stdout,
            stderr=stderr,
            now=self.now,
            pause=self.pause,
            zone=ZoneInfo("Europe/Berlin"),
        )
        code = run(argv, shell)
        return Result(code, stdout.getvalue(), stderr.getvalue())


class Request(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> list[tuple[str, str]]:
        return parse_qsl(urlsplit(self.target).query, strict_parsing=True)


class Answer(NamedTuple):
    status: int = 200
    body: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()


class Server:
    """An HTTP server that keeps what it was asked and answers as `answer` says; None closes the connection."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self.now: Callable[[], int] = lambda: NOW
        self.answer: Callable[[Request], Answer | None] = lambda request: Answer()
        self._stopped = False
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10
            wbufsize = 65536  # head and body in one segment, or Nagle makes every answer wait 40 ms

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                request = Request(self.command, self.path, dict(self.headers.items()), body)
                if server._stopped:
                    self.close_connection = True
                    return
                server.requests.append(request)
                answer = server.answer(request)
                if answer is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in (("Content-Length", str(len(answer.body))), *answer.headers):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(server.now() / 1000, usegmt=True)

            def log_request(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @staticmethod
    def json(document: object, status: int = 200) -> Answer:
        return Answer(status, json.dumps(document).encode())

    def says(self, document: object) -> None:
        """Answer every request with `document`."""
        self.answer = lambda request: self.json(document)

    @contextmanager
    def running(self) -> Iterator["Server"]:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            # Threads that serve a kept connection outlive the listener; they answer nothing any more.
            self._stopped = True
            self._http.shutdown()
            self._http.server_close()
            thread.join()

"""The thin client of the public API: one request, one answer, and what went wrong as a sentence.

On the standard library alone, so that a command starts in the time Python itself takes.
"""

import http.client
import json
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from relay.cli.document import Document, objects, parse, strange
from relay.cli.outcome import NOT_FOUND, REFUSED, UNREACHABLE, Failure, misused

Fields = Sequence[tuple[str, str]]

#: How long an answer may take: cancelling a large backlog in one request is the slowest there is.
_TIMEOUT_S = 60.0
#: Entries of one page: every one may carry a body, so a page stays within what a laptop holds easily.
PAGE = 100
_JSON: Fields = (("Content-Type", "application/json"),)
#: What a URL may hold as it is; everything else is percent-encoded, and an existing `%` is left alone.
_URL_SAFE = "!$%&'()*+,/:;=?@[]~"
_NOT_IN_A_HEADER = re.compile(r"[\x00\r\n]")


class Relay:
    """A relay as its clients see it. Reads share one connection."""

    def __init__(self, url: str, token: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        """`Failure` when `url` is not an HTTP base URL or `token` cannot be sent in a header."""
        self.url = url.rstrip("/")
        parts = _parts(self.url)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise misused("the token holds characters that no token has")
        self._token = token
        self._prefix = parts.path
        connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = connection(parts.hostname or "", parts.port, timeout=timeout_s)
        #: How many connections were opened: a new one may lead to a relay that was restarted.
        self.connections = 0
        #: The relay's own clock at its last answer (Unix ms, whole seconds), if it said.
        self.at: int | None = None

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str, query: Fields = ()) -> Document:
        return self.call("GET", path, query=query)

    def array(self, path: str, query: Fields = ()) -> list[Document]:
        """A list that the API gives whole."""
        return objects(parse(self._asked("GET", path, query)))

    def listed(self, path: str, key: str, query: Fields, count: int) -> tuple[list[Document], bool]:
        """At most `count` entries of the list `key`, gathered page by page, and whether there are more."""
        entries: list[Document] = []
        cursor = ""
        while len(entries) < count:
            page = [*query, ("count", str(min(count - len(entries), PAGE)))]
            document = self.get(path, [*page, ("cursor", cursor)] if cursor else page)
            entries += document.objects(key)
            cursor = document.get("cursor", "")
            if not cursor:
                break
        return entries[:count], bool(cursor) or len(entries) > count

    def call(
        self, method: str, path: str, *, query: Fields = (), headers: Fields = (), body: bytes = b""
    ) -> Document:
        """The object answered. `path` begins with a slash and is already encoded.

        This and all other requests raise `Failure` unless the status is a 2xx.
        """
        answer = parse(self._asked(method, path, query, headers, body))
        if not isinstance(answer, Document):
            raise strange("without an object")
        return answer

    def publish(self, path: str, *, headers: Fields, body: bytes) -> Document | list[Document]:
        """The answer to a publish: an object, or a list of them for a URL group."""
        answer = parse(self._asked("POST", path, (), headers, body))
        return answer if isinstance(answer, Document) else objects(answer)

    def act(self, method: str, path: str, *, query: Fields = (), body: bytes = b"") -> None:
        """A request whose answer says no more than that it was done. A body is JSON."""
        self._asked(method, path, query, _JSON if body else (), body)

    def _asked(
        self, method: str, path: str, query: Fields = (), headers: Fields = (), body: bytes = b""
    ) -> bytes:
        if query:
            path += ("&" if "?" in path else "?") + urlencode(query)
        fields = [("Authorization", f"Bearer {self._token}"), ("User-Agent", "relay-cli"), *headers]
        for name, value in fields:
            if _NOT_IN_A_HEADER.search(value):
                raise misused(f"{name} cannot hold a line break")
        try:
            # Only a read may be repeated without harm when a kept connection turns out to be dead.
            if method != "GET":
                self._connection.close()
            reused = self._connection.sock is not None
            try:
                status, content = self._exchange(method, path, fields, body)
            except (ConnectionError, http.client.BadStatusLine):
                if not reused:
                    raise
                self._connection.close()
                status, content = self._exchange(method, path, fields, body)
        except (OSError, UnicodeError, http.client.HTTPException) as problem:
            self._connection.close()
            raise Failure(f"cannot reach {self.url}: {self._reason(problem)}", UNREACHABLE) from None
        if not 200 <= status <= 299:
            raise self._refused(status, content)
        return content

    def _exchange(self, method: str, path: str, fields: Fields, body: bytes) -> tuple[int, bytes]:
        connection = self._connection
        if connection.sock is None:
            connection.connect()
            self.connections += 1
        connection.putrequest(method, self._prefix + path)
        for name, value in fields:
            connection.putheader(name, value.encode("utf-8", "surrogateescape"))
        if method != "GET":
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        self.at = _instant(response.headers["Date"])
        return response.status, response.read()

    def _reason(self, problem: Exception) -> str:
        if isinstance(problem, TimeoutError):
            return f"no answer within {self._connection.timeout:g} s"
        if isinstance(problem, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({problem.verify_message})"
        if isinstance(problem, ssl.SSLError) and not isinstance(problem, ssl.SSLEOFError):
            return "it does not speak TLS as expected; does its URL begin with http:// and not https://?"
        if isinstance(problem, socket.gaierror | UnicodeError):
            return "its host name is not known"
        if isinstance(problem, http.client.IncompleteRead | ConnectionResetError | BrokenPipeError):
            return "it closed the connection before it had answered"
        if isinstance(problem, http.client.HTTPException):
            return "it does not speak HTTP"
        return (problem.strerror if isinstance(problem, OSError) else None) or str(problem)

    def _refused(self, status: int, content: bytes) -> Failure:
        reason = f"{self.url} answered {status}"
        with suppress(ValueError, TypeError, LookupError):
            given = json.loads(content)["error"]
            reason = f"{given} ({status})" if isinstance(given, str) else reason
        return Failure(reason, NOT_FOUND if status == 404 else REFUSED, status=status)


def connect(url: str | None, token: str | None, environment: Mapping[str, str]) -> Relay:
    """The relay that flags or environment name; flags win."""
    url = url or environment.get("QSTASH_URL")
    token = token or environment.get("QSTASH_TOKEN")
    if not url:
        raise misused("which relay? Set QSTASH_URL or pass --url, for example http://127.0.0.1:8080")
    if not token:
        raise misused("QSTASH_TOKEN is not set; set it or pass --token")
    return Relay(url, token)


def segment(text: str) -> str:
    """An id as one path segment."""
    return quote(text, safe="")


def destination(url: str) -> str:
    """A destination as it follows /v2/publish/: its own query and double slashes kept, its fragment dropped."""
    return quote(url.partition("#")[0].encode("utf-8", "surrogateescape"), safe=_URL_SAFE)


def _parts(url: str) -> Any:
    problem = misused(f"{url!r} is not the URL of a relay, such as http://127.0.0.1:8080")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise problem from None
    if not usable or parts.query or parts.fragment or parts.username is not None:
        raise problem
    if not url.isascii() or not url.isprintable() or " " in url:
        raise problem
    return parts


def _instant(date: str | None) -> int | None:
    try:
        return int(parsedate_to_datetime(date or "").timestamp() * 1000)
    except ValueError:
        return None

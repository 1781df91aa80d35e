"""One attempt: an HTTP request out, an `Attempt` back, whatever happened in between.

A lean client. Names, addresses, happy eyeballs and TLS are aiohttp's `TCPConnector`, parsing is aiohttp's
`HttpResponseParser` (llhttp); the bytes of the request are our own, and so are the pool and the protocol between
the two. What `ClientSession` would add (cookies, redirects, tracing, default headers, URL rewriting) is what a
relay must not do, and costs several times what is left. The tests hold this client and one built on
`ClientSession` to the same outcomes.

Beyond aiohttp's documented interface this file uses, and a new minor version of aiohttp may change:
- `TCPConnector._factory`, which makes the protocol of a new connection, and `_loop`;
- `TCPConnector.connect` with a bare `ClientRequest`, from which it reads where to connect;
- `aiohttp.http.HttpResponseParser` and the `StreamReader` it fills (`is_eof`, `read_nowait`), which calls
  `pause_reading` and `resume_reading` of the protocol it was given.
"""

import asyncio
import errno
import functools
import os
import re
import ssl
import zlib
from collections import deque
from collections.abc import Iterable
from typing import cast

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorDNSError,
    ClientConnectorError,
    ClientConnectorSSLError,
    ClientPayloadError,
    ClientRequest,
    ClientTimeout,
    InvalidURL,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpResponseParser, RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from yarl import URL

from relay.clock import Clock
from relay.domain.delivery import Attempt
from relay.domain.errors import Unavailable
from relay.domain.message import Headers
from relay.engine.egress import Egress, Refused
from relay.engine.resolver import Resolver
from relay.wire.outbound import Outgoing, Peer

#: Bytes of an answer before its body, interim answers included; the parser bounds each line and their number.
_MAX_HEAD_BYTES = 64 << 10
_MAX_LINE_BYTES = 16 << 10
_MAX_FIELDS = 256
#: How long an address found by DNS is used without asking again.
_DNS_TTL_S = 10
#: aiohttp rounds longer timeouts to whole seconds, to share timers; there is one connect timeout a connection.
_NEVER_ROUND_S = 1e9


class Sender:
    """Makes attempts over pooled connections. To be made, used and closed in one running event loop.

    `connect_timeout_ms` covers DNS, TCP and TLS. Of a response body `max_response_bytes` are read and kept, its
    status counts even when there was more. A connection is kept for `idle_ms` after its last answer, `max_idle`
    of them at most. TLS is verified against the machine's certificates, or by `tls` when given.
    """

    def __init__(
        self,
        *,
        egress: Egress,
        clock: Clock,
        connect_timeout_ms: int = 10_000,
        max_response_bytes: int = 1 << 20,
        idle_ms: int = 15_000,
        max_idle: int = 1_000,
        tls: ssl.SSLContext | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._connect_timeout_ms = connect_timeout_ms
        self._max_response_bytes = max_response_bytes
        self._resolver = resolver or Resolver()
        self._connector = _Connector(egress, self._resolver, tls, max_response_bytes)
        self._idle = _Idle(self._loop, idle_ms / 1000, max_idle)

    async def send(self, outgoing: Outgoing, *, timeout_ms: int, keep_bytes: int | None = None) -> Attempt:
        """Send, and read the answer, within `timeout_ms` from now; of its body no more than `keep_bytes`.

        Raises nothing but `CancelledError`, and `Unavailable` when this process has no file descriptor left for
        a connection, which is not the destination's fault.

        Redirects are answers like any other. When a connection that had been idle closes without a byte of
        answer, its server had most likely given it up before the request came; the request is then sent once
        more, at once, on a new connection, and that is not an attempt of its own.
        """
        started_at = self._clock.now()
        if outgoing.problem is not None:
            return Attempt(started_at=started_at, ended_at=started_at, error=outgoing.problem)
        deadline = self._loop.time() + timeout_ms / 1000
        lane = self._idle.take(outgoing.peer)
        if lane is not None:
            lane.keep(keep_bytes)
            await lane.exchange(outgoing, deadline, timeout_ms)
            if lane.given_up:
                lane.close()
                lane = None
        if lane is None:
            try:
                lane = await self._connect(outgoing.peer, deadline, timeout_ms)
            except _Unconnected as problem:
                return Attempt(started_at=started_at, ended_at=self._ended_at(started_at), error=str(problem))
            lane.keep(keep_bytes)
            await lane.exchange(outgoing, deadline, timeout_ms)
        attempt = self._attempt(lane, started_at)
        if lane.reusable:
            self._idle.put(lane)
        else:
            lane.close()
        return attempt

    async def close(self) -> None:
        """Close every connection; an attempt that is still in flight ends with an error."""
        self._idle.clear()
        await self._connector.close()
        await self._resolver.close()

    async def _connect(self, peer: Peer, deadline: float, timeout_ms: int) -> "_Lane":
        within_s = min(deadline - self._loop.time(), self._connect_timeout_ms / 1000)
        too_late = f"no connection to {peer} within {min(timeout_ms, self._connect_timeout_ms)} ms"
        if within_s <= 0:
            raise _Unconnected(too_late)
        url = URL(f"{'https' if peer.tls else 'http'}://{peer}/", encoded=True)
        try:
            connection = await self._connector.connect(
                ClientRequest("GET", url, loop=self._loop),
                [],
                ClientTimeout(connect=within_s, ceil_threshold=_NEVER_ROUND_S),
            )
        except TimeoutError:
            raise _Unconnected(too_late) from None
        except Exception as problem:
            if isinstance(problem, OSError) and problem.errno in (errno.EMFILE, errno.ENFILE):
                raise Unavailable("this process has too many open files to connect") from problem
            raise _Unconnected(_why_unconnected(peer, problem)) from problem
        lane: object = connection.protocol
        assert isinstance(lane, _Lane)
        lane.peer = peer
        lane.connection = connection
        return lane

    def _attempt(self, lane: "_Lane", started_at: int) -> Attempt:
        ended_at = self._ended_at(started_at)
        message = lane.message
        if message is None:
            return Attempt(started_at=started_at, ended_at=ended_at, error=lane.error)
        body = lane.body
        if body and message.compression is not None:
            body = _decoded(body, message.compression, self._max_response_bytes)
        return Attempt(
            started_at=started_at,
            ended_at=ended_at,
            status=message.code,
            headers=_headers(message.raw_headers),
            body=body,
            error=lane.error,
        )

    def _ended_at(self, started_at: int) -> int:
        """The machine's clock may be set back meanwhile; an attempt does not end before it starts."""
        return max(started_at, self._clock.now())


class _Lane(asyncio.Protocol):
    """One connection, and the exchange on it. An exchange ends exactly once, in `_end`."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, max_body_bytes: int) -> None:
        self._loop = loop
        self._max_body_bytes = self._kept_bytes = max_body_bytes
        self.peer: Peer
        self.connection: Connection | None = None
        self.transport: asyncio.Transport | None = None
        #: Awaited by the connector when it closes.
        self.closed: asyncio.Future[None] = loop.create_future()
        self.idle_since = 0.0
        self._parser: HttpResponseParser
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle
        self._timeout_ms = 0
        self._head_bytes = 0
        self._body_bytes = 0
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._chunks = bytearray()
        #: Something happened that no further request may follow.
        self._spent = False
        self._dropped = False
        # What came of the last exchange: the head if there was one, as much of the body as is kept, what failed.
        self.message: RawResponseMessage | None = None
        self.body = b""
        self.error: str | None = None

    def keep(self, most_bytes: int | None) -> None:
        """Of the next answer's body, keep no more than this; None: as much as of any."""
        limit = self._max_body_bytes
        self._kept_bytes = limit if most_bytes is None else min(most_bytes, limit)

    async def exchange(self, outgoing: Outgoing, deadline: float, timeout_ms: int) -> None:
        """Send one request and wait for what comes of it, at most until `deadline` (time of the loop).

        `timeout_ms` is what the deadline is called in an error.
        """
        self._timeout_ms = timeout_ms
        self._head_bytes = 0
        self._body_bytes = 0
        self.message = None
        self.error = None
        waiter = self._waiter = self._loop.create_future()
        self._timer = self._loop.call_at(deadline, self._expire)
        transport = self.transport
        if transport is None or transport.is_closing():
            self._drop("the connection was closed before the request could be sent")
        else:
            transport.write(outgoing.head)
            if outgoing.body:
                transport.write(outgoing.body)
        try:
            await waiter
        except asyncio.CancelledError:
            self.close()
            raise

    @property
    def usable(self) -> bool:
        transport = self.transport
        return transport is not None and not self._spent and not transport.is_closing()

    @property
    def reusable(self) -> bool:
        """Whether the last exchange is through, both ways, and left the connection fit for another."""
        transport = self.transport
        return (
            transport is not None
            and not self._spent
            and self.error is None
            and self.message is not None
            and not self.message.should_close
            and transport.get_write_buffer_size() == 0
        )

    @property
    def given_up(self) -> bool:
        """Whether the server seems to have given this rested connection up before the last request came.

        It closed it without a byte of answer, or with the 408 that some send to whoever stays silent.
        """
        if self.message is None:
            return self._dropped
        return self.message.code == 408 and self.message.should_close

    def rest(self, now: float) -> None:
        """Between two exchanges: a connection that waits holds on to no answer."""
        self.idle_since = now
        self.message = None
        self.body = b""

    def close(self) -> None:
        """Drop the connection, whatever is unsent or unread. The connector calls it too."""
        self._spent = True
        if self.transport is not None:
            self.transport.abort()
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    abort = close

    # --- what the transport reports ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._parser = HttpResponseParser(
            cast(BaseProtocol, self),
            self._loop,
            self._max_body_bytes,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_FIELDS,
            payload_exception=ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,
        )

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            # An answer to no question must not become the answer to the next one.
            self.close()
            return
        try:
            self._feed(data)
        except HttpProcessingError as problem:
            self._break(_first_line(problem.message))
        except Exception as problem:
            self._break(f"{type(problem).__name__}: {_first_line(str(problem))}")

    def eof_received(self) -> None:
        self._spent = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._waiter is not None:
            how = "closed" if exc is None else "reset"
            if self.message is not None:
                self._end_body(how, clean=exc is None)
            elif self._head_bytes:
                self._end(f"the connection was {how} in the middle of the answer's head")
            else:
                self._drop(f"the connection was {how} before any answer")
        self.closed.set_result(None)
        self.close()

    # --- what the parser reports ------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Nothing to do: what was fed is taken out, and counted, before more is read."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Nothing was paused."""

    # --- the answer -------------------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        if self.message is None:
            data = self._feed_head(data)
        message = self.message
        if message is None:
            return
        payload = self._payload
        if data:
            if payload.is_eof() or self._parser.feed_data(data)[0]:
                self._spent = True
            self._body_bytes += len(data)
        chunk = payload.read_nowait()
        if payload.is_eof():
            # What is left behind an answer would be taken for the beginning of the next. (The end of a chunked
            # body that came in two parts is not recognised; that costs a connection and no answer.)
            if message.chunked:
                ended_exactly = data.endswith(b"\r\n\r\n")
            else:
                ended_exactly = self._body_bytes == payload.total_bytes
            if not ended_exactly:
                self._spent = True
            if self._chunks:
                self._chunks += chunk
                chunk = self._kept()
            self.body = chunk[: self._kept_bytes]
            self._end(None)
            return
        self._chunks += chunk
        if len(self._chunks) > self._kept_bytes:
            self._spent = True
            self.body = self._kept()
            self._end(None)

    def _feed_head(self, data: bytes) -> bytes:
        """Parse up to the end of the final head, interim answers skipped; the data that follows it.

        Head and body go to the parser one after the other, so that a broken body, or garbage behind an answer
        that has none, cannot cost us the status that came before it.
        """
        while data and self.message is None:
            end = data.find(b"\r\n\r\n") + 4
            head, data = (data, b"") if end in (3, len(data)) else (data[:end], data[end:])
            self._head_bytes += len(head)
            for message, payload in self._parser.feed_data(head)[0]:
                if self.message is not None:
                    self._spent = True
                elif message.code >= 200 or message.code < 100:
                    self.message, self._payload = message, payload
                elif message.code == 101:
                    # Nobody asked for another protocol, and HTTP this connection speaks no more.
                    self._spent = True
                    self.message, self._payload = message, EMPTY_PAYLOAD
            if self._head_bytes > _MAX_HEAD_BYTES and not self._is_bounded():
                self.message = None
                self._end(f"the answer's head is larger than {_MAX_HEAD_BYTES} bytes")
                return b""
        return data

    def _is_bounded(self) -> bool:
        """What was counted may be more than the head, where the head's end could not be found by its bytes."""
        message = self.message
        return message is not None and (
            sum(len(name) + len(value) for name, value in message.raw_headers) <= _MAX_HEAD_BYTES
        )

    def _break(self, reason: str) -> None:
        """The parser gave up. What follows a complete answer is not the answer's fault."""
        self._spent = True
        if self.message is None:
            self._end(f"the answer is not valid HTTP: {reason}")
            return
        if self._payload.exception() is None:
            self._chunks += self._payload.read_nowait()
        self.body = self._kept()
        self._end(None if self._payload.is_eof() else f"the answer's body is not valid HTTP: {reason}")

    def _end_body(self, how: str, *, clean: bool) -> None:
        """The connection is gone: the regular end of a body without a length, the failure of any other."""
        complete = False
        if clean:
            try:
                self._parser.feed_eof()
                complete = self._payload.is_eof()
            except Exception:
                complete = False
        self.body = self._kept()
        self._end(None if complete else f"the connection was {how} in the middle of the answer's body")

    def _drop(self, error: str) -> None:
        self._dropped = True
        self._end(error)

    def _expire(self) -> None:
        if self.message is None:
            self._end(f"no answer within {self._timeout_ms} ms")
            return
        self.body = self._kept()
        self._end(f"the answer was not complete within {self._timeout_ms} ms")

    def _kept(self) -> bytes:
        body = bytes(self._chunks[: self._kept_bytes])
        self._chunks.clear()
        return body

    def _end(self, error: str | None) -> None:
        waiter, self._waiter = self._waiter, None
        self.error = error
        self._payload = EMPTY_PAYLOAD
        self._timer.cancel()
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class _Idle:
    """Connections that wait for their next request.

    The one that rested last is taken first: the others grow old and go, instead of all being kept warm just
    below their servers' idle limits.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, idle_s: float, most: int) -> None:
        self._loop = loop
        self._idle_s = idle_s
        self._most = most
        #: Longest at rest first; each peer's lanes are in the same order.
        self._lanes: dict[_Lane, None] = {}
        self._by_peer: dict[Peer, deque[_Lane]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None

    def take(self, peer: Peer) -> _Lane | None:
        lanes = self._by_peer.get(peer)
        while lanes:
            lane = lanes.pop()
            del self._lanes[lane]
            if not lanes:
                del self._by_peer[peer]
            if lane.usable:
                return lane
            lane.close()
        return None

    def put(self, lane: _Lane) -> None:
        lane.rest(self._loop.time())
        self._lanes[lane] = None
        lanes = self._by_peer.get(lane.peer)
        if lanes is None:
            lanes = self._by_peer[lane.peer] = deque()
        lanes.append(lane)
        if len(self._lanes) > self._most:
            self._drop_oldest()
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(self._idle_s, self._sweep)

    def clear(self) -> None:
        while self._lanes:
            self._drop_oldest()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()

    def _drop_oldest(self) -> None:
        lane = next(iter(self._lanes))
        del self._lanes[lane]
        lanes = self._by_peer[lane.peer]
        lanes.popleft()
        if not lanes:
            del self._by_peer[lane.peer]
        lane.close()

    def _sweep(self) -> None:
        self._sweep_timer = None
        rested_until = self._loop.time() - self._idle_s
        while self._lanes:
            oldest = next(iter(self._lanes))
            if oldest.idle_since > rested_until:
                self._sweep_timer = self._loop.call_at(oldest.idle_since + self._idle_s, self._sweep)
                return
            self._drop_oldest()


class _Connector(TCPConnector):
    """Makes lanes; never pools them, since none is ever released to it."""

    def __init__(
        self, egress: Egress, resolver: AbstractResolver, tls: ssl.SSLContext | None, max_body_bytes: int
    ) -> None:
        super().__init__(
            limit=0,
            ttl_dns_cache=_DNS_TTL_S,
            socket_factory=egress.socket,
            resolver=resolver,
            ssl=tls or True,
        )
        lane = functools.partial(_Lane, loop=self._loop, max_body_bytes=max_body_bytes)
        self._factory = cast(functools.partial[ResponseHandler], lane)


class _Unconnected(Exception):  # noqa: N818 - a finding, not a fault
    """Why there is no connection, as a sentence for the log."""


def _why_unconnected(peer: Peer, problem: Exception) -> str:
    if isinstance(problem, ClientConnectorCertificateError):
        reason = getattr(problem.certificate_error, "verify_message", "") or str(problem.certificate_error)
        return f"the certificate of {peer} is not valid: {_first_line(reason)}"
    if isinstance(problem, ClientConnectorSSLError):
        reason = str(getattr(problem.os_error, "reason", "") or problem.os_error)
        if reason == "WRONG_VERSION_NUMBER":
            return f"{peer} answered without TLS: does its URL begin with http://?"
        return f"TLS with {peer} failed: {_first_line(reason.replace('_', ' ').lower())}"
    if isinstance(problem, ClientConnectorDNSError):
        return f"{peer.host} could not be resolved: {_reason(problem.os_error)}"
    if isinstance(problem, ClientConnectorError):
        if isinstance(problem.os_error, Refused):
            return str(problem.os_error)
        if problem.os_error.errno == errno.ECONNREFUSED:
            return f"{peer} refused the connection"
        return f"no connection to {peer}: {_reason(problem.os_error)}"
    if isinstance(problem, InvalidURL):
        return f"{peer.host} {problem.description or 'cannot be called'}"
    return f"no connection to {peer}: {_first_line(str(problem)) or type(problem).__name__}"


def _reason(failure: OSError) -> str:
    """The system's words, without its numbers; several addresses may have failed in several ways."""
    if failure.errno is not None and failure.errno > 0:
        return os.strerror(failure.errno).lower()
    text = failure.strerror or str(failure)
    text = _first_line(re.sub(r"\[Errno [^\]]*\] ", "", text.removeprefix("Multiple exceptions: ")))
    return text or "it was closed during the handshake"


def _first_line(text: str) -> str:
    """A parser or a library explains over several lines, the offending bytes included: the first says it."""
    for line in text.splitlines():
        if line.strip(" :"):
            return line.strip(" :")[:200]
    return ""


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """As sent, a repeated field repeated. Bytes that are not UTF-8 are read as Latin-1, which every byte is."""
    try:
        return tuple([(name.decode(), value.decode()) for name, value in raw])
    except UnicodeDecodeError:
        return tuple([(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw])


def _decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The text of a compressed body, at most `limit` bytes of it, whatever it would unpack to.

    We never ask for compression. A body that cannot be unpacked is kept as it came: what it says is for the log,
    and the endpoint has done its work.
    """
    if encoding == "gzip":
        wbits = 16 + zlib.MAX_WBITS
    elif encoding == "deflate":
        # Named for the zlib format, often sent without its two bytes of header.
        wbits = zlib.MAX_WBITS if body[0] & 0x0F == 8 else -zlib.MAX_WBITS
    else:
        return body
    try:
        return zlib.decompressobj(wbits).decompress(body, limit)
    except zlib.error:
        return body

"""A pooler in transaction mode, as strict as one may be: pgbouncer with `pool_mode = transaction`, and meaner.

Each transaction gets the session of the server that has rested for longest, whoever had it before, so that nothing
a client leaves in a session is there when it comes back. Speaks as much of PostgreSQL's protocol as that takes: no
TLS, no passwords. Clients ask one thing at a time, as asyncpg does.
"""

import asyncio
import atexit
import itertools
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlencode

from storage.postgres.driver import target_of
from tests import postgres_server

#: Few, so that processes have to share them, and that nobody may hold one while asking for another.
SESSIONS = 4

_ACCOUNT = {"user": "postgres", "database": "postgres"}
#: What pgbouncer knows how to carry from session to session. Whoever begins with more is turned away.
_CARRIED = {"client_encoding", "datestyle", "timezone", "standard_conforming_strings", "application_name"}

_TLS, _GSS, _CANCEL, _VERSION = 80877103, 80877104, 80877102, 196608
_SEALED = (_TLS, _GSS)

#: Everything of a session that outlives a transaction.
_LEFT = """
    SELECT 'prepared ' || name FROM pg_prepared_statements
    UNION ALL SELECT 'cursor ' || name FROM pg_cursors
    UNION ALL SELECT 'listening to ' || channel FROM pg_listening_channels() channel
    UNION ALL SELECT 'setting ' || name FROM pg_settings WHERE source = 'session'
    UNION ALL SELECT 'advisory lock' FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'
    UNION ALL SELECT 'table ' || relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()
"""


class Holder(Protocol):
    """Who has a session for a while."""

    def hear(self, message: bytes) -> bool:
        """Take a message of the server; whether it was the last, and the session is free for others."""

    def lose(self) -> None:
        """The session has ended in the middle."""


class Session:
    """One connection to the server. `holder` is who it belongs to at the moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, parameters: bytes) -> None:
        self.holder: Holder | None = None
        self.key = b""
        #: What the server says of itself, for clients that come later.
        self.parameters = parameters
        self._reader = reader
        self._writer = writer

    @property
    def is_open(self) -> bool:
        return not self._writer.is_closing()

    def send(self, message: bytes) -> None:
        self._writer.write(message)

    def abort(self) -> None:
        self._writer.transport.abort()

    async def messages(self) -> AsyncIterator[bytes]:
        """Until the connection ends."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                yield await _message(self._reader)
        self.abort()


class Pooler:
    """Listens on loopback. `passed` counts the transactions that went through."""

    def __init__(self, socket: Path, sessions: int) -> None:
        self.port = 0
        self.passed = 0
        self.sessions = sessions
        self._socket = socket
        self._clients: dict[bytes, Client] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: None stands for a session that is not open.
        self._resting: asyncio.Queue[Session | None] = asyncio.Queue()
        for _ in range(sessions):
            self._resting.put_nowait(None)
        self._numbers = itertools.count(1)

    async def take(self, holder: Holder) -> Session:
        """The session that has rested for longest, as soon as there is one. Raises `OSError` without a server."""
        session = await self._resting.get()
        if session is None or not session.is_open:
            try:
                session = await self._opened()
            except BaseException:
                self._resting.put_nowait(None)
                raise
        session.holder = holder
        return session

    async def left_behind(self) -> Sequence[str]:
        """What clients have left in the sessions, while nobody has any."""
        found: list[str] = []
        for _ in range(self.sessions):
            question = _Question()
            session = await self.take(question)
            session.send(_framed(b"Q", _LEFT.encode() + b"\0"))
            found += await question.answered
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of a client."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            client = await self._greeted(reader, writer)
            if client is not None:
                await client.serve()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # it has gone, or the pooler has
        finally:
            self._tasks.discard(task)
            writer.close()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _greeted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> "Client | None":
        """A client that may begin; None when it only came to cancel, or is turned away."""
        code, rest = await _startup(reader)
        while code in _SEALED:
            writer.write(b"N")
            code, rest = await _startup(reader)
        if code == _CANCEL:
            await self._cancel(rest)
            return None
        parts = rest.decode().split("\0")
        given = {name.lower() for name in parts[:-2:2]}
        if unknown := given - _ACCOUNT.keys() - _CARRIED:
            writer.write(_fatal(f"unsupported startup parameter: {min(unknown)}"))
            return None
        try:
            client = Client(self, reader, writer)
            session = await self.take(client)
        except OSError:
            writer.write(_fatal("pgbouncer cannot connect to server"))
            return None
        self._give_back(session)
        client.key = struct.pack(">II", next(self._numbers), 0)
        self._clients[client.key] = client
        writer.write(_framed(b"R", struct.pack(">I", 0)) + session.parameters)
        writer.write(_framed(b"K", client.key) + _framed(b"Z", b"I"))
        return client

    async def _cancel(self, key: bytes) -> None:
        client = self._clients.get(key)
        if client is not None and client.session is not None:
            _, writer = await asyncio.open_unix_connection(self._socket)
            writer.write(_begun(_CANCEL, client.session.key))
            writer.close()

    async def _opened(self) -> Session:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        named = "".join(f"{name}\0{value}\0" for name, value in _ACCOUNT.items())
        writer.write(_begun(_VERSION, named.encode() + b"\0"))
        session = Session(reader, writer, b"")
        async for message in session.messages():
            if message[:1] == b"S":
                session.parameters += message
            elif message[:1] == b"K":
                session.key = message[5:]
            elif message[:1] == b"Z":
                listening = asyncio.create_task(self._listen(session))
                self._tasks.add(listening)
                listening.add_done_callback(self._tasks.discard)
                return session
        raise ConnectionError("the server does not want to")

    async def _listen(self, session: Session) -> None:
        """Pass on what the server says, to whoever has the session when it does."""
        try:
            async for message in session.messages():
                if session.holder is not None and session.holder.hear(message):
                    self.passed += 1
                    self._give_back(session)
        finally:
            session.abort()
            if session.holder is not None:
                session.holder.lose()
                self._give_back(session)

    def _give_back(self, session: Session) -> None:
        session.holder = None
        self._resting.put_nowait(session)

    def forget(self, client: "Client") -> None:
        """It has gone; its session, if it has one, was in the middle of something and is of no use to others."""
        self._clients.pop(client.key, None)
        if client.session is not None:
            client.session.abort()


class Client:
    """One connection of a client, and the session it has while a transaction of its is open."""

    def __init__(self, pooler: Pooler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.key = b""
        self.session: Session | None = None
        self._pooler = pooler
        self._reader = reader
        self._writer = writer

    async def serve(self) -> None:
        """Until it says goodbye, or is gone."""
        try:
            while (message := await _message(self._reader))[:1] != b"X":
                if self.session is None:
                    self.session = await self._pooler.take(self)
                self.session.send(message)
        except OSError:
            self._writer.write(_fatal("server login has been failing, try again later (server_login_retry)"))
        finally:
            self._pooler.forget(self)

    def hear(self, message: bytes) -> bool:
        self._writer.write(message)
        if message != _framed(b"Z", b"I"):
            return False
        self.session = None
        return True

    def lose(self) -> None:
        self.session = None
        self._writer.write(_fatal("server conn crashed?"))
        self._writer.close()


class _Question:
    """Of the pooler itself: the only column of the rows that are the answer."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._rows: list[str] = []

    def hear(self, message: bytes) -> bool:
        if message[:1] == b"D":
            # The head of the message, how many columns there are, the length of the first.
            self._rows.append(message[5 + 2 + 4 :].decode())
        elif message[:1] == b"E":
            self._rows.append(message.decode(errors="replace"))
        elif message[:1] == b"Z":
            self.answered.set_result(self._rows)
            return True
        return False

    def lose(self) -> None:
        self.answered.set_result(["nothing: the session is over"])


@asynccontextmanager
async def a_pooler(socket: Path, *, sessions: int = SESSIONS) -> AsyncIterator[Pooler]:
    """On a port of its own, before the server that listens on this Unix socket."""
    pooler = Pooler(socket, sessions)
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    pooler.port = server.sockets[0].getsockname()[1]
    try:
        yield pooler
    finally:
        server.close()
        await pooler.close()
        await server.wait_closed()


def through(pooler: Pooler, url: str) -> str:
    """The same database, reached through the pooler by a relay that knows it is there."""
    place = {
        "host": "127.0.0.1",
        "port": str(pooler.port),
        "schema": target_of(url).schema,
        "pooler": "transaction",
    }
    return f"postgresql://postgres@/postgres?{urlencode(place)}"


async def _message(reader: asyncio.StreamReader) -> bytes:
    """The next one, whole."""
    head = await reader.readexactly(5)
    (length,) = struct.unpack(">I", head[1:])
    return head + await reader.readexactly(length - 4)


async def _startup(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """What a connection begins with: a code, and what belongs to it."""
    length, code = struct.unpack(">II", await reader.readexactly(8))
    return code, await reader.readexactly(length - 8)


def _begun(code: int, rest: bytes) -> bytes:
    return struct.pack(">II", 8 + len(rest), code) + rest


def _framed(kind: bytes, rest: bytes) -> bytes:
    return kind + struct.pack(">I", 4 + len(rest)) + rest


def _fatal(text: str) -> bytes:
    """As pgbouncer says everything: with the SQLSTATE of a protocol violation."""
    return _framed(b"E", f"SFATAL\0VFATAL\0C08P01\0M{text}\0\0".encode())


class Shared(NamedTuple):
    """A pooler in a thread of its own, before the server of this process."""

    pooler: Pooler
    loop: asyncio.AbstractEventLoop
    over: asyncio.Event

    def left_behind(self) -> Sequence[str]:
        return asyncio.run_coroutine_threadsafe(self.pooler.left_behind(), self.loop).result()


@cache
def shared() -> Shared:
    """The one of this process, gone with it."""
    socket = postgres_server.own().socket
    ready: Future[Shared] = Future()

    async def until_over() -> None:
        async with a_pooler(socket) as pooler:
            ours = Shared(pooler, asyncio.get_running_loop(), asyncio.Event())
            ready.set_result(ours)
            await ours.over.wait()

    thread = threading.Thread(target=asyncio.run, args=(until_over(),), daemon=True)
    thread.start()
    ours = ready.result()

    def end() -> None:
        ours.loop.call_soon_threadsafe(ours.over.set)
        thread.join()

    atexit.register(end)
    return ours


def url() -> str:
    """A database nobody has used yet, on the server of this process, through its pooler."""
    return through(shared().pooler, postgres_server.own().url())

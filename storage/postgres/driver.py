"""The PostgreSQL driver: how a URL is read, how a session is set up, and what the server's errors mean."""

import asyncio
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg
from asyncpg import exceptions
from msgspec import Struct

from relay.domain.errors import Unavailable
from storage.protocol import CannotOpen, Rejected, Unstorable
from storage.sql.script import Collision

#: What 14 has and 13 has not: multi-host URLs that find the primary, and vacuum that keeps up with a queue.
_OLDEST = 14

_CONNECT_S = 5.0

#: How long before the driver gives up on an answer that the server should have refused itself.
_GRACE_S = 2.0

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,48}")

_NO_TABLES = "the relay's tables are not there, or not all of them: are they being restored?"

#: Errors by SQLSTATE, or by its first two digits, that tell of the server and not of the statement.
_REASONS = {
    "08": "the connection to the database was lost",
    "25006": "the database is read-only",
    "25P03": "the connection to the database was lost",
    "3F000": _NO_TABLES,
    "42P01": _NO_TABLES,
    "42P10": _NO_TABLES,
    "42501": "the database denies the role of the relay what it needs",
    "28": "the database refused the relay's credentials",
    "3D": "the database does not exist",
    "40": "the database was asked for the same rows in two orders",
    "53100": "the disk of the database is full",
    "53200": "the database is out of memory",
    "53300": "the database accepts no more connections",
    "53": "the database is short of resources",
    "55P03": "the database was locked for too long",
    "57014": "the database took too long to answer",
    "57": "the database is shutting down or starting up",
    "58": "the disk of the database does not answer as it should",
}

#: Errors, by the first two digits of their SQLSTATE, that tell of the values in a statement: what cannot be
#: converted, what breaks a constraint, and what does not fit, into an index for example.
_ABOUT_VALUES = frozenset({"22", "23", "54"})

#: Not the connection's fault: it can be used again.
_PASSING = frozenset(
    {"40001", "40P01", "3F000", "42501", "42P01", "42P10", "53100", "53200", "55P03", "57014"}
)

#: What goes in and out of statements besides plain values.
_ARRAYS = "SELECT NULL::smallint[], NULL::integer[], NULL::bigint[], NULL::bytea[]"

#: What is told is on disk, also where it is the rule of a database that it need not be. Whether replicas are waited
#: for (`local`, `remote_write`, `remote_apply`) is for whoever runs it to choose.
_DURABLY = """
    SELECT set_config('synchronous_commit', 'on', {for_transaction})
    WHERE current_setting('synchronous_commit') = 'off'
"""

_MARK = re.compile(r"\?(\d*)")
_LOCK = re.compile(r"/\*(FOR UPDATE[^*]*)\*/")


class Conflict(Unstorable):
    """A row with that key is there already."""


class Target(Struct, frozen=True, kw_only=True):
    """Where the relay's tables are, and how they are reached.

    `dsn` is what the driver understands. `pooled`: there is a pooler in transaction mode in between, so nothing may
    be left in a session: no prepared statements, no settings, no LISTEN.
    """

    dsn: str
    schema: str
    pooled: bool

    @property
    def shown(self) -> str:
        """For messages: without the password."""
        parts = urlsplit(self.dsn)
        host = parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host", "localhost")
        return f"{host}{unquote(parts.path)}"


def target_of(url: str) -> Target:
    """Reads `postgresql://user:password@host:port/database`, with the parameters of libpq and two of our own:
    `schema` (default `relay`) and `pooler=transaction`. Raises `CannotOpen`."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise CannotOpen("the database URL cannot be read") from None
    ours = {"schema": "relay", "pooler": ""}
    theirs = []
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in ours:
            ours[name] = value
        else:
            theirs.append((name, value))
    if not _SCHEMA.fullmatch(ours["schema"]):
        raise CannotOpen(f'schema={ours["schema"]} must be small letters, digits and "_", at most 49 of them')
    if ours["pooler"] not in ("", "transaction"):
        raise CannotOpen(
            f"pooler={ours['pooler']} is not known; the only kind that must be named is transaction"
        )
    return Target(
        dsn=urlunsplit(parts._replace(query=urlencode(theirs))),
        schema=ours["schema"],
        pooled=ours["pooler"] == "transaction",
    )


class Session(Struct, frozen=True, kw_only=True):
    """How statements of one connection are to be run: each may take `longest_s`.

    `hot`: the few statements of the road, whose plans must never depend on what a table looked like when somebody
    analyzed it (a queue is empty one minute and holds a million rows the next): indexes only, in the order given.
    """

    longest_s: float
    hot: bool = False

    def settings(self, schema: str) -> dict[str, str]:
        """The server's settings, by name."""
        timeout = f"{int(self.longest_s * 1000)}"
        settings = {
            "search_path": schema,
            "default_transaction_isolation": "read committed",
            "statement_timeout": timeout,
            "idle_in_transaction_session_timeout": timeout,
            "jit": "off",
        }
        if self.hot:
            settings |= {
                "enable_seqscan": "off",
                "enable_hashjoin": "off",
                "enable_mergejoin": "off",
                "plan_cache_mode": "force_generic_plan",
                "work_mem": "32MB",
            }
        return settings


class Connection:
    """One connection. Raises `Unavailable`, `Rejected` or what else is wrong with a call, never a driver's error.

    After an `Unavailable` that may be lasting it is closed.
    """

    def __init__(self, raw: Any, target: Target, session: Session) -> None:
        self._raw = raw
        self._pooled = target.pooled
        self._timeout_s = session.longest_s + _GRACE_S
        # In a pooler's session nothing stays: every transaction says it again, in the same round trip as BEGIN.
        self._begin = "BEGIN"
        if target.pooled:
            settings = session.settings(target.schema)
            settings.pop("default_transaction_isolation")
            self._begin = "BEGIN ISOLATION LEVEL READ COMMITTED; " + "; ".join(
                f"SET LOCAL {name} = '{value}'" for name, value in settings.items()
            )
            self._begin += ";" + _DURABLY.format(for_transaction="true")
        self._open = False

    @property
    def usable(self) -> bool:
        return not self._raw.is_closed()

    @property
    def raw(self) -> Any:
        """The driver's own connection, for LISTEN."""
        return self._raw

    async def rows(self, text: str, *values: Any) -> Any:
        """Run one statement (with `$1`, `$2`) inside the open transaction, or as one of its own."""
        if self._pooled and not self._open:
            await self.begin()
            try:
                rows = await self._fetch(text, values)
            except BaseException:
                await self.rollback()
                raise
            await self.commit()
            return rows
        return await self._fetch(text, values)

    async def begin(self) -> None:
        await self.run(self._begin)
        self._open = True

    async def commit(self) -> None:
        self._open = False
        await self.run("COMMIT")

    async def rollback(self) -> None:
        """Leave no transaction open: never raises, closes the connection when it cannot be used again."""
        self._open = False
        if not self._raw.is_closed():
            try:
                await self.run("ROLLBACK")
            except Exception:
                self.terminate()

    async def learn_types(self) -> None:
        """Have the driver ask now for the types it does not know, in a transaction that is undone.

        It sets jit for the session when it asks, which would stay with whoever comes next in a pooler's session.
        """
        await self.begin()
        try:
            await self._fetch(_ARRAYS, ())
        finally:
            await self.rollback()

    async def run(self, text: str) -> None:
        """Run statements without values."""
        try:
            await self._raw.execute(text, timeout=self._timeout_s)
        except BaseException as error:
            self._raise(error)

    async def listen(self, channel: str, heard: Callable[[Any, int, str, str], None]) -> None:
        """Have `heard` called with the driver's connection, the sender's process, the channel and what is said.

        The driver itself would wait for the server for ever.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._raw.add_listener(channel, heard)
        except BaseException as error:
            self._raise(error)

    async def close(self) -> None:
        """Say goodbye, but do not wait for long."""
        try:
            await self._raw.close(timeout=_GRACE_S)
        except BaseException:
            self.terminate()
            raise

    def terminate(self) -> None:
        if not self._raw.is_closed():
            self._raw.terminate()

    async def _fetch(self, text: str, values: tuple[Any, ...]) -> Any:
        try:
            return await self._raw.fetch(text, *values, timeout=self._timeout_s)
        except BaseException as error:
            self._raise(error)

    def _raise(self, error: BaseException) -> NoReturn:
        if not isinstance(error, Exception):
            # Cancelled: what the server makes of the statement is not waited for.
            self.terminate()
            raise error
        problem = translated(error)
        if isinstance(problem, Unavailable):
            if state_of(error) not in _PASSING:
                self.terminate()
        elif problem is error:
            if not self._raw.is_closed():
                raise error
            problem = Unavailable(_REASONS["08"], retry_after_s=2)
        raise problem from error


async def connect(target: Target, session: Session) -> Connection:
    """Open a connection. Raises `Unavailable` when the server cannot be reached or does not want to."""
    settings = {} if target.pooled else session.settings(target.schema)
    try:
        raw = await asyncpg.connect(
            target.dsn,
            timeout=_CONNECT_S,
            statement_cache_size=0 if target.pooled else 200,
            max_cached_statement_lifetime=0,
            server_settings={"application_name": "relay", **settings},
        )
    except (ValueError, exceptions.ClientConfigurationError) as error:
        raise CannotOpen(f"the database URL cannot be used: {error}") from None
    except exceptions.ProtocolViolationError as error:
        # The one SQLSTATE of pgbouncer: also for having no server at the moment.
        if "startup parameter" not in str(error):
            raise Unavailable(
                f"the pooler of the database turns the relay away: {error}", retry_after_s=2
            ) from error
        raise CannotOpen(
            f"the database does not take the relay's settings ({error}): "
            "if there is a pooler in transaction mode in between, add pooler=transaction to its URL"
        ) from None
    except Exception as error:
        reason = unavailable(error)
        if reason is not None:
            raise reason from error
        if isinstance(error, exceptions.PostgresError):
            raise CannotOpen(f"the database refuses the relay: {error}") from None
        raise
    connection = Connection(raw, target, session)
    try:
        if target.pooled:
            await connection.learn_types()
        else:
            await connection.run(_DURABLY.format(for_transaction="false"))
    except BaseException:
        connection.terminate()
        raise
    return connection


def version_problem(version: int) -> str | None:
    """Why a server of this major version cannot be used."""
    if version < _OLDEST:
        return f"PostgreSQL {version} is too old: {_OLDEST} or newer is needed"
    return None


def encoding_problem(encoding: str) -> str | None:
    """Why a database of this encoding, as the server calls it, cannot be used: it cannot hold what endpoints and
    publishers send, or (SQL_ASCII) does not know what it holds."""
    if encoding != "UTF8":
        return (
            f"the encoding of the database is {encoding}, where Relay needs UTF8: create another one with "
            "CREATE DATABASE relay ENCODING 'UTF8' TEMPLATE template0"
        )
    return None


def state_of(error: BaseException | None) -> str:
    """The SQLSTATE of a driver's error, "" for anything else."""
    return getattr(error, "sqlstate", None) or ""


def is_collision(error: BaseException) -> bool:
    """Deadlock or serialization failure: the same transaction, repeated, goes through."""
    if isinstance(error, Collision):
        return True
    return isinstance(error, Unavailable) and state_of(error.__cause__) in ("40001", "40P01")


def is_locked(error: BaseException) -> bool:
    """Somebody else held a lock for longer than `lock_timeout`."""
    return isinstance(error, Unavailable) and state_of(error.__cause__) == "55P03"


def lacks_rights(problem: BaseException) -> bool:
    """Whether the server refused a statement for who asked."""
    return state_of(problem.__cause__) == "42501"


def unavailable(error: BaseException) -> Unavailable | None:
    """The error as the state of the server, if that is what it tells; None when one statement was wrong."""
    state = state_of(error)
    reason = _REASONS.get(state) or _REASONS.get(state[:2])
    if reason is not None:
        return Unavailable(reason, retry_after_s=2)
    if isinstance(error, TimeoutError):
        return Unavailable(_REASONS["57014"], retry_after_s=2)
    if isinstance(error, OSError):
        return Unavailable(f"the database cannot be reached: {error.strerror or error}", retry_after_s=2)
    if isinstance(error, exceptions.InternalClientError | exceptions.InvalidCachedStatementError):
        return Unavailable(_REASONS["08"], retry_after_s=2)
    return None


def translated(error: Exception) -> Exception:
    """What a caller may see instead of a driver's error."""
    reason = unavailable(error)
    if reason is not None:
        return reason
    if isinstance(error, exceptions.UniqueViolationError):
        return Conflict(str(error))
    if state_of(error)[:2] in _ABOUT_VALUES:
        return Unstorable(str(error))
    if isinstance(error, exceptions.PostgresError):
        return Rejected(str(error))
    return error


@lru_cache(maxsize=2048)
def dollars(text: str) -> str:
    """A script's text with `$1` for `?1`, numbers for the marks that have none, and its locks uncovered."""
    count = 0

    def number(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        return f"${match[1] or count}"

    return _MARK.sub(number, _LOCK.sub(r"\1", text))

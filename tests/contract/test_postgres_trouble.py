"""When PostgreSQL is gone, slow, foreign or refuses: a clear refusal, never a wrong answer, recovery by itself."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from asyncpg import exceptions

from relay.clock import SharedClock, SystemClock
from relay.domain.errors import Unavailable
from storage.postgres import driver, open_postgres
from storage.postgres.connections import Pool, Server
from storage.postgres.driver import Conflict, Connection, Session, target_of
from storage.postgres.storage import PostgresStorage
from storage.protocol import CannotOpen, ClaimTerms, Rejected, Unstorable
from tests import postgres_server
from tests.builders import NOW, TENANT, a_message
from tests.contract.steps import (
    EVERYTHING,
    LATER,
    LEASE_MS,
    accept,
    deliver,
    fail,
    happenings,
    start,
    take,
)
from tests.crash.proxy import a_proxy

ROOT = Path(__file__).parent.parent.parent
SHORT = Session(longest_s=0.2)


@pytest.fixture
def url() -> str:
    return postgres_server.url()


@pytest.fixture
async def storage(url: str) -> AsyncIterator[PostgresStorage]:
    opened = await open_postgres(url)
    yield opened
    await opened.close()


@pytest.fixture
async def database(url: str) -> AsyncIterator[Any]:
    """The server as an administrator sees it."""
    target = target_of(url)
    connection = await asyncpg.connect(target.dsn, server_settings={"search_path": target.schema})
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[postgres_server.Server]:
    """A server that a test may stop."""
    server = postgres_server.Server()
    server.start()
    yield server
    server.remove()


async def until_it_works(work: Callable[[], Awaitable[object]]) -> None:
    """Try again while storage says that it is unavailable, which it must not do for long."""
    async with asyncio.timeout(20):
        while True:
            try:
                await work()
                return
            except Unavailable:
                # What a client does that was told to come again.
                await asyncio.sleep(0.05)


# Opening.


def test_without_the_driver_a_sentence_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['asyncpg'] = None\n"
        "from relay.main import main\n"
        "sys.exit(main('serve', {'database_url': 'postgresql://localhost/relay'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "relay: PostgreSQL needs a driver that is not installed: pip install '.[postgres]' in Relay's source tree\n"
    )


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(Unavailable, match=r"^127\.0\.0\.1:1/relay: the database cannot be reached") as caught:
        await open_postgres("postgresql://relay:secret@127.0.0.1:1/relay")
    assert "secret" not in str(caught.value)


async def test_a_database_that_does_not_exist_is_said_so(url: str) -> None:
    with pytest.raises(Unavailable, match="does not exist"):
        await open_postgres(url.replace("/postgres?", "/nowhere?"))


@pytest.mark.parametrize(
    ("parameter", "problem"),
    [
        ("schema=Relay", "schema=Relay must be small letters"),
        ("schema=", "schema= must be"),
        ("pooler=session", "pooler=session is not known"),
        ("sslmode=odd", "cannot be used"),
    ],
)
async def test_a_parameter_that_cannot_be_meant_is_named(parameter: str, problem: str) -> None:
    with pytest.raises(CannotOpen, match=problem):
        await open_postgres(f"postgresql://127.0.0.1:1/relay?{parameter}")


def test_our_parameters_are_taken_out_and_all_others_reach_the_driver() -> None:
    target = target_of(
        "postgresql://u:p%40@h1:1,h2:2/db?schema=mine&sslmode=require&pooler=transaction&host=%2Ftmp"
    )
    assert (target.schema, target.pooled) == ("mine", True)
    assert target.dsn == "postgresql://u:p%40@h1:1,h2:2/db?sslmode=require&host=%2Ftmp"
    plain = target_of("postgresql://h/db")
    assert (plain.schema, plain.pooled, plain.dsn) == ("relay", False, "postgresql://h/db")


def test_a_server_that_is_too_old_is_named() -> None:
    assert driver.version_problem(14) is None
    assert driver.version_problem(13) == "PostgreSQL 13 is too old: 14 or newer is needed"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
@pytest.mark.parametrize("pooler", ["", "&pooler=transaction"])
async def test_a_database_of_another_encoding_is_refused_with_how_to_create_one(
    own_server: postgres_server.Server, encoding: str, pooler: str
) -> None:
    url = own_server.url()
    name = f"odd_{encoding.lower()}"
    administrator = await asyncpg.connect(target_of(url).dsn)
    await administrator.execute(f"DROP DATABASE IF EXISTS {name}")
    await administrator.execute(
        f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    await administrator.close()
    with pytest.raises(CannotOpen) as refused:
        await open_postgres(url.replace("/postgres?", f"/{name}?") + pooler)
    assert str(refused.value).endswith(
        f"/{name}: the encoding of the database is {encoding}, where Relay needs UTF8: create another one with "
        "CREATE DATABASE relay ENCODING 'UTF8' TEMPLATE template0"
    )
    odd = await asyncpg.connect(target_of(url.replace("/postgres?", f"/{name}?")).dsn)
    assert await odd.fetch("SELECT 1 FROM pg_namespace WHERE nspname = 'relay'") == []
    await odd.close()


@pytest.mark.parametrize("pooler", ["", "transaction"])
async def test_processes_that_open_a_fresh_database_at_once_migrate_it_once(
    url: str, database: Any, pooler: str
) -> None:
    opened = await asyncio.gather(*(open_postgres(f"{url}&pooler={pooler}") for _ in range(6)))
    versions = [row[0] for row in await database.fetch("SELECT version FROM migrations ORDER BY applied_at")]
    assert versions == sorted(set(versions))
    await accept(opened[0], a_message())
    assert len(await take(opened[3])) == 1
    await asyncio.gather(*(storage.close() for storage in opened))


async def test_a_setting_that_the_server_does_not_know_is_named(url: str) -> None:
    with pytest.raises(CannotOpen, match=r"the database refuses the relay: .*no_such_setting"):
        await open_postgres(f"{url}&no_such_setting=1")


async def test_without_migrating_only_what_is_up_to_date_is_opened(url: str, database: Any) -> None:
    with pytest.raises(CannotOpen, match="run relay migrate first"):
        await open_postgres(url, migrate=False)
    assert await database.fetchval("SELECT to_regnamespace($1)", target_of(url).schema) is None
    await (await open_postgres(url)).close()
    storage = await open_postgres(url, migrate=False)
    await storage.ping()
    await storage.close()


async def test_a_schema_of_another_application_is_refused_untouched(url: str, database: Any) -> None:
    schema = target_of(url).schema
    await database.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.precious (x integer)")
    with pytest.raises(CannotOpen, match="belongs to another application"):
        await open_postgres(url)
    assert await database.fetchval("SELECT to_regclass($1)", f"{schema}.migrations") is None


async def test_an_account_that_may_not_create_is_told_so(url: str, database: Any) -> None:
    target = target_of(url)
    account = target.schema
    await database.execute(f"CREATE ROLE {account} LOGIN")
    try:
        with pytest.raises(CannotOpen, match="cannot be migrated: permission denied"):
            await open_postgres(url.replace("//postgres@", f"//{account}@"))
        await database.execute(f"CREATE SCHEMA {account} AUTHORIZATION {account}")
        storage = await open_postgres(url.replace("//postgres@", f"//{account}@"))
        await accept(storage, a_message())
        await storage.close()
    finally:
        await database.execute(f"DROP OWNED BY {account} CASCADE; DROP ROLE {account}")


async def test_two_relays_in_one_database_know_nothing_of_each_other(
    storage: PostgresStorage, url: str
) -> None:
    other = await open_postgres(f"{url}_other")
    heard: list[int] = []
    other.on_work(heard.append)
    await accept(storage, a_message())
    assert await take(other) == []
    assert (await other.stats()).live == 0
    await other.close()
    assert heard == []


# Clocks.


async def test_a_machine_with_a_wrong_clock_agrees_with_the_database_and_is_not_ready(url: str) -> None:
    truth = SystemClock()
    clock = SharedClock(wall=lambda: truth.now() + 3_600_000)
    storage = await open_postgres(url, clock=clock)
    assert abs(clock.now() - truth.now()) < 1_000
    assert abs(storage.clock_offset_ms - 3_600_000) < 1_000
    with pytest.raises(Unavailable, match=r"clock is 3[56][0-9]{2} seconds ahead of the database's"):
        await storage.ping()
    await accept(storage, a_message())
    await storage.close()


async def test_a_machine_with_a_right_clock_is_ready(storage: PostgresStorage) -> None:
    await storage.ping()
    assert abs(storage.clock_offset_ms) < 1_000


# Losing the server.

TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = 'relay' AND pid <> pg_backend_pid()
"""


async def test_nothing_acknowledged_is_lost_while_all_sessions_are_terminated_again_and_again(
    own_server: postgres_server.Server,
) -> None:
    storage = await open_postgres(own_server.url())
    database = await asyncpg.connect(target_of(own_server.url()).dsn)
    accepted: set[int] = set()
    delivered: set[int] = set()
    refused = 0
    stopping = asyncio.Event()

    async def work() -> None:
        nonlocal refused
        while not stopping.is_set():
            message = a_message()
            try:
                published = await storage.publish(
                    [message], now=NOW, claim=ClaimTerms(limit=1, lease_ms=LEASE_MS)
                )
                accepted.add(message.id)
                if await deliver(storage, *published.claims) == []:
                    delivered.add(message.id)
            except Unavailable:
                refused += 1
                await asyncio.sleep(0.01)

    workers = [asyncio.create_task(work()) for _ in range(20)]
    async with asyncio.timeout(60):
        for round_ in range(1, 6):
            while len(accepted) < round_ * 200:
                await asyncio.sleep(0.001)
            await database.execute(TERMINATE)
        stopping.set()
        await asyncio.gather(*workers)
    assert refused > 0
    await until_it_works(storage.ping)
    left = {claim.message.id for claim in await take_all(storage)}
    ended = {
        event.message.id for event in await happenings(storage, limit=100_000) if event.change.value == 4
    }
    assert accepted <= left | ended
    assert delivered <= ended
    assert left.isdisjoint(ended)
    assert (await storage.stats()).live == len(left)
    await database.close()
    await storage.close()


async def take_all(storage: PostgresStorage) -> Sequence[Any]:
    return (await storage.claim(ClaimTerms(limit=100_000, lease_ms=LEASE_MS), now=LATER)).claims


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restarted", "crashed"])
async def test_a_server_that_goes_and_comes_back_is_survived(
    own_server: postgres_server.Server, how: signal.Signals
) -> None:
    url = own_server.url()
    storage, other = await open_postgres(url), await open_postgres(url)
    first, last = a_message(), a_message()
    await accept(storage, first)
    own_server.stop(how)
    outcomes = await asyncio.gather(
        accept(storage, a_message()),
        take(storage),
        storage.message(TENANT, first.id),
        storage.ping(),
        fail(storage),
        storage.cancel(TENANT, EVERYTHING, limit=None, now=NOW),
        return_exceptions=True,
    )
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    own_server.start()
    await until_it_works(lambda: accept(storage, last))
    await until_it_works(storage.ping)
    assert [claim.message for claim in await take(storage)] == [first, last]
    heard: asyncio.Queue[int] = asyncio.Queue()
    other.on_work(heard.put_nowait)
    async with asyncio.timeout(20):
        await other.listening()
        # Earlier than anything before it: hints that wait are told as one, the earliest.
        await until_it_works(lambda: accept(storage, a_message(created_at=NOW - 7), now=NOW - 7))
        while await heard.get() != NOW - 7:
            pass
    await asyncio.gather(storage.close(), other.close())


@pytest.mark.parametrize("how", ["renamed", "denied", "dropped"])
async def test_tables_that_are_not_there_or_not_ours_are_unavailable_until_they_are_again(
    storage: PostgresStorage, url: str, database: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    schema = target_of(url).schema
    first, last = a_message(), a_message()
    await accept(storage, first)
    ours, reason = storage, "tables are not there"
    away, back = (
        f"ALTER SCHEMA {schema} RENAME TO {schema}_away",
        f"ALTER SCHEMA {schema}_away RENAME TO {schema}",
    )
    if how == "denied":
        # A role that owns nothing, and may use everything for now.
        role = f"{schema}_role"
        objects = ("ALL TABLES IN SCHEMA", "ALL SEQUENCES IN SCHEMA", "SCHEMA")
        back = "; ".join(f"GRANT ALL ON {one} {schema} TO {role}" for one in objects)
        away = f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}"
        await database.execute(f"CREATE ROLE {role} LOGIN; {back}")
        ours, reason = (
            await open_postgres(url.replace("//postgres@", f"//{role}@")),
            "denies the role of the relay",
        )
    if how == "dropped":
        # What is restored has other oids.
        away = f"DROP SCHEMA {schema} CASCADE"
    await ours.ping()
    await database.execute(away)
    try:
        outcomes = await asyncio.gather(
            accept(ours, a_message()),
            take(ours),
            ours.message(TENANT, first.id),
            ours.ping(),
            ours.cancel(TENANT, EVERYTHING, limit=None, now=NOW),
            ours.put_setting("name", "value"),
            ours.stats(),
            return_exceptions=True,
        )
    finally:
        if how == "dropped":
            restored = await open_postgres(url)
            await accept(restored, first)
            await restored.close()
        else:
            await database.execute(back)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}, outcomes
    assert {reason in str(outcome) for outcome in outcomes} == {True}, outcomes
    await until_it_works(lambda: accept(ours, last))
    await until_it_works(ours.ping)
    assert [claim.message for claim in await take(ours)] == [first, last]
    assert not [record for record in caplog.records if record.exc_info]
    if ours is not storage:
        await ours.close()
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_closing_writes_what_was_accepted_and_refuses_what_comes_after(url: str) -> None:
    storage = await open_postgres(url)
    messages = [a_message() for _ in range(50)]
    pending = [asyncio.create_task(accept(storage, message)) for message in messages]
    await asyncio.sleep(0)
    await storage.close()
    await storage.close()
    assert all(task.done() for task in pending)
    with pytest.raises(Unavailable, match="stopping"):
        await accept(storage, a_message())
    with pytest.raises(Unavailable, match="stopping"):
        await storage.message(TENANT, messages[0].id)
    again = await open_postgres(url)
    assert [claim.message for claim in await take(again)] == messages
    await again.close()


async def test_closing_does_not_wait_for_a_server_that_is_gone(own_server: postgres_server.Server) -> None:
    storage = await open_postgres(own_server.url())
    await accept(storage, a_message())
    own_server.stop()
    async with asyncio.timeout(10):
        await storage.close()
    own_server.start()


async def test_history_begins_when_a_message_was_brought_and_not_when_a_connection_was_to_be_had(
    url: str, storage: PostgresStorage
) -> None:
    other = await open_postgres(url)
    await accept(other, a_message(), a_message())
    first, second = await take(storage)
    await deliver(storage, first)
    # Settlements have their connection by now; publishes have not.
    late = a_message()
    published = asyncio.create_task(accept(storage, late))
    await asyncio.sleep(0)
    await deliver(storage, second)
    await published
    assert [event.message.id for event in await happenings(storage)][-2:] == [late.id, second.message.id]
    await other.close()


async def test_claims_whose_caller_has_gone_are_handed_back(storage: PostgresStorage) -> None:
    messages = [a_message() for _ in range(3)]
    await accept(storage, *messages[:2])
    claiming = asyncio.create_task(take(storage))
    publishing = asyncio.create_task(start(storage, messages[2]))
    await asyncio.sleep(0)
    claiming.cancel()
    publishing.cancel()
    await asyncio.gather(claiming, publishing, return_exceptions=True)
    found: set[int] = set()
    async with asyncio.timeout(10):
        while len(found) < 3:
            found |= {claim.message.id for claim in await take(storage)}
    assert found == {message.id for message in messages}


async def test_claims_whose_caller_has_gone_while_it_closes_are_handed_back(url: str) -> None:
    storage = await open_postgres(url)
    messages = [a_message() for _ in range(3)]
    await accept(storage, *messages[:2])
    asked = [asyncio.create_task(take(storage)), asyncio.create_task(start(storage, messages[2]))]
    await asyncio.sleep(0)
    for task in asked:
        task.cancel()
    await storage.close()
    again = await open_postgres(url)
    assert {claim.message.id for claim in await take(again)} == {message.id for message in messages}
    await again.close()


# Statements that wait.


@pytest.fixture
async def pool(url: str) -> AsyncIterator[Pool]:
    pool = Pool(Server(target_of(url)), SHORT, 1)
    yield pool
    await pool.close()


async def one(connection: Connection) -> int:
    return int((await connection.rows("SELECT 1"))[0][0])


async def test_a_statement_that_takes_too_long_is_given_up_by_the_server(pool: Pool) -> None:
    pid = await pool.use(backend)
    with pytest.raises(Unavailable, match="took too long"):
        await pool.use(lambda connection: connection.rows("SELECT pg_sleep(60)"))
    assert await pool.use(backend) == pid


async def test_an_answer_that_never_comes_is_given_up_and_the_connection_replaced(
    own_server: postgres_server.Server,
) -> None:
    pool = Pool(Server(target_of(own_server.url())), SHORT, 1)
    pid = await pool.use(backend)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="took too long"):
            await pool.use(one)
        assert await pool.use(backend) != pid
    finally:
        os.kill(pid, signal.SIGCONT)
        await pool.close()


async def test_a_connection_that_breaks_or_falls_silent_while_it_begins_to_listen_is_unavailable(
    own_server: postgres_server.Server,
) -> None:
    async with a_proxy(str(own_server.socket)) as proxy:
        target = target_of(f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres")
        for trouble in (proxy.cut, proxy.swallow):
            proxy.mend()
            connection = await driver.connect(target, SHORT)
            trouble()
            with pytest.raises(Unavailable):
                await connection.listen("channel", lambda *_: None)
            assert not connection.usable


async def backend(connection: Connection) -> int:
    return int((await connection.rows("SELECT pg_backend_pid()"))[0][0])


async def test_a_caller_that_goes_does_not_keep_its_connection(pool: Pool) -> None:
    waiting = asyncio.Event()

    async def wait(connection: Connection) -> None:
        waiting.set()
        await connection.rows("SELECT pg_sleep(60)")

    search = asyncio.create_task(pool.use(wait))
    await waiting.wait()
    search.cancel()
    await asyncio.gather(search, return_exceptions=True)
    assert search.cancelled()
    assert await pool.use(one) == 1


async def test_transactions_that_lock_each_other_out_are_repeated(url: str) -> None:
    pool = Pool(Server(target_of(url)), Session(longest_s=10), 2)
    both = asyncio.Barrier(2)
    attempts: list[int] = []

    async def lock(connection: Connection, first: int, second: int) -> int:
        attempts.append(first)
        await connection.rows("SELECT pg_advisory_xact_lock(77, $1)", first)
        if len(attempts) <= 2:
            await both.wait()
        await connection.rows("SELECT pg_advisory_xact_lock(77, $1)", second)
        return first

    locked = await asyncio.gather(
        pool.transaction(lambda connection: lock(connection, 1, 2)),
        pool.transaction(lambda connection: lock(connection, 2, 1)),
    )
    assert (list(locked), len(attempts)) == ([1, 2], 3)
    await pool.close()


async def test_a_transaction_that_fails_leaves_nothing_and_its_connection_is_good(pool: Pool) -> None:
    async def twice(connection: Connection) -> None:
        await connection.run("CREATE TEMP TABLE t (n integer PRIMARY KEY) ON COMMIT DROP")
        await connection.rows("INSERT INTO t VALUES (1)")
        await connection.rows("INSERT INTO t VALUES (1)")

    pid = await pool.use(backend)
    with pytest.raises(Conflict, match="duplicate key"):
        await pool.transaction(twice)
    with pytest.raises(Unavailable, match="tables are not there"):
        await pool.use(lambda connection: connection.rows("SELECT * FROM t"))
    assert await pool.use(backend) == pid


# What errors mean.


@pytest.mark.parametrize(
    "error",
    [
        exceptions.AdminShutdownError,
        exceptions.CrashShutdownError,
        exceptions.CannotConnectNowError,
        exceptions.QueryCanceledError,
        exceptions.TooManyConnectionsError,
        exceptions.OutOfMemoryError,
        exceptions.DiskFullError,
        exceptions.SerializationError,
        exceptions.DeadlockDetectedError,
        exceptions.LockNotAvailableError,
        exceptions.ReadOnlySQLTransactionError,
        exceptions.ConnectionDoesNotExistError,
        exceptions.InvalidPasswordError,
        exceptions.IdleInTransactionSessionTimeoutError,
        exceptions.InvalidCachedStatementError,
        exceptions.PostgresIOError,
        exceptions.UndefinedTableError,
        exceptions.InvalidSchemaNameError,
        exceptions.InsufficientPrivilegeError,
        ConnectionRefusedError,
        TimeoutError,
    ],
)
def test_errors_of_the_server_mean_unavailable(error: type[Exception]) -> None:
    assert isinstance(driver.translated(error("whatever it says")), Unavailable)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (exceptions.UniqueViolationError, Conflict),
        (exceptions.CheckViolationError, Unstorable),
        (exceptions.CharacterNotInRepertoireError, Unstorable),
        (exceptions.ProgramLimitExceededError, Unstorable),
        (exceptions.DataError, Unstorable),
        (exceptions.UndefinedColumnError, Rejected),
    ],
)
def test_errors_of_a_statement_mean_that_it_was_rejected(
    error: type[Exception], meaning: type[Exception]
) -> None:
    assert type(driver.translated(error("the server is shutting down"))) is meaning


def test_marks_become_numbers_and_locks_are_uncovered() -> None:
    assert driver.dollars("a = ?2 AND b IN (?1, ?3)") == "a = $2 AND b IN ($1, $3)"
    assert driver.dollars("VALUES (?, 1, ?), (?, 1, ?)") == "VALUES ($1, 1, $2), ($3, 1, $4)"
    assert driver.dollars("SELECT 1 /*FOR UPDATE OF d*/") == "SELECT 1 FOR UPDATE OF d"


@pytest.mark.parametrize(
    ("asked", "used"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")]
)
@pytest.mark.parametrize("pooler", ["", "&pooler=transaction"])
async def test_what_is_told_is_on_disk_whatever_is_the_rule_of_the_database(
    url: str, pooler: str, asked: str, used: str
) -> None:
    connection = await driver.connect(target_of(f"{url}{pooler}&synchronous_commit={asked}"), SHORT)
    try:
        assert (await connection.rows("SHOW synchronous_commit"))[0][0] == used
    finally:
        connection.terminate()

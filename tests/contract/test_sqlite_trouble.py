"""When the file is locked, full, foreign or gone: a clear refusal, never a wrong answer, and recovery by itself."""

import asyncio
import resource
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from relay.clock import FakeClock
from relay.domain.errors import Unavailable
from relay.domain.message import FlowControl
from relay.domain.tenant import Principal, Tenant, Token
from relay.ids import Ids
from storage.migrate import migrations_of
from storage.protocol import CannotOpen, Rejected, Unstorable
from storage.sql import archive, cancel, transfer
from storage.sql.script import Query, Script
from storage.sqlite import driver, open_sqlite
from storage.sqlite.driver import Connection
from storage.sqlite.readers import Readers
from storage.sqlite.writer import Kind, Tx, Writer
from tests.builders import NOW, TENANT, a_message
from tests.contract.steps import EVERYTHING, LATER, LEASE_MS, TERMS, accept, deliver, happenings, start, take

HASH = b"h" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


async def test_a_second_relay_on_one_file_is_refused_until_the_first_is_gone(path: Path) -> None:
    first = await open_sqlite(f"sqlite:///{path}")
    with pytest.raises(CannotOpen, match=r"relay\.db is in use by another relay process"):
        await open_sqlite(f"sqlite:///{path}")
    await accept(first, a_message())
    await first.close()
    second = await open_sqlite(str(path))
    assert len(await take(second)) == 1
    await second.close()


@pytest.mark.parametrize("directory", [False, True])
async def test_a_symbolic_link_is_no_way_to_a_second_relay_on_one_file(path: Path, directory: bool) -> None:
    link = path.parent / "link"
    link.symlink_to(path.parent if directory else path)
    by_link = link / path.name if directory else link
    first = await open_sqlite(str(by_link))
    with pytest.raises(CannotOpen, match=r"relay\.db is in use by another relay process"):
        await open_sqlite(str(path))
    await first.close()
    second = await open_sqlite(str(path))
    with pytest.raises(CannotOpen, match=r"relay\.db is in use by another relay process"):
        await open_sqlite(str(by_link))
    await second.close()


async def test_a_file_with_a_second_name_is_refused_under_both_until_it_has_one(path: Path) -> None:
    await (await open_sqlite(str(path))).close()
    other = path.parent / "other.db"
    other.hardlink_to(path)
    for name in (path, other):
        with pytest.raises(CannotOpen, match=f"{name.name} is one of 2 hard links to the same file"):
            await open_sqlite(str(name))
    path.unlink()
    await (await open_sqlite(str(other))).close()


async def test_another_process_may_read_while_the_relay_runs(path: Path) -> None:
    storage = await open_sqlite(str(path))
    await accept(storage, a_message())
    with closing(driver.connect_reader(path)) as reader:
        assert reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    await storage.close()


def test_each_migration_has_a_number_of_its_own() -> None:
    versions = [migration.version for migration in migrations_of("storage.sqlite")]
    assert versions[:2] == [1, 2]
    assert versions == sorted(set(versions))


async def test_a_migration_is_applied_once(path: Path) -> None:
    for _ in range(2):
        storage = await open_sqlite(str(path))
        await accept(storage, a_message())
        await storage.close()
    known = [(migration.version, migration.name) for migration in migrations_of("storage.sqlite")]
    with closing(driver.connect_reader(path)) as reader:
        assert reader.execute("SELECT version, name FROM migrations").fetchall() == known


async def test_a_database_of_an_earlier_version_is_migrated_with_what_it_holds(path: Path) -> None:
    first, *_ = migrations_of("storage.sqlite")
    with closing(driver.connect_writer(path, create=True)) as connection:
        connection.executescript(f"""
            PRAGMA application_id = {driver.APPLICATION_ID};
            CREATE TABLE migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
            INSERT INTO migrations VALUES (1, 'first_schema');
            {first.text}
            INSERT INTO tenants VALUES ({TENANT}, 'user', 'sig_1', 'sig_2', {NOW});
            INSERT INTO tokens VALUES (x'{HASH.hex()}', {TENANT}, 1, {NOW});
        """)
    storage = await open_sqlite(str(path))
    assert await storage.tenants() == [
        Tenant(id=TENANT, user_id="user", current_key="sig_1", next_key="sig_2")
    ]
    assert await storage.principal(HASH) == Principal(tenant=TENANT, read_only=True)
    assert await storage.tokens(TENANT) == [
        Token(hash=HASH, tenant=TENANT, read_only=True, created_at=NOW, issued=False)
    ]
    assert await storage.url_groups(TENANT) == []
    assert await storage.queues(TENANT) == []
    await storage.close()


async def test_what_waits_at_gates_is_migrated_with_them(path: Path) -> None:
    (gates,) = (one for one in migrations_of("storage.sqlite") if one.version == 3)
    storage = await open_sqlite(str(path))
    flow = FlowControl(key="k", parallelism=1)
    messages = [a_message(queue="q", flow=flow) for _ in range(2)]
    await accept(storage, *messages)
    (claim,) = await take(storage)
    tables = {name: (await storage.read_rows(name, after=None, limit=9)).rows for name in ("gates", "gated")}
    await storage.close()
    with closing(driver.connect_writer(path)) as connection:
        # As they were before, with the same rows.
        connection.executescript(
            "DROP TABLE gates; DROP TABLE gated; DELETE FROM migrations WHERE version = 7;"
        )
        connection.executescript(gates.text)
        for name, rows in tables.items():
            columns = list(transfer.columns(name))
            kept = [number for number, column in enumerate(columns) if column != "owner"]
            marks = ", ".join("?" * len(kept))
            connection.executemany(
                f"INSERT INTO {name} ({', '.join(columns[number] for number in kept)}) VALUES ({marks})",
                [[row[number] for number in kept] for row in rows],
            )
    storage = await open_sqlite(str(path))
    assert {name: (await storage.read_rows(name, after=None, limit=9)).rows for name in tables} == tables
    assert await deliver(storage, claim) == []
    assert [claim.message for claim in await take(storage, now=LATER)] == messages[1:]
    await storage.close()


async def test_a_database_of_another_application_is_refused(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE precious (x)")
    with pytest.raises(CannotOpen, match="is a SQLite database of another application"):
        await open_sqlite(str(path))


async def test_a_file_that_is_no_database_is_refused_untouched(path: Path) -> None:
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(CannotOpen, match="is not a SQLite database"):
        await open_sqlite(str(path))
    assert path.read_bytes() == b"precious" * 1000


async def test_a_file_that_is_locked_at_the_start_is_unavailable(path: Path) -> None:
    with closing(driver.connect_writer(path, create=True)) as foreign:
        foreign.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Unavailable, match="locked"):
            await open_sqlite(str(path))
        foreign.execute("ROLLBACK")
    await (await open_sqlite(str(path))).close()


async def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match=r"none/relay\.db cannot be opened: No such file or directory"):
        await open_sqlite(f"sqlite:///{tmp_path}/none/relay.db")


async def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CannotOpen, match=f"^{tmp_path} is a directory: name a file in it"):
        await open_sqlite(f"sqlite:///{tmp_path}")
    assert list(tmp_path.iterdir()) == []


async def test_the_file_is_for_its_owner_only(path: Path) -> None:
    storage = await open_sqlite(str(path))
    await storage.ping()
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    await storage.close()
    assert set(modes) >= {"relay.db", "relay.db-wal", "relay.db.lock"}
    assert set(modes.values()) == {0o600}


async def test_temporary_storage_is_gone_after_closing() -> None:
    storage = await open_sqlite("sqlite://")
    await accept(storage, a_message())
    with closing(storage.path.open("rb")) as file:
        assert file.read(15) == b"SQLite format 3"
    await storage.close()
    assert not storage.path.parent.exists()


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ((3, 51, 3), None),
        ((3, 54, 0), None),
        ((3, 51, 2), "3.51.2 can corrupt"),
        ((3, 40, 1), "3.40.1 can corrupt"),
    ],
)
def test_an_unsound_sqlite_is_named(version: tuple[int, ...], problem: str | None) -> None:
    said = driver.version_problem(version)
    assert said is None if problem is None else said is not None and problem in said


def test_a_sqlite_that_is_too_old_is_refused() -> None:
    with pytest.raises(CannotOpen, match=r"SQLite 3\.37\.2 is too old"):
        driver.version_problem((3, 37, 2))


async def test_closing_writes_what_was_accepted_and_refuses_what_comes_after(path: Path) -> None:
    storage = await open_sqlite(str(path))
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
    again = await open_sqlite(str(path))
    assert [claim.message for claim in await take(again)] == messages
    await again.close()


async def test_claims_whose_caller_has_gone_in_the_last_group_before_closing_are_handed_back(
    path: Path,
) -> None:
    storage = await open_sqlite(str(path))
    messages = [a_message() for _ in range(3)]
    await accept(storage, *messages[:2])
    with closing(driver.connect_writer(path)) as foreign:
        # Nothing is written before there is nothing more to come.
        foreign.execute("BEGIN EXCLUSIVE")
        asked = [asyncio.create_task(take(storage)), asyncio.create_task(start(storage, messages[2]))]
        await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        closing_ = asyncio.create_task(storage.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="stopping"):
            await accept(storage, a_message())
        foreign.execute("ROLLBACK")
        await closing_
    again = await open_sqlite(str(path))
    claims = await take(again)
    assert {claim.message.id: claim.lost_leases for claim in claims} == {one.id: 0 for one in messages}
    await again.close()


async def test_a_window_of_a_rate_opens_when_the_lock_is_had_and_not_when_a_claim_began_to_wait(
    path: Path,
) -> None:
    storage = await open_sqlite(str(path))
    clock = FakeClock()
    flow = FlowControl(key="k", rate=2, period_ms=1_000)
    await accept(storage, *(a_message(flow=flow) for _ in range(9)))
    with closing(driver.connect_writer(path)) as foreign:
        foreign.execute("BEGIN EXCLUSIVE")
        waiting = asyncio.create_task(storage.claim(TERMS, now=clock.now))
        await asyncio.sleep(0)
        clock.advance(5_000)
        foreign.execute("ROLLBACK")
        claimed = await waiting
    assert [claim.claimed_at for claim in claimed.claims] == [NOW + 5_000] * 2
    clock.advance(999)
    assert (await storage.claim(TERMS, now=clock.now)).claims == []
    clock.advance(1)
    assert len((await storage.claim(TERMS, now=clock.now)).claims) == 2
    await storage.close()


async def test_a_locked_database_is_unavailable_and_recovers_when_it_is_let_go(path: Path) -> None:
    storage = await open_sqlite(str(path))
    first, refused, second = a_message(), a_message(), a_message()
    await accept(storage, first)
    with closing(driver.connect_writer(path)) as foreign:
        foreign.execute("BEGIN EXCLUSIVE")
        outcomes = await asyncio.gather(
            accept(storage, refused), storage.ping(), take(storage), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
        assert "locked" in str(outcomes[0])
        assert await storage.message(TENANT, first.id) == first
        foreign.execute("ROLLBACK")
    await accept(storage, second)
    assert [claim.message for claim in await take(storage)] == [first, second]
    await storage.close()


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writing beyond fails as on a broken disk; the interpreter ignores the signal that goes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_disk_that_stops_writing_is_unavailable_and_recovers_when_it_writes_again(path: Path) -> None:
    storage = await open_sqlite(str(path))
    accepted = []
    refused = 0
    with files_no_larger_than(2 << 20):
        for _ in range(80):
            message = a_message(body=b"x" * 50_000)
            try:
                await accept(storage, message)
                accepted.append(message)
            except Unavailable:
                refused += 1
    assert accepted
    assert refused
    last = a_message()
    await accept(storage, last)
    await storage.close()
    again = await open_sqlite(str(path))
    assert [claim.message for claim in await take(again)] == [*accepted, last]
    await again.close()


async def test_a_row_that_cannot_be_read_spoils_neither_claims_nor_lists(path: Path) -> None:
    storage = await open_sqlite(str(path))
    messages = [a_message(max_retries=0) for _ in range(4)]
    await accept(storage, *messages)
    await storage.close()
    with closing(driver.connect_writer(path)) as connection:
        connection.execute("UPDATE messages SET headers = 'torn' WHERE id = ?", (messages[1].id,))
        connection.execute("DELETE FROM messages WHERE id = ?", (messages[2].id,))
    storage = await open_sqlite(str(path))
    claimed = await storage.claim(TERMS, now=NOW)
    assert [claim.message for claim in claimed.claims] == [messages[0], messages[3]]
    # The two others are out of the way for the length of a lease, not claimed over and over.
    assert claimed.next_due_at == NOW + LEASE_MS
    first = await happenings(storage, limit=2)
    assert [event.message for event in first] == [messages[0], messages[3]]
    await storage.close()


async def test_a_living_message_is_never_forgotten_whoever_asks(path: Path) -> None:
    storage = await open_sqlite(str(path))
    message = a_message()
    await accept(storage, message)
    await storage.close()
    with closing(driver.connect_writer(path)) as connection:
        connection.execute("DELETE FROM events")
        assert driver.run(connection, archive.forget([message.id])) == 0
        connection.execute("DELETE FROM deliveries")
        assert driver.run(connection, archive.forget([message.id])) == 1


async def test_canceling_everything_ends_with_what_was_there_at_its_beginning(path: Path) -> None:
    storage = await open_sqlite(str(path))
    old, new = a_message(), a_message()
    await accept(storage, old)
    with closing(driver.connect_reader(path)) as reader:
        last = driver.run(reader, cancel.newest(TENANT))
        await accept(storage, new)
        found = driver.run(reader, cancel.selected(TENANT, EVERYTHING, after=0, last=last, limit=10))
        assert found == [old.id]
    await storage.close()


async def test_a_file_that_vanished_is_not_replaced_by_an_empty_one(path: Path) -> None:
    with closing(driver.connect_writer(path, create=True)):
        pass
    aside = path.rename(path.with_suffix(".aside"))
    async with a_writer(path) as writer:
        with pytest.raises(Unavailable, match="cannot be opened"):
            await writer.submit(INSERT, 1)
        assert not path.exists()
        aside.rename(path)
        with pytest.raises(Rejected, match="no such table"):
            await writer.submit(INSERT, 1)


@pytest.mark.parametrize("how", ["moved", "replaced"])
async def test_nothing_is_acknowledged_that_goes_to_a_file_which_is_not_there_any_more(
    path: Path, how: str
) -> None:
    storage = await open_sqlite(str(path))
    first, last = a_message(), a_message()
    await accept(storage, first)
    aside = path.rename(path.with_suffix(".aside"))
    if how == "replaced":
        path.write_bytes(b"what somebody restored")
    for _ in range(2):
        for work in (lambda: accept(storage, a_message()), storage.ping, lambda: take(storage)):
            with pytest.raises(Unavailable, match="was moved, removed or replaced"):
                await work()
    assert path.exists() == (how == "replaced")
    aside.replace(path)
    await storage.ping()
    await accept(storage, last)
    assert [claim.message for claim in await take(storage)] == [first, last]
    await storage.close()
    again = await open_sqlite(str(path))
    assert (await again.stats()).live == 2
    await again.close()


# The writer by itself, on a table of numbers.


class a_writer:  # noqa: N801 - reads as a builder
    """A writer on a table of unique numbers."""

    def __init__(self, path: Path, *, max_pages: int | None = None) -> None:
        self.path = path
        self.max_pages = max_pages
        self.connections: list[Connection] = []
        self.orphans: list[object] = []
        self.commits: list[Tx] = []

    def connect(self) -> Connection:
        connection = driver.connect_writer(self.path)
        self.connections.append(connection)
        if self.max_pages is not None:
            connection.execute(f"PRAGMA max_page_count = {self.max_pages}")
        return connection

    async def __aenter__(self) -> Writer:
        self.writer = Writer(
            self.connect,
            Ids(),
            committed=self.commits.append,
            orphaned=self.orphans.append,
            longest_close_s=0.5,
        )
        return self.writer

    async def __aexit__(self, *_: object) -> None:
        await self.writer.close()


def _insert(tx: Tx, numbers: Sequence[int]) -> Sequence[int]:
    for number in numbers:
        # Counted first, so that a count which outlives its failure is seen.
        tx.live += 1
        tx.rows("INSERT INTO numbers VALUES (?1, zeroblob(1000))", (number,))
    return numbers


def _delete(tx: Tx, numbers: Sequence[int]) -> Sequence[int]:
    for number in numbers:
        tx.rows("DELETE FROM numbers WHERE n = ?1", (number,))
    return numbers


INSERT: Kind[int, int] = Kind(_insert, lambda tx, number: _insert(tx, [number])[0], grows=True)
DELETE: Kind[int, int] = Kind(_delete, lambda tx, number: _delete(tx, [number])[0])


@pytest.fixture
def numbers(path: Path) -> Path:
    with closing(driver.connect_writer(path, create=True)) as connection:
        connection.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, filling BLOB) STRICT")
    return path


def stored(path: Path) -> list[int]:
    with closing(driver.connect_reader(path)) as reader:
        return [row[0] for row in reader.execute("SELECT n FROM numbers ORDER BY n")]


async def test_what_waits_together_is_committed_together(numbers: Path) -> None:
    fixture = a_writer(numbers)
    async with fixture as writer:
        assert await asyncio.gather(*(writer.submit(INSERT, n) for n in range(100))) == list(range(100))
    assert len(fixture.commits) < 100
    assert sum(tx.live for tx in fixture.commits) == 100
    assert stored(numbers) == list(range(100))


async def test_one_poisoned_operation_fails_alone_and_counts_for_nothing(numbers: Path) -> None:
    fixture = a_writer(numbers)
    async with fixture as writer:
        await writer.submit(INSERT, 5)
        outcomes = await asyncio.gather(
            *(writer.submit(INSERT, n) for n in range(10)),
            writer.submit(INSERT, 1 << 70),
            writer.submit(DELETE, 7),
            return_exceptions=True,
        )
    failed = {n: outcome for n, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)}
    assert {n: type(error) for n, error in failed.items()} == {5: Unstorable, 10: OverflowError}
    assert stored(numbers) == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert sum(tx.live for tx in fixture.commits) == 10


async def test_a_full_disk_refuses_what_adds_and_lets_through_what_removes(numbers: Path) -> None:
    async with a_writer(numbers, max_pages=50) as writer:
        outcomes = await asyncio.gather(
            *(writer.submit(INSERT, n) for n in range(30)), return_exceptions=True
        )
        assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        outcomes = await asyncio.gather(
            *(writer.submit(INSERT, n) for n in range(30, 400)),
            *(writer.submit(DELETE, n) for n in range(30)),
            return_exceptions=True,
        )
        assert {type(outcome) for outcome in outcomes[:370]} == {Unavailable}
        assert list(outcomes[370:]) == list(range(30))
        assert await writer.submit(INSERT, 1) == 1
    assert stored(numbers) == [1]


async def test_a_connection_that_cannot_be_opened_is_tried_again_for_the_next_operation(
    numbers: Path,
) -> None:
    aside = numbers.rename(numbers.with_suffix(".aside"))
    numbers.write_bytes(b"damaged " * 1000)
    async with a_writer(numbers) as writer:
        for _ in range(2):
            with pytest.raises(Unavailable, match="is not a database"):
                await writer.submit(INSERT, 1)
        aside.replace(numbers)
        assert await writer.submit(INSERT, 1) == 1


async def test_more_than_can_be_held_is_refused_while_the_writer_is_stuck(numbers: Path) -> None:
    let_go = threading.Event()

    def stick(tx: Tx, payloads: Sequence[None]) -> Sequence[None]:
        let_go.wait()
        return payloads

    async with a_writer(numbers) as writer:
        stuck = writer.submit(Kind(stick, lambda tx, payload: payload), None)
        large = writer.submit(INSERT, 1, 1 << 30)
        with pytest.raises(Unavailable, match="too much is waiting"):
            writer.submit(INSERT, 2)
        let_go.set()
        await stuck
        assert await large == 1
        assert await writer.submit(INSERT, 2) == 2


async def test_closing_gives_up_on_a_database_that_never_answers(numbers: Path) -> None:
    let_go = threading.Event()

    def stick(tx: Tx, payloads: Sequence[None]) -> Sequence[None]:
        let_go.wait()
        return payloads

    async with a_writer(numbers) as writer:
        stuck = writer.submit(Kind(stick, lambda tx, payload: payload), None)
    assert not stuck.done()
    let_go.set()
    await stuck


async def test_a_writer_that_never_wrote_lets_go_of_the_connection_it_was_given(numbers: Path) -> None:
    connection = driver.connect_writer(numbers)
    writer = Writer(
        lambda: driver.connect_writer(numbers),
        Ids(),
        connection=connection,
        committed=lambda tx: None,
        orphaned=lambda result: None,
    )
    await writer.close()
    with pytest.raises(driver.Error, match="closed"):
        connection.execute("SELECT 1")


async def test_a_commit_is_flushed_to_the_disk(numbers: Path) -> None:
    with closing(driver.connect_writer(numbers)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_what_comes_of_a_result_nobody_waited_for_is_written_although_the_writer_closes(
    numbers: Path,
) -> None:
    def take_back(number: int) -> None:
        writer.submit(DELETE, number, late=True)

    writer = Writer(
        lambda: driver.connect_writer(numbers), Ids(), committed=lambda tx: None, orphaned=take_back
    )
    writer.submit(INSERT, 1).cancel()
    kept = writer.submit(INSERT, 2)
    await writer.close()
    assert await kept == 2
    assert stored(numbers) == [2]
    with pytest.raises(Unavailable, match="stopping"):
        writer.submit(INSERT, 3)


async def test_a_result_whose_caller_has_gone_is_told_and_still_counts(numbers: Path) -> None:
    fixture = a_writer(numbers)
    async with fixture as writer:
        writer.submit(INSERT, 1).cancel()
        await writer.submit(INSERT, 2)
    assert fixture.orphans == [1]
    assert stored(numbers) == [1, 2]


# The readers by themselves.

ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def endless(begun: asyncio.Event) -> Script[None]:
    """A search without end, on a connection that is known to be open."""
    yield Query("SELECT 1")
    begun.set()
    yield Query(ENDLESS)


def count() -> Script[int]:
    rows = yield Query("SELECT count(*) FROM numbers")
    return int(rows[0][0])


async def test_a_search_that_takes_too_long_is_given_up_and_its_connection_is_free_again(
    numbers: Path,
) -> None:
    readers = Readers(numbers, 1, longest_s=0.2)
    begun = asyncio.Event()
    with pytest.raises(Unavailable, match="too long"):
        await readers.run(endless(begun))
    assert begun.is_set()
    assert await readers.run(count()) == 0
    await readers.close()


async def test_a_search_whose_caller_has_gone_does_not_keep_its_connection(numbers: Path) -> None:
    readers = Readers(numbers, 1)
    begun = asyncio.Event()
    search = asyncio.create_task(readers.run(endless(begun)))
    await begun.wait()
    search.cancel()
    assert await readers.run(count()) == 0
    assert search.cancelled()
    await readers.close()


async def test_closing_does_not_wait_for_searches(numbers: Path) -> None:
    readers = Readers(numbers, 2)
    begun = asyncio.Event()
    running = asyncio.create_task(readers.run(endless(begun)))
    await begun.wait()
    connecting = asyncio.create_task(readers.run(endless(begun)))
    queued = asyncio.create_task(readers.run(count()))
    await asyncio.sleep(0)
    await readers.close()
    outcomes = await asyncio.gather(running, connecting, queued, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable, Unavailable]


async def test_a_reader_cannot_write(numbers: Path) -> None:
    readers = Readers(numbers, 1)

    def write() -> Script[None]:
        yield Query("DELETE FROM numbers")

    with pytest.raises(Unavailable, match="read-only"):
        await readers.run(write())
    await readers.close()

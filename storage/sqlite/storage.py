"""SQLite as the storage of one relay process: a grouped writer, a few readers, one locked file."""

import asyncio
import contextlib
import fcntl
import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from relay.domain.dead_letter import DeadLetter, DeadLetterId
from relay.domain.delivery import Lease, Settlement, released
from relay.domain.errors import Unavailable
from relay.domain.fairness import Crowd
from relay.domain.gates import Gate, GateChange, GateKind
from relay.domain.message import Headers, Message, MessageId, SignedBy, TenantId
from relay.domain.schedule import Run, Schedule
from relay.domain.selection import Order, Selection
from relay.domain.tenant import Principal, Tenant, TenantLimits, Token
from relay.domain.url_group import Endpoint, EndpointRef, UrlGroup
from relay.ids import Ids
from storage.codec import Row
from storage.migrate import Migration, migrations_of, missing, unknown
from storage.protocol import (
    CannotOpen,
    Claimed,
    ClaimTerms,
    DueSchedule,
    Firing,
    FlowKey,
    History,
    Page,
    Permits,
    Published,
    Retention,
    ScheduleView,
    SetAside,
    Stats,
    When,
)
from storage.sql import archive, cancel, catalog, gates, permits, schedules, transfer, url_groups
from storage.sql.gates import LONGEST_LEASE_MS
from storage.sql.road import Acceptance, cost_of_messages, cost_of_settlements
from storage.sql.script import Query, Script, slices
from storage.sqlite import driver, work
from storage.sqlite.driver import Connection
from storage.sqlite.readers import Readers
from storage.sqlite.writer import Kind, Tx, Writer

T = TypeVar("T")

#: Counting all rows of a large table.
_TRANSFER_S = 600.0

_NOT_HANDED_BACK = "claims nobody waited for could not be handed back: %s"

_log = logging.getLogger("relay.storage")

_Function = Callable[[Tx], Any]

#: The operations of which a group makes one; everything else is a function of its own.
_PUBLISH: Kind[Acceptance, Published] = Kind(work.publish, work.publish_again, grows=True)
_SETTLE: Kind[Sequence[Settlement], Sequence[MessageId]] = Kind(
    work.settle, lambda tx, settlements: work.settle(tx, [settlements])[0]
)
_CALL: Kind[_Function, Any] = Kind(
    lambda tx, functions: [function(tx) for function in functions], lambda tx, function: function(tx)
)
_GROW: Kind[_Function, Any] = Kind(_CALL.together, _CALL.alone, grows=True)


async def open_sqlite(url: str, *, node: int = 0, migrate: bool = True) -> "SqliteStorage":
    """Open `sqlite:///relative.db`, `sqlite:////absolute.db`, a plain path, or `sqlite://`: a temporary file that
    is gone after `close`.

    Creates and migrates the file as needed, unless `migrate` is false. Raises `CannotOpen`, with one sentence for
    the operator, when it is in use by another relay, was migrated by a newer one, or is not a database of the
    relay; `Unavailable` when a foreign process has locked it.
    """
    problem = driver.version_problem(driver.version())
    if problem is not None:
        _log.warning(problem)
    temporary = None
    if url == "sqlite://":
        temporary = tempfile.TemporaryDirectory(prefix="relay-", ignore_cleanup_errors=True)
        path = Path(temporary.name) / "relay.db"
    else:
        path = file_of(url)
    lock = None
    try:
        lock = lock_file(path)
        first = await asyncio.to_thread(_prepare, path, migrate)
        return SqliteStorage(path, node=node, first=first, lock=lock, temporary=temporary)
    except BaseException as error:
        if lock is not None:
            os.close(lock)
        if temporary is not None:
            temporary.cleanup()
        if isinstance(error, driver.Error):
            raise _about(path, driver.translated(error)) from error
        raise


def _about(path: Path, problem: Exception) -> Exception:
    """What whoever starts the relay is told; publishers later hear no path."""
    return Unavailable(f"{path}: {problem}") if isinstance(problem, Unavailable) else problem


class _Opened:
    """What a database held when it was opened, and its first writing connection."""

    def __init__(self, connection: Connection, file: tuple[int, int]) -> None:
        self.connection = connection
        self.file = file
        self.last_id = max(
            _number(connection, "SELECT max(id) FROM messages"), _greatest(connection, "dead_letters", "id")
        )
        self.last_position = _greatest(connection, "events", "position")
        self.live = _number(connection, "SELECT count(*) FROM deliveries")
        self.dead_letters = _number(connection, "SELECT count(*) FROM dead_letters")


class SqliteStorage:
    """All roles of `storage.protocol`. Belongs to the event loop it was opened on."""

    def __init__(
        self,
        path: Path,
        *,
        node: int,
        first: _Opened,
        lock: int,
        temporary: "tempfile.TemporaryDirectory[str] | None",
    ) -> None:
        self._path = path
        self._lock = lock
        self._temporary = temporary
        self._node = node
        self._last_id = first.last_id
        self._live = first.live
        self._dead_letters = first.dead_letters
        self._wakes: list[Callable[[int], None]] = []
        self._pings = 0
        self._closed = False
        self._recounted_at: int | None = None

        def check() -> None:
            driver.check_file(path, first.file)

        def connect() -> Connection:
            check()
            return driver.connect_writer(path)

        self._writer = Writer(
            connect,
            Ids(node=node, last=first.last_position),
            committed=self._committed,
            orphaned=self._orphaned,
            connection=first.connection,
            check=check,
        )
        #: Look-ups by key, which answer requests, never queue behind searches.
        self._lookups = Readers(path, 1)
        self._searches = Readers(path, 2)
        #: One walk through history at a time: together they are no faster, and other searches need not wait.
        self._walks = Readers(path, 1)
        self._transfers = Readers(path, 1, longest_s=_TRANSFER_S)

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    @property
    def last_id(self) -> int:
        return self._last_id

    @property
    def node(self) -> int:
        return self._node

    @property
    def clock_offset_ms(self) -> int:
        return 0

    # Inbox

    async def publish(
        self, messages: Sequence[Message], *, now: int, claim: ClaimTerms | None = None
    ) -> Published:
        return await self._writer.submit(
            _PUBLISH, Acceptance(messages, now, claim), cost_of_messages(messages)
        )

    async def cancel(
        self, tenant: TenantId, selection: Selection, *, limit: int | None, now: int
    ) -> Sequence[MessageId]:
        cancelled: list[MessageId] = []
        if selection.message_ids is not None:
            for part in slices(sorted(set(selection.message_ids)), cancel.BITE):
                room = cancel.BITE if limit is None else limit - len(cancelled)
                if room > 0:
                    cancelled += await self._cancel(tenant, part, room, now)
            return cancelled
        # The search is done by a reader, however much it has to look at; the writer only gets what was found.
        last = await self._searches.run(cancel.newest(tenant))
        after = 0
        while limit is None or len(cancelled) < limit:
            room = cancel.BITE if limit is None else min(cancel.BITE, limit - len(cancelled))
            found = await self._searches.run(
                cancel.selected(tenant, selection, after=after, last=last, limit=room)
            )
            if not found:
                break
            after = found[-1]
            cancelled += await self._cancel(tenant, found, room, now)
        return cancelled

    async def _cancel(
        self, tenant: TenantId, ids: Sequence[int], limit: int, now: int
    ) -> Sequence[MessageId]:
        return await self._call(lambda tx: self._cancel_in(tx, tenant, ids, limit, now))

    @staticmethod
    def _cancel_in(tx: Tx, tenant: TenantId, ids: Sequence[int], limit: int, now: int) -> Sequence[MessageId]:
        outcome = tx.run(cancel.cancel(tenant, ids, limit=limit, now=now, position=tx.position))
        tx.live -= outcome.ended
        tx.due(outcome.opens_at)
        return outcome.ids

    # Work

    async def claim(self, terms: ClaimTerms, *, now: When, after: Sequence[Settlement] = ()) -> Claimed:
        if after:
            return await self._call(
                lambda tx: work.settle_and_claim(tx, after, terms, now), cost=cost_of_settlements(after)
            )
        return await self._call(lambda tx: work.claim(tx, terms, now))

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[MessageId]:
        return await self._writer.submit(_SETTLE, settlements, cost_of_settlements(settlements))

    async def set_aside(self, surplus: Mapping[Crowd, Sequence[Lease]], *, now: int, limit: int) -> SetAside:
        return await self._call(lambda tx: work.set_aside(tx, surplus, now, limit))

    async def ask_permits(self, leases: Sequence[Lease], *, now: int, sift: int) -> Permits:
        return await self._call(lambda tx: work.ask_permits(tx, leases, now, sift))

    async def renew(self, leases: Sequence[Lease], *, until: int) -> Sequence[MessageId]:
        return await self._call(lambda tx: work.renew(tx, leases, until))

    def on_work(self, wake: Callable[[int], None]) -> None:
        self._wakes.append(wake)

    # Schedules

    async def put_schedule(self, schedule: Schedule, *, limit: int) -> Schedule | None:
        return await self._write(lambda: schedules.put_schedule(schedule, limit=limit))

    async def schedule(self, tenant: TenantId, schedule_id: str) -> ScheduleView | None:
        return await self._lookups.run(schedules.schedule(tenant, schedule_id))

    async def schedules(self, tenant: TenantId) -> Sequence[ScheduleView]:
        return await self._searches.run(schedules.schedules(tenant))

    async def delete_schedule(self, tenant: TenantId, schedule_id: str) -> bool:
        return await self._write(lambda: schedules.delete_schedule(tenant, schedule_id))

    async def pause_schedule(
        self, tenant: TenantId, schedule_id: str, *, paused: bool, next_at: int | None
    ) -> bool:
        return await self._write(
            lambda: schedules.pause_schedule(tenant, schedule_id, paused=paused, next_at=next_at)
        )

    async def due_schedules(self, *, now: int, limit: int) -> tuple[Sequence[DueSchedule], int | None]:
        return await self._lookups.run(schedules.due_schedules(now=now, limit=limit))

    async def fire(self, firing: Firing, *, now: int) -> bool:
        def fire(tx: Tx) -> bool:
            # Killed before the commit, the tick is still to come; after it, its messages are there: never both.
            if not tx.run(schedules.advance(firing)):
                return False
            work.publish(tx, [Acceptance(firing.messages, now, None)])
            return True

        return await self._call(fire, grows=True)

    async def runs(self, tenant: TenantId, schedule_id: str, *, limit: int) -> Sequence[Run]:
        return await self._lookups.run(schedules.runs(tenant, schedule_id, limit=limit))

    # UrlGroups

    async def put_endpoints(
        self,
        tenant: TenantId,
        name: str,
        endpoints: Sequence[Endpoint],
        *,
        max_groups: int,
        max_endpoints: int,
        now: int,
    ) -> bool:
        return await self._write(
            lambda: url_groups.put_endpoints(
                tenant, name, endpoints, max_groups=max_groups, max_endpoints=max_endpoints, now=now
            )
        )

    async def remove_endpoints(
        self, tenant: TenantId, name: str, removed: Sequence[EndpointRef], *, now: int
    ) -> bool:
        return await self._write(lambda: url_groups.remove_endpoints(tenant, name, removed, now=now))

    async def put_group_headers(self, tenant: TenantId, name: str, headers: Headers, *, now: int) -> bool:
        return await self._write(lambda: url_groups.put_group_headers(tenant, name, headers, now=now))

    async def url_group(self, tenant: TenantId, name: str) -> UrlGroup | None:
        return await self._lookups.run(url_groups.url_group(tenant, name))

    async def url_groups(self, tenant: TenantId, names: Collection[str] | None = None) -> Sequence[UrlGroup]:
        if names is None:
            return await self._searches.run(url_groups.url_groups(tenant))
        return list((await self._lookups.run(url_groups.named(tenant, names))).values())

    async def delete_url_group(self, tenant: TenantId, name: str) -> bool:
        return await self._write(lambda: url_groups.delete_url_group(tenant, name))

    # Gates

    async def change_gate(
        self,
        tenant: TenantId,
        kind: GateKind,
        name: str,
        change: GateChange,
        *,
        create: bool,
        limit: int | None = None,
        now: int,
    ) -> bool:
        def write(tx: Tx) -> bool:
            done, opens_at = tx.run(
                gates.change(tenant, kind, name, change, create=create, limit=limit, now=now)
            )
            tx.due(opens_at)
            return done

        return await self._call(write)

    async def delete_queue(self, tenant: TenantId, name: str, *, now: int) -> bool:
        gate = await self._write(lambda: gates.retire(tenant, name, now))
        if gate is None:
            return False
        while ids := await self._call(lambda tx: tx.run(gates.stragglers(gate, limit=cancel.BITE))):
            await self._cancel(tenant, ids, len(ids), now)
        return True

    async def queue(self, tenant: TenantId, name: str) -> Gate | None:
        return await self._lookups.run(gates.queue(tenant, name))

    async def queues(self, tenant: TenantId) -> Sequence[Gate]:
        return await self._searches.run(gates.queues(tenant))

    async def flow_key(self, tenant: TenantId, name: str, *, now: int) -> FlowKey | None:
        return await self._lookups.run(gates.flow_key(tenant, name, now))

    async def flow_keys(self, tenant: TenantId, *, search: str, limit: int, now: int) -> Sequence[FlowKey]:
        return await self._searches.run(gates.flow_keys(tenant, search, limit=limit, now=now))

    async def in_flight(self, tenant: TenantId, *, now: int) -> int:
        return await self._searches.run(gates.in_flight(tenant, until=now + LONGEST_LEASE_MS))

    # Catalog

    async def principal(self, token_hash: bytes) -> Principal | None:
        return await self._lookups.run(catalog.principal(token_hash))

    async def put_token(self, token_hash: bytes, principal: Principal, *, now: int) -> None:
        await self._write(lambda: catalog.put_token(token_hash, principal, now=now))

    async def delete_token(self, token_hash: bytes) -> bool:
        return await self._write(lambda: catalog.delete_token(token_hash))

    async def delete_tokens(self, tenant: TenantId, *, read_only: bool, keep: bytes | None) -> int:
        return await self._write(lambda: catalog.delete_tokens(tenant, read_only=read_only, keep=keep))

    async def tenant(self, tenant: TenantId) -> Tenant | None:
        return await self._lookups.run(catalog.tenant(tenant))

    async def tenant_named(self, user_id: str) -> Tenant | None:
        return await self._lookups.run(catalog.tenant_named(user_id))

    async def tenants(self) -> Sequence[Tenant]:
        return await self._lookups.run(catalog.tenants())

    async def put_tenant(self, tenant: Tenant, *, now: int) -> None:
        await self._write(lambda: catalog.put_tenant(tenant, now=now))

    async def create_tenant(self, tenant: Tenant, *, now: int) -> Tenant:
        return await self._write(lambda: catalog.create_tenant(tenant, now=now))

    async def swap_keys(self, old: Tenant, *, current_key: str, next_key: str) -> bool:
        return await self._write(lambda: catalog.swap_keys(old, current_key=current_key, next_key=next_key))

    async def rotate_keys(self, tenant: TenantId, *, fresh: str) -> Tenant | None:
        return await self._write(lambda: catalog.rotate_keys(tenant, fresh=fresh))

    async def setting(self, name: str) -> str | None:
        return await self._lookups.run(catalog.setting(name))

    async def put_setting(self, name: str, value: str) -> None:
        await self._write(lambda: catalog.put_setting(name, value))

    async def swap_setting(self, name: str, *, old: str | None, new: str) -> bool:
        return await self._write(lambda: catalog.swap_setting(name, old=old, new=new))

    # Accounts

    async def add_tenant(self, user_id: str, *, current_key: str, next_key: str, now: int) -> Tenant | None:
        return await self._write(
            lambda: catalog.add_tenant(user_id, current_key=current_key, next_key=next_key, now=now)
        )

    async def put_limits(self, tenant: TenantId, limits: TenantLimits, *, now: int) -> bool:
        return await self._write(lambda: catalog.put_limits(tenant, limits, now=now))

    async def put_signed_by(self, tenant: TenantId, signed_by: SignedBy) -> bool:
        return await self._write(lambda: catalog.put_signed_by(tenant, signed_by))

    async def put_disabled(self, tenant: TenantId, *, at: int | None) -> bool:
        return await self._write(lambda: catalog.put_disabled(tenant, at=at))

    async def tokens(self, tenant: TenantId) -> Sequence[Token]:
        return await self._lookups.run(catalog.tokens(tenant))

    async def issue_token(self, token: Token) -> None:
        await self._write(lambda: catalog.issue_token(token))

    # Archive

    async def message(self, tenant: TenantId, message_id: MessageId) -> Message | None:
        return await self._lookups.run(archive.message(tenant, message_id))

    async def events(
        self,
        tenant: TenantId,
        selection: Selection,
        *,
        order: Order,
        start: int | None,
        limit: int,
        walk: int | None = None,
    ) -> History:
        return await self._walks.run(
            archive.events(tenant, selection, order=order, start=start, limit=limit, walk=walk)
        )

    async def dead_letter(self, tenant: TenantId, dead_letter_id: DeadLetterId) -> DeadLetter | None:
        return await self._lookups.run(archive.dead_letter(tenant, dead_letter_id))

    async def dead_letters(
        self, tenant: TenantId, selection: Selection, *, order: Order, start: int | None, limit: int
    ) -> Sequence[DeadLetter]:
        return await self._searches.run(
            archive.dead_letters(tenant, selection, order=order, start=start, limit=limit)
        )

    async def delete_dead_letters(
        self, tenant: TenantId, ids: Sequence[DeadLetterId]
    ) -> Sequence[DeadLetterId]:
        def delete(tx: Tx) -> Sequence[DeadLetterId]:
            deleted = tx.run(archive.delete_dead_letters(tenant, ids))
            tx.dead_letters -= len(deleted)
            tx.run(archive.forget(deleted.values()))
            return list(deleted)

        return await self._call(delete)

    async def redrive(
        self, tenant: TenantId, pairs: Sequence[tuple[DeadLetterId, Message]], *, now: int
    ) -> Sequence[MessageId]:
        def redrive(tx: Tx) -> Sequence[MessageId]:
            # Killed before the commit, the dead letters are still there; after it, their messages are alive.
            fresh = dict(reversed(pairs))
            deleted = tx.run(archive.delete_dead_letters(tenant, list(fresh)))
            tx.dead_letters -= len(deleted)
            messages = [fresh[id_] for id_, _ in pairs if id_ in deleted and id_ in fresh]
            published = work.publish(tx, [Acceptance(messages, now, None)])
            tx.run(archive.forget(deleted.values()))
            return [receipt.message_id for receipt in published[0].receipts]

        return await self._call(redrive, grows=True)

    async def prune(self, retention: Retention, *, now: int, limit: int) -> int:
        def prune(tx: Tx) -> int:
            removed = tx.run(archive.prune(retention, now=now, limit=limit))
            tx.dead_letters -= removed.dead_letters
            left = tx.run(gates.retired())
            if left is None:
                return removed.rows
            # Whoever deleted this queue was interrupted.
            gate, tenant = left
            ids = tx.run(gates.stragglers(gate, limit=limit))
            return removed.rows + len(self._cancel_in(tx, tenant, ids, len(ids), now))

        removed = await self._call(prune)
        await self._recount(now)
        return removed

    async def _recount(self, now: int) -> None:
        """Now and then, take back permits of tenants that no attempt holds."""
        if self._recounted_at is not None and 0 <= now - self._recounted_at < permits.RECOUNT_MS:
            return
        for tenant in await self._searches.run(permits.leaking(limit=permits.RECOUNTED)):
            await self._write(partial(permits.recount, tenant, now))
        self._recounted_at = now

    async def fold(self) -> bool:
        # The one writer counts as it goes.
        return False

    async def stats(self) -> Stats:
        return Stats(
            live=self._live,
            dead_letters=self._dead_letters,
            oldest_due_at=await self._lookups.run(_oldest_due()),
        )

    # Transfer

    @property
    def tables(self) -> Sequence[str]:
        return transfer.TABLES

    async def unknown_migrations(self) -> Sequence[int]:
        return await self._transfers.run(_unknown_migrations())

    async def clear(self) -> None:
        def clear(tx: Tx) -> None:
            tx.live -= tx.run(transfer.count("deliveries"))
            tx.dead_letters -= tx.run(transfer.count("dead_letters"))
            for table in transfer.TABLES:
                tx.run(transfer.clear(table))

        await self._call(clear)

    @property
    def emptied_by(self) -> str:
        return "name another file"

    async def other_users(self) -> int:
        # The lock keeps them out.
        return 0

    async def read_rows(self, table: str, *, after: Row | None, limit: int) -> Page:
        return await self._transfers.run(transfer.read(table, after=after, limit=limit))

    async def write_rows(self, table: str, rows: Sequence[Row]) -> None:
        def write(tx: Tx) -> None:
            added = tx.run(transfer.write(table, rows))
            tx.live += added if table == "deliveries" else 0
            tx.dead_letters += added if table == "dead_letters" else 0

        await self._call(write, grows=True)

    async def count_rows(self, table: str) -> int:
        return await self._transfers.run(transfer.count(table))

    async def last_row(self, table: str) -> Row | None:
        return await self._transfers.run(transfer.last(table))

    # Life

    async def ping(self) -> None:
        self._pings += 1
        await self._write(lambda: catalog.put_setting(transfer.PROBE, str(self._pings)))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._lookups.close()
        await self._searches.close()
        await self._walks.close()
        await self._transfers.close()
        # Last: the connection that closes last checkpoints and removes the log.
        await self._writer.close()
        os.close(self._lock)
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    async def _call(self, function: Callable[[Tx], T], *, grows: bool = False, cost: int = 0) -> T:
        result: T = await self._writer.submit(_GROW if grows else _CALL, function, cost)
        return result

    async def _write(self, script: Callable[[], Script[T]]) -> T:
        """Run a script in the writer; it is made anew each time the group has to be repeated."""
        return await self._call(lambda tx: tx.run(script()))

    def _committed(self, tx: Tx) -> None:
        self._live += tx.live
        self._dead_letters += tx.dead_letters
        if tx.due_at is not None:
            for wake in self._wakes:
                wake(tx.due_at)

    def _orphaned(self, result: object) -> None:
        """Whoever asked for claims has gone: hand them back instead of letting their leases run out."""
        if not isinstance(result, Published | Claimed) or not result.claims:
            return
        back: Sequence[Settlement] = [released(one, now=one.claimed_at) for one in result.claims]
        try:
            future = self._writer.submit(_SETTLE, back, late=True)
        except Unavailable as problem:
            _log.warning(_NOT_HANDED_BACK, problem)
        else:
            future.add_done_callback(_report)


def _report(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled() and future.exception() is not None:
        _log.warning(_NOT_HANDED_BACK, future.exception())


def _unknown_migrations() -> Script[Sequence[int]]:
    rows = yield Query("SELECT version FROM migrations")
    return unknown(migrations_of("storage.sqlite"), [row[0] for row in rows])


def _oldest_due() -> Script[int | None]:
    """At most the deliveries in flight are passed over before the first that waits."""
    rows = yield Query(
        "SELECT due_at FROM deliveries WHERE due_at IS NOT NULL AND state <> 2 ORDER BY due_at LIMIT 1"
    )
    return rows[0][0] if rows else None


def file_of(url: str) -> Path:
    """The file itself: whoever comes by a symbolic link must find the same lock."""
    return Path(os.path.realpath(url.removeprefix("sqlite:///")))


def lock_file(path: Path) -> int:
    """Hold `<file>.lock` for as long as this process uses the file: one file has one writing process.

    The kernel lets go when the process ends, however it ends. Command-line readers need no lock. `path` has no
    symbolic links; a file that has a second name is refused, because each name has its own lock and its own
    write-ahead log.
    """
    if path.is_dir():
        raise CannotOpen(f"{path} is a directory: name a file in it, such as {path / 'relay.db'}")
    with contextlib.suppress(OSError):
        if (names := path.stat().st_nlink) > 1:
            raise CannotOpen(
                f"{path} is one of {names} hard links to the same file; a database with more than one name loses"
                " messages, so remove the others or copy the file"
            )
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotOpen(f"{path} cannot be opened: {error.strerror} ({path}.lock)") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise CannotOpen(
            f"{path} is in use by another relay process: stop that first, or give each a file of its own"
        ) from None
    return lock


def _prepare(path: Path, migrate: bool) -> _Opened:
    """Create the file if there is none (readable by its owner only: it holds signing keys), and migrate it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise CannotOpen(f"{path} cannot be opened: {error.strerror}") from None
    try:
        connection = driver.connect_writer(path)
    except driver.Error as error:
        if driver.is_foreign(error):
            raise CannotOpen(f"{path} is not a SQLite database") from None
        raise
    try:
        _migrate(connection, path, migrations_of("storage.sqlite"), may=migrate)
        return _Opened(connection, driver.file_at(path))
    except BaseException:
        connection.close()
        raise


def _migrate(connection: Connection, path: Path, known: Sequence[Migration], *, may: bool) -> None:
    """Killed in the middle of a migration, the file is as it was before that one."""
    owner = _number(connection, "PRAGMA application_id")
    if owner != driver.APPLICATION_ID:
        if owner or _number(connection, "SELECT count(*) FROM sqlite_schema"):
            raise CannotOpen(f"{path} is a SQLite database of another application")
        if not may:
            raise CannotOpen(f"{path} is not up to date: run relay migrate first")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {driver.APPLICATION_ID}")
        connection.execute("CREATE TABLE migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT")
        connection.execute("COMMIT")
    applied = [row[0] for row in connection.execute("SELECT version FROM migrations")]
    outstanding = missing(known, applied)
    if outstanding and not may:
        raise CannotOpen(f"{path} is not up to date: run relay migrate first")
    for migration in outstanding:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _statements(migration.text):
            connection.execute(statement)
        connection.execute("INSERT INTO migrations VALUES (?1, ?2)", (migration.version, migration.name))
        connection.execute("COMMIT")


def _statements(text: str) -> Sequence[str]:
    statements = [""]
    for line in text.splitlines(keepends=True):
        statements[-1] += line
        if sqlite3.complete_statement(statements[-1]):
            statements.append("")
    return statements[:-1]


def _greatest(connection: Connection, table: str, key: str) -> int:
    """The greatest key of a table that is ordered by tenant first, 0 when it is empty."""
    tenants = driver.run(connection, archive.tenants_in(table))
    return max(
        (_number(connection, f"SELECT max({key}) FROM {table} WHERE tenant = ?1", (one,)) for one in tenants),
        default=0,
    )


def _number(connection: Connection, text: str, parameters: Sequence[Any] = ()) -> int:
    """The one number a query yields, 0 for NULL."""
    return int(connection.execute(text, parameters).fetchone()[0] or 0)

"""PostgreSQL as the storage of one relay process among many: lanes for the road, pools for everything else."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from msgspec.structs import replace

from relay.clock import SharedClock
from relay.domain.dead_letter import DeadLetter, DeadLetterId
from relay.domain.delivery import Lease, Settlement, released
from relay.domain.errors import Unavailable
from relay.domain.fairness import Crowd
from relay.domain.gates import Gate, GateChange, GateKind, is_gated, moves_gates
from relay.domain.message import Headers, Message, MessageId, SignedBy, TenantId
from relay.domain.schedule import Run, Schedule
from relay.domain.selection import Order, Selection
from relay.domain.tenant import Principal, Tenant, TenantLimits, Token
from relay.domain.url_group import Endpoint, EndpointRef, UrlGroup
from relay.ids import Ids, random_name
from storage.codec import Row
from storage.postgres import firings, ledger, nodes, schema, takeovers, work
from storage.postgres.connections import Pool, Server, run, transaction
from storage.postgres.driver import Connection, Session, Target
from storage.postgres.horizon import Horizon
from storage.postgres.lane import Lane, Work
from storage.postgres.nodes import Node
from storage.postgres.takeovers import Takeovers
from storage.postgres.tx import Transactions, Tx
from storage.postgres.watch import Watch, agree
from storage.postgres.work import Claiming, Road, Settling
from storage.protocol import (
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
from storage.sql.script import Script, slices

T = TypeVar("T")

#: The road: publishers are to get their 503 soon.
_HOT = Session(longest_s=5.0, hot=True)
_LOOKUP = Session(longest_s=5.0, hot=True)
_SEARCH = Session(longest_s=20.0)
_CHANGE = Session(longest_s=20.0)
_TRANSFER = Session(longest_s=600.0)
_OPENING = Session(longest_s=600.0)

#: A machine whose clock is further off is not ready: what we cannot correct (certificates, other programs) errs.
_SKEW_MS = 30_000

#: How often whoever waits for its turn in a single file asks again.
_TURN_S = 0.02
_NO_TURN = "another process has what is wanted in hand, and for too long"

#: New gates get numbers after those that were carried here.
_NUMBER_ON = "SELECT setval(pg_get_serial_sequence('gates', 'id'), max(id)) FROM gates"
#: How long a start that ends before it was one may take to say so.
_WITHDRAWING_S = 3.0

_NOT_SAID = "the database could not be told that this process has ended, and counts it for half a minute: %s"
_NOT_HANDED_BACK = "claims nobody waited for could not be handed back: %s"

_log = logging.getLogger("relay.storage")


async def opened(target: Target, *, clock: SharedClock, migrate: bool) -> "PostgresStorage":
    """See `storage.postgres.open_postgres`."""
    server = Server(target)
    owner = random_name(nodes.POOLED if target.pooled else "node_")
    connection = await server.connect(_OPENING)
    try:
        await schema.prepare(connection, target, migrate=migrate)
        try:
            return await _joined(server, connection, owner, clock)
        except BaseException:
            # Failed, or told to end: nobody is to take this process for one that is at work.
            await _withdraw(server, owner)
            raise
    finally:
        connection.terminate()


async def _joined(
    server: Server, connection: Connection, owner: str, clock: SharedClock
) -> "PostgresStorage":
    async def take(connection: Connection) -> tuple[Node, int]:
        await connection.run(schema.advisory_lock(server.target.schema, schema.NODES))
        node = await nodes.take(connection, owner)
        return node, await takeovers.silence(connection, server.target, node)

    node, silent_ms = await transaction(connection, take)
    last_id = max(
        await _number(connection, "SELECT max(id) FROM messages"),
        await _greatest(connection, "dead_letters", "id"),
    )
    last_position = await _greatest(connection, "events", "position")
    await agree(connection, clock)
    return PostgresStorage(
        server,
        node=node,
        clock=clock,
        takeovers=Takeovers(asyncio.get_running_loop().time, silent_ms=silent_ms),
        last_id=last_id,
        positions=Ids(node=node.number, last=last_position),
    )


async def _withdraw(server: Server, owner: str) -> None:
    """Give back the number that a start may have taken, on a connection of its own: the start's may be beyond use,
    and its last word still on the way, for whose end the lock waits."""

    async def leave(connection: Connection) -> None:
        await connection.run(schema.advisory_lock(server.target.schema, schema.NODES))
        await nodes.leave(connection, owner)

    try:
        async with asyncio.timeout(_WITHDRAWING_S):
            connection = await server.connect(_CHANGE)
            try:
                await transaction(connection, leave)
            finally:
                connection.terminate()
    except Exception as problem:
        _log.warning(_NOT_SAID, str(problem) or "no answer")


class PostgresStorage:
    """All roles of `storage.protocol`. Belongs to the event loop it was opened on."""

    def __init__(
        self,
        server: Server,
        *,
        node: Node,
        clock: SharedClock,
        takeovers: Takeovers,
        last_id: int,
        positions: Ids,
    ) -> None:
        self._server = server
        self._node = node
        self._clock = clock
        self._last_id = last_id
        self._wakes: list[Callable[[int], None]] = []
        self._closed = False
        self._recounted_at: int | None = None
        self._positions = positions
        self._transactions = Transactions(positions, self._due)
        self._horizon = Horizon()
        road = Road(self._transactions, self._horizon, takeovers)
        self._publishes: Lane[Acceptance, Published] = Lane(
            server, _HOT, Work(road.publish, road.publish_again), orphaned=self._hand_back
        )
        self._settlements: Lane[Sequence[Settlement], Sequence[MessageId]] = Lane(
            server, _HOT, Work(road.settle, road.settle_alone)
        )
        #: What has a gate may have to wait for another process that has it in hand: nothing else does.
        self._gated_publishes: Lane[Acceptance, Published] = Lane(
            server, _HOT, Work(road.publish, road.publish_again), orphaned=self._hand_back
        )
        self._gated_settlements: Lane[Settling, Claimed] = Lane(
            server,
            _HOT,
            Work(road.settle_and_claim, road.settle_and_claim_alone),
            orphaned=self._hand_back,
        )
        self._claims: Lane[Claiming, Claimed] = Lane(
            server,
            _HOT,
            Work(road.claim, road.claim_alone),
            orphaned=self._hand_back,
        )
        self._road = road
        self._renewals = Pool(server, _HOT, 1)
        #: Look-ups by key, which answer requests, never queue behind searches.
        self._lookups = Pool(server, _LOOKUP, 2)
        self._searches = Pool(server, _SEARCH, 2)
        #: One walk through history at a time, so that other searches need not wait.
        self._walks = Pool(server, _SEARCH, 1)
        self._changes = Pool(server, _CHANGE, 2)
        #: What all processes do one after the other, those of this one do before they ask.
        self._turns = {what: asyncio.Lock() for what in schema.IN_TURN}
        self._firings: Lane[firings.Call, bool] = Lane(
            server, _CHANGE, Work(self._fire, self._fire_alone), pool=self._changes
        )
        self._transfers = Pool(server, _TRANSFER, 1)
        self._adding = asyncio.Lock()
        #: The page of the ledger up to which this process has folded it.
        self._folded = 0
        self._shorten_at = 0.0
        self._watch = Watch(server, node, clock, takeovers, woken=self._woken)

    @property
    def last_id(self) -> int:
        return self._last_id

    @property
    def node(self) -> int:
        return self._node.number

    @property
    def clock_offset_ms(self) -> int:
        return self._clock.offset_ms

    async def listening(self) -> None:
        """Wait until the hints of other processes are heard."""
        await self._watch.listening()

    # Inbox

    async def publish(
        self, messages: Sequence[Message], *, now: int, claim: ClaimTerms | None = None
    ) -> Published:
        self._watch.check()
        # Taken now, and not when a connection is to be had: a claim that waits beside it, and may find these
        # messages, takes its own later.
        positions = [self._positions.next(now) for _ in messages]
        gated = (claim is not None and claim.aside) or any(map(is_gated, messages))
        lane = self._gated_publishes if gated else self._publishes
        return await lane.submit(Acceptance(messages, now, claim, positions), cost_of_messages(messages))

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
        # What is found is not locked: only the bite that acts upon it is.
        last = await self._searches.read(lambda: cancel.newest(tenant))
        after = 0
        while limit is None or len(cancelled) < limit:
            room = cancel.BITE if limit is None else min(cancel.BITE, limit - len(cancelled))
            found = await self._found(tenant, selection, after, last, room)
            if not found:
                break
            after = found[-1]
            cancelled += await self._cancel(tenant, found, room, now)
        return cancelled

    async def _found(
        self, tenant: TenantId, selection: Selection, after: int, last: int, limit: int
    ) -> Sequence[MessageId]:
        return await self._searches.read(
            lambda: cancel.selected(tenant, selection, after=after, last=last, limit=limit)
        )

    async def _cancel(
        self, tenant: TenantId, ids: Sequence[int], limit: int, now: int
    ) -> Sequence[MessageId]:
        async def bite(tx: Tx) -> Sequence[MessageId]:
            await tx.run(gates.lock(await tx.run(cancel.members(tenant, ids)), {}))
            outcome = await tx.run(cancel.cancel(tenant, ids, limit=limit, now=now, position=tx.position))
            tx.live -= outcome.ended
            tx.opens(outcome.opens_at, now)
            return outcome.ids

        return await self._change(bite)

    # Work

    async def claim(self, terms: ClaimTerms, *, now: When, after: Sequence[Settlement] = ()) -> Claimed:
        if after:
            return await self._settle(after, Claiming(terms, now))
        self._watch.check()
        return await self._claims.submit(Claiming(terms, now))

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[MessageId]:
        return (await self._settle(settlements, None)).refused

    async def _settle(self, settlements: Sequence[Settlement], claiming: Claiming | None) -> Claimed:
        """Nothing without a gate waits for something that has one, which may have to wait for other processes."""
        self._watch.check()
        gated = [one for one in settlements if _passes_gates(one)]
        plain = [one for one in settlements if not _passes_gates(one)] if gated else settlements
        if not gated:
            stale = await self._settlements.submit(plain, cost_of_settlements(plain))
            return replace(work.nothing_claimed(settlements), refused=stale)
        ending = self._gated_settlements.submit(Settling(gated, claiming), cost_of_settlements(gated))
        if not plain:
            return await ending
        refused, claimed = await asyncio.gather(
            self._settlements.submit(plain, cost_of_settlements(plain)), ending, return_exceptions=True
        )
        if isinstance(claimed, BaseException):
            raise claimed
        if isinstance(refused, BaseException):
            self._hand_back(claimed)
            raise refused
        return replace(claimed, refused=[*refused, *claimed.refused])

    async def renew(self, leases: Sequence[Lease], *, until: int) -> Sequence[MessageId]:
        return await self._renewals.use(lambda connection: self._road.renew(connection, leases, until))

    async def set_aside(self, surplus: Mapping[Crowd, Sequence[Lease]], *, now: int, limit: int) -> SetAside:
        return await self._change(lambda tx: work.set_aside(tx, surplus, now, limit))

    async def ask_permits(self, leases: Sequence[Lease], *, now: int, sift: int) -> Permits:
        return await self._change(lambda tx: work.ask_permits(tx, leases, now, sift))

    def on_work(self, wake: Callable[[int], None]) -> None:
        self._wakes.append(wake)

    # Schedules

    async def put_schedule(self, schedule: Schedule, *, limit: int) -> Schedule | None:
        # Two that are new must not both be the last one within the limit.
        return await self._in_turn(
            schema.SCHEDULES, lambda tx: tx.run(schedules.put_schedule(schedule, limit=limit))
        )

    async def schedule(self, tenant: TenantId, schedule_id: str) -> ScheduleView | None:
        return await self._lookups.read(lambda: schedules.schedule(tenant, schedule_id))

    async def schedules(self, tenant: TenantId) -> Sequence[ScheduleView]:
        return await self._searches.read(lambda: schedules.schedules(tenant))

    async def delete_schedule(self, tenant: TenantId, schedule_id: str) -> bool:
        # Whoever puts it makes its row anew, which nobody sees who had to wait for the old one.
        return await self._in_turn(
            schema.SCHEDULES, lambda tx: tx.run(schedules.delete_schedule(tenant, schedule_id))
        )

    async def pause_schedule(
        self, tenant: TenantId, schedule_id: str, *, paused: bool, next_at: int | None
    ) -> bool:
        return await self._write(
            lambda: schedules.pause_schedule(tenant, schedule_id, paused=paused, next_at=next_at)
        )

    async def due_schedules(self, *, now: int, limit: int) -> tuple[Sequence[DueSchedule], int | None]:
        return await self._lookups.read(lambda: schedules.due_schedules(now=now, limit=limit))

    async def fire(self, firing: Firing, *, now: int) -> bool:
        self._watch.check()
        return await self._firings.submit(firings.Call(firing, now), cost_of_messages(firing.messages))

    async def runs(self, tenant: TenantId, schedule_id: str, *, limit: int) -> Sequence[Run]:
        return await self._lookups.read(lambda: schedules.runs(tenant, schedule_id, limit=limit))

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
        # What is put is put to what is there, and two that are new must not both be the last one.
        return await self._in_turn(
            schema.URL_GROUPS,
            lambda tx: tx.run(
                url_groups.put_endpoints(
                    tenant, name, endpoints, max_groups=max_groups, max_endpoints=max_endpoints, now=now
                )
            ),
        )

    async def remove_endpoints(
        self, tenant: TenantId, name: str, removed: Sequence[EndpointRef], *, now: int
    ) -> bool:
        return await self._in_turn(
            schema.URL_GROUPS,
            lambda tx: tx.run(url_groups.remove_endpoints(tenant, name, removed, now=now)),
        )

    async def put_group_headers(self, tenant: TenantId, name: str, headers: Headers, *, now: int) -> bool:
        return await self._write(lambda: url_groups.put_group_headers(tenant, name, headers, now=now))

    async def url_group(self, tenant: TenantId, name: str) -> UrlGroup | None:
        return await self._lookups.read(lambda: url_groups.url_group(tenant, name))

    async def url_groups(self, tenant: TenantId, names: Collection[str] | None = None) -> Sequence[UrlGroup]:
        if names is None:
            return await self._searches.read(lambda: url_groups.url_groups(tenant))
        return list((await self._lookups.read(lambda: url_groups.named(tenant, names))).values())

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
        async def write(tx: Tx) -> bool:
            done, opens_at = await tx.run(
                gates.change(tenant, kind, name, change, create=create, limit=limit, now=now)
            )
            tx.opens(opens_at, now)
            return done

        if limit is None:
            return await self._change(write)
        # Two that are new must not both be the last one within the limit.
        return await self._in_turn(schema.QUEUES, write)

    async def delete_queue(self, tenant: TenantId, name: str, *, now: int) -> bool:
        gate = await self._write(lambda: gates.retire(tenant, name, now))
        if gate is None:
            return False
        while ids := await self._lookups.read(lambda: gates.stragglers(gate, limit=cancel.BITE)):
            await self._cancel(tenant, ids, len(ids), now)
        return True

    async def queue(self, tenant: TenantId, name: str) -> Gate | None:
        return await self._lookups.read(lambda: gates.queue(tenant, name))

    async def queues(self, tenant: TenantId) -> Sequence[Gate]:
        return await self._searches.read(lambda: gates.queues(tenant))

    async def flow_key(self, tenant: TenantId, name: str, *, now: int) -> FlowKey | None:
        return await self._lookups.read(lambda: gates.flow_key(tenant, name, now))

    async def flow_keys(self, tenant: TenantId, *, search: str, limit: int, now: int) -> Sequence[FlowKey]:
        return await self._searches.read(lambda: gates.flow_keys(tenant, search, limit=limit, now=now))

    async def in_flight(self, tenant: TenantId, *, now: int) -> int:
        return await self._searches.read(lambda: gates.in_flight(tenant, until=now + LONGEST_LEASE_MS))

    # Catalog

    async def principal(self, token_hash: bytes) -> Principal | None:
        return await self._lookups.read(lambda: catalog.principal(token_hash))

    async def put_token(self, token_hash: bytes, principal: Principal, *, now: int) -> None:
        await self._write(lambda: catalog.put_token(token_hash, principal, now=now))

    async def delete_token(self, token_hash: bytes) -> bool:
        return await self._write(lambda: catalog.delete_token(token_hash))

    async def delete_tokens(self, tenant: TenantId, *, read_only: bool, keep: bytes | None) -> int:
        return await self._write(lambda: catalog.delete_tokens(tenant, read_only=read_only, keep=keep))

    async def tenant(self, tenant: TenantId) -> Tenant | None:
        return await self._lookups.read(lambda: catalog.tenant(tenant))

    async def tenant_named(self, user_id: str) -> Tenant | None:
        return await self._lookups.read(lambda: catalog.tenant_named(user_id))

    async def tenants(self) -> Sequence[Tenant]:
        return await self._lookups.read(catalog.tenants)

    async def put_tenant(self, tenant: Tenant, *, now: int) -> None:
        await self._write(lambda: catalog.put_tenant(tenant, now=now))

    async def create_tenant(self, tenant: Tenant, *, now: int) -> Tenant:
        return await self._write(lambda: catalog.create_tenant(tenant, now=now))

    async def swap_keys(self, old: Tenant, *, current_key: str, next_key: str) -> bool:
        return await self._write(lambda: catalog.swap_keys(old, current_key=current_key, next_key=next_key))

    async def rotate_keys(self, tenant: TenantId, *, fresh: str) -> Tenant | None:
        return await self._write(lambda: catalog.rotate_keys(tenant, fresh=fresh))

    async def setting(self, name: str) -> str | None:
        return await self._lookups.read(lambda: catalog.setting(name))

    async def put_setting(self, name: str, value: str) -> None:
        await self._write(lambda: catalog.put_setting(name, value))

    async def swap_setting(self, name: str, *, old: str | None, new: str) -> bool:
        return await self._write(lambda: catalog.swap_setting(name, old=old, new=new))

    # Accounts

    async def add_tenant(self, user_id: str, *, current_key: str, next_key: str, now: int) -> Tenant | None:
        # Two of one name must not both find that there is none.
        return await self._in_turn(
            schema.ACCOUNTS,
            lambda tx: tx.run(
                catalog.add_tenant(user_id, current_key=current_key, next_key=next_key, now=now)
            ),
        )

    async def put_limits(self, tenant: TenantId, limits: TenantLimits, *, now: int) -> bool:
        return await self._write(lambda: catalog.put_limits(tenant, limits, now=now))

    async def put_signed_by(self, tenant: TenantId, signed_by: SignedBy) -> bool:
        return await self._write(lambda: catalog.put_signed_by(tenant, signed_by))

    async def put_disabled(self, tenant: TenantId, *, at: int | None) -> bool:
        return await self._write(lambda: catalog.put_disabled(tenant, at=at))

    async def tokens(self, tenant: TenantId) -> Sequence[Token]:
        return await self._lookups.read(lambda: catalog.tokens(tenant))

    async def issue_token(self, token: Token) -> None:
        await self._write(lambda: catalog.issue_token(token))

    # Archive

    async def message(self, tenant: TenantId, message_id: MessageId) -> Message | None:
        return await self._lookups.read(lambda: archive.message(tenant, message_id))

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
        return await self._walks.read(
            lambda: archive.events(tenant, selection, order=order, start=start, limit=limit, walk=walk)
        )

    async def dead_letter(self, tenant: TenantId, dead_letter_id: DeadLetterId) -> DeadLetter | None:
        return await self._lookups.read(lambda: archive.dead_letter(tenant, dead_letter_id))

    async def dead_letters(
        self, tenant: TenantId, selection: Selection, *, order: Order, start: int | None, limit: int
    ) -> Sequence[DeadLetter]:
        return await self._searches.read(
            lambda: archive.dead_letters(tenant, selection, order=order, start=start, limit=limit)
        )

    async def delete_dead_letters(
        self, tenant: TenantId, ids: Sequence[DeadLetterId]
    ) -> Sequence[DeadLetterId]:
        async def delete(tx: Tx) -> Sequence[DeadLetterId]:
            deleted = await tx.run(archive.delete_dead_letters(tenant, ids))
            tx.dead_letters -= len(deleted)
            await tx.run(archive.forget(deleted.values()))
            return list(deleted)

        return await self._in_turn(schema.FORGETTING, delete)

    async def redrive(
        self, tenant: TenantId, pairs: Sequence[tuple[DeadLetterId, Message]], *, now: int
    ) -> Sequence[MessageId]:
        async def redrive(tx: Tx) -> Sequence[MessageId]:
            # Killed before the commit, the dead letters are still there; after it, their messages are alive.
            fresh = dict(reversed(pairs))
            deleted = await tx.run(archive.delete_dead_letters(tenant, list(fresh)))
            tx.dead_letters -= len(deleted)
            messages = [fresh[id_] for id_, _ in pairs if id_ in deleted and id_ in fresh]
            published = await work.accept(tx, [Acceptance(messages, now, None)])
            await tx.run(archive.forget(deleted.values()))
            return [receipt.message_id for receipt in published[0].receipts]

        return await self._in_turn(schema.FORGETTING, redrive)

    async def prune(self, retention: Retention, *, now: int, limit: int) -> int:
        async def prune(tx: Tx) -> int:
            removed = await tx.run(archive.prune(retention, now=now, limit=limit))
            tx.dead_letters -= removed.dead_letters
            return removed.rows

        removed = await self._in_turn(schema.FORGETTING, prune)
        await self._recount(now)
        left = await self._lookups.read(gates.retired)
        if left is None:
            return removed
        # Whoever deleted this queue was interrupted.
        gate, tenant = left
        ids = await self._lookups.read(lambda: gates.stragglers(gate, limit=min(limit, cancel.BITE)))
        return removed + len(await self._cancel(tenant, ids, len(ids), now))

    async def _recount(self, now: int) -> None:
        """Now and then, take back permits of tenants that no attempt holds."""
        if self._recounted_at is not None and 0 <= now - self._recounted_at < permits.RECOUNT_MS:
            return
        for tenant in await self._searches.read(lambda: permits.leaking(limit=permits.RECOUNTED)):
            await self._write(partial(permits.recount, tenant, now))
        self._recounted_at = now

    async def fold(self) -> bool:
        lock = schema.try_advisory_lock(self._server.target.schema, schema.LEDGER)

        async def fold(tx: Tx) -> tuple[int, int]:
            # Killed before the commit, the lines are as they were. Another that folds does it for all.
            return await tx.run(ledger.fold(self._folded)) if (await tx.rows(lock))[0][0] else (0, 0)

        self._folded, pages = await self._change(fold)
        now = asyncio.get_running_loop().time()
        if not self._folded and pages > ledger.LONG and now >= self._shorten_at:
            self._shorten_at = now + ledger.SHORTEN_S
            await self._searches.use(
                lambda connection: connection.run(ledger.shorten(self._server.target.schema))
            )
        return self._folded > 0

    async def stats(self) -> Stats:
        oldest_due_at = await self._lookups.read(ledger.oldest_due)
        live, dead_letters = await self._depths() or (None, None)
        return Stats(live=live, dead_letters=dead_letters, oldest_due_at=oldest_due_at)

    async def _depths(self) -> tuple[int, int] | None:
        """The sum of the ledger; None when it is so long that adding it up takes too long.

        However many ask, one connection is busy with it.
        """
        try:
            async with asyncio.timeout(ledger.LONGEST_S):
                await self._adding.acquire()
        except TimeoutError:
            return None
        try:
            return await self._lookups.transaction(lambda connection: run(connection, ledger.depths()))
        except Unavailable as problem:
            _log.warning("the depths cannot be told: %s", problem)
            return None
        finally:
            self._adding.release()

    # Transfer

    @property
    def tables(self) -> Sequence[str]:
        return transfer.TABLES

    async def unknown_migrations(self) -> Sequence[int]:
        # Asked at every start, and not by copies only: with a connection that is needed anyway.
        return await self._lookups.use(
            lambda connection: schema.unknown_migrations(connection, self._server.target)
        )

    async def clear(self) -> None:
        async def clear(tx: Tx) -> None:
            # Emptied at once: rows that were deleted would be in the way of claims until they are vacuumed.
            await tx.rows(f"TRUNCATE {', '.join(set(transfer.TABLES) - transfer.PARTLY)}, depths")
            for table in transfer.PARTLY:
                await tx.run(transfer.clear(table))

        await self._transfers.use(lambda connection: self._transactions.run(connection, clear))

    @property
    def emptied_by(self) -> str:
        return f"first remove all it holds, in psql: DROP SCHEMA {self._server.target.schema} CASCADE"

    async def other_users(self) -> int:
        return await self._transfers.use(lambda connection: nodes.others(connection, self._node))

    async def read_rows(self, table: str, *, after: Row | None, limit: int) -> Page:
        return await self._transfers.read(lambda: transfer.read(table, after=after, limit=limit))

    async def write_rows(self, table: str, rows: Sequence[Row]) -> None:
        async def write(tx: Tx) -> None:
            added = await tx.run(transfer.write(table, rows))
            tx.live += added if table == "deliveries" else 0
            tx.dead_letters += added if table == "dead_letters" else 0
            if table == "gates":
                await tx.rows(_NUMBER_ON)

        await self._transfers.use(lambda connection: self._transactions.run(connection, write))

    async def count_rows(self, table: str) -> int:
        return await self._transfers.read(lambda: transfer.count(table))

    async def last_row(self, table: str) -> Row | None:
        return await self._transfers.read(lambda: transfer.last(table))

    # Life

    async def ping(self) -> None:
        await self._changes.use(self._watch.beat)
        self._watch.check()
        offset_ms = self._clock.offset_ms
        if abs(offset_ms) > _SKEW_MS:
            side = "ahead of" if offset_ms > 0 else "behind"
            raise Unavailable(
                f"this machine's clock is {abs(offset_ms) // 1000} seconds {side} the database's",
                retry_after_s=60,
            )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(
            self._publishes.close(),
            self._gated_publishes.close(),
            self._claims.close(),
            self._firings.close(),
        )
        await asyncio.gather(self._settlements.close(), self._gated_settlements.close())
        await self._watch.close()
        try:
            await self._changes.use(lambda connection: nodes.leave(connection, self._node.owner))
        except Unavailable as problem:
            _log.warning(_NOT_SAID, problem)
        for pool in (
            self._renewals,
            self._lookups,
            self._searches,
            self._walks,
            self._changes,
            self._transfers,
        ):
            await pool.close()

    async def _change(self, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Run one operation in a transaction of its own."""
        self._watch.check()
        return await self._changes.use(lambda connection: self._transactions.run(connection, work))

    async def _write(self, script: Callable[[], Script[T]]) -> T:
        """Run a script in a transaction; it is made anew each time the transaction has to be repeated."""
        return await self._change(lambda tx: tx.run(script()))

    async def _fire(self, connection: Connection, calls: Sequence[firings.Call]) -> Sequence[bool]:
        return await self._transactions.run(connection, lambda tx: firings.fire(tx, calls))

    async def _fire_alone(self, connection: Connection, call: firings.Call) -> bool:
        return (await self._fire(connection, [call]))[0]

    async def _in_turn(self, what: int, work: Callable[[Tx], Awaitable[T]]) -> T:
        """Like `_change`, for what all processes do one after the other.

        Whoever waits for its turn holds no connection meanwhile, and of one process one at a time asks for it: what
        fires, pauses, permits and answers for readiness needs those connections, and must not queue behind a
        process that was frozen in its turn.
        """
        lock = schema.try_advisory_lock(self._server.target.schema, what)

        async def attempt(tx: Tx) -> tuple[T] | None:
            if not (await tx.rows(lock))[0][0]:
                return None
            return (await work(tx),)

        until = asyncio.get_running_loop().time() + _CHANGE.longest_s
        turn = self._turns[what]
        try:
            async with asyncio.timeout_at(until):
                await turn.acquire()
        except TimeoutError:
            raise Unavailable(_NO_TURN, retry_after_s=2) from None
        try:
            while (done := await self._change(attempt)) is None:
                if asyncio.get_running_loop().time() >= until:
                    raise Unavailable(_NO_TURN, retry_after_s=2)
                await asyncio.sleep(_TURN_S)
            return done[0]
        finally:
            turn.release()

    def _due(self, due_at: int, soon: bool) -> None:
        """A commit of this process made something due that nobody holds."""
        self._horizon.hear(due_at)
        for wake in self._wakes:
            wake(due_at)
        if soon:
            self._watch.tell(due_at)

    def _woken(self, due_at: int) -> None:
        """A commit of another process did."""
        self._horizon.hear(due_at)
        for wake in self._wakes:
            wake(due_at)

    def _hand_back(self, result: Published | Claimed) -> None:
        """Whoever asked for claims has gone: hand them back instead of letting their leases run out.

        Closing closes the lanes of settlements last, so that what was being claimed then comes back as well.
        """
        back: Sequence[Settlement] = [released(one, now=one.claimed_at) for one in result.claims]
        # Here, too, nothing without a gate waits for something that has one.
        plain = [one for one in back if not _passes_gates(one)]
        gated = [one for one in back if _passes_gates(one)]
        submits: Sequence[Callable[[], asyncio.Future[Any]]] = [
            *([lambda: self._settlements.submit(plain)] if plain else []),
            *([lambda: self._gated_settlements.submit(Settling(gated))] if gated else []),
        ]
        for submit in submits:
            try:
                future = submit()
            except Unavailable as problem:
                _log.warning(_NOT_HANDED_BACK, problem)
            else:
                future.add_done_callback(_report)


def _passes_gates(settlement: Settlement) -> bool:
    return moves_gates(settlement.claim) or any(map(is_gated, settlement.publishes))


def _report(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled() and future.exception() is not None:
        _log.warning(_NOT_HANDED_BACK, future.exception())


async def _greatest(connection: Connection, table: str, key: str) -> int:
    """The greatest key of a table that is ordered by tenant first, 0 when it is empty."""
    newest = f"SELECT max({key}) FROM {table} WHERE tenant = $1"
    tenants = await run(connection, archive.tenants_in(table))
    return max([await _number(connection, newest, tenant) for tenant in tenants], default=0)


async def _number(connection: Connection, text: str, *values: object) -> int:
    """The one number a query yields, 0 for NULL."""
    return int((await connection.rows(text, *values))[0][0] or 0)

"""The narrow waist: what the relay asks of a database, in its own verbs.

Batch first, `now` always given, no SQL, no transaction and no connection leaks out. Every method that writes is
one transaction, durable when it returns; when it raises `Unavailable` nothing is known to be written, and the
caller may repeat it. Each role is what one consumer needs; `Storage` is all of them.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from relay.domain.dead_letter import DeadLetter, DeadLetterId
from relay.domain.delivery import Claim, Lease, Settlement
from relay.domain.event import Event
from relay.domain.fairness import Crowd, Shares
from relay.domain.gates import Gate, GateChange, GateKind
from relay.domain.message import Headers, Message, MessageId, SignedBy, TenantId
from relay.domain.schedule import Run, Schedule
from relay.domain.selection import Order, Selection
from relay.domain.tenant import Principal, Tenant, TenantLimits, Token
from relay.domain.url_group import Endpoint, EndpointRef, UrlGroup

#: How long a deduplication key holds, by the deduplication guide of the QStash documentation. It is freed earlier
#: when its message fails for good or is canceled.
DEDUP_WINDOW_MS = 10 * 60_000


#: An instant, or the clock that tells it when the turn of a call has come.
When = int | Callable[[], int]


class CannotOpen(Exception):  # noqa: N818 - what happened, in the words of the one who reads it
    """The database cannot be used by this process at all; the message is one sentence for whoever starts it."""


class Rejected(Exception):  # noqa: N818 - what happened, like the names in relay.domain.errors
    """The database refuses a statement, whatever values are in it: its tables are not what they should be."""


class Unstorable(Rejected):
    """The database refuses a statement for the values in it: a constraint, a text it cannot hold, a row too long
    for an index. Repeated, it is refused again; with other values it is not."""


class ClaimTerms(Struct, frozen=True, kw_only=True):
    """How many deliveries a worker can take, and for how long it may keep silent about them.

    `max_bytes` bounds what a claim reads: it ends with the first body that reaches it. `shares` says how much of
    each crowd may be taken; without it none is. Of a publish, the messages `aside` wait in their crowds at once.
    """

    limit: int
    lease_ms: int
    max_bytes: int | None = None
    shares: Shares | None = None
    aside: Collection[MessageId] = ()


class Permits(Struct, frozen=True, kw_only=True):
    """Who may be attempted now, and who waits for a permit of the tenant, without a lease; all others stay as they
    are."""

    granted: Collection[MessageId]
    waiting: Collection[MessageId]


class Receipt(Struct, frozen=True, kw_only=True):
    """What became of one published message. When `deduplicated`, `message_id` is the earlier message's."""

    message_id: MessageId
    deduplicated: bool = False


class Published(Struct, frozen=True, kw_only=True):
    """Receipts in the order of the messages, and the claims that were asked for with them."""

    receipts: Sequence[Receipt]
    claims: Sequence[Claim]


class SetAside(Struct, frozen=True, kw_only=True):
    """`stayed` are those whose lease is not held, or that are to be cancelled: nothing has changed for them.
    `sifted` others of the same crowds went along."""

    stayed: Sequence[MessageId]
    sifted: int


class Claimed(Struct, frozen=True, kw_only=True):
    """What was due `at` the instant of the claim, and the earliest at which anything else will be (leases that run
    out included).

    `passed_over`: something is due in a crowd that may not have more at the moment. `refused` are those of the
    settlements it came `after`.
    """

    claims: Sequence[Claim]
    at: int
    next_due_at: int | None
    passed_over: bool = False
    refused: Sequence[MessageId] = ()


class DueSchedule(Struct, frozen=True, kw_only=True):
    """A schedule whose next tick has come, and whether messages of its last run are still unfinished.

    `group` is the URL group that its draft names, as it is now; None when it does not exist, or none is named.
    `disabled`: its tenant is.
    """

    schedule: Schedule
    in_progress: bool
    group: UrlGroup | None = None
    disabled: bool = False


class Firing(Struct, frozen=True, kw_only=True):
    """Everything one firing changes: runs recorded, messages published, schedule advanced, in one commit.

    `schedule` is the schedule as it was read; its `revision` and `next_at` must still be the stored ones.
    """

    schedule: Schedule
    runs: tuple[Run, ...]
    messages: tuple[Message, ...]
    next_at: int | None
    error: str | None = None


class ScheduleView(Struct, frozen=True, kw_only=True):
    """A schedule with the states of the messages its latest run produced (None: still in progress)."""

    schedule: Schedule
    last_states: dict[MessageId, bool | None]


class FlowKey(Struct, frozen=True, kw_only=True):
    """A flow-control key, and how many attempts are due and wait for its permit."""

    gate: Gate
    waiting: int


class Retention(Struct, frozen=True, kw_only=True):
    """Instants before which things may be forgotten; `own` holds those of tenants that differ from the others."""

    events_before: int
    dead_letters_before: int
    own: Mapping[TenantId, "Retention"] = {}

    def of(self, tenant: TenantId) -> "Retention":
        return self.own.get(tenant, self)


class Stats(Struct, frozen=True, kw_only=True):
    """Depths kept as counters; None: not to be had in time, for as long as what they are added up from is too long.

    `oldest_due_at` is the due time of the longest-waiting delivery nobody has taken.
    """

    live: int | None
    dead_letters: int | None
    oldest_due_at: int | None


class History(Struct, frozen=True, kw_only=True):
    """Rows of history, and the position to go on from; None: there is nothing behind them."""

    events: Sequence[Event] = ()
    next_position: int | None = None


class Page(Struct, frozen=True, kw_only=True):
    """Rows of one table in the order of its key, and the key after which to go on; None: there were none."""

    rows: Sequence[Sequence[Any]]
    end: Sequence[Any] | None


class Inbox(Protocol):
    """Accepting and withdrawing messages."""

    async def publish(
        self, messages: Sequence[Message], *, now: int, claim: ClaimTerms | None = None
    ) -> Published:
        """Store the messages, all or none. Duplicates by `dedup_key` inside their window store nothing, and
        neither does a message whose id is stored already: repeating a publish is harmless.

        With `claim`, the first `claim.limit` of them that are due at `now` come back already leased, so that the
        caller never reads back what it has just written; but never one with a queue or a flow-control key.
        """
        ...

    async def cancel(
        self, tenant: TenantId, selection: Selection, *, limit: int | None, now: int
    ) -> Sequence[MessageId]:
        """Cancel what is alive and selected, oldest first, and return what was cancelled.

        What waits ends at once; what is in flight is marked, is not retried, and is not counted a second time.
        Without `limit` it works in bounded bites, one transaction each.
        """
        ...


class Work(Protocol):
    """Taking deliveries and reporting what came of them."""

    async def claim(self, terms: ClaimTerms, *, now: When, after: Sequence[Settlement] = ()) -> Claimed:
        """Lease what is due, oldest due time first, and what its gates let pass. A lease that ran out is due like
        anything else, and taking it over raises the claim's `lost_leases`.

        Who cannot know how long the claim will wait for its turn gives the clock: it is read, perhaps in another
        thread, once nobody stands in the way, so that no window of a rate opens in the past.

        It may come `after` settlements in their own commit, to take what they free; when they free nothing, nothing
        is claimed. Nothing is known to be written when it raises.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[MessageId]:
        """Write the settlements, each all or nothing; return the ids that were refused for a stale `claim_no`
        (or because the message is gone). A refused settlement changes nothing at all."""
        ...

    async def renew(self, leases: Sequence[Lease], *, until: int) -> Sequence[MessageId]:
        """Extend leases; return the ids that are no longer held under that `claim_no`."""
        ...

    async def set_aside(self, surplus: Mapping[Crowd, Sequence[Lease]], *, now: int, limit: int) -> SetAside:
        """Give leases back, unspent, and let their deliveries wait in their crowds; so do others of the same crowds
        among the first `limit` that are due. Claims take them from there as their `shares` allow."""
        ...

    async def ask_permits(self, leases: Sequence[Lease], *, now: int, sift: int) -> Permits:
        """Ask for a permit of its tenant for each of the deliveries; one without a limit gives them to all. It is
        held until the settlement of the claim, or of a later one after its lease was lost.

        Who cannot have one waits in line, and comes with a claim that says `permit`; others of the same tenants
        among the first `sift` that are due go along. Who has the permit of a key never waits: he stays as he is,
        like those whose lease is not held or that are to be cancelled. A claim gives both permits or neither.
        """
        ...

    def on_work(self, wake: Callable[[int], None]) -> None:
        """Call `wake(due_at)` on the event loop after a commit that made something due: a hint, may be missed."""
        ...


class Schedules(Protocol):
    """Recurring publishes."""

    async def put_schedule(self, schedule: Schedule, *, limit: int) -> Schedule | None:
        """Create, or replace completely keeping `created_at` and raising `revision`; returns what is stored.

        None, and nothing written, when the schedule is new and the tenant has `limit` schedules already.
        """
        ...

    async def schedule(self, tenant: TenantId, schedule_id: str) -> ScheduleView | None: ...

    async def schedules(self, tenant: TenantId) -> Sequence[ScheduleView]: ...

    async def delete_schedule(self, tenant: TenantId, schedule_id: str) -> bool:
        """False when there was none. Messages already produced go on."""
        ...

    async def pause_schedule(
        self, tenant: TenantId, schedule_id: str, *, paused: bool, next_at: int | None
    ) -> bool:
        """Set the pause bit and the next tick, raising `revision`; a no-op when already so. False: no such one."""
        ...

    async def due_schedules(self, *, now: int, limit: int) -> tuple[Sequence[DueSchedule], int | None]:
        """Schedules with a tick at or before `now`, and the earliest tick of all the others."""
        ...

    async def fire(self, firing: Firing, *, now: int) -> bool:
        """Compare-and-set: any node may try, exactly one wins; False for the loser, who has written nothing."""
        ...

    async def runs(self, tenant: TenantId, schedule_id: str, *, limit: int) -> Sequence[Run]:
        """What became of the latest ticks, newest first."""
        ...


class UrlGroups(Protocol):
    """Names for several destinations at once. Changes of one group happen one after the other; none is lost."""

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
        """Add or change endpoints as `url_group.upserted` says; a group that does not exist begins with them.

        False, and nothing written, when the group would have more than `max_endpoints`, or is new and the tenant
        has `max_groups` already.
        """
        ...

    async def remove_endpoints(
        self, tenant: TenantId, name: str, removed: Sequence[EndpointRef], *, now: int
    ) -> bool:
        """Remove endpoints, and the group with its last one. False: no such group."""
        ...

    async def put_group_headers(self, tenant: TenantId, name: str, headers: Headers, *, now: int) -> bool:
        """Replace the headers of a group. False: no such group."""
        ...

    async def url_group(self, tenant: TenantId, name: str) -> UrlGroup | None: ...

    async def url_groups(self, tenant: TenantId, names: Collection[str] | None = None) -> Sequence[UrlGroup]:
        """All groups, oldest first; with `names` only those of them, in any order."""
        ...

    async def delete_url_group(self, tenant: TenantId, name: str) -> bool:
        """False when there was none. Messages already published to it go on."""
        ...


class Gates(Protocol):
    """Queues and flow-control keys. Messages make the ones they name; limits and counts hold at every commit.

    `Gate.members` of a queue is its lag. A claim never exceeds a limit, whoever claims.
    """

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
        """Change a gate, for all that waits at it too. False when there is none and none was made: without
        `create`, or because the tenant has `limit` of the kind already.

        Pausing a queue, or lowering its parallelism, also holds for messages that have a lane and were never
        attempted; those that were keep their lane and go on.
        """
        ...

    async def delete_queue(self, tenant: TenantId, name: str, *, now: int) -> bool:
        """False when there was none. What waits in it is cancelled, in bounded bites; what is in flight is not
        retried. The name is free at once. Interrupted, it is finished by `prune`."""
        ...

    async def queue(self, tenant: TenantId, name: str) -> Gate | None: ...

    async def queues(self, tenant: TenantId) -> Sequence[Gate]: ...

    async def flow_key(self, tenant: TenantId, name: str, *, now: int) -> FlowKey | None: ...

    async def flow_keys(self, tenant: TenantId, *, search: str, limit: int, now: int) -> Sequence[FlowKey]:
        """At most `limit` of those whose name contains `search`, by name."""
        ...

    async def in_flight(self, tenant: TenantId, *, now: int) -> int:
        """How many deliveries of the tenant are being attempted now, by whomever; with a limit: have a permit."""
        ...


class Catalog(Protocol):
    """Who may speak, and the keys that sign."""

    async def principal(self, token_hash: bytes) -> Principal | None:
        """As it is stored: whether the token has expired, or its tenant is disabled, is for the caller to judge."""
        ...

    async def put_token(self, token_hash: bytes, principal: Principal, *, now: int) -> None:
        """Let this token of a start speak for the principal's tenant, for good."""
        ...

    async def delete_token(self, token_hash: bytes) -> bool:
        """Forget one token, whoever it speaks for and whoever made it. False: there was none."""
        ...

    async def delete_tokens(self, tenant: TenantId, *, read_only: bool, keep: bytes | None) -> int:
        """Forget the tenant's tokens of that kind, except the one with hash `keep` and those that were issued;
        returns how many."""
        ...

    async def tenant(self, tenant: TenantId) -> Tenant | None: ...

    async def tenant_named(self, user_id: str) -> Tenant | None:
        """None, too, when several have that name: none of them may be taken for another."""
        ...

    async def tenants(self) -> Sequence[Tenant]: ...

    async def put_tenant(self, tenant: Tenant, *, now: int) -> None:
        """Create the tenant with this number, or replace its user id and keys and nothing else of it."""
        ...

    async def create_tenant(self, tenant: Tenant, *, now: int) -> Tenant:
        """Create it unless there is one with this number; what is stored is the answer to all who try at once."""
        ...

    async def swap_keys(self, old: Tenant, *, current_key: str, next_key: str) -> bool:
        """Replace the keys of a tenant if they are those of `old`. False: they are others by now, or it is gone."""
        ...

    async def rotate_keys(self, tenant: TenantId, *, fresh: str) -> Tenant | None:
        """current := next, next := fresh, in one statement, so that two rotations are two rotations."""
        ...

    async def setting(self, name: str) -> str | None: ...

    async def put_setting(self, name: str, value: str) -> None: ...

    async def swap_setting(self, name: str, *, old: str | None, new: str) -> bool:
        """Replace `old`, None for no such setting. False: it is another by now. Of several at once one wins."""
        ...


class Accounts(Protocol):
    """What an operator does with accounts, also beside relays that run: each of them notices within seconds."""

    async def tenants(self) -> Sequence[Tenant]:
        """By number."""
        ...

    async def add_tenant(self, user_id: str, *, current_key: str, next_key: str, now: int) -> Tenant | None:
        """None, and nothing written, when there is one of that name. Its number was never another's."""
        ...

    async def put_limits(self, tenant: TenantId, limits: TenantLimits, *, now: int) -> bool:
        """Replace the limits of a tenant. False: no such tenant. From then on no permit is given that would exceed
        `max_parallelism`."""
        ...

    async def put_signed_by(self, tenant: TenantId, signed_by: SignedBy) -> bool:
        """How to sign, from now on, what does not say itself. False: no such tenant."""
        ...

    async def put_disabled(self, tenant: TenantId, *, at: int | None) -> bool:
        """Disable a tenant since `at`, or with None enable it. False: no such tenant."""
        ...

    async def tokens(self, tenant: TenantId) -> Sequence[Token]:
        """Oldest first."""
        ...

    async def issue_token(self, token: Token) -> None:
        """Let a new token speak for its tenant."""
        ...

    async def delete_token(self, token_hash: bytes) -> bool:
        """As in `Catalog`."""
        ...


class Archive(Protocol):
    """What happened, and what is left over."""

    async def message(self, tenant: TenantId, message_id: MessageId) -> Message | None: ...

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
        """History rows from position `start` on (inclusive), in the given order. `selection.states` matches a
        row when any of its states is meant.

        A search that no index narrows looks at `walk` rows at most: then there may be fewer than `limit`, even
        none, and yet more behind them.
        """
        ...

    async def dead_letter(self, tenant: TenantId, dead_letter_id: DeadLetterId) -> DeadLetter | None: ...

    async def dead_letters(
        self, tenant: TenantId, selection: Selection, *, order: Order, start: int | None, limit: int
    ) -> Sequence[DeadLetter]:
        """Dead letters from id `start` on (inclusive), in the given order."""
        ...

    async def delete_dead_letters(
        self, tenant: TenantId, ids: Sequence[DeadLetterId]
    ) -> Sequence[DeadLetterId]:
        """Delete those that exist; return them."""
        ...

    async def redrive(
        self, tenant: TenantId, pairs: Sequence[tuple[DeadLetterId, Message]], *, now: int
    ) -> Sequence[MessageId]:
        """For each dead letter that still exists: delete it and publish its message, in one transaction.

        Returns the ids of the messages that were published.
        """
        ...

    async def prune(self, retention: Retention, *, now: int, limit: int) -> int:
        """Forget at most about `limit` rows of history, dead letters, messages without either, spent
        deduplication keys and unused flow-control keys; returns how many rows went, 0 when nothing was old
        enough."""
        ...

    async def fold(self) -> bool:
        """Shorten what the depths are added up from, one bounded bite of it; whether there is more to look at."""
        ...

    async def stats(self) -> Stats: ...


class Transfer(Protocol):
    """Carrying everything to another database, as rows that mean the same in every backend."""

    @property
    def tables(self) -> Sequence[str]:
        """All tables, in the order to carry them in."""
        ...

    async def unknown_migrations(self) -> Sequence[int]:
        """Versions of the schema that a newer relay has applied: what they added is not among `tables`."""
        ...

    async def clear(self) -> None:
        """Remove all rows of all tables, in one transaction."""
        ...

    @property
    def emptied_by(self) -> str:
        """How an operator comes to an empty database: what follows "to copy here, " in a sentence."""
        ...

    async def other_users(self) -> int:
        """How many other processes use the database now; one that has died counts for half a minute."""
        ...

    async def read_rows(self, table: str, *, after: Sequence[Any] | None, limit: int) -> Page:
        """The rows that follow a key, at most `limit` of them and about 4 MiB. Leases are handed out as run out."""
        ...

    async def write_rows(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows; those whose key is there already are left as they are."""
        ...

    async def count_rows(self, table: str) -> int: ...

    async def last_row(self, table: str) -> Sequence[Any] | None:
        """The greatest key, so that an interrupted copy goes on after it. None for an empty table, and for one
        whose keys other databases may sort differently."""
        ...


class Storage(Inbox, Work, Schedules, UrlGroups, Gates, Catalog, Accounts, Archive, Transfer, Protocol):
    """A database that can do all of it.

    `last_id` is the greatest id of a message or a dead letter it held when it was opened, `node` the number that
    tells this process' ids from those of others on the same database: what the process' `Ids` starts from.
    """

    @property
    def last_id(self) -> int: ...

    @property
    def node(self) -> int: ...

    @property
    def clock_offset_ms(self) -> int:
        """How far this machine's clock is ahead of the database's; 0 when they are one."""
        ...

    async def ping(self) -> None:
        """Prove that a commit is possible now; raises `Unavailable` otherwise."""
        ...

    async def close(self) -> None:
        """Write what was accepted, then let go of every connection and thread."""
        ...

"""An isolated account: who may speak for it, which keys sign for it, and how much it may ask for."""

from msgspec import Struct

from relay.domain.message import TenantId

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS


class Limits(Struct, frozen=True, kw_only=True):
    """What a tenant may ask for; beyond it the publisher gets 412 (sizes: 413)."""

    #: Bytes of one message body.
    max_message_bytes: int = 1 << 20
    #: Bytes of one batch request.
    max_batch_bytes: int = 100 << 20
    #: Retries of one message. Finite on purpose: clients probe the quota with a million.
    max_retries: int = 100
    #: Longest delay or not-before ahead: ten years.
    max_delay_ms: int = 3653 * _DAY_MS
    #: Longest single attempt: twelve hours, what long model calls ask for.
    max_timeout_ms: int = 12 * 60 * _MINUTE_MS
    #: An attempt without a timeout of its own.
    default_timeout_ms: int = 15 * _MINUTE_MS
    max_schedules: int = 10_000
    max_url_groups: int = 1_000
    #: Endpoints of one URL group. A publish to it is stored once for each of them.
    max_endpoints: int = 100
    max_queues: int = 10_000
    #: Lanes of one queue.
    max_queue_parallelism: int = 1_000
    #: Attempts in flight at once.
    max_parallelism: int = 1_000
    max_labels: int = 20
    #: Characters of one label.
    max_label_length: int = 256


class Tenant(Struct, frozen=True, kw_only=True):
    """`user_id` is the name inside the tokens; `id` the number every row carries.

    Deliveries are signed with `current_key`; receivers accept `next_key` too, so that a rotation (current
    becomes next, next becomes new) interrupts nobody.
    """

    id: TenantId
    user_id: str
    current_key: str
    next_key: str


class Principal(Struct, frozen=True, kw_only=True):
    """Whom a token speaks for."""

    tenant: TenantId
    read_only: bool = False

"""An isolated account: who may speak for it, which keys sign for it, and how much it may ask for."""

from msgspec import Struct
from msgspec.structs import replace

from relay.domain.message import SignedBy, TenantId

#: The account that the configuration speaks of: the first one, made by the first start.
DEFAULT_TENANT = TenantId(1)

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS
#: Hexadecimal digits of the hash that make an id: enough to tell a relay's tokens apart.
_ID_DIGITS = 8


class Limits(Struct, frozen=True, kw_only=True):
    """What a tenant may ask for; beyond it the publisher gets 412 (sizes: 413)."""

    #: Bytes of one message body.
    max_message_bytes: int = 1 << 20
    #: No tenant's own limit goes beyond it: a larger body would never fit into what may be in flight at once.
    largest_message_bytes: int = 64 << 20
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
    #: Attempts in flight at once; for one without a limit of its own, what one node has room for.
    max_parallelism: int = 1_000
    max_labels: int = 20
    #: Characters of one label.
    max_label_length: int = 256


class TenantLimits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is different for one tenant. None: as the relay is set, for all."""

    max_message_bytes: int | None = None
    max_retries: int | None = None
    #: Deliveries in flight at once, on all nodes together.
    max_parallelism: int | None = None
    #: How long history, and finished messages with it, stay readable.
    log_retention_ms: int | None = None
    dlq_retention_ms: int | None = None

    def within(self, relay: Limits) -> Limits:
        """What this tenant may ask for, where the relay's own limits are `relay`."""
        max_message_bytes = relay.max_message_bytes
        if self.max_message_bytes is not None:
            max_message_bytes = min(self.max_message_bytes, relay.largest_message_bytes)
        return replace(
            relay,
            max_message_bytes=max_message_bytes,
            max_retries=relay.max_retries if self.max_retries is None else self.max_retries,
            max_parallelism=relay.max_parallelism if self.max_parallelism is None else self.max_parallelism,
        )


class Tenant(Struct, frozen=True, kw_only=True):
    """`user_id` is the name inside the tokens; `id` the number every row carries.

    Deliveries are signed with `current_key`; receivers accept `next_key` too, so that a rotation (current
    becomes next, next becomes new) interrupts nobody. Since `disabled_at`, nobody may speak for it and nothing
    of it is sent.
    """

    id: TenantId
    user_id: str
    current_key: str
    next_key: str
    limits: TenantLimits = TenantLimits()
    disabled_at: int | None = None
    #: For messages that do not say.
    signed_by: SignedBy = SignedBy.QSTASH


class Principal(Struct, frozen=True, kw_only=True):
    """Whom a token speaks for, until `expires_at`, and on what terms."""

    tenant: TenantId
    read_only: bool = False
    expires_at: int | None = None
    limits: TenantLimits = TenantLimits()
    disabled: bool = False


class Token(Struct, frozen=True, kw_only=True):
    """What is kept of a token: never the token itself.

    `issued` by an operator's command; the others are those of a start, which the next start judges. `label` is
    for people.
    """

    hash: bytes
    tenant: TenantId
    read_only: bool
    created_at: int
    expires_at: int | None = None
    label: str = ""
    issued: bool = True


def token_id(digest: bytes) -> str:
    """What the token with this SHA-256 is called where it must not be shown."""
    return f"tok_{digest.hex()[:_ID_DIGITS]}"

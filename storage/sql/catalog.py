"""Tenants, tokens and settings."""

from collections.abc import Sequence

from relay.domain.message import SignedBy, TenantId
from relay.domain.tenant import Principal, Tenant, TenantLimits, Token
from storage.codec import (
    TENANT_COLUMNS,
    TOKEN_COLUMNS,
    limits_text,
    principal_of,
    tenant_of,
    token_of,
    token_row,
)
from storage.sql import permits
from storage.sql.script import Parameters, Query, Script

_TENANT = f"SELECT {TENANT_COLUMNS} FROM tenants"

#: Smaller numbers are those of accounts that a start makes, which may come after the first command.
_FIRST_CREATED = 101


def principal(token_hash: bytes) -> Script[Principal | None]:
    rows = yield Query(
        """
        SELECT k.tenant, k.read_only, k.expires_at, t.limits, t.disabled_at
        FROM tokens k LEFT JOIN tenants t ON t.id = k.tenant WHERE k.hash = ?1
        """,
        (token_hash,),
    )
    return principal_of(rows[0]) if rows else None


def put_token(token_hash: bytes, principal: Principal, *, now: int) -> Script[None]:
    yield Query(
        """
        INSERT INTO tokens (hash, tenant, read_only, created_at) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (hash) DO UPDATE
        SET tenant = excluded.tenant, read_only = excluded.read_only, expires_at = NULL, issued = 0
        """,
        (token_hash, principal.tenant, int(principal.read_only), now),
    )


def delete_tokens(tenant: TenantId, *, read_only: bool, keep: bytes | None) -> Script[int]:
    rows = yield Query(
        "DELETE FROM tokens WHERE tenant = ?1 AND read_only = ?2 AND hash <> ?3 AND issued = 0 RETURNING 1",
        # No token hashes to nothing.
        (tenant, int(read_only), keep if keep is not None else b""),
    )
    return len(rows)


def tokens(tenant: TenantId) -> Script[Sequence[Token]]:
    rows = yield Query(
        f"SELECT {TOKEN_COLUMNS} FROM tokens WHERE tenant = ?1 ORDER BY created_at, hash", (tenant,)
    )
    return [token_of(row) for row in rows]


def issue_token(token: Token) -> Script[None]:
    bind = Parameters()
    yield Query(f"INSERT INTO tokens ({TOKEN_COLUMNS}) VALUES {bind.several(token_row(token))}", bind.values)


def delete_token(token_hash: bytes) -> Script[bool]:
    rows = yield Query("DELETE FROM tokens WHERE hash = ?1 RETURNING 1", (token_hash,))
    return bool(rows)


def tenant(number: TenantId) -> Script[Tenant | None]:
    rows = yield Query(f"{_TENANT} WHERE id = ?1", (number,))
    return tenant_of(rows[0]) if rows else None


def tenant_named(user_id: str) -> Script[Tenant | None]:
    rows = yield Query(f"{_TENANT} WHERE user_id = ?1 LIMIT 2", (user_id,))
    return tenant_of(rows[0]) if len(rows) == 1 else None


def tenants() -> Script[Sequence[Tenant]]:
    rows = yield Query(f"{_TENANT} ORDER BY id")
    return [tenant_of(row) for row in rows]


def put_tenant(tenant: Tenant, *, now: int) -> Script[None]:
    yield Query(
        """
        INSERT INTO tenants (id, user_id, current_key, next_key, created_at) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (id) DO UPDATE
        SET user_id = excluded.user_id, current_key = excluded.current_key, next_key = excluded.next_key
        """,
        (tenant.id, tenant.user_id, tenant.current_key, tenant.next_key, now),
    )


def add_tenant(user_id: str, *, current_key: str, next_key: str, now: int) -> Script[Tenant | None]:
    """For one caller after the other. Whoever has taken the number meanwhile otherwise makes it look again."""
    while not (yield Query("SELECT 1 FROM tenants WHERE user_id = ?1", (user_id,))):
        rows = yield Query(
            f"""
            INSERT INTO tenants (id, user_id, current_key, next_key, created_at)
            SELECT coalesce(max(id), 0) + 1, ?1, ?2, ?3, ?4 FROM (
                SELECT id FROM tenants UNION ALL SELECT {_FIRST_CREATED - 1}
            ) AS taken
            WHERE TRUE
            ON CONFLICT (id) DO NOTHING
            RETURNING {TENANT_COLUMNS}
            """,
            (user_id, current_key, next_key, now),
        )
        if rows:
            return tenant_of(rows[0])
    return None


def put_limits(number: TenantId, limits: TenantLimits, *, now: int) -> Script[bool]:
    rows = yield Query(
        "UPDATE tenants SET limits = ?2 WHERE id = ?1 RETURNING 1", (number, limits_text(limits))
    )
    if rows:
        yield from permits.limit(number, limits.max_parallelism, now)
    return bool(rows)


def put_signed_by(number: TenantId, signed_by: SignedBy) -> Script[bool]:
    rows = yield Query(
        "UPDATE tenants SET signed_by = ?2 WHERE id = ?1 RETURNING 1", (number, signed_by.value)
    )
    return bool(rows)


def put_disabled(number: TenantId, *, at: int | None) -> Script[bool]:
    """One that is disabled already stays so since then."""
    if at is None:
        enable = Query("UPDATE tenants SET disabled_at = NULL WHERE id = ?1 RETURNING 1", (number,))
        return bool((yield enable))
    rows = yield Query(
        "UPDATE tenants SET disabled_at = coalesce(disabled_at, ?2) WHERE id = ?1 RETURNING 1", (number, at)
    )
    return bool(rows)


def create_tenant(new: Tenant, *, now: int) -> Script[Tenant]:
    """In a transaction: whoever comes second waits at the first statement, and reads what the first has written."""
    yield Query(
        """
        INSERT INTO tenants (id, user_id, current_key, next_key, created_at) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (id) DO NOTHING
        """,
        (new.id, new.user_id, new.current_key, new.next_key, now),
    )
    stored = yield from tenant(new.id)
    return stored or new


def swap_keys(old: Tenant, *, current_key: str, next_key: str) -> Script[bool]:
    rows = yield Query(
        """
        UPDATE tenants SET current_key = ?4, next_key = ?5
        WHERE id = ?1 AND current_key = ?2 AND next_key = ?3 RETURNING 1
        """,
        (old.id, old.current_key, old.next_key, current_key, next_key),
    )
    return bool(rows)


def rotate_keys(number: TenantId, *, fresh: str) -> Script[Tenant | None]:
    """One statement: a crash leaves both keys or neither moved."""
    rows = yield Query(
        """
        UPDATE tenants SET current_key = next_key, next_key = ?2 WHERE id = ?1
        RETURNING """
        + TENANT_COLUMNS,
        (number, fresh),
    )
    return tenant_of(rows[0]) if rows else None


def setting(name: str) -> Script[str | None]:
    rows = yield Query("SELECT value FROM settings WHERE name = ?1", (name,))
    return str(rows[0][0]) if rows else None


def put_setting(name: str, value: str) -> Script[None]:
    yield Query(
        "INSERT INTO settings (name, value) VALUES (?1, ?2)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        (name, value),
    )


def swap_setting(name: str, *, old: str | None, new: str) -> Script[bool]:
    if old is None:
        rows = yield Query(
            "INSERT INTO settings (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING RETURNING 1",
            (name, new),
        )
    else:
        rows = yield Query(
            "UPDATE settings SET value = ?2 WHERE name = ?1 AND value = ?3 RETURNING 1", (name, new, old)
        )
    return bool(rows)

"""Tenants, tokens and settings."""

from collections.abc import Sequence

from relay.domain.message import TenantId
from relay.domain.tenant import Principal, Tenant
from storage.codec import principal_of, tenant_of
from storage.sql.script import Query, Script

_TENANT = "SELECT id, user_id, current_key, next_key FROM tenants"


def principal(token_hash: bytes) -> Script[Principal | None]:
    rows = yield Query("SELECT tenant, read_only FROM tokens WHERE hash = ?1", (token_hash,))
    return principal_of(rows[0]) if rows else None


def put_token(token_hash: bytes, principal: Principal, *, now: int) -> Script[None]:
    yield Query(
        """
        INSERT INTO tokens (hash, tenant, read_only, created_at) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (hash) DO UPDATE SET tenant = excluded.tenant, read_only = excluded.read_only
        """,
        (token_hash, principal.tenant, int(principal.read_only), now),
    )


def delete_token(token_hash: bytes) -> Script[None]:
    yield Query("DELETE FROM tokens WHERE hash = ?1", (token_hash,))


def delete_tokens(tenant: TenantId, *, read_only: bool, keep: bytes | None) -> Script[int]:
    rows = yield Query(
        "DELETE FROM tokens WHERE tenant = ?1 AND read_only = ?2 AND hash <> ?3 RETURNING 1",
        # No token hashes to nothing.
        (tenant, int(read_only), keep if keep is not None else b""),
    )
    return len(rows)


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
        RETURNING id, user_id, current_key, next_key
        """,
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

"""What an operator does with tenants and their tokens: the work behind `relay tenants` and `relay tokens`."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec import structs

from relay.accounts import make_token, token_hash
from relay.domain.errors import Invalid, NotFound, quoted
from relay.domain.message import SignedBy
from relay.domain.tenant import Tenant, Token
from relay.domain.tenant import token_id as id_of_digest
from storage.protocol import Accounts

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST_LABEL = 100


async def create(accounts: Accounts, name: str, *, now: int, fresh_key: Callable[[], str]) -> Tenant:
    """A tenant with keys of its own, and no token yet. Raises `Invalid` for a name that is taken, or is none."""
    if not _NAME.fullmatch(name):
        raise Invalid("NAME", f"{quoted(name)} is not 1 to 64 letters, digits, dots, dashes or underscores")
    tenant = await accounts.add_tenant(name, current_key=fresh_key(), next_key=fresh_key(), now=now)
    if tenant is None:
        raise Invalid("NAME", f"there is a tenant {quoted(name)} already")
    return tenant


async def named(accounts: Accounts, name: str) -> Tenant:
    """Raises `NotFound`."""
    for tenant in await accounts.tenants():
        if tenant.user_id == name:
            return tenant
    raise NotFound(f"tenant {quoted(name)}")


async def change_limits(
    accounts: Accounts, name: str, values: Mapping[str, int | None], *, now: int
) -> Tenant:
    """Set the fields of `TenantLimits` that are named, and leave the others. Raises `NotFound`."""
    tenant = await named(accounts, name)
    limits = structs.replace(tenant.limits, **values)
    await accounts.put_limits(tenant.id, limits, now=now)
    return structs.replace(tenant, limits=limits)


async def change_signature(accounts: Accounts, name: str, scheme: str) -> Tenant:
    """Have what does not say how signed by `scheme`, a word of `SignedBy`. Raises `NotFound`."""
    tenant = await named(accounts, name)
    signed_by = SignedBy(scheme)
    await accounts.put_signed_by(tenant.id, signed_by)
    return structs.replace(tenant, signed_by=signed_by)


async def disable(accounts: Accounts, name: str, *, now: int) -> None:
    """Raises `NotFound`."""
    await accounts.put_disabled((await named(accounts, name)).id, at=now)


async def enable(accounts: Accounts, name: str) -> None:
    """Raises `NotFound`."""
    await accounts.put_disabled((await named(accounts, name)).id, at=None)


async def issue(
    accounts: Accounts,
    name: str,
    *,
    read_only: bool,
    label: str,
    expires_in_ms: int | None,
    now: int,
    fresh_name: Callable[[str], str],
) -> tuple[str, Token]:
    """A new token for a tenant, which exists nowhere else, and what is kept of it. Raises `NotFound`, `Invalid`."""
    if len(label) > _LONGEST_LABEL:
        raise Invalid("--label", f"is longer than {_LONGEST_LABEL} characters")
    if expires_in_ms == 0:
        raise Invalid("--expires-in", "must be longer than zero")
    tenant = await named(accounts, name)
    secret = make_token(tenant.user_id, fresh_name("") + fresh_name(""))
    token = Token(
        hash=token_hash(secret),
        tenant=tenant.id,
        read_only=read_only,
        created_at=now,
        expires_at=None if expires_in_ms is None else now + expires_in_ms,
        label=label,
    )
    await accounts.issue_token(token)
    return secret, token


async def tokens(accounts: Accounts, name: str | None) -> Sequence[tuple[Tenant, Token]]:
    """The tokens of one tenant, or of all. Raises `NotFound`."""
    tenants = await accounts.tenants() if name is None else [await named(accounts, name)]
    return [(tenant, token) for tenant in tenants for token in await accounts.tokens(tenant.id)]


async def silenced(accounts: Accounts, ids: Collection[str], *, now: int) -> Sequence[str]:
    """The names of tenants that can do nothing any more without these tokens: no other of theirs may write."""
    writing = [
        (tenant.user_id, token_id(token))
        for tenant, token in await tokens(accounts, None)
        if not token.read_only and (token.expires_at is None or token.expires_at > now)
    ]
    left = {name for name, id in writing if id not in ids}
    return sorted({name for name, _ in writing} - left)


async def revoke(accounts: Accounts, id: str) -> tuple[Tenant, Token]:
    """The token that was revoked. Raises `NotFound`, and `Invalid` in the case that two tokens have this id."""
    found = [(tenant, token) for tenant, token in await tokens(accounts, None) if token_id(token) == id]
    if len(found) > 1:
        raise Invalid("TOKEN", f"{quoted(id)} names {len(found)} tokens")
    if not found or not await accounts.delete_token(found[0][1].hash):
        raise NotFound(f"token {quoted(id)}")
    return found[0]


def token_id(token: Token) -> str:
    """What a token is called once it has been shown."""
    return id_of_digest(token.hash)

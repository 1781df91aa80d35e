"""Who may speak to a relay that starts: the development identities, or the configured or newly made account.

Tokens are stored as SHA-256 hashes and never shown again; at 128 random bits or more there is nothing to guess
that a slower hash would protect.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from relay.config import Config
from relay.domain.message import TenantId
from relay.domain.tenant import Principal, Tenant
from storage.protocol import Catalog

DEFAULT_TENANT = TenantId(1)
_GENERATED = "generated_token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client needs to be told.

    `token` is None when there is nothing to tell: it is configured, or an earlier start made it and only its
    hash is left.
    """

    token: str | None
    current_key: str
    next_key: str


def token_hash(token: str) -> bytes:
    """What is stored of a token, and what is looked up."""
    return sha256(token.encode()).digest()


def make_token(user_id: str, password: str) -> str:
    """A token in the shape the SDKs take apart: base64 of `{"UserID","Password"}`."""
    shape = json.dumps({"UserID": user_id, "Password": password}, separators=(",", ":"))
    return base64.b64encode(shape.encode()).decode()


def user_id_of(token: str) -> str | None:
    """The `UserID` inside a token of the documented shape, None for any other."""
    try:
        shape = json.loads(base64.b64decode(token, validate=True))
    except ValueError:
        return None
    user_id = shape.get("UserID") if isinstance(shape, dict) else None
    return user_id if isinstance(user_id, str) and user_id else None


#: The published development identities of the QStash documentation: (user, password, current key, next key).
_DEVELOPMENT = (
    (
        "defaultUser",
        "defaultPassword",
        "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
        "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
    ),
    ("testUser1", "testPassword", "sig_7GVPjvuwsfqF65iC8fSrs1dfYruM", "sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua"),
    ("testUser2", "testPassword", "sig_6jWGaWRxHsw4vMSPJprXadyvrybF", "sig_7qHbvhmahe5GwfePDiS5Lg3pi6Qx"),
    ("testUser3", "testPassword", "sig_5T8FcSsynBjn9mMLBsXhpacRovJf", "sig_7GFR4YaDshFcqsxWRZpRB161jguD"),
)


async def development(catalog: Catalog, *, now: int) -> Credentials:
    """Let the four published identities in, each with its published keys; the first one's credentials."""
    for number, (user_id, password, current_key, next_key) in enumerate(_DEVELOPMENT, 1):
        tenant = Tenant(id=TenantId(number), user_id=user_id, current_key=current_key, next_key=next_key)
        if await catalog.tenant(tenant.id) is None:
            await catalog.put_tenant(tenant, now=now)
        token = make_token(user_id, password)
        await catalog.put_token(token_hash(token), Principal(tenant=tenant.id), now=now)
    user_id, password, current_key, next_key = _DEVELOPMENT[0]
    return Credentials(token=make_token(user_id, password), current_key=current_key, next_key=next_key)


async def production(
    catalog: Catalog,
    config: Config,
    *,
    now: int,
    fresh_key: Callable[[], str],
    fresh_name: Callable[[str], str],
) -> Credentials:
    """The one account of a relay with a single tenant, made on the first start.

    The configuration says which tokens exist: a configured one replaces all others at once, one that was taken
    out of the configuration stops working, and without a configured full token there is a generated one.
    Configured keys are taken over when they are new to this database; while the configuration stays as it is,
    a rotation by the API is what counts. Killed half-way, the next start does the rest.
    """
    stored = await catalog.tenant(DEFAULT_TENANT)
    tenant = stored or Tenant(
        id=DEFAULT_TENANT,
        user_id=user_id_of(config.token or "") or fresh_name("user_"),
        current_key=fresh_key(),
        next_key=fresh_key(),
    )
    if config.current_signing_key and config.next_signing_key:
        configured = token_hash(f"{config.current_signing_key} {config.next_signing_key}").hex()
        if await catalog.setting("configured_keys") != configured:
            tenant = Tenant(
                id=tenant.id,
                user_id=tenant.user_id,
                current_key=config.current_signing_key,
                next_key=config.next_signing_key,
            )
            await catalog.put_tenant(tenant, now=now)
            await catalog.put_setting("configured_keys", configured)
    if stored is None:
        await catalog.put_tenant(tenant, now=now)
    await _only(catalog, config.readonly_token, Principal(tenant=tenant.id, read_only=True), now=now)
    token, told = config.token, None
    if token is None:
        generated = await catalog.setting(_GENERATED)
        if generated is not None and await catalog.principal(bytes.fromhex(generated)) is not None:
            return Credentials(token=None, current_key=tenant.current_key, next_key=tenant.next_key)
        token = told = make_token(tenant.user_id, fresh_name(""))
    await _only(catalog, token, Principal(tenant=tenant.id), now=now)
    return Credentials(token=told, current_key=tenant.current_key, next_key=tenant.next_key)


async def remember_shown(catalog: Catalog, credentials: Credentials) -> None:
    """A generated token has been printed: do not make another.

    Called after printing, so that a start killed before it could print makes a new token instead of leaving
    one that nobody has seen.
    """
    if credentials.token is not None:
        await catalog.put_setting(_GENERATED, token_hash(credentials.token).hex())


async def _only(catalog: Catalog, token: str | None, principal: Principal, *, now: int) -> None:
    """Make `token` the tenant's only one of its kind; none at all when it is None."""
    keep = None if token is None else token_hash(token)
    if keep is not None:
        await catalog.put_token(keep, principal, now=now)
    await catalog.delete_tokens(principal.tenant, read_only=principal.read_only, keep=keep)

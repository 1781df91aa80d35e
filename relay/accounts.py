"""Who may speak to a relay that starts: the development identities, or the configured or newly made account.

Tokens are stored as SHA-256 hashes and never shown again; at 128 random bits or more there is nothing to guess
that a slower hash would protect.
"""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

from msgspec import structs

from relay.clock import Clock
from relay.config import Config
from relay.domain.message import TenantId
from relay.domain.tenant import DEFAULT_TENANT, Principal, Tenant
from storage.protocol import Accounts, CannotOpen, Catalog


class Store(Catalog, Accounts, Protocol):
    """The roles of storage that know accounts."""


_GENERATED = "generated_token"
#: The hash of the token that a start is about to print, or has printed when it is that of `_GENERATED` too.
_TELLING = "telling_token"
#: Whoever is about to print has done so, or has died, by then.
_TELL_MS = 10_000
_LOOK_MS = 100
#: Set for good by the first start for production.
_PRODUCTION = "production"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client needs to be told.

    `token` is None when there is nothing to tell: it is configured, or an earlier start made it and only its
    hash is left. `untold_keys` says that this start made the keys of the account, and does not tell them.
    `replaced` are the settings whose tokens took the place of others, which had been valid before.
    """

    token: str | None
    current_key: str
    next_key: str
    untold_keys: bool = False
    replaced: tuple[str, ...] = ()


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
_PUBLISHED_KEYS = frozenset(
    key for *_, current_key, next_key in _DEVELOPMENT for key in (current_key, next_key)
)


async def development(catalog: Catalog, *, now: int) -> Credentials:
    """Let the four published identities in, each with its published keys; the first one's credentials.

    The keys are those of the database, which a rotation may have changed. Raises `CannotOpen` for a database
    that has been one for production: whoever has read the documentation could speak for its account.
    """
    if await _is_production(catalog):
        raise CannotOpen(
            "this database belongs to a relay for production, and relay dev would let the published tokens into"
            " it; name another with --database or RELAY_DATABASE_URL"
        )
    tenants = []
    for number, (user_id, password, current_key, next_key) in enumerate(_DEVELOPMENT, 1):
        id = TenantId(number)
        tenant = await catalog.tenant(id)
        if tenant is None:
            tenant = Tenant(id=id, user_id=user_id, current_key=current_key, next_key=next_key)
            tenant = await catalog.create_tenant(tenant, now=now)
        await catalog.put_token(token_hash(make_token(user_id, password)), Principal(tenant=id), now=now)
        tenants.append(tenant)
    user_id, password, *_ = _DEVELOPMENT[0]
    return Credentials(
        token=make_token(user_id, password),
        current_key=tenants[0].current_key,
        next_key=tenants[0].next_key,
    )


async def production(
    catalog: Store,
    config: Config,
    *,
    now: int,
    fresh_key: Callable[[], str],
    fresh_name: Callable[[str], str],
) -> Credentials:
    """The one account of a relay with a single tenant, made on the first start.

    A configured token replaces at once whatever earlier starts let in. Without one, whoever has a token keeps it: a
    start that lost its environment must not shut out the clients of all nodes. Only where nobody has a full token
    that works one is generated. Tokens that an operator issued are left alone by every start. Configured keys
    are taken over when they are new to this database; while the configuration stays as it is, a rotation by the
    API is what counts. Killed half-way, the next start does the rest. Of several starts at once one makes the
    account, and all go on with that. A generated token is not valid before `to_tell`.

    What `development` let into this database is let out: published tokens, and published keys that are not
    configured.
    """
    await catalog.put_setting(_PRODUCTION, "yes")
    keys_replaced = await _retire_published(catalog, config, fresh_key=fresh_key)
    fresh = Tenant(
        id=DEFAULT_TENANT,
        user_id=user_id_of(config.token or "") or fresh_name("user_"),
        current_key=fresh_key(),
        next_key=fresh_key(),
    )
    tenant = await catalog.create_tenant(fresh, now=now)
    made = tenant == fresh
    if config.current_signing_key and config.next_signing_key:
        configured = token_hash(f"{config.current_signing_key} {config.next_signing_key}").hex()
        if await catalog.setting("configured_keys") != configured:
            tenant = structs.replace(
                tenant, current_key=config.current_signing_key, next_key=config.next_signing_key
            )
            await catalog.put_tenant(tenant, now=now)
            await catalog.put_setting("configured_keys", configured)
    replaced = []
    if config.readonly_token is not None:
        reader = Principal(tenant=tenant.id, read_only=True)
        if await _only(catalog, config.readonly_token, reader, now=now):
            replaced.append("RELAY_READONLY_TOKEN")
    told = None
    if config.token is not None:
        if await _only(catalog, config.token, Principal(tenant=tenant.id), now=now):
            replaced.append("RELAY_TOKEN")
    elif not await _somebody_may_write(catalog, tenant.id, now=now):
        told = make_token(tenant.user_id, fresh_name(""))
    return Credentials(
        token=told,
        current_key=tenant.current_key,
        next_key=tenant.next_key,
        untold_keys=config.token is not None
        and (made or DEFAULT_TENANT in keys_replaced)
        and config.current_signing_key is None,
        replaced=tuple(replaced),
    )


async def _generated(catalog: Catalog, setting: str | None) -> bytes | None:
    """The hash of the generated token that was told and is still good."""
    if setting is None or await catalog.principal(bytes.fromhex(setting)) is None:
        return None
    return bytes.fromhex(setting)


async def _somebody_may_write(catalog: Store, tenant: TenantId, *, now: int) -> bool:
    """Whether somebody has a full token that works: any but one that was made and never told."""
    telling = await catalog.setting(_TELLING)
    untold = None if telling == await catalog.setting(_GENERATED) else telling
    return any(
        not token.read_only
        and (token.expires_at is None or now < token.expires_at)
        and token.hash.hex() != untold
        for token in await catalog.tokens(tenant)
    )


async def _is_production(catalog: Catalog) -> bool:
    """Whether a start for production has been here, be it one that did not say so yet."""
    if any([await catalog.setting(name) is not None for name in (_PRODUCTION, _GENERATED)]):
        return True
    tenant = await catalog.tenant(DEFAULT_TENANT)
    return tenant is not None and tenant.user_id != _DEVELOPMENT[0][0]


async def _retire_published(
    catalog: Catalog, config: Config, *, fresh_key: Callable[[], str]
) -> set[TenantId]:
    """Shut the published identities out, and have nobody's deliveries signed with a key that everybody knows.

    Returns whose keys were replaced. The other tokens of the default account are seen to by what is configured.
    """
    replaced: set[TenantId] = set()
    known = _PUBLISHED_KEYS - {config.current_signing_key, config.next_signing_key}
    for number, (user_id, password, *_) in enumerate(_DEVELOPMENT, 1):
        id = TenantId(number)
        if id != DEFAULT_TENANT:
            for read_only in (False, True):
                await catalog.delete_tokens(id, read_only=read_only, keep=None)
        elif (published := make_token(user_id, password)) != config.token:
            await catalog.delete_token(token_hash(published))
        tenant = await catalog.tenant(id)
        if tenant is not None and not known.isdisjoint((tenant.current_key, tenant.next_key)):
            current_key, next_key = (
                fresh_key() if key in known else key for key in (tenant.current_key, tenant.next_key)
            )
            await catalog.swap_keys(tenant, current_key=current_key, next_key=next_key)
            replaced.add(id)
    return replaced


async def to_tell(catalog: Catalog, credentials: Credentials, *, clock: Clock) -> Credentials:
    """What this start is to print: a token it has made becomes the account's only one, unless that of another start
    does. Then there is nothing to tell.

    Of several nodes that start at once the first one here prints, and the others wait until it has remembered so.
    Killed in between it leaves a token that nobody has seen, and the next start makes another, if only after a
    pause: it cannot know that nobody is about to print.
    """
    if credentials.token is None:
        return credentials
    mine = token_hash(credentials.token)
    until = clock.now() + _TELL_MS
    while True:
        telling = await catalog.setting(_TELLING)
        # Read later than what is being told: whoever has finished meanwhile is seen to have.
        generated = await catalog.setting(_GENERATED)
        if await _generated(catalog, generated) is not None:
            return replace(credentials, token=None)
        now = clock.now()
        if telling is None or telling == generated or now >= until:
            if await catalog.swap_setting(_TELLING, old=telling, new=mine.hex()):
                break
        else:
            await clock.wait(asyncio.Event(), min(until, now + _LOOK_MS))
    await _only(catalog, credentials.token, Principal(tenant=DEFAULT_TENANT), now=now)
    return credentials


async def remember_shown(catalog: Catalog, credentials: Credentials) -> None:
    """A generated token has been printed: do not make another.

    Called after printing, so that a start killed before it could print makes a new token instead of leaving
    one that nobody has seen.
    """
    if credentials.token is not None:
        await catalog.put_setting(_GENERATED, token_hash(credentials.token).hex())


async def _only(catalog: Catalog, token: str, principal: Principal, *, now: int) -> bool:
    """Make `token` the tenant's only one of its kind, besides those that were issued; whether there were others."""
    keep = token_hash(token)
    await catalog.put_token(keep, principal, now=now)
    return await catalog.delete_tokens(principal.tenant, read_only=principal.read_only, keep=keep) > 0

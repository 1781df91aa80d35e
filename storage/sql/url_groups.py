"""URL groups: read and written as a whole, by the rules of the domain.

What puts or removes endpoints reads before it writes: whoever runs it sees to it that nobody else does meanwhile.
"""

from collections.abc import Iterable, Sequence

from relay.domain.message import Headers, TenantId
from relay.domain.url_group import Endpoint, EndpointRef, UrlGroup, upserted, without
from storage.codec import URL_GROUP_COLUMNS, decoded, endpoints_text, headers_text, url_group_of
from storage.sql.script import Parameters, Query, Script, slices

_SLICE = 500
_READ = f"SELECT {URL_GROUP_COLUMNS} FROM url_groups"


def put_endpoints(
    tenant: TenantId,
    name: str,
    endpoints: Sequence[Endpoint],
    *,
    max_groups: int,
    max_endpoints: int,
    now: int,
) -> Script[bool]:
    group = yield from url_group(tenant, name)
    current = upserted(() if group is None else group.endpoints, endpoints)
    if len(current) > max_endpoints:
        return False
    if group is not None:
        yield from _put(group, current, now)
        return True
    count = yield Query("SELECT count(*) FROM url_groups WHERE tenant = ?1", (tenant,))
    if count[0][0] >= max_groups:
        return False
    bind = Parameters()
    row = (tenant, name, now, now, endpoints_text(current), headers_text(()))
    yield Query(f"INSERT INTO url_groups ({URL_GROUP_COLUMNS}) VALUES {bind.several(row)}", bind.values)
    return True


def remove_endpoints(
    tenant: TenantId, name: str, removed: Sequence[EndpointRef], *, now: int
) -> Script[bool]:
    group = yield from url_group(tenant, name)
    if group is None:
        return False
    left = without(group.endpoints, removed)
    if left:
        yield from _put(group, left, now)
        return True
    return (yield from delete_url_group(tenant, name))


def put_group_headers(tenant: TenantId, name: str, headers: Headers, *, now: int) -> Script[bool]:
    rows = yield Query(
        "UPDATE url_groups SET headers = ?3, updated_at = ?4 WHERE tenant = ?1 AND name = ?2 RETURNING 1",
        (tenant, name, headers_text(headers), now),
    )
    return bool(rows)


def delete_url_group(tenant: TenantId, name: str) -> Script[bool]:
    rows = yield Query("DELETE FROM url_groups WHERE tenant = ?1 AND name = ?2 RETURNING 1", (tenant, name))
    return bool(rows)


def url_group(tenant: TenantId, name: str) -> Script[UrlGroup | None]:
    found = yield from named(tenant, (name,))
    return found.get(name)


def url_groups(tenant: TenantId) -> Script[Sequence[UrlGroup]]:
    """Oldest first."""
    rows = yield Query(f"{_READ} WHERE tenant = ?1 ORDER BY created_at, name", (tenant,))
    return decoded(rows, url_group_of)


def named(tenant: TenantId, names: Iterable[str]) -> Script[dict[str, UrlGroup]]:
    """Those of the groups that exist, by name."""
    found: dict[str, UrlGroup] = {}
    for part in slices(sorted(set(names)), _SLICE):
        bind = Parameters()
        rows = yield Query(
            f"{_READ} WHERE tenant = {bind(tenant)} AND name IN {bind.several(part)}", bind.values
        )
        found.update((group.name, group) for group in decoded(rows, url_group_of))
    return found


def _put(group: UrlGroup, endpoints: Sequence[Endpoint], now: int) -> Script[None]:
    yield Query(
        "UPDATE url_groups SET endpoints = ?3, updated_at = ?4 WHERE tenant = ?1 AND name = ?2",
        (group.tenant, group.name, endpoints_text(endpoints), now),
    )

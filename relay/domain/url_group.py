"""URL groups: one name for several endpoints, each of which gets a message of its own.

Rules of the QStash documentation. An endpoint is put by its name, or without one by its URL: a name that is known
gets the new URL, a URL that is known gets the new name. So no group has two endpoints of one name or of one URL. A
group begins with its first endpoint and is gone with its last.
"""

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from relay.domain.message import Headers, TenantId
from relay.domain.publish import Draft


class Endpoint(Struct, frozen=True, kw_only=True):
    url: str
    name: str | None = None


class EndpointRef(Struct, frozen=True, kw_only=True):
    """Which endpoint is meant: the one of this name, of this URL, or of both. At least one is given."""

    name: str | None = None
    url: str | None = None

    def means(self, endpoint: Endpoint) -> bool:
        return self.name in (None, endpoint.name) and self.url in (None, endpoint.url)


class UrlGroup(Struct, frozen=True, kw_only=True):
    """`headers` are what a publish to the group says unless its own headers say otherwise."""

    tenant: TenantId
    name: str
    created_at: int
    updated_at: int
    endpoints: tuple[Endpoint, ...]
    headers: Headers = ()


def upserted(endpoints: Iterable[Endpoint], changes: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """The endpoints after the changes, made one after the other. Those that were there keep their places.

    >>> upserted([Endpoint(url="a", name="n")], [Endpoint(url="b", name="n")])
    (Endpoint(url='b', name='n'),)
    >>> upserted([Endpoint(url="a", name="n")], [Endpoint(url="a"), Endpoint(url="a", name="m")])
    (Endpoint(url='a', name='m'),)
    """
    current = list(endpoints)
    for change in changes:
        places = [index for index, one in enumerate(current) if _is_about(change, one)]
        if not places:
            current.append(change)
            continue
        first = places[0]
        name = current[first].name if change.name is None else change.name
        current[first] = Endpoint(url=change.url, name=name)
        # Its name was one endpoint's, its URL another's: the two are one now.
        for index in reversed(places[1:]):
            del current[index]
    return tuple(current)


def without(endpoints: Iterable[Endpoint], removed: Iterable[EndpointRef]) -> tuple[Endpoint, ...]:
    """The endpoints that none of `removed` means. Meaning an endpoint that is not there is no mistake."""
    removed = tuple(removed)
    return tuple(one for one in endpoints if not any(ref.means(one) for ref in removed))


def fan_out(draft: Draft, group: UrlGroup) -> tuple[Draft, ...]:
    """A draft to the group as a draft to each of its endpoints, in their order."""
    return tuple(
        replace(
            draft,
            request=replace(draft.request, url=endpoint.url),
            url_group=group.name,
            endpoint=endpoint.name,
        )
        for endpoint in group.endpoints
    )


def _is_about(change: Endpoint, endpoint: Endpoint) -> bool:
    return change.url == endpoint.url or (change.name is not None and change.name == endpoint.name)

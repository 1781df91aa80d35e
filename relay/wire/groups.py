"""The JSON bodies about URL groups: endpoints to put or to remove, and headers for every publish."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Struct

from relay.domain.errors import Invalid
from relay.domain.message import Headers
from relay.domain.url_group import Endpoint, EndpointRef
from relay.wire.target import parse_url
from relay.wire.texts import storable

#: Characters of an endpoint's name.
MAX_ENDPOINT_NAME_LENGTH = 256

#: Any text without control characters.
_Name = Annotated[str, msgspec.Meta(max_length=MAX_ENDPOINT_NAME_LENGTH, pattern=r"\A[^\x00-\x1f\x7f]+\Z")]
_Body = TypeVar("_Body")


class _Put(Struct, forbid_unknown_fields=True):
    url: str
    name: _Name | None = None


class _PutBody(Struct, forbid_unknown_fields=True):
    endpoints: list[_Put]


class _Remove(Struct, forbid_unknown_fields=True):
    url: str | None = None
    name: str | None = None


class _RemoveBody(Struct, forbid_unknown_fields=True):
    endpoints: list[_Remove]


class _PatchBody(Struct, forbid_unknown_fields=True):
    headers: dict[str, str | list[str]]


_put = msgspec.json.Decoder(_PutBody)
_remove = msgspec.json.Decoder(_RemoveBody)
_patch = msgspec.json.Decoder(_PatchBody)


def parse_endpoints(body: bytes) -> Sequence[Endpoint]:
    """`{"endpoints": [{"url", "name"?}]}`, at least one. Raises `Invalid`."""
    endpoints = _decoded(body, _put).endpoints
    if not endpoints:
        raise Invalid("endpoints", "must not be empty")
    return [Endpoint(url=parse_url(one.url, "url"), name=one.name) for one in endpoints]


def parse_endpoint_refs(body: bytes) -> Sequence[EndpointRef]:
    """`{"endpoints": [{"url"} or {"name"}]}`, at least one. Raises `Invalid`."""
    endpoints = _decoded(body, _remove).endpoints
    if not endpoints:
        raise Invalid("endpoints", "must not be empty")
    return [_ref(one) for one in endpoints]


def parse_headers_patch(body: bytes) -> Headers:
    """`{"headers": {name: value or list of values}}`, as fields in their order. Raises `Invalid`."""
    return tuple(
        (name, value)
        for name, values in _decoded(body, _patch).headers.items()
        for value in ([values] if isinstance(values, str) else values)
    )


def _ref(one: _Remove) -> EndpointRef:
    if one.url is None and one.name is None:
        raise Invalid("endpoints", "has one with neither url nor name")
    url = None if one.url is None else parse_url(one.url, "url")
    return EndpointRef(url=url, name=None if one.name is None else storable(one.name, "name"))


def _decoded(body: bytes, decoder: "msgspec.json.Decoder[_Body]") -> _Body:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise Invalid("body", f"cannot be read: {problem}") from None

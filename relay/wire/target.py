"""The raw request target: where a message goes, and what the query beside it says to the relay.

The destination is taken from the target as it came over the wire. Its bytes are kept in their order: nothing is
decoded, cleaned or merged, except that what HTTP cannot carry at all (Unicode in hosts, paths and queries) becomes
the ASCII spelling every HTTP client would send.
"""

import re
import socket
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import quote, unquote, unquote_plus

import idna
from msgspec import Struct

from relay.domain.errors import Invalid, quoted

#: Characters of a destination, and of a callback's URL. Common servers refuse request lines longer than this.
MAX_URL_LENGTH = 8192
#: Characters of a URL group's name.
MAX_NAME_LENGTH = 256

#: What the SDKs call the language model that QStash used to host.
_HOSTED_MODEL = "api/llm"

_MAX_AUTHORITY_LENGTH = 1024
_MAX_HOST_LENGTH = 253
_TOKEN_PARAMETER = "qstash_token"  # noqa: S105 - the name, not a secret
_CONFIG_PREFIX = "upstash-"

#: One slash is enough: proxies that merge slashes take the other one.
_URL = re.compile(r"(https?)://?([^/?#]*)([^#]*)", re.IGNORECASE)
_ENCODED_URL = re.compile(r"https?(?::|%3A)(?:/|%2F)", re.IGNORECASE)
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_USERINFO = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:%-]*")
_HOST = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]*)(?::([0-9]{1,5}))?")
#: A host that is an IPv6 address, or that could be an IPv4 one.
_LITERAL = re.compile(r"https?://(?:[^@/?]*@)?(?:\[([^\]]*)\]|([0-9][0-9A-Fa-fXx.]*))(?=[:/?]|$)")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))

#: Why the IP address may not be called, None when it may.
Refusal = Callable[[str], str | None]


class Kind(Enum):
    URL = "url"
    URL_GROUP = "url group"


class Target(Struct, frozen=True, kw_only=True):
    """`destination` is a URL or the name of a URL group, as `kind` says.

    `config` holds the `upstash-*` parameters of the query, lower-case names and decoded values, in their order;
    `token` what `qstash_token` held.
    """

    destination: str
    kind: Kind
    config: tuple[tuple[str, str], ...] = ()
    token: str | None = None


class Query(Struct, frozen=True, kw_only=True):
    """A raw query, taken apart; `rest` is what was not meant for the relay, byte for byte."""

    rest: str
    config: tuple[tuple[str, str], ...] = ()
    token: str | None = None


def split_target(raw: str, prefix: str) -> Target:
    """The target of a request whose path begins with `prefix` ("/v2/publish/"), path and query as they came.

    Raises `Invalid`. A fully percent-encoded destination (`https%3A%2F%2F...`) is decoded once, as a courtesy.
    """
    if not raw.startswith("/"):  # the absolute form, which clients send to proxies
        raw = _ORIGIN.sub("", raw, count=1)
    if not raw.startswith(prefix):
        raise Invalid("destination", f"must follow {prefix} in the request target")
    path, mark, raw_query = raw[len(prefix) :].partition("#")[0].partition("?")
    if _URL.match(path) is None and _ENCODED_URL.match(path):
        path = _decoded(path, "destination").partition("#")[0]
    if not mark:
        return parse_destination(path)
    query = split_query(raw_query)
    if query.rest or query.rest == raw_query:
        path += ("&" if "?" in path else "?") + query.rest
    found = parse_destination(path)
    return Target(destination=found.destination, kind=found.kind, config=query.config, token=query.token)


def split_queue(raw: str, prefix: str) -> tuple[str, str]:
    """The queue named by the first segment behind `prefix` ("/v2/enqueue/"), and the prefix with that segment:
    what stands before the destination. Raises `Invalid`."""
    if not raw.startswith("/"):
        raw = _ORIGIN.sub("", raw, count=1)
    segment = raw.removeprefix(prefix).partition("/")[0]
    return queue_name(_decoded(segment, "queueName")), f"{prefix}{segment}/"


def queue_name(text: str, field: str = "queueName") -> str:
    """The name itself; raises `Invalid` for one that no queue can have."""
    if _NAME.fullmatch(text) is None:
        raise Invalid(
            field, f"{quoted(text)} must be 1 to {MAX_NAME_LENGTH} of the characters A-Z a-z 0-9 . _ -"
        )
    return text


def split_query(raw_query: str) -> Query:
    """Takes `qstash_token` and the `upstash-*` parameters out of a raw query. Raises `Invalid`."""
    rest: list[str] = []
    config: list[tuple[str, str]] = []
    token: str | None = None
    for parameter in raw_query.split("&"):
        raw_name, _, raw_value = parameter.partition("=")
        name = unquote_plus(raw_name)
        lowered = name.lower()
        if name == _TOKEN_PARAMETER:
            # Not unquote_plus: a base64 token may hold a "+" that its sender did not encode.
            token = token or unquote(raw_value) or None
        elif lowered.startswith(_CONFIG_PREFIX):
            config.append((lowered, _decoded(raw_value.replace("+", " "), lowered)))
        else:
            rest.append(parameter)
    return Query(rest="&".join(rest), config=tuple(config), token=token)


def parse_destination(text: str) -> Target:
    """A destination on its own, as an item of a batch names it. Raises `Invalid`.

    What has no scheme and could be the name of a URL group is taken for one.
    """
    if _URL.match(text):
        return Target(destination=parse_url(text, "destination"), kind=Kind.URL)
    name = _decoded(text, "destination") if "%" in text else text
    if name == _HOSTED_MODEL:
        raise Invalid(
            "destination",
            f"{_HOSTED_MODEL} is not offered: Relay hosts no language model, name a provider's URL",
        )
    if _NAME.fullmatch(name) is None:
        raise Invalid(
            "destination",
            f"{quoted(text)} is neither a URL that begins with http:// or https:// nor the name of a URL group",
        )
    return Target(destination=name, kind=Kind.URL_GROUP)


def parse_group_name(text: str) -> str:
    """A name that a URL group may have. Raises `Invalid`."""
    if _NAME.fullmatch(text) is None:
        raise Invalid(
            "name", f"{quoted(text)} must be 1 to {MAX_NAME_LENGTH} of the characters A-Z a-z 0-9 . _ -"
        )
    return text


def parse_url(text: str, field: str) -> str:
    """The http or https URL that `text` spells; `field` names it in `Invalid`.

    Only the scheme is put in lower case and the fragment dropped. Unicode becomes percent-encoded UTF-8 in path
    and query, and IDNA in the host.
    """
    if len(text) > MAX_URL_LENGTH:
        raise Invalid(field, f"is longer than {MAX_URL_LENGTH} characters")
    match = _URL.match(text)
    if match is None:
        raise Invalid(field, f"{quoted(text)} does not begin with http:// or https://")
    scheme, authority, rest = match.groups()
    if len(authority) > _MAX_AUTHORITY_LENGTH:
        raise Invalid(field, f"{quoted(text)} has a host that is too long")
    try:
        url = f"{scheme.lower()}://{_authority(authority)}{_ascii(rest)}"
    except ValueError as problem:
        raise Invalid(field, f"{quoted(text)} {problem}") from None
    if len(url) > MAX_URL_LENGTH:
        raise Invalid(field, f"is longer than {MAX_URL_LENGTH} characters")
    return url


def literal_host(url: str) -> str | None:
    """The IP address that stands in the place of the host of a URL as `parse_url` returns it; None for a name.

    An IPv4 address has many spellings, with fewer numbers, octal and hexadecimal ones. The system's resolver takes
    each of them for the address, so it is asked, without looking anything up.

    >>> literal_host("http://me@[::1]:8080/"), literal_host("https://10.0.0.1.example/")
    ('::1', None)
    >>> literal_host("http://0x7f.1/"), literal_host("http://2130706433/")
    ('127.0.0.1', '127.0.0.1')
    """
    match = _LITERAL.match(url)
    if match is None:
        return None
    ipv6, digits = match.groups()
    if ipv6 is not None:
        return ipv6
    try:
        return socket.inet_ntoa(socket.inet_aton(digits))
    except OSError:
        return None


def refuse_address(url: str, field: str, refusal: Refusal) -> None:
    """Raises `Invalid` for a URL, as `parse_url` returns it, at an address that may not be called.

    A name is judged when it is called: what it leads to by then is what counts.
    """
    address = literal_host(url)
    problem = None if address is None else refusal(address)
    if problem is not None:
        raise Invalid(field, problem)


@lru_cache(maxsize=1024)
def _authority(text: str) -> str:
    """User information, host and port as they are sent. ValueError says what is wrong."""
    user, at, host_port = text.rpartition("@")
    user = _ascii(user)
    if _USERINFO.fullmatch(user) is None:
        raise ValueError("has user information that must be percent-encoded")
    match = _HOST_PORT.fullmatch(host_port)
    if match is None:
        raise ValueError("has a host or a port that cannot be")
    host, port = match.groups()
    if port is not None and not 1 <= int(port) <= 65535:
        raise ValueError("has a port that is not 1 to 65535")
    host = _host(host)
    return f"{user}{at}{host}" if port is None else f"{user}{at}{host}:{port}"


def _host(host: str) -> str:
    if not host:
        raise ValueError("has no host")
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except AddressValueError:
            raise ValueError("has a host that is no IPv6 address") from None
        return host
    if "%" in host or not host.isascii():
        try:
            host = idna.encode(unquote(host, errors="strict"), uts46=True).decode()
        except UnicodeError:
            raise ValueError("has a host that is no valid domain name") from None
    if len(host.rstrip(".")) > _MAX_HOST_LENGTH or _HOST.fullmatch(host) is None:
        raise ValueError("has a host that is no valid domain name")
    return host


def _ascii(text: str) -> str:
    """Non-ASCII characters percent-encoded, everything else as it is; ValueError for what no URL may hold."""
    if not text.isascii():
        try:
            text = quote(text, safe=_VISIBLE + " ")
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
    if " " in text or not text.isprintable():
        raise ValueError("has a blank or control character, which must be percent-encoded")
    return text


def _decoded(text: str, field: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Invalid(field, "is not percent-encoded UTF-8") from None

"""The API's description, and the page that shows it: files, for browsers and tools, without a token.

Every address in them is relative, so that the page works below whatever path a proxy puts the relay. The page may
run, ask and show nothing but what this relay serves; a token that is typed into it cannot go elsewhere.
"""

import asyncio
import gzip
from functools import cache
from hashlib import sha256
from pathlib import Path

from aiohttp import web
from msgspec import Struct

from relay.api.answer import Answer
from relay.api.services import Services
from relay.domain.errors import NotFound, quoted

_HERE = Path(__file__).parent
_VIEWER = _HERE / "viewer"

#: What can be asked for below /docs, with its type.
ASSETS = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "start.js": "text/javascript; charset=utf-8",
}

#: The viewer's icons are data: URLs; it sets styles by script, never in its markup.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = (
    # A new version of the relay shows at once: a file is kept, and asked after each time.
    ("Cache-Control", "no-cache"),
    ("Vary", "Accept-Encoding"),
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


class _File(Struct, frozen=True, kw_only=True):
    """A file as it is sent, plain and packed; the tag is that of the plain one."""

    plain: bytes
    packed: bytes
    tag: str


async def page(services: Services, request: web.Request) -> Answer:
    return await _answer(request, _VIEWER / "index.html", "text/html; charset=utf-8")


async def page_below(services: Services, request: web.Request) -> Answer:
    """With a slash at its end the page's own addresses would mean something else."""
    return Answer(status=308, body=b"", headers=(("Location", "../docs"),), content_type="text/plain")


async def asset(services: Services, request: web.Request) -> Answer:
    name = request.match_info["file"]
    if name not in ASSETS:
        raise NotFound(f"file {quoted(name)}")
    return await _answer(request, _VIEWER / name, ASSETS[name])


async def description(services: Services, request: web.Request) -> Answer:
    return await _answer(request, _description(), "application/yaml")


def _description() -> Path:
    """It is built into a wheel beside this module; in a checkout it is where people look for it."""
    built_in = _HERE / "openapi.yaml"
    return built_in if built_in.exists() else _HERE.parents[1] / "openapi.yaml"


async def _answer(request: web.Request, path: Path, content_type: str) -> Answer:
    file = await asyncio.to_thread(_read, path)
    packed = _takes_gzip(request.headers.get("Accept-Encoding", ""))
    tag = f"{file.tag}-gzip" if packed else file.tag
    headers: tuple[tuple[str, str], ...] = (*_HEADERS, ("ETag", f'"{tag}"'))
    if any(known.value in (tag, "*") for known in request.if_none_match or ()):
        return Answer(status=304, body=b"", headers=headers, content_type=content_type)
    if packed:
        headers = (*headers, ("Content-Encoding", "gzip"))
    return Answer(
        status=200, body=file.packed if packed else file.plain, headers=headers, content_type=content_type
    )


@cache
def _read(path: Path) -> _File:
    """Files change only with the version of the relay; together they are 2 MB."""
    plain = path.read_bytes()
    return _File(plain=plain, packed=gzip.compress(plain, mtime=0), tag=sha256(plain).hexdigest()[:16])


def _takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding names gzip, and not with the weight of nothing."""
    for member in accepted.lower().split(","):
        coding, _, weight = member.partition(";")
        if coding.strip() in ("gzip", "*"):
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False

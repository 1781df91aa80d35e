"""The page that shows the API's description: whole, from one place, and quickly there again."""

import gzip
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from relay.api import docs
from tests.api.rig import Rig
from tests.api.specification import PATH

VIEWER = Path(docs.__file__).parent / "viewer"
SERVED = ["/docs", "/openapi.yaml", *(f"/docs/{name}" for name in docs.ASSETS)]


class Addresses(HTMLParser):
    """What a page loads and runs; scripts and styles inside of it are listed by their tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert not any(name == "style" or name.startswith("on") for name in given)
        address = given.get("src") or given.get("href")
        if address is not None and not address.startswith("data:"):
            self.found.append(address)
        elif tag in ("script", "style"):
            self.found.append(tag)


async def test_the_page_is_made_of_files_below_its_own_address(rig: Rig) -> None:
    reply = await rig.call("GET", "/docs", token=None)
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    addresses = Addresses(reply.body.decode()).found
    assert set(addresses) == {f"docs/{name}" for name in docs.ASSETS} | {"openapi.yaml"}
    for address in addresses:
        assert (await rig.call("GET", f"/{address}", token=None)).status == 200


async def test_a_slash_too_many_leads_to_the_page(rig: Rig) -> None:
    reply = await rig.call("GET", "/docs/", token=None)
    assert (reply.status, reply.headers["Location"]) == (308, "../docs")


async def test_the_description_is_served_as_it_is_written(rig: Rig) -> None:
    reply = await rig.call("GET", "/openapi.yaml", token=None)
    assert reply.headers["Content-Type"] == "application/yaml"
    assert reply.body == PATH.read_bytes()


async def test_the_page_asks_the_relay_it_came_from_by_relative_addresses() -> None:
    (server,) = yaml.safe_load(PATH.read_text())["servers"]
    assert server["url"] == "./"
    script = (VIEWER / "start.js").read_text()
    assert 'url: "openapi.yaml"' in script
    assert "//" not in re.sub(r"^\s*//.*", "", script, flags=re.MULTILINE)


@pytest.mark.parametrize("path", SERVED)
async def test_a_file_may_run_and_ask_nothing_but_this_relay(rig: Rig, path: str) -> None:
    reply = await rig.call("GET", path, token=None)
    policy = dict(
        directive.partition(" ")[::2] for directive in reply.headers["Content-Security-Policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", SERVED)
async def test_a_file_is_sent_again_only_when_it_has_changed(rig: Rig, path: str) -> None:
    first = await rig.call("GET", path, token=None)
    assert first.headers["Cache-Control"] == "no-cache"
    tag = first.headers["ETag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = await rig.call("GET", path, token=None, headers={"If-None-Match": known})
        assert (again.status, again.body) == (304, b"")
        assert again.headers["ETag"] == tag
    for unknown in ('"other"', "", "?", '"'):
        reply = await rig.call("GET", path, token=None, headers={"If-None-Match": unknown})
        assert reply == first._replace(headers=reply.headers)


@pytest.mark.parametrize("path", SERVED)
async def test_a_file_is_packed_for_those_who_can_unpack_it(rig: Rig, path: str) -> None:
    plain = await rig.call("GET", path, token=None)
    assert "Content-Encoding" not in plain.headers
    for accepted in ("gzip", "br, GZIP;q=0.5", "*"):
        packed = await rig.call("GET", path, token=None, headers={"Accept-Encoding": accepted})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert packed.headers["Vary"] == "Accept-Encoding"
        assert packed.headers["ETag"] != plain.headers["ETag"]
        assert gzip.decompress(packed.body) == plain.body
    for refused in ("identity", "gzip;q=0", "gzip; q=0.000", "br"):
        reply = await rig.call("GET", path, token=None, headers={"Accept-Encoding": refused})
        assert reply.body == plain.body


@pytest.mark.parametrize(
    "name", ["LICENSE", "index.html", "nothing", "..%2Fdocs.py", "%2e%2e", "swagger-ui.css%00", "VENDORED.md"]
)
async def test_nothing_else_is_served(rig: Rig, name: str) -> None:
    reply = await rig.call("GET", f"/docs/{name}", token=None)
    assert reply.status == 404
    assert reply.error.endswith("not found")


def test_what_is_not_ours_comes_with_its_licences_and_nothing_needless() -> None:
    assert {path.name for path in VIEWER.iterdir()} == {
        "LICENSE",
        "NOTICE",
        "VENDORED.md",
        "index.html",
        "start.js",
        "swagger-ui-bundle.js",
        "swagger-ui-bundle.js.LICENSE.txt",
        "swagger-ui.css",
    }
    assert "Apache License" in (VIEWER / "LICENSE").read_text()

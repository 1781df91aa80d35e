"""The official JavaScript SDK, unmodified, against a live relay, in Node.

Its tests are written in JavaScript, in `tests/sdk/node`; here they are run, and it is seen to that they leave
nothing out. `make test` installs the SDK from npm.
"""

import json
import os
import socket
from pathlib import Path
from xml.etree import ElementTree

import pytest
import pytest_asyncio

from relay.config import Config
from tests.live import a_relay
from tests.sdk.nodejs import PROJECT, Ended, node

# One process runs them all, since together they must call everything the SDK has.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("node")]

_AT_ONCE = 6  # most of the time they wait

#: What keeps the SDK from ever getting another server to talk to: the first thing it would do is make a directory
#: for the download, and Node refuses that, as it refuses to start a program.
_CONFINED = ("--permission", "--allow-fs-read=*")


class Suite:
    """A run of all tests in Node; `coverage` is where it says what was called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.coverage = directory / "coverage"
        self.results = directory / "results.xml"
        self.coverage.mkdir()

    async def run(self) -> Ended:
        with a_relay(directory=self.directory) as relay:
            return await node(
                "--test",
                f"--test-concurrency={_AT_ONCE}",
                "--test-timeout=120000",
                "--test-reporter=spec",
                "--test-reporter-destination=stdout",
                "--test-reporter=junit",
                f"--test-reporter-destination={self.results}",
                *sorted(PROJECT.glob("*.test.mjs")),
                environment={**relay.environment, "NODE_V8_COVERAGE": str(self.coverage)},
            )


async def an_application_in_development(**environment: str) -> Ended:
    """What `dev/app.mjs` comes to, which knows of no relay but by QSTASH_DEV."""
    return await node(*_CONFINED, "dev/app.mjs", environment={"QSTASH_DEV": "true", **environment})


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return Suite(tmp_path_factory.mktemp("node"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ended(suite: Suite) -> Ended:
    return await suite.run()


async def test_every_test_in_node_passes_and_none_is_skipped(
    suite: Suite, ended: Ended, subtests: pytest.Subtests
) -> None:
    assert suite.results.exists(), ended.output
    cases = list(ElementTree.parse(suite.results).iter("testcase"))
    for case in cases:
        with subtests.test(f"{Path(case.attrib['file']).name}: {case.attrib['name']}"):
            assert len(case) == 0, ElementTree.tostring(case, "unicode")
    assert {Path(case.attrib["file"]) for case in cases} == set(PROJECT.glob("*.test.mjs"))
    assert ended.status == 0, ended.output


@pytest.mark.usefixtures("ended")
async def test_no_public_function_of_the_sdk_is_left_uncalled(suite: Suite) -> None:
    report = await node("coverage.mjs", suite.coverage)
    assert report.status == 0, report.output


async def test_an_application_in_development_finds_the_relay_and_needs_no_url_token_or_key(
    tmp_path: Path,
) -> None:
    with a_relay(directory=tmp_path) as relay:
        ended = await an_application_in_development(QSTASH_DEV_PORT=relay.port)
        saw_relay(ended, relay.url)
        assert f"Server already running at {relay.url}" in ended.output


async def test_the_ports_agree_when_nobody_names_one(tmp_path: Path) -> None:
    """Where something else has that port, at least both sides are seen to mean it."""
    url = f"http://127.0.0.1:{Config().port}"
    if _is_free(Config().port):
        with a_relay("--port", str(Config().port), directory=tmp_path) as relay:
            assert relay.url == url
            saw_relay(await an_application_in_development(), url)
    else:
        script = "import { Client } from '@upstash/qstash'; console.log(new Client({ devMode: true }).http.baseUrl)"
        environment = {"NODE_ENV": "production"}  # where the client only says what it would do
        ended = await node(*_CONFINED, "--input-type=module", "-e", script, environment=environment)
        assert url in ended.output.splitlines()


async def test_without_a_relay_an_application_in_development_gets_nowhere(unused_tcp_port: int) -> None:
    """What the tests above rest on: one that did not find its relay cannot succeed by other means."""
    ended = await an_application_in_development(QSTASH_DEV_PORT=str(unused_tcp_port))
    assert ended.status == 1
    assert "ERR_ACCESS_DENIED" in ended.output
    assert f"{os.devnull}/.cache" in ended.output
    assert "already running" not in ended.output


def saw_relay(ended: Ended, url: str) -> None:
    assert ended.status == 0, ended.output
    assert json.loads(ended.output.splitlines()[-1]) == {
        "relay": url,
        "isOurs": True,
        "isVerified": True,
        "answered": {"hello": "größer"},
    }


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0

"""Accounts are managed while relays run on the database: each relay notices by itself, within seconds."""

import asyncio
import http.client
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relay.domain.message import Message, TenantId
from storage.postgres import open_postgres
from tests import postgres_server
from tests.builders import a_message
from tests.cli.console import Console
from tests.live import COMMAND, Live, a_relay, until
from tests.test_two_relays import an_endpoint

TOKEN = "the-token-of-the-relay"
PUBLISH = "/v2/publish/http://example.invalid/"


class Shop:
    """Relays on one database, each a process of its own, and the shell of who runs them."""

    def __init__(self, database: str, relays: list[Live]) -> None:
        self._console = Console()
        self._console.environment = {"RELAY_DATABASE_URL": database}
        self.relays = relays

    def tell(self, *argv: str) -> Any:
        """What a command that did what it was told printed as its document."""
        done = self._console(*argv, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def statuses(
        self, token: str, method: str = "GET", path: str = "/v2/schedules", body: str = ""
    ) -> list[int]:
        """What each relay answers whoever shows this token."""
        return [ask(relay, token, method, path, body)[0] for relay in self.relays]

    def until_all_answer(self, status: int, token: str, path: str = "/v2/schedules") -> None:
        until(
            lambda: set(self.statuses(token, path=path)) == {status},
            otherwise=lambda: f"not everybody answers {status}: {self.statuses(token, path=path)}",
        )


def ask(relay: Live, token: str, method: str, path: str, body: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(relay.port), timeout=30)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture(params=["one relay on sqlite", "two relays on postgres"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    on_sqlite = request.param == "one relay on sqlite"
    database = f"sqlite:///{tmp_path}/relay.db" if on_sqlite else postgres_server.url()
    environment = {
        "RELAY_DATABASE_URL": database,
        "RELAY_TOKEN": TOKEN,
        "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
    }
    with ExitStack() as stack:
        relays = []
        for name in ["first"] if on_sqlite else ["first", "second"]:
            directory = tmp_path / name
            directory.mkdir()
            relays.append(
                stack.enter_context(a_relay(directory=directory, mode="serve", environment=environment))
            )
        yield Shop(database, relays)


def test_running_relays_notice_new_revoked_and_expiring_tokens(shop: Shop) -> None:
    shop.tell("tenants", "create", "acme")
    made = shop.tell("tokens", "create", "acme")
    assert set(shop.statuses(made["token"])) == {200}
    brief = shop.tell("tokens", "create", "acme", "--expires-in", "2s")
    reader = shop.tell("tokens", "create", "acme", "--read-only")
    shop.until_all_answer(401, brief["token"])
    assert set(shop.statuses(reader["token"])) == {200}
    assert set(shop.statuses(reader["token"], "POST", PUBLISH)) == {403}
    shop.tell("tokens", "revoke", made["tokenId"], "--yes")
    shop.until_all_answer(401, made["token"])
    assert set(shop.statuses(reader["token"])) == {200}
    assert set(shop.statuses(TOKEN)) == {200}


def test_running_relays_notice_limits_and_disabling(shop: Shop) -> None:
    shop.tell("tenants", "create", "acme")
    token = shop.tell("tokens", "create", "acme")["token"]
    assert set(shop.statuses(token, "POST", PUBLISH, "12345")) == {200}
    shop.tell("tenants", "set", "acme", "--max-message-bytes", "4")
    until(
        lambda: set(shop.statuses(token, "POST", PUBLISH, "12345")) == {413},
        otherwise=lambda: "the limit is not noticed",
    )
    assert set(shop.statuses(TOKEN, "POST", PUBLISH, "12345")) == {200}
    shop.tell("tenants", "disable", "acme")
    shop.until_all_answer(403, token)
    shop.tell("tenants", "enable", "acme")
    shop.until_all_answer(200, token)


def accept(database: str, message: Message) -> None:
    """Store a message as a relay would that has not heard yet that its account is disabled."""

    async def program() -> None:
        storage = await open_postgres(database)
        await storage.publish([message], now=message.created_at)
        await storage.close()

    asyncio.run(program())


def test_what_a_disabled_account_has_waiting_is_sent_after_it_was_enabled(tmp_path: Path) -> None:
    database = postgres_server.url()
    environment = {
        "RELAY_DATABASE_URL": database,
        "RELAY_TOKEN": TOKEN,
        "RELAY_ALLOW_NETWORKS": "127.0.0.0/8",
    }
    with (
        a_relay(directory=tmp_path, mode="serve", environment=environment) as relay,
        an_endpoint() as (url, seen),
    ):
        shop = Shop(database, [relay])
        shop.tell("tenants", "create", "acme")
        shop.tell("tenants", "disable", "acme")
        accept(database, a_message(tenant=TenantId(101), url=url, body=b"held", created_at=1))
        until(lambda: "delivery.held" in relay.log.read_text(), otherwise=relay.log.read_text)
        assert ask(relay, TOKEN, "POST", f"/v2/publish/{url}", "not held")[0] == 200
        until(lambda: seen == ["not held"], otherwise=lambda: f"seen: {seen}")
        shop.tell("tenants", "enable", "acme")
        until(lambda: seen == ["not held", "held"], otherwise=lambda: f"seen: {seen}")


def test_commands_and_publishes_do_not_stand_in_each_others_way(shop: Shop) -> None:
    shop.tell("tenants", "create", "acme")
    token = shop.tell("tokens", "create", "acme")["token"]
    over = threading.Event()
    statuses: list[int] = []

    def publish() -> None:
        while not over.is_set():
            statuses.extend(shop.statuses(token, "POST", PUBLISH + "?upstash-delay=1h"))

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        made = [shop.tell("tokens", "create", "acme")["tokenId"] for _ in range(5)]
        assert shop.tell("tokens", "revoke", *made)["revoked"] == made
    finally:
        over.set()
        publisher.join()
    assert set(statuses) == {200}
    stored = ask(shop.relays[0], token, "GET", "/metrics")[1].decode()
    assert f"relay_messages_live {len(statuses)}.0\n" in stored


def test_a_token_that_was_issued_outlives_restarts_of_the_relay(tmp_path: Path) -> None:
    database = {"RELAY_DATABASE_URL": f"sqlite:///{tmp_path}/relay.db"}
    with a_relay(directory=tmp_path, mode="serve", environment=database) as relay:
        shop = Shop(database["RELAY_DATABASE_URL"], [relay])
        (tenant,) = shop.tell("tenants", "list")
        issued = shop.tell("tokens", "create", tenant["tenant"])["token"]
        generated = relay.token
        (generated_id,) = [one["tokenId"] for one in shop.tell("tokens", "list") if not one["byCommand"]]
        relay.kill()
        # Nobody else has the file open: the command is what recovers it.
        shop.tell("tokens", "revoke", generated_id)
    with a_relay(directory=tmp_path, mode="serve", environment=database) as relay:
        # There is a token already: no other is made in the place of the one that was taken back on purpose.
        assert "QSTASH_TOKEN" not in relay.environment
        assert ask(relay, issued, "GET", "/v2/schedules")[0] == 200
        assert ask(relay, generated, "GET", "/v2/schedules")[0] == 401
        refused = subprocess.run(
            [COMMAND, "serve", "--port", "0"],
            env={**os.environ, **database},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert refused.returncode == 1
        assert "in use by another relay process" in refused.stderr

"""What happens to tables under relays that run: a newer relay adds to them, an administrator takes them away."""

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path

import asyncpg

from storage.postgres.driver import target_of
from tests import postgres_server
from tests.live import Live, a_relay, until


def execute(url: str, *statements: str) -> None:
    async def program() -> None:
        target = target_of(url)
        database = await asyncpg.connect(target.dsn, server_settings={"search_path": target.schema})
        try:
            for statement in statements:
                await database.execute(statement)
        finally:
            await database.close()

    asyncio.run(program())


def publish(live: Live, token: str) -> tuple[int, str]:
    """Status, and the reason if there is one."""
    request = urllib.request.Request(
        f"{live.url}/v2/publish/http://example.invalid/",
        method="POST",
        headers={"Authorization": f"Bearer {token}", "Upstash-Delay": "1h"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())["error"]


def test_tables_that_are_taken_away_make_a_relay_unready_with_the_reason_and_no_trace(tmp_path: Path) -> None:
    url = postgres_server.url()
    schema = target_of(url).schema
    with a_relay("--database", url, directory=tmp_path, mode="serve") as live:
        token = live.token
        assert publish(live, token)[0] == 200
        execute(url, f"ALTER SCHEMA {schema} RENAME TO {schema}_gone")
        status, problems = live.get("/readyz")
        assert status == 503
        assert b"storage is unavailable: the relay's tables are not there" in problems
        status, reason = publish(live, token)
        assert (status, "tables are not there" in reason) == (503, True)
        assert live.get("/v2/logs", token=token)[0] == 503
        # Whatever looks at the database by itself has met it by then.
        until(
            lambda: "engine.waiting" in live.log.read_text() and "cannot be used" in live.log.read_text(),
            otherwise=live.log.read_text,
        )
        execute(url, f"ALTER SCHEMA {schema}_gone RENAME TO {schema}")
        until(lambda: live.get("/readyz")[0] == 200, otherwise=lambda: str(live.get("/readyz")))
        assert publish(live, token)[0] == 200
        assert live.stop() == 0
    said = live.log.read_text()
    assert "Traceback" not in said
    assert said.count("cannot be used") == 1


def test_a_relay_that_starts_on_what_a_newer_one_added_to_says_so_once(tmp_path: Path) -> None:
    url = postgres_server.url()
    with a_relay("--database", url, directory=tmp_path, mode="serve") as first:
        token = first.token
        # A newer node comes, the first one goes on, is replaced by another of its own version, and that goes on.
        execute(
            url,
            "ALTER TABLE messages ADD COLUMN of_the_future text",
            "INSERT INTO migrations (version, name) VALUES (999, 'of_the_future')",
        )
        assert publish(first, token)[0] == 200
        assert "schema.newer" not in first.log.read_text()
        first.stop()
    with a_relay("--database", url, "--no-migrate", directory=tmp_path, mode="serve") as second:
        assert publish(second, token)[0] == 200
        second.stop()
    (line,) = [line for line in second.log.read_text().splitlines() if "schema.newer" in line]
    said = json.loads(line)
    assert (said["level"], said["version"]) == ("warning", 999)

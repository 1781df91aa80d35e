"""`relay copy` moves a relay that has been stopped to PostgreSQL, and back."""

import asyncio
import io
import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path
from subprocess import PIPE

import asyncpg
import pytest

from relay.cli import run
from relay.cli.shell import this_shell
from storage.copy import copy
from storage.postgres import open_postgres
from storage.postgres.driver import target_of
from storage.sqlite import open_sqlite
from tests import postgres_server
from tests.builders import a_message
from tests.live import COMMAND, Live, a_relay

#: How many others a process would find at work on the database.
_AT_WORK = "SELECT count(*) FROM nodes WHERE owner IS NOT NULL"


def relay_copy(directory: Path, source: str, target: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    return subprocess.run(
        [COMMAND, "copy", "--from", source, "--to", target, *flags],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def call(live: Live, token: str, method: str, path: str, **headers: str) -> object:
    request = urllib.request.Request(
        live.url + path,
        method=method,
        headers={
            "Authorization": f"Bearer {token}",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def test_a_relay_moves_to_postgres_and_back_with_all_it_has(tmp_path: Path) -> None:
    here, there, back = "sqlite:///relay.db", postgres_server.url(), "sqlite:///back.db"
    with a_relay("--database", here, directory=tmp_path, mode="serve") as live:
        token = live.token
        path = "/v2/publish/http://example.invalid/"
        message = call(live, token, "POST", path, Upstash_Delay="1h", Upstash_Label="moving")
        assert isinstance(message, dict)
        call(live, token, "POST", "/v2/schedules/http://example.invalid/", Upstash_Cron="0 0 1 1 *")
        shown = call(live, token, "GET", f"/v2/messages/{message['messageId']}")
        schedules = call(live, token, "GET", "/v2/schedules")
        keys = call(live, token, "GET", "/v2/keys")
        in_use = relay_copy(tmp_path, here, there)
        assert (in_use.returncode, in_use.stdout) == (1, "")
        assert "in use by another relay" in in_use.stderr
        live.stop()
    for source, target in ((here, there), (there, back)):
        copied = relay_copy(tmp_path, source, target, "--json")
        assert (copied.returncode, copied.stderr) == (0, "")
        counts = {one["table"]: (one["source"], one["target"]) for one in json.loads(copied.stdout)}
        assert counts["messages"] == counts["deliveries"] == counts["schedules"] == (1, 1)
        with a_relay("--database", target, directory=tmp_path, mode="serve") as live:
            # One line: the token is known already, so none is made.
            assert live.greeting.count("\n") == 1
            assert call(live, token, "GET", f"/v2/messages/{message['messageId']}") == shown
            assert call(live, token, "GET", "/v2/schedules") == schedules
            assert call(live, token, "GET", "/v2/keys") == keys
            assert b"\nrelay_messages_live 1.0\n" in live.get("/metrics")[1]
            live.stop()


def test_no_relay_starts_on_half_a_copy(tmp_path: Path) -> None:
    target = postgres_server.url()

    async def half() -> None:
        def interrupt(table: str, done: int, total: int) -> None:
            if table == "messages" and done:
                raise KeyboardInterrupt

        source, unfinished = await open_sqlite(f"sqlite:///{tmp_path}/relay.db"), await open_postgres(target)
        await source.publish([a_message()], now=0)
        try:
            await copy(source, unfinished, name=f"{tmp_path}/relay.db", progress=interrupt)
        finally:
            await source.close()
            await unfinished.close()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(half())
    serve = [COMMAND, "serve", "--port", "0", "--database", target]
    refused = subprocess.run(serve, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "unfinished copy" in refused.stderr
    # The same command, given again, goes on with it.
    ended = relay_copy(tmp_path, "sqlite:///relay.db", target)
    assert ended.returncode == 0, ended.stderr
    assert ["deliveries", "1", "1"] in [line.split() for line in ended.stdout.splitlines()]
    with a_relay("--database", target, directory=tmp_path, mode="serve") as live:
        assert live.get("/readyz")[0] == 200


@pytest.mark.parametrize("command", ["copy", "migrate", "serve"])
async def test_whoever_is_told_to_end_while_it_opens_the_database_is_in_nobodys_way(
    command: str, tmp_path: Path
) -> None:
    await _closed(tmp_path / "relay.db")
    source, target = "sqlite:///relay.db", postgres_server.url()
    await (await open_postgres(target)).close()
    given = {"copy": ["--from", source, "--to", target], "serve": ["--database", target, "--port", "0"]}
    argv = [command, *given.get(command, ["--database", target])]
    database = await asyncpg.connect(
        target_of(target).dsn, server_settings={"search_path": target_of(target).schema}
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    try:
        async with database.transaction(), asyncio.timeout(60):
            # By then it has a number.
            await database.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
            opening = await asyncio.create_subprocess_exec(
                COMMAND, *argv, cwd=tmp_path, env=environment, stdout=PIPE, stderr=PIPE
            )
            while not await database.fetchval(_AT_WORK):
                pass
            opening.send_signal(signal.SIGTERM)
            if command != "serve":
                assert await opening.communicate() == (b"", b"")
                assert opening.returncode == 130
        # A relay that starts hears of it once it has started.
        async with asyncio.timeout(60):
            await opening.communicate()
        assert await database.fetchval(_AT_WORK) == 0
    finally:
        await database.close()
    copied = await asyncio.to_thread(relay_copy, tmp_path, source, target)
    assert (copied.returncode == 0) == (command != "serve"), copied.stderr
    assert "in use" not in copied.stderr


async def test_a_copy_that_is_told_to_end_is_in_nobodys_way(tmp_path: Path) -> None:
    await _closed(tmp_path / "relay.db")
    source, target = "sqlite:///relay.db", postgres_server.url()
    await (await open_postgres(target)).close()
    blocker = await asyncpg.connect(target_of(target).dsn)
    try:
        schema = target_of(target).schema
        async with blocker.transaction():
            await blocker.execute(f'LOCK TABLE "{schema}".settings IN SHARE MODE')
            environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
            copying = await asyncio.create_subprocess_exec(
                COMMAND, "copy", "--from", source, "--to", target, cwd=tmp_path, env=environment, stderr=PIPE
            )
            async with asyncio.timeout(30):
                while not await blocker.fetchval(
                    "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
                    " WHERE NOT l.granted AND c.oid = $1::regclass",
                    f'"{schema}".settings',
                ):
                    await asyncio.sleep(0)
                copying.send_signal(signal.SIGTERM)
                _, said = await copying.communicate()
            assert (copying.returncode, said) == (130, b"")
    finally:
        await blocker.close()
    ended = await asyncio.to_thread(relay_copy, tmp_path, source, target)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("sqlite:///typo.db", "sqlite:///b.db", "there is no file typo.db"),
        ("sqlite:///a.db", "sqlite://", "gone when it is closed"),
        ("sqlite:///a.db", "sqlite:///a.db", "the same database"),
        ("sqlite:///a.db", "mysql://b", "must name a database this relay can open"),
    ],
)
def test_what_cannot_be_copied_is_refused_in_one_sentence(
    tmp_path: Path, source: str, target: str, reason: str
) -> None:
    asyncio.run(_closed(tmp_path / "a.db"))
    refused = relay_copy(tmp_path, source, target)
    assert (refused.returncode, refused.stdout) == (1, "")
    (line,) = refused.stderr.splitlines()
    assert reason in line
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["a.db"]


def test_a_source_that_is_not_there_or_not_up_to_date_is_not_made(tmp_path: Path) -> None:
    refused = relay_copy(tmp_path, postgres_server.url(), "sqlite:///b.db")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "run relay migrate" in refused.stderr
    assert not (tmp_path / "b.db").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_who_watches_sees_how_far_it_is(tmp_path: Path) -> None:
    asyncio.run(_closed(tmp_path / "a.db"))
    shell = this_shell()._replace(stdout=Terminal(), stderr=Terminal())
    source, target = (f"sqlite:///{tmp_path}/{name}.db" for name in "ab")
    assert run(["copy", "--from", source, "--to", target], shell) == 0
    for stream in (shell.stdout, shell.stderr):
        assert isinstance(stream, Terminal)
        assert "deliveries" in stream.getvalue()


async def _closed(path: Path) -> None:
    storage = await open_sqlite(f"sqlite:///{path}")
    await storage.close()

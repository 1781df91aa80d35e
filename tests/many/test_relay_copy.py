"""`relay copy` moves a relay that has been stopped to PostgreSQL, and back."""

import asyncio
import io
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import asyncpg
import pytest

from relay.cli import run
from relay.cli.shell import this_shell
from relay.domain.message import Message
from storage.copy import copy
from storage.postgres import open_postgres
from storage.postgres.driver import target_of
from storage.sqlite import open_sqlite
from tests import postgres_server
from tests.builders import NOW, a_message
from tests.live import COMMAND, Live, a_relay

#: How many others a process would find at work on the database.
_AT_WORK = "SELECT count(*) FROM nodes WHERE owner IS NOT NULL"


def relay_copy(directory: Path, source: str, target: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [COMMAND, "copy", "--from", source, "--to", target, *flags],
        cwd=directory,
        env=_clean(),
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
        assert copied.returncode == 0, copied.stderr
        # Where nobody watches a bar, a line for each table that has rows, and in the end what to do now.
        *lines, last = copied.stderr.splitlines()
        assert {"relay: messages: 1 of 1", "relay: deliveries: 1 of 1"} < set(lines)
        assert not any(line.startswith("relay: dead_letters") for line in lines)
        assert last.startswith("relay: the copy is complete")
        assert "never again on the source" in last
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
            await copy(
                source, unfinished, name=f"{tmp_path}/relay.db", progress=interrupt, starting_over=never
            )
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
    try:
        async with database.transaction(), asyncio.timeout(60):
            # By then it has a number.
            await database.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
            opening = await asyncio.create_subprocess_exec(
                COMMAND, *argv, cwd=tmp_path, env=_clean(), stdout=PIPE, stderr=PIPE
            )
            while not await database.fetchval(_AT_WORK):
                pass
            opening.send_signal(signal.SIGTERM)
            if command != "serve":
                said = b"relay: interrupted before anything was copied\n" if command == "copy" else b""
                assert await opening.communicate() == (b"", said)
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


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("settings", "interrupted before anything was copied"),
        ("messages", "interrupted at 0 of 1 rows of messages; the same command, given again, goes on there"),
    ],
)
async def test_a_copy_that_is_told_to_end_says_where_it_was_and_is_in_nobodys_way(
    tmp_path: Path, table: str, said: str
) -> None:
    await _closed(tmp_path / "relay.db", a_message())
    source, target = "sqlite:///relay.db", postgres_server.url()
    await (await open_postgres(target)).close()
    async with _stopped_at(table, target), asyncio.timeout(60):
        copying = await _begun(tmp_path, source, target)
        await _waits_for(table, target)
        copying.send_signal(signal.SIGTERM)
        _, stderr = await copying.communicate()
    assert copying.returncode == 130
    assert stderr.decode().splitlines()[-1] == f"relay: {said}"
    ended = await asyncio.to_thread(relay_copy, tmp_path, source, target)
    assert ended.returncode == 0, ended.stderr
    assert "starting over" not in ended.stderr


async def test_a_copy_whose_server_goes_says_which_and_that_it_can_go_on(tmp_path: Path) -> None:
    server = postgres_server.Server()
    server.start()
    try:
        await _closed(tmp_path / "relay.db", a_message())
        source, target = "sqlite:///relay.db", server.url()
        await (await open_postgres(target)).close()
        async with asyncio.timeout(60):
            async with _stopped_at("messages", target):
                copying = await _begun(tmp_path, source, target)
                await _waits_for("messages", target)
                await asyncio.to_thread(server.stop, signal.SIGQUIT)
            _, stderr = await copying.communicate()
        assert copying.returncode == 1
        assert b"relay: the target is unavailable (the " in stderr
        assert b"what was copied stays, and the same command, given again, goes on with it" in stderr
        assert stderr.decode().splitlines()[-1] == "relay: it was at 0 of 1 rows of messages"
    finally:
        server.remove()


async def test_a_copy_that_was_interrupted_starts_over_when_its_source_was_used_since(tmp_path: Path) -> None:
    await _closed(tmp_path / "relay.db", a_message())
    source, target = "sqlite:///relay.db", postgres_server.url()
    await (await open_postgres(target)).close()
    async with _stopped_at("deliveries", target), asyncio.timeout(60):
        copying = await _begun(tmp_path, source, target)
        await _waits_for("deliveries", target)
        copying.send_signal(signal.SIGINT)
        await copying.communicate()
    await _closed(tmp_path / "relay.db", a_message())
    ended = await asyncio.to_thread(relay_copy, tmp_path, source, target)
    assert ended.returncode == 0, ended.stderr
    assert "the source has changed since the copy was interrupted: starting over" in ended.stderr
    assert ["deliveries", "2", "2"] in [line.split() for line in ended.stdout.splitlines()]


@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_what_is_in_the_way_of_a_copy_is_said_with_how_to_empty_it(tmp_path: Path, backend: str) -> None:
    target = "sqlite:///b.db" if backend == "sqlite" else postgres_server.url()
    asyncio.run(_closed(tmp_path / "a.db", a_message()))
    assert relay_copy(tmp_path, "sqlite:///a.db", target).returncode == 0
    refused = relay_copy(tmp_path, "sqlite:///a.db", target)
    assert (refused.returncode, refused.stdout) == (1, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("relay: the target is not empty: its table messages has rows")
    if backend == "sqlite":
        assert line.endswith("to copy here, name another file")
        return
    statement = line.rpartition("in psql: ")[2]
    assert statement == f"DROP SCHEMA {target_of(target).schema} CASCADE"

    async def drop() -> None:
        database = await asyncpg.connect(target_of(target).dsn)
        await database.execute(statement)
        await database.close()

    asyncio.run(drop())
    assert relay_copy(tmp_path, "sqlite:///a.db", target).returncode == 0


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}


async def _begun(directory: Path, source: str, target: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        COMMAND,
        "copy",
        "--from",
        source,
        "--to",
        target,
        cwd=directory,
        env=_clean(),
        stdout=PIPE,
        stderr=PIPE,
    )


@asynccontextmanager
async def _stopped_at(table: str, url: str) -> AsyncIterator[None]:
    """Nobody can write to the table; the server may go meanwhile."""
    target = target_of(url)
    blocker = await asyncpg.connect(target.dsn)
    try:
        await blocker.execute(f"BEGIN; LOCK TABLE {target.schema}.{table} IN SHARE MODE")
        yield
    finally:
        await blocker.close(timeout=5)


async def _waits_for(table: str, url: str) -> None:
    target = target_of(url)
    database = await asyncpg.connect(target.dsn)
    try:
        while not await database.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::regclass",
            f"{target.schema}.{table}",
        ):
            pass
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("sqlite:///typo.db", "sqlite:///b.db", "there is no file typo.db"),
        ("sqlite:///a.db", "sqlite://", "gone when it is closed"),
        ("sqlite:///a.db", "sqlite:///a.db", "the same database"),
        ("sqlite:///a.db", "sqlite:///./a.db", "the same database"),
        ("postgres://a@h:5432/db", "postgresql://b:secret@h/db?schema=relay", "the same database"),
        ("sqlite:///a.db", "mysql://b", "--to: it must name a database this relay can open"),
        ("a.db", "sqlite:///b.db", "--from: it must name a database this relay can open"),
        ("sqlite:///a.db", "postgresql://me:se/cret@h/db", "--to: it must be like"),
        ("sqlite:///a.db", "sqlite:////tmp", "/tmp is a directory"),
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
    assert "cret" not in line
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


def never() -> None:
    raise AssertionError("there was nothing to start over")


async def _closed(path: Path, *messages: Message) -> None:
    """A file that holds these messages, among others, and that nobody uses."""
    storage = await open_sqlite(f"sqlite:///{path}")
    if messages:
        await storage.publish(messages, now=NOW)
    await storage.close()

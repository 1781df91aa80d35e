"""`relay tenants` and `relay tokens`, on a database of either kind."""

import asyncio
import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.accounts import token_hash, user_id_of
from relay.domain.message import SignedBy
from relay.domain.tenant import Principal, Token
from relay.main import named, open_storage
from storage.protocol import Storage
from tests import postgres_server
from tests.cli.console import Console, Result
from tests.live import COMMAND

DAY = 86_400_000


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that is up to date and holds nothing."""
    url = f"sqlite:///{tmp_path}/relay.db" if request.param == "sqlite" else postgres_server.url()
    look(url, lambda storage: storage.tenants())
    return url


@pytest.fixture
def console(database: str) -> Console:
    console = Console()
    console.environment = {"RELAY_DATABASE_URL": database}
    return console


def look(url: str, ask: Callable[[Storage], Any]) -> Any:
    """What a relay would find in the database."""

    async def program() -> Any:
        storage = await open_storage(url)
        try:
            return await ask(storage)
        finally:
            await storage.close()

    return asyncio.run(program())


def done(result: Result) -> Any:
    """The document of a command that did what it was told."""
    assert result.code == 0, result.err
    return json.loads(result.out)


def principal_of(database: str, token: str) -> Principal | None:
    found: Principal | None = look(database, lambda storage: storage.principal(token_hash(token)))
    return found


def test_a_tenant_is_made_with_keys_of_its_own_that_are_told(console: Console, database: str) -> None:
    first, second = console("tenants", "create", "acme"), console("tenants", "create", "umbrella")
    assert (first.code, second.code) == (0, 0)
    assert "relay tokens create acme" in first.err
    tenants = look(database, lambda storage: storage.tenants())
    assert [tenant.user_id for tenant in tenants] == ["acme", "umbrella"]
    for tenant, told in zip(tenants, (first.out, second.out), strict=True):
        assert told == (
            f"QSTASH_CURRENT_SIGNING_KEY={tenant.current_key}\nQSTASH_NEXT_SIGNING_KEY={tenant.next_key}\n"
        )
    keys = {key for tenant in tenants for key in (tenant.current_key, tenant.next_key)}
    assert len(keys) == 4


def test_a_name_is_taken_once_and_is_plain(console: Console) -> None:
    assert done(console("tenants", "create", "acme", "--json"))["tenant"] == "acme"
    again = console("tenants", "create", "acme")
    assert (again.code, again.out) == (1, "")
    assert 'there is a tenant "acme" already' in again.err
    for name in ("", "a b", "a/b", ".hidden", "ü", "x" * 65, "a\nb"):
        refused = console("tenants", "create", name)
        assert (refused.code, refused.out) == (1, "")
        assert "NAME" in refused.err
    assert [one["tenant"] for one in done(console("tenants", "list", "--json"))] == ["acme"]


def test_a_token_is_shown_once_in_the_documented_shape_and_stored_as_a_hash(
    console: Console, database: str, tmp_path: Path
) -> None:
    console("tenants", "create", "acme")
    made = console("tokens", "create", "acme")
    name, _, token = made.out.strip().partition("=")
    assert (made.code, name, user_id_of(token)) == (0, "QSTASH_TOKEN", "acme")
    shape = json.loads(base64.b64decode(token))
    assert set(shape) == {"UserID", "Password"}
    assert len(shape["Password"]) >= 32
    tenant = look(database, lambda storage: storage.tenants())[0]
    assert principal_of(database, token) == Principal(tenant=tenant.id)
    for command in (("tokens", "list"), ("tokens", "list", "acme", "--json"), ("tenants", "show", "acme")):
        shown = console(*command)
        assert shown.code == 0
        assert token not in shown.out + shown.err
        assert shape["Password"] not in shown.out + shown.err
    for file in tmp_path.iterdir():
        assert shape["Password"].encode() not in file.read_bytes()


def test_a_token_may_only_read_may_expire_and_may_say_what_it_is_for(console: Console, database: str) -> None:
    console("tenants", "create", "acme")
    made = done(
        console("tokens", "create", "acme", "--read-only", "--expires-in", "90d", "--label", "dash", "--json")
    )
    assert made["expiresAt"] - made["createdAt"] == 90 * DAY
    principal = principal_of(database, made["token"])
    assert principal is not None
    assert (principal.read_only, principal.expires_at) == (True, made["expiresAt"])
    (listed,) = done(console("tokens", "list", "--json"))
    assert listed == {name: value for name, value in made.items() if name != "token"}
    assert {**listed, "createdAt": 0, "expiresAt": 0} == {
        "tokenId": made["tokenId"],
        "tenant": "acme",
        "readOnly": True,
        "createdAt": 0,
        "expiresAt": 0,
        "byCommand": True,
        "label": "dash",
    }
    console.now = lambda: made["createdAt"]
    shown = console("tokens", "list", "acme").out
    assert "in 90 d" in shown
    assert "dash" in shown
    assert "EXPIRED" not in shown


def test_tokens_are_listed_for_one_tenant_or_for_all(console: Console) -> None:
    for name in ("acme", "umbrella"):
        console("tenants", "create", name)
        console("tokens", "create", name)
    assert [one["tenant"] for one in done(console("tokens", "list", "--json"))] == ["acme", "umbrella"]
    assert [one["tenant"] for one in done(console("tokens", "list", "umbrella", "--json"))] == ["umbrella"]


def test_a_revoked_token_speaks_for_nobody_and_the_others_go_on(console: Console, database: str) -> None:
    console("tenants", "create", "acme")
    kept, lost = (done(console("tokens", "create", "acme", "--json")) for _ in range(2))
    revoked = console("tokens", "revoke", lost["tokenId"], "tok_unknown", "--json")
    assert revoked.code == 4
    assert json.loads(revoked.out) == {"revoked": [lost["tokenId"]], "notFound": ["tok_unknown"]}
    assert principal_of(database, lost["token"]) is None
    assert principal_of(database, kept["token"]) is not None
    assert console("tokens", "revoke", lost["tokenId"]).code == 4


def test_the_last_token_that_may_write_is_revoked_only_when_that_is_meant(
    console: Console, database: str
) -> None:
    for name in ("acme", "umbrella"):
        console("tenants", "create", name)
    done(console("tokens", "create", "umbrella", "--json"))
    done(console("tokens", "create", "acme", "--read-only", "--json"))
    last, other = (done(console("tokens", "create", "acme", "--json")) for _ in range(2))
    changed = f"relay: changed {named(database)}\n"
    assert console("tokens", "revoke", other["tokenId"]).err == changed
    acme, _ = look(database, lambda storage: storage.tenants())
    expired = Token(hash=bytes(32), tenant=acme.id, read_only=False, created_at=0, expires_at=1)
    look(database, lambda storage: storage.issue_token(expired))

    warning = "relay: acme is left without a token that may write; relay tokens create acme makes one\n"
    unasked = console("tokens", "revoke", last["tokenId"])
    assert (unasked.code, unasked.out) == (2, "")
    assert unasked.err == f"{warning}relay: there is no terminal to ask on; pass --yes to go ahead\n"
    refused = console("tokens", "revoke", last["tokenId"], typed=b"n\n")
    assert (refused.code, refused.out, refused.err) == (130, "", f"{warning}Revoke all the same? [y/N] ")
    assert principal_of(database, last["token"]) is not None

    meant = console("tokens", "revoke", last["tokenId"], "--yes", "--json")
    assert (meant.code, meant.err) == (0, warning + changed)
    assert json.loads(meant.out) == {"revoked": [last["tokenId"]], "notFound": []}
    assert principal_of(database, last["token"]) is None


def test_tokens_that_are_the_last_only_together_are_asked_about_once(console: Console, database: str) -> None:
    console("tenants", "create", "acme")
    ids = [done(console("tokens", "create", "acme", "--json"))["tokenId"] for _ in range(2)]
    reading = done(console("tokens", "create", "acme", "--read-only", "--json"))["tokenId"]
    assert console("tokens", "revoke", *ids).code == 2
    revoked = console("tokens", "revoke", *ids, typed=b"y\n")
    assert revoked.code == 0
    assert revoked.err.count("acme") == 2
    # What could do nothing before is not left with less.
    assert console("tokens", "revoke", reading).err == f"relay: changed {named(database)}\n"


def test_limits_are_spelled_like_the_relays_own_and_one_leaves_the_others_alone(
    console: Console, database: str
) -> None:
    console("tenants", "create", "acme")
    assert done(
        console("tenants", "set", "acme", "--max-retries", "5", "--log-retention", "3d", "--json")
    ) == {
        "tenant": "acme",
        "limits": {"maxRetries": 5, "logRetentionMs": 3 * DAY},
    }
    console("tenants", "set", "acme", "--max-message-bytes", "64KiB", "--dlq-retention", "30d")
    changed = console("tenants", "set", "acme", "--max-retries", "default")
    rows = dict(line.split() for line in changed.out.splitlines())
    assert rows == {
        "tenant": "acme",
        "max-message-bytes": "65536",
        "log-retention": "3d",
        "dlq-retention": "30d",
    }
    (tenant,) = look(database, lambda storage: storage.tenants())
    assert (tenant.limits.max_message_bytes, tenant.limits.max_retries) == (65_536, None)
    assert (tenant.limits.log_retention_ms, tenant.limits.dlq_retention_ms) == (3 * DAY, 30 * DAY)
    assert console("tenants", "show", "acme").out == changed.out


@pytest.mark.parametrize(
    "argv",
    [
        ("--max-retries", "-1"),
        ("--max-retries", "many"),
        ("--max-parallelism", "0"),
        ("--max-parallelism", "few"),
        ("--max-message-bytes", "0"),
        ("--max-message-bytes", "1 MB"),
        ("--log-retention", "9m"),
        ("--dlq-retention", "0"),
        ("--dlq-retention", ""),
    ],
    ids=" ".join,
)
def test_a_limit_that_makes_no_sense_is_named_and_changes_nothing(
    console: Console, capsys: pytest.CaptureFixture[str], argv: tuple[str, str]
) -> None:
    console("tenants", "create", "acme")
    assert console("tenants", "set", "acme", f"{argv[0]}={argv[1]}").code == 2
    assert argv[0] in capsys.readouterr().err
    assert done(console("tenants", "show", "acme", "--json"))["limits"] == {}


def test_a_tenant_may_be_limited_from_the_beginning(console: Console, database: str) -> None:
    created = done(
        console("tenants", "create", "acme", "--max-parallelism", "7", "--max-retries", "1", "--json")
    )
    assert created["limits"] == {"maxRetries": 1, "maxParallelism": 7}
    (tenant,) = look(database, lambda storage: storage.tenants())
    assert (tenant.limits.max_parallelism, tenant.limits.max_retries) == (7, 1)
    changed = done(console("tenants", "set", "acme", "--max-parallelism", "default", "--json"))
    assert changed == {"tenant": "acme", "limits": {"maxRetries": 1}}


def test_how_a_tenant_signs_is_set_shown_and_set_back(console: Console, database: str) -> None:
    console("tenants", "create", "acme")
    changed = done(console("tenants", "set", "acme", "--signature", "standard", "--json"))
    assert changed == {"tenant": "acme", "signature": "standard", "limits": {}}
    assert done(console("tenants", "list", "--json")) == [changed]
    (tenant,) = look(database, lambda storage: storage.tenants())
    assert tenant.signed_by is SignedBy.STANDARD
    both = done(console("tenants", "set", "acme", "--signature", "both", "--max-retries", "1", "--json"))
    assert both == {"tenant": "acme", "signature": "both", "limits": {"maxRetries": 1}}
    assert dict(line.split() for line in console("tenants", "show", "acme").out.splitlines()) == {
        "tenant": "acme",
        "signature": "both",
        "max-retries": "1",
    }
    console("tenants", "set", "acme", "--signature", "qstash", "--max-retries", "default")
    assert done(console("tenants", "show", "acme", "--json")) == {"tenant": "acme", "limits": {}}


def test_a_scheme_nobody_knows_is_refused(console: Console, capsys: pytest.CaptureFixture[str]) -> None:
    console("tenants", "create", "acme")
    assert console("tenants", "set", "acme", "--signature", "pgp").code == 2
    assert "--signature" in capsys.readouterr().err


def test_setting_nothing_is_a_mistake(console: Console) -> None:
    console("tenants", "create", "acme")
    nothing = console("tenants", "set", "acme")
    assert nothing.code == 2
    assert "--max-retries" in nothing.err


def test_a_disabled_tenant_says_since_when_until_it_is_enabled(console: Console) -> None:
    console("tenants", "create", "acme")
    disabled = done(console("tenants", "disable", "acme", "--json"))
    assert disabled["disabledAt"] > 0
    assert done(console("tenants", "disable", "acme", "--json")) == disabled
    assert done(console("tenants", "list", "--json")) == [disabled]
    assert "disabled" in console("tenants", "show", "acme").out
    assert done(console("tenants", "enable", "acme", "--json")) == {"tenant": "acme", "limits": {}}


@pytest.mark.parametrize(
    "argv",
    [
        ("tenants", "show", "acme"),
        ("tenants", "set", "acme", "--max-retries", "1"),
        ("tenants", "disable", "acme"),
        ("tenants", "enable", "acme"),
        ("tokens", "create", "acme"),
        ("tokens", "list", "acme"),
    ],
    ids=" ".join,
)
def test_a_tenant_that_does_not_exist_is_not_found(console: Console, argv: tuple[str, ...]) -> None:
    result = console(*argv)
    assert (result.code, result.out, result.err) == (4, "", 'relay: tenant "acme" not found\n')


@pytest.mark.parametrize("flag", [("--label", "x" * 101), ("--expires-in", "0")], ids=lambda flag: flag[0])
def test_a_token_that_makes_no_sense_is_not_made(console: Console, flag: tuple[str, str]) -> None:
    console("tenants", "create", "acme")
    refused = console("tokens", "create", "acme", *flag)
    assert (refused.code, refused.out) == (1, "")
    assert flag[0] in refused.err
    assert done(console("tokens", "list", "--json")) == []


# --- databases that are none -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:///{directory}/missing.db", "there is no file"),
        ("sqlite:///{directory}", "there is no file"),
        ("sqlite://", "a temporary file of one relay"),
        ("mysql://a", "RELAY_DATABASE_URL"),
    ],
)
def test_no_database_is_made_by_a_command_about_accounts(tmp_path: Path, url: str, reason: str) -> None:
    console = Console()
    console.environment = {"RELAY_DATABASE_URL": url.format(directory=tmp_path)}
    for command in (("tenants", "list"), ("tokens", "list")):
        refused = console(*command)
        assert (refused.code, refused.out) == (1, "")
        assert reason in refused.err
    assert list(tmp_path.iterdir()) == []


def test_what_is_changed_is_said_with_the_database_it_is_in(console: Console, database: str) -> None:
    made = console("tenants", "create", "acme", "--json")
    token = done(console("tokens", "create", "acme", "--json"))["tokenId"]
    changes = [
        console("tenants", "set", "acme", "--max-retries", "1"),
        console("tenants", "disable", "acme"),
        console("tenants", "enable", "acme"),
        console("tokens", "create", "acme"),
        console("tokens", "revoke", token, "--database", database),
    ]
    for result in (made, *changes):
        assert result.code == 0, result.err
        assert result.err.splitlines()[-1] == f"relay: changed {named(database)}"
    assert named(database) not in console("tenants", "list").err
    assert console("tokens", "revoke", token).err == f'relay: token "{token}" not found\n'


def test_the_default_database_is_said_to_be_the_default(tmp_path: Path) -> None:
    look(f"sqlite:///{tmp_path}/relay.db", lambda storage: storage.tenants())
    made = subprocess.run(
        [COMMAND, "tenants", "create", "acme"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("RELAY_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert made.stderr.splitlines()[-1] == (
        f"relay: changed {tmp_path}/relay.db, the default: RELAY_DATABASE_URL is not set"
    )


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:////var/lib/relay.db", "/var/lib/relay.db"),
        ("postgres://me:secret@h:5432/db?password=secret&schema=relay", "postgresql://h/db"),
        (
            "postgresql:///db?host=/tmp&port=5433&schema=mine",
            "postgresql:///db?host=/tmp&port=5433&schema=mine",
        ),
    ],
)
def test_a_database_is_named_without_who_may_use_it(url: str, name: str) -> None:
    assert named(url) == name


def test_the_flag_wins_over_the_environment(console: Console, tmp_path: Path) -> None:
    refused = console("tenants", "list", "--database", f"sqlite:///{tmp_path}/other.db")
    assert refused.code == 1
    assert "other.db" in refused.err

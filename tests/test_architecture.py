"""The arrows of ARCHITECTURE.md hold: who may import whom, and who may read time, chance and environment."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STDLIB = frozenset(sys.stdlib_module_names)

#: What the modules under a path may import besides the standard library and their own package part.
#: The longest matching path counts.
ALLOWED: dict[str, frozenset[str]] = {
    "signing": frozenset({"signing", "jwt"}),
    "signing/ed25519": frozenset({"signing", "cryptography"}),
    "signing/adapters/aiohttp": frozenset({"signing", "aiohttp"}),
    "signing/adapters/django": frozenset({"signing", "django"}),
    "signing/adapters/flask": frozenset({"signing", "flask", "werkzeug"}),
    "signing/adapters/starlette": frozenset({"signing", "starlette"}),
    "relay/__init__": frozenset(),
    "relay/__main__": frozenset({"relay.cli"}),
    "relay/clock": frozenset(),
    "relay/ids": frozenset(),
    "relay/fresh": frozenset({"relay.clock"}),
    "relay/log": frozenset({"orjson"}),
    "relay/metrics": frozenset({"prometheus_client"}),
    "relay/config": frozenset({"relay.domain"}),
    "relay/accounts": frozenset(
        {"relay.clock", "relay.config", "relay.domain", "storage.protocol", "msgspec"}
    ),
    "relay/tenancy": frozenset({"relay.accounts", "relay.domain", "storage.protocol", "msgspec"}),
    "relay/greeting": frozenset({"relay.accounts"}),
    "relay/merge": frozenset({"prometheus_client"}),
    "relay/meeting": frozenset(),
    "relay/question": frozenset({"relay.clock", "relay.domain"}),
    "relay/peers": frozenset({"relay.merge", "relay.question", "msgspec"}),
    "relay/pulse": frozenset({"relay.clock"}),
    "relay/workers": frozenset({"relay.clock", "relay.log", "relay.pulse"}),
    "relay/lead": frozenset(
        {
            "relay.config", "relay.greeting", "relay.main", "relay.meeting", "relay.metrics", "relay.peers",
            "relay.worker", "relay.workers", "msgspec",
        }
    ),
    "relay/worker": frozenset(
        {"relay.greeting", "relay.main", "relay.metrics", "relay.peers", "relay.pulse", "msgspec"}
    ),
    "relay/domain": frozenset({"relay.domain", "relay.ids", "msgspec", "cronsim", "tzdata"}),
    "relay/wire": frozenset(
        {"relay.wire", "relay.domain", "relay.ids", "storage.protocol", "msgspec", "orjson", "idna"}
    ),
    "relay/api": frozenset(
        {
            "relay.api", "relay.wire", "relay.domain", "relay.clock", "relay.fresh", "relay.ids", "relay.log",
            "storage.protocol", "aiohttp", "multidict", "msgspec", "orjson", "yarl",
        }
    ),
    "relay/api/jwks": frozenset({"relay.api", "relay.domain", "signing", "aiohttp"}),
    "relay/engine": frozenset(
        {
            "relay.engine", "relay.wire", "relay.domain", "relay.clock", "relay.fresh", "relay.ids", "relay.log",
            "relay.metrics", "storage.protocol", "signing", "aiohttp", "multidict", "msgspec", "yarl", "certifi",
        }
    ),
    "relay/cli": frozenset(
        {
            "relay.cli", "relay.config", "relay.ids", "relay.main", "relay.tenancy", "relay.domain.duration",
            "relay.domain.errors", "relay.domain.tenant", "storage.protocol", "signing", "rich",
        }
    ),
    "storage/protocol": frozenset({"relay.domain", "msgspec"}),
    "storage": frozenset(
        {
            "storage", "relay.domain", "relay.ids", "relay.clock",
            "msgspec", "orjson", "aiosqlite", "asyncpg", "pysqlite3",
        }
    ),
}  # fmt: skip

#: May name every part: it is where they are put together.
COMPOSITION_ROOT = "relay/main"

#: Reading these is reading time, chance or environment; only these modules may.
FORBIDDEN_CALLS = {
    "time.time", "time.time_ns", "time.monotonic", "datetime.now", "datetime.utcnow", "date.today",
    "random.random", "random.randint", "random.choice", "random.uniform",
    "secrets.token_bytes", "secrets.token_hex", "secrets.token_urlsafe", "secrets.choice", "uuid.uuid4",
    "os.urandom", "os.getenv", "os.environ",
}  # fmt: skip
READERS = {"relay/clock", "relay/ids", "relay/config", "relay/main"}
#: A receiver imports `signing` alone, and a person's shell is the client's world: their edges read for themselves.
EDGES = ("signing", "relay/cli")

MODULES = sorted(
    path for package in ("relay", "signing", "storage") for path in (ROOT / package).rglob("*.py")
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    name = name_of(path)
    if name == COMPOSITION_ROOT:
        return
    rule = max((place for place in ALLOWED if name == place or name.startswith(place + "/")), key=len)
    for target in imported(ast.parse(path.read_text())):
        known = target.split(".")[0] in STDLIB or any(
            target == allowed or target.startswith(allowed + ".") for allowed in ALLOWED[rule]
        )
        assert known, f"{name} must not import {target}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_edges_read_time_chance_and_environment(path: Path) -> None:
    name = name_of(path)
    if name in READERS or name.startswith(EDGES):
        return
    read = {dotted(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not read & FORBIDDEN_CALLS


def test_every_module_says_first_what_its_subject_is() -> None:
    silent = [
        name_of(path)
        for path in MODULES
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert silent == []


def test_the_relay_package_imports_nothing_by_itself() -> None:
    assert (ROOT / "relay/__init__.py").read_text().strip() == ""

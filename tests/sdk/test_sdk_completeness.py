"""Every public method of the official Python SDK, synchronous and asynchronous, is called by a test here."""

import ast
from collections.abc import Iterator
from inspect import getmembers, isfunction
from pathlib import Path

import pytest
import qstash
from qstash import AsyncQStash, QStash, Receiver, chat

pytestmark = pytest.mark.asyncio(loop_scope="session")

_HERE = Path(__file__).parent

#: A function that is given one of these is run with both kinds of client.
_BOTH_KINDS = {"client", "kind"}

#: What the parts of a client send their requests with; no test speaks to it directly, and no application.
_TRANSPORT = "http"


def public(thing: object) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


def methods(client: QStash | AsyncQStash) -> set[str]:
    """`part.method` for every public method of every part of a client, and of the client itself."""
    parts = {name: getattr(client, name) for name in public(client) if name != _TRANSPORT}
    assert all(type(part).__module__.startswith("qstash") for part in parts.values())
    return {f"{name}.{method}" for name, part in parts.items() for method in public(part)}


def calls(function: ast.AST) -> Iterator[str]:
    """`a.b` for every call in the function that is spelt `....a.b(...)`."""
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(attr=method, value=ast.Attribute(attr=part))):
                yield f"{part}.{method}"


def called_with_both_kinds() -> set[str]:
    found: set[str] = set()
    for path in _HERE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                given = {argument.arg for argument in node.args.args}
                if given & _BOTH_KINDS:
                    found.update(calls(node))
    return found


async def test_no_method_of_a_client_is_left_uncalled() -> None:
    client, asynchronous = QStash("any"), AsyncQStash("any")
    try:
        offered = methods(client)
        assert offered == methods(asynchronous)
        assert {"message.publish", "schedule.create_json", "flow_control.pin"} <= offered
        assert sorted(offered - called_with_both_kinds()) == []
    finally:
        client.http._client.close()
        await asynchronous.http._client.aclose()


async def test_nothing_of_the_rest_of_the_sdk_is_left_out() -> None:
    texts = [path.read_text() for path in _HERE.glob("*.py") if path != Path(__file__)]
    assert set(qstash.__all__) == {"AsyncQStash", "QStash", "Receiver"}
    assert public(Receiver) == ["verify"]
    assert sorted(name for name, _ in getmembers(chat, isfunction)) == ["custom", "openai"]
    for call in ("receiver.verify(", "custom(", "openai("):
        assert any(call in text for text in texts), call

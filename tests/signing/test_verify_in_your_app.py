"""The section "Verify in your app" of the README: every example is a program that works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.split("## Verify in your app")[1].split("## In production")[0]
EXAMPLES = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
KEYS = {
    "QSTASH_CURRENT_SIGNING_KEY": "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r",
    "QSTASH_NEXT_SIGNING_KEY": "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs",
}


def ran(example: str, keys: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    bare = {name: value for name, value in os.environ.items() if not name.startswith("QSTASH_")}
    return subprocess.run(
        [sys.executable, "-c", example], env=bare | keys, capture_output=True, text=True, check=False
    )


def test_there_is_an_example_for_every_adapter() -> None:
    named = set(re.findall(r"from signing\.adapters\.(\w+) import", SECTION))
    adapters = {path.stem for path in (Path(__file__).parents[2] / "signing/adapters").glob("*.py")}
    assert named == adapters - {"__init__", "gate"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.partition("\n")[0])
def test_an_example_runs_as_it_is_and_says_what_it_lacks_without_keys(example: str) -> None:
    assert ran(example, KEYS).stderr == ""
    assert "does not set QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY" in ran(example, {}).stderr

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for folder in ("relay/domain", "relay/wire", "signing")
    for file in (ROOT / folder).rglob("*.py")
    if ">>> " in file.read_text("utf-8")
)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(module))

    assert attempted > 0
    assert failed == 0


def test_the_rules_of_daylight_saving_are_among_the_examples() -> None:
    assert "relay.domain.cron" in MODULES

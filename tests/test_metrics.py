"""What a relay tells of itself before anything has happened."""

import re
from pathlib import Path

from relay.domain.schedule import RunOutcome
from relay.metrics import OPERATIONS, OUTCOMES, TICKS, Metrics

ROOT = Path(__file__).parents[1]


def found(pattern: str, *, below: str) -> set[str]:
    sources = [path.read_text() for path in (ROOT / below).rglob("*.py")]
    return {word for source in sources for word in re.findall(pattern, source)}


def test_every_counter_is_there_from_the_start_with_every_label_it_will_have() -> None:
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in Metrics().registry.collect()
        for sample in family.samples
    }
    labelled = {
        ("relay_attempts_total", *OUTCOMES),
        ("relay_storage_errors_total", *OPERATIONS),
        ("relay_schedule_runs_total", *TICKS),
    }
    for name, *values in labelled:
        assert [samples[name, value] for value in values] == [0.0] * len(values)
    for family in Metrics().registry.collect():
        assert family.samples, family.name


def test_a_scrape_shows_no_label_that_is_new() -> None:
    """Whoever counts something under another label must say so in advance."""
    assert found(r'storage_errors\.labels\("(\w+)"\)', below="relay/engine") == set(OPERATIONS)
    assert not found(r"storage_errors\.labels\(([^\"].*?)\)", below="relay")
    settled = found(r"change ?= ?Change\.([A-Z_]+)", below="relay/domain")
    # What was cancelled meanwhile is found out, and written, by storage.
    assert {name.lower() for name in settled - {"CANCELED_AFTER_ERROR"}} == set(OUTCOMES)
    assert {outcome.name.partition("_")[0].lower() for outcome in RunOutcome} == set(TICKS)

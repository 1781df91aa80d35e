import os
import struct
import subprocess
import sys
from datetime import UTC, datetime
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest

from relay.domain.zone import Change, load_zone

DAY_S = 86_400
NAMES = sorted(files("tzdata").joinpath("zones").read_text("ascii").split())


def at(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    return int(datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp())


def tabulated_changes(name: str) -> list[Change]:
    """The changes of offset that the 64-bit table of a TZif file (RFC 8536) lists since 1970."""
    raw = files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()
    isut, isstd, leap, times, types, chars = struct.unpack(">6L", raw[20:44])
    second = 44 + times * 5 + types * 6 + chars + leap * 8 + isstd + isut
    _, _, _, times, types, _ = struct.unpack(">6L", raw[second + 20 : second + 44])
    begin = second + 44
    instants = struct.unpack(f">{times}q", raw[begin : begin + 8 * times])
    indices = raw[begin + 8 * times : begin + 9 * times]
    kinds = raw[begin + 9 * times :]
    offsets = [struct.unpack(">l", kinds[6 * i : 6 * i + 4])[0] for i in range(types)]
    changes = []
    before = offsets[0]
    for instant, index in zip(instants, indices, strict=True):
        if offsets[index] != before and instant > 0:
            changes.append(Change(at_s=instant, before_s=before, after_s=offsets[index]))
        before = offsets[index]
    return changes


@pytest.mark.parametrize(
    "name",
    [
        "Africa/Cairo",
        "Africa/Casablanca",
        "Africa/Monrovia",
        "America/Sao_Paulo",
        "Asia/Gaza",
        "Australia/Lord_Howe",
        "Europe/Berlin",
        "Pacific/Apia",
        "Pacific/Kwajalein",
        "UTC",
    ],
)
def test_every_change_of_a_zone_is_found_to_the_second(name: str) -> None:
    table = tabulated_changes(name)
    until_s = table[-1].at_s if table else at(2026, 1, 1)

    assert load_zone(name).changes(0, until_s) == table


def test_no_zone_takes_a_change_back_within_a_day_so_that_daily_probes_miss_none() -> None:
    taken_back = [
        (name, first, second)
        for name in NAMES
        for changes in [tabulated_changes(name)]
        for first, second in pairwise(changes)
        if second.at_s - first.at_s <= DAY_S and second.after_s == first.before_s
    ]

    assert taken_back == []


@pytest.mark.parametrize("name", ["Africa/Cairo", "America/New_York", "Australia/Lord_Howe", "Europe/Berlin"])
def test_changes_beyond_the_table_follow_the_rule_of_the_zone(name: str) -> None:
    zone = load_zone(name)
    begin, end = at(2090, 1, 1), at(2091, 1, 1)
    assert begin > tabulated_changes(name)[-1].at_s

    changes = zone.changes(begin, end)

    by_the_quarter = [
        (quarter, zone.offset_s(quarter - 1), zone.offset_s(quarter))
        for quarter in range(begin + 900, end + 1, 900)
        if zone.offset_s(quarter - 1) != zone.offset_s(quarter)
    ]
    assert [(change.at_s, change.before_s, change.after_s) for change in changes] == by_the_quarter


def test_the_bounds_of_changes_are_exclusive_below_and_inclusive_above() -> None:
    zone = load_zone("Europe/Berlin")
    spring = Change(at_s=at(2024, 3, 31, 1), before_s=3600, after_s=7200)

    assert zone.changes(spring.at_s - 1, spring.at_s) == [spring]
    assert zone.changes(spring.at_s, spring.at_s + 1) == []
    assert zone.changes(spring.at_s - 2, spring.at_s - 1) == []


def test_a_step_across_the_date_line_is_one_change_of_a_whole_day() -> None:
    # Samoa's leap across the date line: midnight of 29 December 2011 there is 10:00 UTC of the 30th.
    zone = load_zone("Pacific/Apia")
    leap = Change(at_s=at(2011, 12, 30, 10), before_s=-10 * 3600, after_s=14 * 3600)

    assert zone.changes(at(2011, 12, 1), at(2012, 2, 1)) == [leap]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Berlin",
        "europe/berlin",
        "Europe/Berlin ",
        "Europe",
        "Local",
        "../../etc/passwd",
        "Europe/../Europe/Berlin",
        "/etc/localtime",
        "zones",
        "Europe/Berlin\x00",
        "\udcff",
    ],
)
def test_only_names_of_the_database_are_zones(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"^\".*\" is not a time zone of the IANA database, such as Europe/Berlin$"
    ):
        load_zone(name)


def test_every_name_of_the_database_is_a_zone() -> None:
    assert len(NAMES) > 500
    assert [load_zone(name).name for name in NAMES] == NAMES


def test_a_zone_is_loaded_once() -> None:
    assert load_zone("Asia/Tokyo") is load_zone("Asia/Tokyo")


def test_the_zones_of_the_host_do_not_matter(tmp_path: Path) -> None:
    """A host whose Europe/Berlin is really UTC."""
    false = tmp_path / "Europe" / "Berlin"
    false.parent.mkdir()
    false.write_bytes(files("tzdata").joinpath("zoneinfo", "UTC").read_bytes())
    program = (
        "from zoneinfo import ZoneInfo; from datetime import datetime; from relay.domain.zone import load_zone;"
        "print(datetime.fromtimestamp(0, ZoneInfo('Europe/Berlin')).utcoffset().seconds,"
        " load_zone('Europe/Berlin').offset_s(0))"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=dict(os.environ, PYTHONTZPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )

    assert answer.stdout.split() == ["0", "3600"]

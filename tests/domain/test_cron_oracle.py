"""The evaluator of crons against the slowest thing that could be right: a look at every single minute."""

from bisect import bisect_right
from calendar import monthrange
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.domain.cron import Cron

MINUTE_MS = 60_000
WINDOWS = [
    ("UTC", "2028-02-27", 4),
    ("America/New_York", "2027-03-13", 2),
    ("America/New_York", "2027-11-06", 2),
    ("Europe/Berlin", "2027-03-27", 2),
    ("Europe/Berlin", "2027-10-30", 2),
    ("Europe/Berlin", "2050-03-26", 2),
    ("Europe/Dublin", "2027-10-30", 2),
    ("Australia/Lord_Howe", "2027-04-03", 2),
    ("Australia/Lord_Howe", "2027-10-02", 2),
    ("Pacific/Chatham", "2027-04-03", 2),
    ("Pacific/Chatham", "2027-09-25", 2),
    ("Asia/Beirut", "2027-03-26", 4),
    ("Asia/Beirut", "2027-10-29", 4),
    ("Africa/Casablanca", "2026-02-14", 2),
    ("Africa/Casablanca", "2026-03-21", 2),
    ("America/Sao_Paulo", "2018-11-02", 4),
    ("America/Sao_Paulo", "2019-02-15", 4),
    ("America/Havana", "2024-03-09", 2),
    ("America/Havana", "2024-11-02", 2),
    ("America/St_Johns", "2010-11-06", 2),
    ("America/St_Johns", "2011-03-12", 2),
    ("America/Caracas", "2007-12-08", 2),
    ("America/Caracas", "2016-04-30", 2),
    ("Asia/Pyongyang", "2018-05-03", 4),
    ("Antarctica/Troll", "2027-03-27", 2),
    ("Antarctica/Troll", "2027-10-30", 2),
    ("Pacific/Apia", "2011-12-28", 6),
    ("Pacific/Kwajalein", "1993-08-18", 6),
    ("Asia/Kathmandu", "2027-01-30", 2),
]


@cache
def readings(zone: str, start: str, days: int) -> list[tuple[int, int]]:
    """Every minute of a window of UTC days, with what the local clock reads then; both in minutes since 1970."""
    first = int(datetime.fromisoformat(start).replace(tzinfo=UTC).timestamp()) // 60
    with files("tzdata").joinpath("zoneinfo", *zone.split("/")).open("rb") as tzif:
        info = ZoneInfo.from_file(tzif)
    found = []
    for minute in range(first, first + days * 1440):
        local = datetime.fromtimestamp(minute * 60, info).replace(tzinfo=UTC)
        found.append((minute, int(local.timestamp()) // 60))
    return found


@cache
def face(reading: int) -> tuple[int, int, int, int, int, bool, bool, bool]:
    """minute, hour, day, month, weekday (Sunday is 0), is last day, is last Monday-to-Friday, is in last week."""
    local = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=reading)
    last = monthrange(local.year, local.month)[1]
    last_workday = max(d for d in range(last - 6, last + 1) if local.replace(day=d).weekday() < 5)
    weekday = (local.weekday() + 1) % 7
    ends = (local.day == last, local.day == last_workday, local.day > last - 7)
    return local.minute, local.hour, local.day, local.month, weekday, *ends


class Fields:
    """A second reading of the cron syntax, sharing nothing with the one under test."""

    NAMES = {  # noqa: RUF012 - never changed
        name: str(number)
        for names, begin in (
            ("SUN MON TUE WED THU FRI SAT", 0),
            ("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC", 1),
        )
        for number, name in enumerate(names.split(), begin)
    }

    def __init__(self, text: str) -> None:
        minute, hour, day, month, weekday = text.upper().split()
        self.minutes, self.hours = self.numbers(minute, 0, 59), self.numbers(hour, 0, 23)
        self.days, self.months = self.numbers(day, 1, 31), self.numbers(month, 1, 12)
        self.weekdays = {number % 7 for number in self.numbers(weekday, 0, 7)}
        self.day, self.weekday = day, weekday
        self.fixed = not any(sign in minute + hour for sign in "*/") and len(self.hours) < 24

    def numbers(self, field: str, low: int, high: int) -> set[int]:
        found: set[int] = set()
        for item in field.split(","):
            if "L" in item.replace("JUL", "") or "#" in item:
                continue
            span, _, step = item.partition("/")
            begin, dash, end = span.partition("-")
            if span == "*":
                first, last = low, high
            else:
                first = int(self.NAMES.get(begin, begin))
                last = int(self.NAMES.get(end, end)) if dash else high if step else first
            found.update(range(first, last + 1, int(step or 1)))
        return found

    def name(self, reading: int) -> bool:
        minute, hour, day, month, weekday, is_last, is_last_workday, is_in_last_week = face(reading)
        if minute not in self.minutes or hour not in self.hours or month not in self.months:
            return False
        days, weekdays = self.day.split(","), self.weekday.split(",")
        in_month = day in self.days or ("L" in days and is_last) or ("LW" in days and is_last_workday)
        in_week = weekday in self.weekdays
        for item in weekdays:
            if item.endswith("L") and int(item[:-1]) % 7 == weekday:
                in_week |= is_in_last_week
            if "#" in item:
                which, _, nth = item.partition("#")
                in_week |= int(self.NAMES.get(which, which)) % 7 == weekday and (day - 1) // 7 + 1 == int(nth)
        if self.day.startswith("*") or self.weekday.startswith("*"):
            return in_month and in_week
        return in_month or in_week


def ticks_by_looking(text: str, window: tuple[str, str, int]) -> list[int]:
    """Every minute of the window but its first at which the cron fires, by the letter of its documentation."""
    fields = Fields(text)
    (minute, reading), *rest = readings(*window)
    read = {reading}
    unchanged = reading  # what the clock would read without the latest change
    for_minutes = 0  # for how long yet that clock is heeded
    found = []
    for minute, now in rest:
        leapt_over: range = range(0)
        if now != reading + 1:
            unchanged, for_minutes = reading, abs(now - reading - 1)
            leapt_over = range(reading + 1, now)
        unchanged += 1
        leap = len(leapt_over)
        fires = fields.name(now)
        if now in read:
            fires = fires and not fields.fixed and for_minutes > 0 and fields.name(unchanged)
        for missing in leapt_over:
            if fields.name(missing) and (fields.fixed or not fields.name(missing + leap)):
                fires = True
        if fires:
            found.append(minute * MINUTE_MS)
        read.add(now)
        reading = now
        for_minutes -= 1
    return found


def check(text: str, window: tuple[str, str, int]) -> None:
    zone = window[0]
    cron = Cron.parse(f"CRON_TZ={zone} {text}")
    minutes = [minute * MINUTE_MS for minute, _ in readings(*window)]
    expected = ticks_by_looking(text, window)

    assert cron.ticks(minutes[0], minutes[-1], len(minutes)) == expected
    for at_ms in minutes[:: len(minutes) // 5]:
        following = bisect_right(expected, at_ms)
        if following < len(expected):
            assert cron.next_after(at_ms) == expected[following]
            assert cron.next_after(expected[following] - 1) == expected[following]


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: f"{window[0]}-{window[1]}")
def test_every_minute_around_a_change_of_clock_is_judged_as_documented(window: tuple[str, str, int]) -> None:
    for text in (
        "* * * * *",
        "*/15 * * * *",
        "7-59/20 * * * *",
        "0 * * * *",
        "30 * * * *",
        "0 0-23 * * *",
        "0 */2 * * *",
        "30 1-23/2 * * *",
        "0 */12 * * *",
        "*/15 2 * * *",
        "*/20 0-3 * * *",
        "0 0 * * *",
        "30 2 * * *",
        "15,45 1,2,3 * * *",
        "59 23 * * *",
        "0 12 30 * 5",
    ):
        check(text, window)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: f"{window[0]}-{window[1]}")
def test_every_window_but_two_holds_a_change_of_clock_and_hours_on_either_side(
    window: tuple[str, str, int],
) -> None:
    offsets = [reading - minute for minute, reading in readings(*window)]
    kept = offsets.count(offsets[0]), offsets.count(offsets[-1])

    if window[0] in ("UTC", "Asia/Kathmandu"):
        assert kept == (len(offsets), len(offsets))
    else:
        assert sum(kept) == len(offsets)
        assert min(kept) > 360


MINUTES = ["*", "0", "30", "59", "*/7", "*/15", "*/20", "5/25", "10-50/20", "0,30", "15,45", "1-4", "0-59"]
HOURS = [
    "*",
    "0",
    "1",
    "2",
    "3",
    "23",
    "*/2",
    "1-23/2",
    "*/3",
    "*/12",
    "0-23",
    "0-4",
    "1,2",
    "2,3",
    "22-23",
    "0,*/6",
]
DAYS = ["*", "1", "31", "27-31", "1-15", "*/2", "10-20/3", "L", "LW", "1,L", "28/1"]
MONTHS = ["*", "1-12/2", "MAR-APR", "feb,Mar,10-12", "*/2", "8,12"]
WEEKDAYS = ["*", "SUN", "1-5", "0,6", "7", "5-7", "sat", "FRI#5", "0#1", "7L", "6L,3", "*/3", "MON-FRI/2"]


@settings(max_examples=400, deadline=None)
@given(
    st.tuples(*(st.sampled_from(field) for field in (MINUTES, HOURS, DAYS, MONTHS, WEEKDAYS))).map(" ".join),
    st.sampled_from(WINDOWS),
)
def test_any_cron_fires_exactly_when_looking_at_every_minute_says(
    text: str, window: tuple[str, str, int]
) -> None:
    check(text, window)


@pytest.mark.parametrize(
    ("zone", "month"),
    [("UTC", "2028-02-01"), ("Europe/Berlin", "2027-10-01"), ("Pacific/Apia", "2011-12-01")],
)
@pytest.mark.parametrize(
    "days",
    ["L * *", "LW * *", "* * 5L", "* * 1#2", "13 * 5", "*/2 * 1", "1 * */3", "L 2,10,12 7#5", "31 * *"],
)
def test_a_whole_month_of_days_is_judged_as_documented(zone: str, month: str, days: str) -> None:
    check(f"0 9 {days}", (zone, month, 35))

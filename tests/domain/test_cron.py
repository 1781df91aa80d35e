from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.domain.cron import Cron

MINUTE_MS = 60_000
DAY_MS = 86_400_000


def ms(text: str) -> int:
    """The instant of an ISO date and time; UTC unless it says otherwise."""
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def utc(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def next_after(cron: str, at: str) -> str | None:
    return utc(Cron.parse(cron).next_after(ms(at)))


@pytest.mark.parametrize(
    ("cron", "at", "tick"),
    [
        ("* * * * *", "2026-11-22T10:00", "2026-11-22 10:01"),
        ("*/10 * * * *", "2026-11-22T10:09:59.999", "2026-11-22 10:10"),
        ("*/10 * * * *", "2026-11-22T10:10", "2026-11-22 10:20"),
        ("0 9 * * *", "2026-11-22T10:00", "2026-11-23 09:00"),
        ("59 23 31 12 *", "2026-11-22", "2026-12-31 23:59"),
        ("0 0 1 JAN *", "2026-11-22", "2027-01-01 00:00"),
        ("0 0 29 2 *", "2097-01-01", "2104-02-29 00:00"),
        ("0 9 * * MON-FRI", "2026-11-20T09:00", "2026-11-23 09:00"),
        ("0 9 * * 7", "2026-11-20", "2026-11-22 09:00"),
        ("0 9 * * 0", "2026-11-20", "2026-11-22 09:00"),
        ("0 9 * * 6-7", "2026-11-20", "2026-11-21 09:00"),
        ("5/20 3 * * *", "2026-11-22T03:06", "2026-11-22 03:25"),
        ("10-30/10,45 3 * * *", "2026-11-22T03:30", "2026-11-22 03:45"),
        ("0 0 L * *", "2028-02-01", "2028-02-29 00:00"),
        ("0 0 LW * *", "2026-05-01", "2026-05-29 00:00"),
        ("0 0 LW * *", "2026-06-01", "2026-06-30 00:00"),
        ("0 0 * * 5L", "2026-11-01", "2026-11-27 00:00"),
        ("0 0 * * 5L", "2026-12-01", "2026-12-25 00:00"),
        ("0 0 * * 7L", "2026-11-01", "2026-11-29 00:00"),
        ("0 0 * * FRI#2", "2026-11-01", "2026-11-13 00:00"),
        ("0 0 * * 7#5", "2026-12-01", "2027-01-31 00:00"),
    ],
)
def test_the_next_tick_is_the_first_one_strictly_later(cron: str, at: str, tick: str) -> None:
    assert next_after(cron, at) == tick


def test_either_day_suffices_when_both_are_restricted_and_both_must_hold_when_one_begins_with_a_star() -> (
    None
):
    november = (ms("2026-11-01"), ms("2026-12-01"))

    def days(cron: str) -> list[int]:
        ticks = Cron.parse(cron).ticks(*november, 31)
        return [datetime.fromtimestamp(tick / 1000, UTC).day for tick in ticks]

    assert days("1 0 13 * FRI") == [6, 13, 20, 27]
    assert days("1 0 14 * FRI") == [6, 13, 14, 20, 27]
    assert days("1 0 */2 * FRI") == [13, 27]
    assert days("1 0 14 * *") == [14]
    assert days("1 0 14 * */3") == [14]
    assert days("1 0 * * FRI") == [6, 13, 20, 27]


@pytest.mark.parametrize(
    ("alias", "spelled"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@Daily", "0 0 * * *"),
        ("CRON_TZ=Asia/Tokyo @daily", "CRON_TZ=Asia/Tokyo 0 0 * * *"),
    ],
)
def test_an_alias_is_short_for_five_fields(alias: str, spelled: str) -> None:
    start, end = ms("2026-01-01T00:30"), ms("2028-01-01")

    assert Cron.parse(alias).ticks(start, end, 50) == Cron.parse(spelled).ticks(start, end, 50)
    assert Cron.parse(alias).text == alias


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("*/10 * * * * ", "*/10 * * * *"),
        ("\t 0  9 * *\t1 ", "0  9 * *\t1"),
        (" CRON_TZ=Europe/Berlin   0 9 * * mon", "CRON_TZ=Europe/Berlin   0 9 * * mon"),
    ],
)
def test_a_cron_keeps_its_text_but_for_the_blanks_around_it(text: str, kept: str) -> None:
    assert Cron.parse(text).text == kept


@pytest.mark.parametrize(
    ("cron", "at", "tick"),
    [
        ("0 9 * * *", "2026-11-22", "2026-11-22 09:00"),
        ("CRON_TZ=UTC 0 9 * * *", "2026-11-22", "2026-11-22 09:00"),
        ("CRON_TZ=Europe/Berlin 0 9 * * *", "2026-11-22", "2026-11-22 08:00"),
        ("CRON_TZ=Asia/Kathmandu 0 9 * * *", "2026-11-22", "2026-11-22 03:15"),
        ("CRON_TZ=Pacific/Kiritimati 0 9 * * MON", "2026-11-21", "2026-11-22 19:00"),
        ("CRON_TZ=Etc/GMT+12 0 23 * * SAT", "2026-11-21", "2026-11-22 11:00"),
    ],
)
def test_fields_are_read_on_the_clock_of_the_zone_and_on_utc_without_one(
    cron: str, at: str, tick: str
) -> None:
    assert next_after(cron, at) == tick


def local_ticks(zone: str, cron: str, day: str, days: int = 1) -> list[str]:
    """The ticks on local days, as the local clock shows them, with the offset from UTC."""
    info = ZoneInfo(zone)
    begin = datetime.fromisoformat(day).replace(tzinfo=info)
    start, end = (int(at.timestamp() * 1000) - 1 for at in (begin, begin + timedelta(days=days)))
    ticks = Cron.parse(f"CRON_TZ={zone} {cron}").ticks(start, end, 10_000)
    return [datetime.fromtimestamp(tick / 1000, info).strftime("%d %H:%M%z") for tick in ticks]


NEW_YORK, LORD_HOWE, BEIRUT, APIA = "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "Pacific/Apia"


@pytest.mark.parametrize(
    ("zone", "cron", "day", "ticks"),
    [
        (NEW_YORK, "30 2 * * *", "2024-03-10", ["10 03:00-0400"]),
        (NEW_YORK, "0,30 2 * * *", "2024-03-10", ["10 03:00-0400"]),
        (NEW_YORK, "0 2,3 * * *", "2024-03-10", ["10 03:00-0400"]),
        (NEW_YORK, "30 2,3 * * *", "2024-03-10", ["10 03:00-0400", "10 03:30-0400"]),
        (LORD_HOWE, "15 2 * * *", "2023-10-01", ["01 02:30+1100"]),
        (BEIRUT, "0 0 * * *", "2022-03-27", ["27 01:00+0300"]),
        (BEIRUT, "30 0 27 3 *", "2022-03-27", ["27 01:00+0300"]),
        (APIA, "0 12 * * *", "2011-12-31", ["31 00:00+1400", "31 12:00+1400"]),
        (APIA, "0 12 30 12 *", "2011-12-31", ["31 00:00+1400"]),
        (APIA, "0 12 * * FRI", "2011-12-31", ["31 00:00+1400"]),
    ],
)
def test_a_fixed_time_that_does_not_exist_fires_once_right_after_the_gap(
    zone: str, cron: str, day: str, ticks: list[str]
) -> None:
    assert local_ticks(zone, cron, day) == ticks


@pytest.mark.parametrize(
    ("zone", "cron", "day", "ticks"),
    [
        (NEW_YORK, "30 1 * * *", "2024-11-03", ["03 01:30-0400"]),
        (
            NEW_YORK,
            "0,30 1,2 * * *",
            "2024-11-03",
            ["03 01:00-0400", "03 01:30-0400", "03 02:00-0500", "03 02:30-0500"],
        ),
        (LORD_HOWE, "45 1 * * *", "2024-04-07", ["07 01:45+1100"]),
        (BEIRUT, "30 23 * * *", "2022-10-29", ["29 23:30+0300"]),
        (BEIRUT, "0 0 * * *", "2022-10-30", ["30 00:00+0200"]),
    ],
)
def test_a_fixed_time_that_exists_twice_fires_the_first_time_only(
    zone: str, cron: str, day: str, ticks: list[str]
) -> None:
    assert local_ticks(zone, cron, day) == ticks


@pytest.mark.parametrize(
    "zone", [NEW_YORK, "Europe/Berlin", BEIRUT, "Africa/Casablanca", "America/Sao_Paulo", APIA]
)
@pytest.mark.parametrize(
    ("cron", "minutes"), [("*/15 * * * *", 15), ("30 * * * *", 60), ("0 0-23 * * *", 60)]
)
def test_an_interval_is_the_same_all_year_through_every_change(zone: str, cron: str, minutes: int) -> None:
    start = ms("2011-01-01")
    ticks = Cron.parse(f"CRON_TZ={zone} {cron}").ticks(start, start + 366 * DAY_MS, 40_000)

    steps = {later - earlier for earlier, later in pairwise(ticks)}

    assert steps == {minutes * MINUTE_MS}
    assert len(ticks) == 366 * 1440 // minutes


@pytest.mark.parametrize(
    ("zone", "cron", "day", "ticks"),
    [
        (NEW_YORK, "0 */2 * * *", "2024-03-10", ["10 00:00-0500", "10 03:00-0400", "10 04:00-0400"]),
        (NEW_YORK, "0 1-23/2 * * *", "2024-11-03", ["03 01:00-0400", "03 03:00-0500", "03 05:00-0500"]),
        (NEW_YORK, "0 */12 * * *", "2024-03-10", ["10 00:00-0500", "10 12:00-0400"]),
        (NEW_YORK, "*/30 2 * * *", "2024-03-10", ["10 03:00-0400"]),
        (NEW_YORK, "*/30 1 * * *", "2024-11-03", ["03 01:00-0400", "03 01:30-0400"]),
        (NEW_YORK, "*/30 1,2 * * *", "2024-11-03", ["03 01:00-0400", "03 01:30-0400", "03 01:00-0500"]),
        (LORD_HOWE, "0 * * * *", "2023-10-01", ["01 00:00+1030", "01 01:00+1030", "01 02:30+1100"]),
    ],
)
def test_an_interval_that_leaves_hours_out_loses_no_run_and_doubles_none(
    zone: str, cron: str, day: str, ticks: list[str]
) -> None:
    assert local_ticks(zone, cron, day)[: len(ticks)] == ticks


def test_the_search_for_a_rare_day_crosses_decades() -> None:
    leap_sundays = [
        f"{year}-02-29 00:00"
        for year in range(2000, 2200)
        if (year % 4 == 0 and year % 100) or year % 400 == 0
        if datetime(year, 2, 29, tzinfo=UTC).weekday() == 6
    ]

    ticks = Cron.parse("0 0 29 2 */7").ticks(ms("2000-01-01"), ms("2200-01-01"), 100)

    assert [utc(tick) for tick in ticks] == leap_sundays
    assert next_after("CRON_TZ=Asia/Beirut 0 0 29 2 */7", "2088-03-01") == "2128-02-28 22:00"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", '"" has 0 fields instead of five: minute, hour, day of month, month, day of week'),
        ("hourly", '"hourly" has 1 field instead of five: minute, hour, day of month, month, day of week'),
        ("* * * *", '"* * * *" has 4 fields instead of five: minute, hour, day of month, month, day of week'),
        (
            "0 * * * * *",
            '"0 * * * * *" has 6 fields instead of five: minute, hour, day of month, month, day of week',
        ),
        ("60 * * * *", '"60 * * * *" has a wrong minute field, "60"'),
        ("*/0 * * * *", '"*/0 * * * *" has a wrong minute field, "*/0"'),
        ("30-10 * * * *", '"30-10 * * * *" has a wrong minute field, "30-10"'),
        ("-5 * * * *", '"-5 * * * *" has a wrong minute field, "-5"'),
        ("1/2/3 * * * *", '"1/2/3 * * * *" has a wrong minute field, "1/2/3"'),
        ("5, * * * *", '"5, * * * *" has a wrong minute field, "5,"'),
        ("* 24 * * *", '"* 24 * * *" has a wrong hour field, "24"'),
        ("* * 0 * *", '"* * 0 * *" has a wrong day-of-month field, "0"'),
        ("* * 15W * *", '"* * 15W * *" has a wrong day-of-month field, "15W"'),
        ("* * ? * *", '"* * ? * *" has a wrong day-of-month field, "?"'),
        ("* * L/2 * *", '"* * L/2 * *" has a wrong day-of-month field, "L/2"'),
        ("* * lw/2 * *", '"* * lw/2 * *" has a wrong day-of-month field, "LW/2"'),
        ("* * * 13 *", '"* * * 13 *" has a wrong month field, "13"'),
        ("* * * MON *", '"* * * MON *" has a wrong month field, "MON"'),
        ("* * * * 8", '"* * * * 8" has a wrong day-of-week field, "8"'),
        ("* * * * 1#6", '"* * * * 1#6" has a wrong day-of-week field, "1#6"'),
        ("* * * * L", '"* * * * L" has a wrong day-of-week field, "L"'),
        ("R * * * *", '"R * * * *" has a wrong minute field, "R"'),
        ("0 0 30 2 *", '"0 0 30 2 *" never fires: no month it names has such a day'),
        ("0 0 31 2,4,6,9,11 *", '"0 0 31 2,4,6,9,11 *" never fires: no month it names has such a day'),
        ("0 0 */30 2 MON#5", '"0 0 */30 2 MON#5" never fires: no month it names has such a day'),
        (
            "@every 5m",
            '"@every 5m" is not one of @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly',
        ),
        (
            "@reboot",
            '"@reboot" is not one of @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly',
        ),
        (
            "CRON_TZ=Mars/Olympus 0 9 * * *",
            '"Mars/Olympus" is not a time zone of the IANA database, such as Europe/Berlin',
        ),
        (
            "CRON_TZ=../../etc/passwd 0 9 * * *",
            '"../../etc/passwd" is not a time zone of the IANA database, such as Europe/Berlin',
        ),
        ("CRON_TZ= 0 9 * * *", '"" is not a time zone of the IANA database, such as Europe/Berlin'),
        (
            "CRON_TZ=Europe/Berlin",
            '"CRON_TZ=Europe/Berlin" has 0 fields instead of five: minute, hour, day of month, month, day of week',
        ),
        ("0 9 * *\u00a0*", '"0 9 * *\\xa0*" has characters that no cron expression has'),
        ("0 9\n* * *", '"0 9\\n* * *" has characters that no cron expression has'),
        ("٣ 9 * * *", '"٣ 9 * * *" has characters that no cron expression has'),
        ("0 9 * * \udcff", '"0 9 * * \\udcff" has characters that no cron expression has'),
        ("1," * 300 + "1 * * * *", f'"{"1," * 31}1..." is longer than 512 characters'),
    ],
)
def test_what_is_wrong_with_a_cron_is_said_in_a_sentence(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        Cron.parse(text)

    assert str(caught.value) == problem


@given(st.text(alphabet="0123456789*/-,#LWlw @CRON_TZ=UTC SUNFEB\t?", max_size=30))
@example("0 0 1 1 " + "9" * 400)
@example("*/" + "9" * 400 + " * * * *")
@example("0-59/" + "9" * 400 + " * * * *")
@example("* * * * 5L/2")
@example("* * * * 1#2/2")
@example("* * L,L/2 * *")
def test_any_text_is_refused_or_has_a_next_tick(text: str) -> None:
    cron: Cron | None = None
    problem = ""
    try:
        cron = Cron.parse(text)
    except ValueError as error:
        problem = str(error)

    now = ms("2026-11-22")
    if cron is None:
        assert problem.startswith('"')
    else:
        tick = cron.next_after(now)
        assert tick is not None
        assert tick > now
        assert tick % MINUTE_MS == 0


def test_the_longest_honest_cron_is_accepted() -> None:
    minutes, hours = ",".join(map(str, range(60))), ",".join(map(str, range(24)))
    days = ",".join(map(str, range(1, 32)))

    assert next_after(f"{minutes} {hours} {days} * *", "2026-11-22T10:00") == "2026-11-22 10:01"


def test_ticks_are_those_after_the_start_up_to_and_including_the_end_and_no_more_than_asked_for() -> None:
    cron = Cron.parse("*/10 * * * *")
    ten, eleven = ms("2026-11-22T10:00"), ms("2026-11-22T11:00")
    all_of_them = [ten + minutes * MINUTE_MS for minutes in (10, 20, 30, 40, 50, 60)]

    assert cron.ticks(ten, eleven, 100) == all_of_them
    assert cron.ticks(ten - 1, eleven - 1, 100) == [ten, *all_of_them[:-1]]
    assert cron.ticks(ten, eleven, 2) == all_of_them[:2]
    assert cron.ticks(ten, eleven, 0) == []
    assert cron.ticks(eleven, ten, 100) == []


def test_the_ends_of_time_are_answered() -> None:
    cron = Cron.parse("0 0 1 1 *")

    assert utc(cron.next_after(-(10**18))) == "1970-01-01 00:00"
    assert utc(cron.next_after(0)) == "1971-01-01 00:00"
    assert utc(cron.next_after(ms("9996-06-01"))) == "9997-01-01 00:00"
    assert cron.next_after(ms("9998-01-01")) is None
    assert cron.next_after(10**18) is None
    assert cron.ticks(ms("9995-06-01"), 10**18, 10) == [ms("9996-01-01"), ms("9997-01-01")]


def test_offsets_that_are_no_whole_minutes_do_no_harm() -> None:
    # Until 1972 Liberia's clock was 44 minutes and 30 seconds behind.
    tick = Cron.parse("CRON_TZ=Africa/Monrovia 0 12 * * *").next_after(ms("1970-06-01"))

    assert tick == ms("1970-06-01T12:44:30")

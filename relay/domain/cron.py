"""When a cron expression fires, exactly, on the local clock of any zone.

Five fields (minute, hour, day of month, month, day of week) with names, ranges, lists and steps; `L` and
`LW` as day of month (the last day, the last Monday-to-Friday), `5L` and `5#2` as day of week (the last, the
second Friday); `@hourly`, `@daily` or `@midnight`, `@weekly`, `@monthly`, `@yearly` or `@annually`; in front
of it all `CRON_TZ=<IANA zone>`, without which the clock is UTC. When day of month and day of week are both
restricted, either one suffices; when one of them begins with `*`, both must hold (`*/2` begins with `*`).

Where the local clock is changed
--------------------------------
A cron names readings of a local clock. Around a change, a reading can be missing (the clock leaps over it)
or come twice (the clock is set back). There is one rule for each of two kinds of cron.

**Fixed times** (neither the minute nor the hour field has a `*` or a step): every reading fires exactly
once. A missing one fires at the moment of the leap, one that comes twice fires the first time.

>>> def berlin(cron: str, start: str, count: int) -> list[str]:
...     from datetime import datetime
...     from zoneinfo import ZoneInfo
...     zone = ZoneInfo("Europe/Berlin")
...     at_ms = int(datetime.fromisoformat(start).replace(tzinfo=zone).timestamp() * 1000)
...     ticks = Cron.parse("CRON_TZ=Europe/Berlin " + cron).ticks(at_ms, at_ms + 10**10, count)
...     return [format(datetime.fromtimestamp(tick / 1000, zone), "%d. %H:%M %Z") for tick in ticks]

On 31 March 2024 the clock in Berlin leaps from 2:00 CET to 3:00 CEST, on 27 October it is set back from
3:00 CEST to 2:00 CET.

>>> berlin("30 2 * * *", "2024-03-30", 3)
['30. 02:30 CET', '31. 03:00 CEST', '01. 02:30 CEST']
>>> berlin("30 2 * * *", "2024-10-26", 3)
['26. 02:30 CEST', '27. 02:30 CEST', '28. 02:30 CET']

**Intervals** (the minute or the hour field has a `*` or a step, or the hours are all 24) keep their beat in
real time:

>>> berlin("*/20 * * * *", "2024-03-31T01:30", 4)
['31. 01:40 CET', '31. 03:00 CEST', '31. 03:20 CEST', '31. 03:40 CEST']
>>> berlin("0 * * * *", "2024-10-27T01:30", 4)
['27. 02:00 CEST', '27. 02:00 CET', '27. 03:00 CET', '27. 04:00 CET']

To be exact, for as long after the change as the change is large, two clocks are heeded: the one that was
changed, and the one it would be otherwise. A missing reading is not made up when the changed clock fires at
the very moment that the unchanged one would have (2:20 CET is 3:20 CEST above); otherwise it fires at the
moment of the leap. A reading that comes again fires again only if the unchanged clock would fire at that
moment, too (2:00 CET is 3:00 CEST above). So an interval of hours is kept up to the change, no run is lost
and none doubled, and the next one is again at its hour of the day; and an interval confined to the changed
hour does not crowd into the next one, and does not run twice:

>>> berlin("0 */2 * * *", "2024-03-30T23:00", 4)
['31. 00:00 CET', '31. 03:00 CEST', '31. 04:00 CEST', '31. 06:00 CEST']
>>> berlin("0 */2 * * *", "2024-10-27T01:00", 3)
['27. 02:00 CEST', '27. 04:00 CET', '27. 06:00 CET']
>>> berlin("*/15 2 * * *", "2024-03-31", 2)
['31. 03:00 CEST', '01. 02:00 CEST']
>>> berlin("*/15 2 * * *", "2024-10-27", 5)
['27. 02:00 CEST', '27. 02:15 CEST', '27. 02:30 CEST', '27. 02:45 CEST', '28. 02:00 CET']

The evaluation takes stretches of constant offset one after the other: within a stretch a local reading is
an instant plus the offset, and only the beginning of a stretch needs the rules above.
"""

import calendar
from bisect import bisect_left, bisect_right
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Self

from cronsim.cronsim import CronSim, CronSimError, Field
from msgspec import Struct

from relay.domain.errors import quoted
from relay.domain.zone import Change, Zone, load_zone

_DAY_S = 86_400
_DAY_MINUTES = 1_440
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_HORIZON_S = int(datetime(9998, 1, 1, tzinfo=UTC).timestamp())
_LONGEST_TEXT = 512

# Every combination of leap year and weekday of 1 January occurs in these 28 years.
_CYCLE_S = tuple(int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2000, 2028))

_LAST = CronSim.LAST
_LAST_WORKDAY = CronSim.LAST_WEEKDAY
_FIELDS = (Field.MINUTE, Field.HOUR, Field.DAY, Field.MONTH, Field.DOW)
_FIELD_NAMES = ("minute", "hour", "day-of-month", "month", "day-of-week")
_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ZONE_PREFIX = "CRON_TZ="


class Cron(Struct, frozen=True, kw_only=True):
    """A parsed expression; made by `parse`.

    `days` and `weekdays` may hold the parser's marks for `L`, `LW`, `5L` and `5#2`; Sunday is 0.
    """

    text: str
    zone: Zone
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int | tuple[int, int]]
    needs_both_days: bool
    is_interval: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError says in a sentence what is wrong; a cron that can never fire is wrong, too."""
        text = text.strip(" \t")
        if len(text) > _LONGEST_TEXT:
            raise ValueError(f"{quoted(text)} is longer than {_LONGEST_TEXT} characters")
        if not (text.isascii() and text.replace("\t", " ").isprintable()):
            raise ValueError(f"{quoted(text)} has characters that no cron expression has")
        zone_name, expression = _without_zone(text)
        fields = _fields(text, expression)
        minute, hour, day, _, weekday = fields
        minutes, hours, days, months, weekdays = (
            _field_items(text, place, field) for place, field in enumerate(fields)
        )
        cron = cls(
            text=text,
            zone=load_zone(zone_name),
            minutes=tuple(sorted(_numbers(minutes))),
            hours=tuple(sorted(_numbers(hours))),
            days=_numbers(days),
            months=_numbers(months),
            weekdays=frozenset(_sunday_is_0(item) for item in weekdays),
            needs_both_days=day.startswith("*") or weekday.startswith("*"),
            is_interval=any(sign in field for sign in "*/" for field in (minute, hour)) or len(hours) == 24,
        )
        if cron._reading_in(*_CYCLE_S) is None:
            raise ValueError(f"{quoted(text)} never fires: no month it names has such a day")
        return cron

    def next_after(self, at_ms: int) -> int | None:
        """The first tick strictly later than `at_ms` (1970, when it is earlier); None only near year 9998."""
        after_s = max(at_ms // 1000, -1)
        while True:
            # An instant and its local reading are less than a day apart: whichever year the next reading is
            # in, everything up to a day before it can be passed over.
            reading = self._reading_in(after_s - _DAY_S, _HORIZON_S)
            if reading is None:
                return None
            after_s = max(after_s, reading - _DAY_S)
            tick_s = self._first_tick_in(after_s, after_s + 2 * _DAY_S)
            if tick_s is not None:
                return tick_s * 1000
            after_s += 2 * _DAY_S

    def ticks(self, after_ms: int, until_ms: int, limit: int) -> list[int]:
        """The first `limit` ticks in (after_ms, until_ms], in order."""
        found: list[int] = []
        tick = self.next_after(after_ms)
        while tick is not None and tick <= until_ms and len(found) < limit:
            found.append(tick)
            tick = self.next_after(tick)
        return found

    def _first_tick_in(self, after_s: int, until_s: int) -> int | None:
        """The first tick in (after_s, until_s]."""
        begin = after_s - _DAY_S  # a clock set back up to a day ago can still be repeating itself
        offset_s = self.zone.offset_s(begin)
        unchanged = Change(at_s=begin, before_s=offset_s, after_s=offset_s)
        end = Change(at_s=until_s + 1, before_s=0, after_s=0)
        for change, following in pairwise([unchanged, *self.zone.changes(begin, until_s), end]):
            tick_s = self._first_tick_since(change, max(after_s + 1, change.at_s), following.at_s)
            if tick_s is not None:
                return tick_s
        return None

    def _first_tick_since(self, change: Change, begin_s: int, end_s: int) -> int | None:
        """The first tick in [begin_s, end_s), a stretch in which the offset is the one after `change`."""
        if begin_s == change.at_s and self._owes_a_tick(change):
            return begin_s
        repeats_until_s = change.at_s + change.before_s - change.after_s
        while (reading := self._reading_in(begin_s + change.after_s, end_s + change.after_s)) is not None:
            at_s = reading - change.after_s
            if at_s >= repeats_until_s or (self.is_interval and self._names(at_s + change.before_s)):
                return at_s
            begin_s = at_s + 1
        return None

    def _owes_a_tick(self, leap: Change) -> bool:
        """Whether a reading that the clock leapt over is to be made up at the moment of the leap."""
        leap_s = leap.after_s - leap.before_s
        reading = self._reading_in(leap.at_s + leap.before_s, leap.at_s + leap.after_s)
        while reading is not None:
            if not (self.is_interval and self._names(reading + leap_s)):
                return True
            reading = self._reading_in(reading + 1, leap.at_s + leap.after_s)
        return False

    # A local reading is a number of seconds, too: what the epoch would count if the local clock were UTC.

    def _names(self, reading: int) -> bool:
        return self._reading_in(reading, reading + 1) is not None

    def _reading_in(self, begin: int, end: int) -> int | None:
        """The first local reading in [begin, end) that the fields name."""
        if begin >= end:
            return None
        day, minute = divmod(-(-begin // 60), _DAY_MINUTES)
        today = date.fromordinal(_EPOCH_DAY + day)
        minute_of_day = self._minute_from(minute) if self._runs_on(today) else None
        if minute_of_day is None:
            last = date.fromordinal(_EPOCH_DAY + (end - 1) // _DAY_S)
            next_day = self._day_in(today + timedelta(days=1), last)
            if next_day is None:
                return None
            day = next_day.toordinal() - _EPOCH_DAY
            minute_of_day = self.hours[0] * 60 + self.minutes[0]
        reading = day * _DAY_S + minute_of_day * 60
        return reading if reading < end else None

    def _minute_from(self, minute_of_day: int) -> int | None:
        """The first minute of a day that the fields name, from `minute_of_day` on."""
        hour, minute = divmod(minute_of_day, 60)
        if hour in self.hours:
            place = bisect_left(self.minutes, minute)
            if place < len(self.minutes):
                return hour * 60 + self.minutes[place]
        later = bisect_right(self.hours, hour)
        return self.hours[later] * 60 + self.minutes[0] if later < len(self.hours) else None

    def _day_in(self, first: date, last: date) -> date | None:
        day = first
        while day <= last:
            if day.month not in self.months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
            elif self._runs_on(day):
                return day
            else:
                day += timedelta(days=1)
        return None

    def _runs_on(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        if self.needs_both_days:
            return self._in_month(day) and self._in_week(day)
        return self._in_month(day) or self._in_week(day)

    def _in_month(self, day: date) -> bool:
        if day.day in self.days:
            return True
        last = calendar.monthrange(day.year, day.month)[1]
        if _LAST in self.days and day.day == last:
            return True
        # Saturday and Sunday are 5 and 6: the last workday is up to two days before the end of the month.
        to_weekend = max(0, day.replace(day=last).weekday() - 4)
        return _LAST_WORKDAY in self.days and day.day == last - to_weekend

    def _in_week(self, day: date) -> bool:
        weekday = day.isoweekday() % 7
        if weekday in self.weekdays or (weekday, (day.day + 6) // 7) in self.weekdays:
            return True
        return (weekday, _LAST) in self.weekdays and (day + timedelta(days=7)).month != day.month


def _without_zone(text: str) -> tuple[str, str]:
    if not text.startswith(_ZONE_PREFIX):
        return "UTC", text
    prefix, *rest = text.split(maxsplit=1)
    return prefix.removeprefix(_ZONE_PREFIX), "".join(rest)


def _fields(text: str, expression: str) -> list[str]:
    if expression.startswith("@"):
        alias = _ALIASES.get(expression.lower())
        if alias is None:
            raise ValueError(f"{quoted(text)} is not one of {', '.join(_ALIASES)}")
        return alias.split()
    fields = expression.upper().split()
    if len(fields) != len(_FIELDS):
        raise ValueError(
            f"{quoted(text)} has {len(fields)} field{'' if len(fields) == 1 else 's'} instead of five:"
            " minute, hour, day of month, month, day of week"
        )
    return fields


def _field_items(text: str, place: int, field: str) -> set[int | tuple[int, int]]:
    try:
        if "L/" in field or "LW/" in field:  # the parser would overlook the step
            raise CronSimError
        return _FIELDS[place].parse(field)
    except CronSimError:
        raise ValueError(f"{quoted(text)} has a wrong {_FIELD_NAMES[place]} field, {quoted(field)}") from None


def _numbers(items: set[int | tuple[int, int]]) -> frozenset[int]:
    return frozenset(item for item in items if isinstance(item, int))


def _sunday_is_0(item: int | tuple[int, int]) -> int | tuple[int, int]:
    return (item[0] % 7, item[1]) if isinstance(item, tuple) else item % 7

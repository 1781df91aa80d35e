from datetime import UTC, datetime
from email.utils import format_datetime, formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.retry_after import retry_after_ms

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
NOW_MS = int(datetime(2026, 11, 22, 10, 0, tzinfo=UTC).timestamp() * 1000)


def wait(value: str, name: str = "Retry-After") -> int | None:
    return retry_after_ms([(name, value)], NOW_MS)


@pytest.mark.parametrize(
    ("value", "wait_ms"),
    [
        ("0", 0),
        ("120", 120 * SECOND),
        (" 120\t", 120 * SECOND),
        ("+5", 5 * SECOND),
        ("1.5", 1500),
        ("1.", SECOND),
        (".25", 250),
        ("0.0001", 1),
        ("59.56", 59560),
        ("-5", 0),
        ("86400", DAY),
    ],
)
def test_a_number_is_seconds(value: str, wait_ms: int) -> None:
    assert wait(value) == wait_ms


@pytest.mark.parametrize(
    ("value", "wait_ms"),
    [
        ("6m5s", 6 * MINUTE + 5 * SECOND),
        ("2m59.56s", 2 * MINUTE + 59560),
        ("1.5s", 1500),
        ("17ms", 17),
        ("1500us", 2),
        ("1500µs", 2),
        ("1500μs", 2),
        ("1ns", 1),
        ("0s", 0),
        ("1h", HOUR),
        ("1.5h", 90 * MINUTE),
        (".5m", 30 * SECOND),
        ("1m0.5s", MINUTE + 500),
        ("-1h5m", 0),
        ("+3s", 3 * SECOND),
        ("24h", DAY),
        ("8.64e4s", None),
    ],
)
def test_a_go_duration_adds_up_its_groups(value: str, wait_ms: int | None) -> None:
    assert wait(value) == wait_ms


@pytest.mark.parametrize(
    ("value", "wait_ms"),
    [
        ("Sun, 22 Nov 2026 10:00:30 GMT", 30 * SECOND),
        ("Sun, 22 Nov 2026 10:00:30 UTC", 30 * SECOND),
        ("Sun, 22 Nov 2026 12:00:30 +0200", 30 * SECOND),
        ("Sun, 22 Nov 2026 04:30:30 -0530", 30 * SECOND),
        ("Sun, 22 Nov 2026 10:00:00 GMT", 0),
        ("Sun, 22 Nov 2026 09:00:00 GMT", 0),
        ("Thu, 1 Jan 1970 00:00:00 GMT", 0),
        ("Mon, 23 Nov 2026 10:00:00 GMT", DAY),
        ("Mon, 23 Nov 2026 10:00:01 GMT", None),
        ("Mon, 31 Feb 2026 10:00:00 GMT", None),
        ("Sun, 22 Foo 2026 10:00:30 GMT", None),
        ("Sun, 22 Nov 0000 10:00:30 GMT", None),
        ("Sun, 22 Nov 2026 24:00:00 GMT", None),
        ("Sun, 22 Nov 2026 10:00:30", None),
        ("2026-11-22T10:00:30Z", None),
    ],
)
def test_a_date_is_the_time_until_then(value: str, wait_ms: int | None) -> None:
    assert wait(value) == wait_ms


def test_dates_as_the_standard_library_writes_them_are_read() -> None:
    later = datetime(2026, 11, 22, 10, 1, tzinfo=UTC)

    assert wait(format_datetime(later, usegmt=True)) == MINUTE
    assert wait(formatdate(later.timestamp())) == MINUTE


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "soon",
        "5 s",
        "5, 10",
        "0x10",
        "1e3",
        "NaN",
        "inf",
        "--5",
        "5d",
        "1h 5m",
        "٣",
        "s",
        ".",
        ".s",
        "\udcb5s",
        "9" * 64 + "s",
        "1" * 5000,
    ],
)
def test_what_cannot_be_read_is_as_good_as_absent(value: str) -> None:
    assert wait(value) is None


@pytest.mark.parametrize("value", ["86401", "86400.0001", "24h0.001s", "25h", "1700000000", "9" * 64])
def test_more_than_a_day_is_as_good_as_absent(value: str) -> None:
    assert wait(value) is None


@pytest.mark.parametrize(
    "name",
    [
        "Retry-After",
        "retry-after",
        "X-RateLimit-Reset",
        "x-ratelimit-reset",
        "X-RateLimit-Reset-Requests",
        "X-RATELIMIT-RESET-TOKENS",
    ],
)
def test_four_headers_count_in_any_capitals(name: str) -> None:
    assert wait("3", name) == 3 * SECOND


@pytest.mark.parametrize("name", ["X-RateLimit-Remaining", "RateLimit-Reset", "Retry-After-Ms", "", "\udcff"])
def test_no_other_header_counts(name: str) -> None:
    assert wait("3", name) is None


def test_the_longest_valid_wait_wins() -> None:
    headers = [
        ("Content-Type", "text/plain"),
        ("Retry-After", "2"),
        ("X-RateLimit-Reset-Requests", "1.5s"),
        ("X-RateLimit-Reset-Tokens", "1m"),
        ("X-RateLimit-Reset", "2d"),
        ("Retry-After", "200000"),
    ]

    assert retry_after_ms(headers, NOW_MS) == MINUTE
    assert retry_after_ms([], NOW_MS) is None


TEXT = st.one_of(
    st.text(),
    st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.text(alphabet="0123456789.+-nusµmh "),
    st.from_regex(
        r"[A-Z][a-z]{2}, [0-9]{1,2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} (GMT|[-+][0-9]{4})", fullmatch=True
    ),
)


@given(st.lists(st.tuples(st.one_of(st.sampled_from(["Retry-After", "X-RateLimit-Reset"]), TEXT), TEXT)))
def test_whatever_an_endpoint_sends_yields_a_wait_within_a_day_or_nothing(
    headers: list[tuple[str, str]],
) -> None:
    wait_ms = retry_after_ms(headers, NOW_MS)

    assert wait_ms is None or 0 <= wait_ms <= DAY


@given(st.datetimes(datetime(2026, 11, 21), datetime(2026, 11, 24), timezones=st.just(UTC)))  # noqa: DTZ001
def test_every_second_of_the_next_day_can_be_asked_for_as_a_date(at: datetime) -> None:
    whole = at.replace(microsecond=0)
    ahead_ms = max(0, int(whole.timestamp() * 1000) - NOW_MS)

    assert wait(format_datetime(whole, usegmt=True)) == (ahead_ms if ahead_ms <= DAY else None)

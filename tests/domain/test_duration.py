import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.duration import format_duration, parse_duration

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("text", "duration_ms"),
    [
        ("10s", 10 * SECOND),
        ("2m", 2 * MINUTE),
        ("3h", 3 * HOUR),
        ("7d", 7 * DAY),
        ("1d10h30m", DAY + 10 * HOUR + 30 * MINUTE),
        ("1h30m3s", 5403 * SECOND),
        ("1d1h30m", DAY + HOUR + 30 * MINUTE),
        ("3d5h12m", 3 * DAY + 5 * HOUR + 12 * MINUTE),
        ("30m1h", HOUR + 30 * MINUTE),
        ("0", 0),
        ("0s", 0),
        ("007", 7 * SECOND),
        ("300", 300 * SECOND),
        ("36500d", 36500 * DAY),
    ],
)
def test_a_duration_is_its_groups_added_up_and_a_bare_number_is_seconds(text: str, duration_ms: int) -> None:
    assert parse_duration(text) == duration_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "5x",
        "5 s",
        " 5s",
        "5s\n",
        "-5s",
        "+5s",
        "1.5h",
        "1h30",
        "5S",
        "5ms",
        "1e3",
        "٣s",
        "5s,",
        "\udcff",
    ],
)
def test_anything_else_is_refused_in_a_sentence_that_quotes_it(text: str) -> None:
    with pytest.raises(ValueError, match=r'^".*" is not a duration such as 10s, 2m or 1d10h$'):
        parse_duration(text)


@pytest.mark.parametrize("text", ["36501d", "36500d1s", "9" * 30, "9" * 63 + "d"])
def test_more_than_a_century_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^\"9*.*\" is longer than 100 years$"):
        parse_duration(text)


def test_a_text_too_long_for_a_duration_is_refused_before_it_is_computed() -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration("9" * 1_000_000)


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [
        (0, "0s"),
        (250, "250ms"),
        (1_250, "1s250ms"),
        (90 * SECOND, "1m30s"),
        (DAY, "1d"),
        (DAY + 30 * MINUTE, "1d30m"),
    ],
)
def test_a_duration_is_spelled_with_the_largest_units(duration_ms: int, text: str) -> None:
    assert format_duration(duration_ms) == text


@given(st.integers(min_value=0, max_value=36500 * DAY // SECOND))
def test_every_whole_second_survives_being_spelled_and_read(seconds: int) -> None:
    assert parse_duration(format_duration(seconds * SECOND)) == seconds * SECOND

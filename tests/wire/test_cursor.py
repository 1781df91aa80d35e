import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.errors import Invalid
from relay.ids import dead_letter_number, dead_letter_text
from relay.wire.cursor import Cursor, log_cursor, parse_dead_letter_cursor, parse_log_cursor

LARGEST = (1 << 63) - 1


@given(st.integers(0, LARGEST), st.integers(0, 9))
def test_a_log_cursor_comes_back_as_it_went_out(position: int, index: int) -> None:
    cursor = Cursor(position=position, index=index)
    assert parse_log_cursor(log_cursor(cursor)) == cursor


@given(st.integers(0, LARGEST))
def test_the_id_of_a_dead_letter_comes_back_as_it_went_out(number: int) -> None:
    text = dead_letter_text(number)
    assert dead_letter_number(text) == number
    assert parse_dead_letter_cursor(text) == Cursor(position=number)


@pytest.mark.parametrize(
    "text",
    ["", "x", "1", "1-", "-1", "1-2-3", "1--2", " 1-2", "1-2\n", "1-2 ", "\u0661-1", "1-\u00b2", "9" * 20 + "-1",
     "9" * 5000, f"{LARGEST + 1}-0", "1-12345678", "1686652644442_12", "\udce9-1"],
)  # fmt: skip
def test_what_is_no_cursor_of_ours_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="is not a cursor of this list") as refused:
        parse_log_cursor(text)
    assert refused.value.field == "cursor"
    with pytest.raises(Invalid, match="is not a cursor of this list"):
        parse_dead_letter_cursor(text)
    assert dead_letter_number(text) is None


@pytest.mark.parametrize("text", ["01-1", "1-01", "1-1048576", "8796093022208-0", "8796093022207-1048576"])
def test_an_id_has_one_spelling_and_its_parts_their_range(text: str) -> None:
    assert dead_letter_number(text) is None
    with pytest.raises(Invalid, match="cursor: "):
        parse_dead_letter_cursor(text)


def test_the_largest_id_is_an_id() -> None:
    assert dead_letter_number("8796093022207-1048575") == LARGEST


@given(st.one_of(st.text(max_size=20), st.from_regex(r"[0-9]{1,20}-[0-9]{1,8}", fullmatch=True)))
def test_any_text_is_a_cursor_or_is_refused(text: str) -> None:
    number = dead_letter_number(text)
    assert number is None or dead_letter_text(number) == text
    try:
        cursor = parse_log_cursor(text)
    except Invalid:
        return
    assert 0 <= cursor.position <= LARGEST

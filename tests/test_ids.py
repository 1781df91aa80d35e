"""Ids: unique, growing, and the same number in every spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.ids import Ids, first_at, number_of, random_name, text_of

NOW = 1_800_000_000_000


def test_ids_grow_and_never_repeat_within_a_millisecond() -> None:
    ids = Ids()
    made = [ids.next(NOW) for _ in range(10_000)]
    assert made == sorted(set(made))


def test_an_id_carries_its_instant() -> None:
    assert first_at(NOW) <= Ids().next(NOW) < first_at(NOW + 1)


def test_ids_go_on_growing_when_the_clock_is_set_back() -> None:
    ids = Ids()
    before = ids.next(NOW)
    assert ids.next(NOW - 3_600_000) > before


def test_ids_go_on_above_the_last_one_stored() -> None:
    last = Ids().next(NOW + 60_000)
    assert Ids(last=last).next(NOW) > last


def test_two_nodes_never_make_the_same_id() -> None:
    one, two = Ids(node=1), Ids(node=2)
    assert not {one.next(NOW) for _ in range(5_000)} & {two.next(NOW) for _ in range(5_000)}


@pytest.mark.parametrize("node", [-1, 256])
def test_a_node_number_out_of_range_is_refused(node: int) -> None:
    with pytest.raises(ValueError, match="node"):
        Ids(node=node)


@given(st.integers(min_value=0, max_value=(1 << 63) - 1))
def test_an_id_survives_its_text(number: int) -> None:
    assert number_of("msg_", text_of("msg_", number)) == number


@given(st.tuples(*[st.integers(min_value=0, max_value=(1 << 63) - 1)] * 2))
def test_texts_sort_like_numbers(pair: tuple[int, int]) -> None:
    one, two = pair
    assert (text_of("", one) < text_of("", two)) == (one < two)


@pytest.mark.parametrize(
    "text",
    ["", "msg_", "msg_1", "scd_0000000000001", "msg_000000000000u", "msg_g000000000000", "msg_zzzzzzzzzzzzz"],
)
def test_what_cannot_be_one_of_ours_has_no_number(text: str) -> None:
    assert number_of("msg_", text) is None


@given(st.text())
def test_any_text_is_an_id_or_none(text: str) -> None:
    number = number_of("msg_", "msg_" + text)
    assert number is None or text_of("msg_", number) == "msg_" + text


def test_random_names_differ() -> None:
    names = {random_name("scd_") for _ in range(1_000)}
    assert len(names) == 1_000
    assert all(name.startswith("scd_") and len(name) == 24 for name in names)

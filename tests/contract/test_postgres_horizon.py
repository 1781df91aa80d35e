"""Where a claim begins to look: never past something that is due, as far as this process can know."""

from storage.postgres.horizon import Horizon
from tests.builders import NOW

BEGINNING = -(1 << 63)


def after_looking_at_everything() -> Horizon:
    horizon = Horizon()
    assert horizon.begin(NOW) == BEGINNING
    horizon.seen(NOW, NOW)
    return horizon


def test_the_first_claim_looks_at_everything_and_the_next_from_just_before_where_it_ended() -> None:
    horizon = after_looking_at_everything()
    assert horizon.begin(NOW + 5) == NOW - 2_000
    horizon.seen(NOW + 5, NOW + 5)
    assert horizon.begin(NOW + 6) == NOW + 5 - 2_000


def test_what_was_left_because_there_was_no_room_is_where_the_next_claim_begins() -> None:
    horizon = after_looking_at_everything()
    horizon.begin(NOW + 9_000)
    horizon.seen(NOW + 3_000, NOW + 9_000)
    assert horizon.begin(NOW + 9_001) == NOW + 3_000


def test_what_was_written_into_the_past_is_looked_at() -> None:
    horizon = after_looking_at_everything()
    horizon.hear(NOW - 50_000)
    horizon.hear(NOW - 40_000)
    assert horizon.begin(NOW + 1) == NOW - 50_000


def test_what_was_written_while_a_claim_was_under_way_is_looked_at_by_the_next() -> None:
    horizon = after_looking_at_everything()
    horizon.begin(NOW + 1)
    horizon.hear(NOW - 50_000)
    horizon.seen(NOW + 1, NOW + 1)
    assert horizon.begin(NOW + 2) == NOW - 50_000
    horizon.seen(NOW + 2, NOW + 2)
    assert horizon.begin(NOW + 3) == NOW + 2 - 2_000


def test_every_ten_seconds_and_whenever_time_goes_back_everything_is_looked_at() -> None:
    horizon = after_looking_at_everything()
    assert horizon.begin(NOW + 9_999) > BEGINNING
    assert horizon.begin(NOW + 10_000) == BEGINNING
    horizon.seen(NOW + 10_000, NOW + 10_000)
    assert horizon.begin(NOW + 10_001) > BEGINNING
    assert horizon.begin(NOW + 10_000) == BEGINNING


def test_a_claim_that_failed_is_repeated_from_where_it_began() -> None:
    horizon = after_looking_at_everything()
    first = horizon.begin(NOW + 1)
    assert horizon.begin(NOW + 2) == first

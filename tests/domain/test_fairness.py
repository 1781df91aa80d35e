"""What one host and one tenant may take of the room, and what is left for the others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.domain.fairness import HOST_MULTIPLE, Crowd, Shares, allowance, crowd_of
from relay.domain.message import TenantId
from tests.builders import TENANT, a_message

ROOM = 1_000


def _filled(crowds: int) -> tuple[list[int], int]:
    """What each of so many greedy crowds ends up with, and what is free then, when they come one after the other
    and nothing they hold ever ends."""
    held = [0] * crowds
    while True:
        free = ROOM - sum(held)
        left = [allowance(one, free, HOST_MULTIPLE) if one else 0 for one in held]
        for crowd, one in enumerate(held):
            if not one:
                left[crowd] = min(1, free)
        if not any(left):
            return held, free
        for crowd in range(crowds):
            if left[crowd] and ROOM - sum(held) > 0:
                held[crowd] += 1


@pytest.mark.parametrize(("crowds", "at_most", "free"), [(1, 500, 500), (2, 334, 333), (10, 91, 90)])
def test_however_many_hosts_hang_something_is_left(crowds: int, at_most: int, free: int) -> None:
    held, left = _filled(crowds)
    assert max(held) <= at_most
    assert left >= free


def test_ten_hosts_that_come_one_after_the_other_and_never_answer_leave_something() -> None:
    free = ROOM
    for _ in range(9):
        free -= allowance(0, free, HOST_MULTIPLE)
    assert free >= 1


@given(held=st.integers(0, 2_000), free=st.integers(0, 2_000), multiple=st.integers(1, 20))
def test_nobody_takes_more_than_its_multiple_of_what_is_free_then(
    held: int, free: int, multiple: int
) -> None:
    more = allowance(held, free, multiple)
    assert 0 <= more <= free
    assert more <= 1 or held + more <= multiple * (free - more)
    # And not less than that either.
    assert held + more + 1 > multiple * (free - more - 1)


def test_whoever_holds_nothing_may_take_the_last_place() -> None:
    assert allowance(0, 1, HOST_MULTIPLE) == 1
    assert allowance(1, 1, HOST_MULTIPLE) == 0
    assert allowance(0, 0, HOST_MULTIPLE) == 0


def test_a_lane_is_a_host_of_a_tenant_whatever_the_port_and_the_spelling() -> None:
    crowds = {
        crowd_of(a_message(url=url))
        for url in ("https://Example.com/a", "http://example.com:8080/b?c", "https://example.com")
    }
    assert crowds == {Crowd(tenant=TENANT, host="example.com")}


def test_a_tenant_that_has_its_share_starts_nothing_at_a_new_host_either() -> None:
    shares = Shares(free=20, crowds={Crowd(tenant=TENANT, host="a"): 7}, tenants={TENANT: 0})
    assert shares.of(Crowd(tenant=TENANT, host="a")) == 0
    assert shares.of(Crowd(tenant=TENANT, host="b")) == 0
    assert shares.of(Crowd(tenant=TenantId(TENANT + 1), host="b")) == 10


def test_who_comes_first_takes_the_share_of_those_behind() -> None:
    a, b = Crowd(tenant=TENANT, host="a"), Crowd(tenant=TENANT, host="b")
    other = Crowd(tenant=TenantId(TENANT + 1), host="a")
    shares = Shares(free=4, crowds={a: 2}, tenants={TENANT: 3})
    assert shares.fitting([a, a, a, b, b, other, other, other]) == [
        *(True, True, False),
        *(True, False),
        *(True, True, False),
    ]

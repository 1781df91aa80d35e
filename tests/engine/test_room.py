"""Slots and bytes in flight, and what is left of them for whom."""

from relay.domain.fairness import Crowd
from relay.domain.message import TenantId
from relay.engine.room import Room

A = Crowd(tenant=TenantId(1), host="a")
B = Crowd(tenant=TenantId(1), host="b")
C = Crowd(tenant=TenantId(2), host="c")


def _full_of(crowd: Crowd, room: Room, *, size: int = 1) -> int:
    """Let one crowd take what it can; how much that was."""
    taken = 0
    while room.left_for(crowd):
        room.enter(crowd, size)
        taken += 1
    return taken


def test_one_host_leaves_half_of_the_slots_to_the_others() -> None:
    room = Room(slots=1_000, max_bytes=1 << 30)
    assert _full_of(A, room) == 500
    assert (room.free, room.left_for(A), room.left_for(B), room.left_for(C)) == (500, 0, 250, 250)


def test_one_tenant_leaves_something_to_the_others_with_however_many_hosts() -> None:
    room = Room(slots=1_000, max_bytes=1 << 30)
    hosts = [Crowd(tenant=TenantId(1), host=str(number)) for number in range(200)]
    assert sum(_full_of(host, room) for host in hosts) == 750
    assert (room.left_for(A), room.left_for(C)) == (0, 125)


def test_a_host_whose_messages_are_large_leaves_half_of_the_bytes() -> None:
    room = Room(slots=1_000, max_bytes=1_000_000)
    taken = _full_of(A, room, size=50_000)
    assert taken == 11
    assert room.left_for(A) == 0
    assert room.left_for(C) > 0


def test_what_ends_gives_back_all_it_took() -> None:
    room = Room(slots=10, max_bytes=1_000)
    room.enter(A, 100)
    room.grow(A, 50)
    room.enter(B, 100)
    assert (room.free, room.bytes_left) == (8, 750)
    room.leave(A, 150)
    room.leave(B, 100)
    assert (room.free, room.bytes_left, room.is_empty) == (10, 1_000, True)
    assert room.shares().crowds == {}
    assert room.shares().tenants == {}


def test_what_is_reserved_makes_nothing_full_and_what_is_in_flight_does() -> None:
    room = Room(slots=2, max_bytes=1_000)
    room.reserve(2)
    assert (room.free, room.is_full) == (0, False)
    room.give_back(2)
    room.enter(A, 1)
    assert not room.is_full
    room.enter(B, 1)
    assert room.is_full
    room.leave(B, 1)
    assert not room.is_full
    room.grow(A, 999)
    assert room.is_full


def test_what_is_reserved_is_not_free() -> None:
    room = Room(slots=10, max_bytes=1_000)
    room.reserve(4)
    assert (room.free, room.is_empty) == (6, False)
    room.give_back(4)
    assert (room.free, room.is_empty) == (10, True)


def test_nothing_is_free_without_bytes() -> None:
    room = Room(slots=10, max_bytes=1_000)
    room.enter(A, 1_000)
    assert (room.free, room.left_for(C)) == (0, 0)


def test_a_crowd_is_light_while_it_has_a_small_part_of_what_it_may_have() -> None:
    room = Room(slots=1_000, max_bytes=1 << 30)
    light = 0
    while room.is_light(A):
        room.enter(A, 1)
        light += 1
    assert light == 46
    assert room.is_light(C)


def test_a_crowd_is_heavy_when_it_has_more_than_half_of_what_it_may_have() -> None:
    room = Room(slots=1_000, max_bytes=1 << 30)
    while not room.is_heavy(A):
        room.enter(A, 1)
    assert room.left_for(A) < 500 - room.left_for(A)
    assert not room.is_heavy(C)


def test_nobody_is_light_where_nothing_is_free() -> None:
    room = Room(slots=10, max_bytes=1_000)
    room.enter(A, 1_000)
    assert not room.is_light(C)


def test_a_tenant_whose_messages_are_large_leaves_bytes_to_the_others_whatever_its_hosts() -> None:
    room = Room(slots=1_000, max_bytes=1_000_000)
    hosts = [Crowd(tenant=TenantId(1), host=str(number)) for number in range(50)]
    taken = 0
    for host in hosts:
        if room.left_for(host):
            room.enter(host, 50_000)
            taken += 1
    assert taken == 16
    assert (room.left_for(hosts[-1]), room.left_for(C)) == (0, 492)
    assert room.is_full_for(hosts[-1])
    assert not room.is_full_for(C)


def test_where_nothing_is_free_only_those_that_have_something_are_to_blame() -> None:
    room = Room(slots=1, max_bytes=1_000)
    room.enter(A, 1)
    assert (room.is_full_for(A), room.is_full_for(C)) == (True, False)

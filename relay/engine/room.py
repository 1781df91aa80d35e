"""What one process has in flight, in slots and bytes, for whom, and how much more of it may be taken."""

from collections import Counter

from relay.domain.fairness import HOST_MULTIPLE, TENANT_MULTIPLE, Crowd, Shares, allowance
from relay.domain.message import TenantId

#: A crowd is light when it could have this many times more than it has.
_LIGHT = 10


class Room:
    """Slots and bytes that deliveries in flight take up.

    Slots are reserved while storage is asked for something to fill them with. Bytes are those of bodies, answers
    and callbacks; a delivery may begin as long as any are left, so they are exceeded by what began last.
    """

    def __init__(self, *, slots: int, max_bytes: int) -> None:
        self._slots = slots
        self._max_bytes = max_bytes
        self._taken = 0
        self._bytes = 0
        self._reserved = 0
        self._crowds: Counter[Crowd] = Counter()
        self._tenants: Counter[TenantId] = Counter()
        self._crowd_bytes: Counter[Crowd] = Counter()
        self._tenant_bytes: Counter[TenantId] = Counter()

    @property
    def is_empty(self) -> bool:
        return not self._taken and not self._reserved

    @property
    def is_full(self) -> bool:
        """Whether what is in flight takes up all there is; what is only reserved does not count."""
        return self._taken >= self._slots or self.bytes_left <= 0

    @property
    def free(self) -> int:
        """How many more deliveries may be taken."""
        return max(0, self._slots - self._taken - self._reserved) if self.bytes_left > 0 else 0

    @property
    def bytes_left(self) -> int:
        """May be negative."""
        return self._max_bytes - self._bytes

    def reserve(self, slots: int) -> None:
        self._reserved += slots

    def give_back(self, slots: int) -> None:
        self._reserved -= slots

    def enter(self, crowd: Crowd, size: int) -> None:
        """A delivery takes a slot and so many bytes."""
        self._taken += 1
        self._crowds[crowd] += 1
        self._tenants[crowd.tenant] += 1
        self.grow(crowd, size)

    def grow(self, crowd: Crowd, size: int) -> None:
        """A delivery in flight holds so many bytes more."""
        self._bytes += size
        self._crowd_bytes[crowd] += size
        self._tenant_bytes[crowd.tenant] += size

    def leave(self, crowd: Crowd, size: int) -> None:
        """A delivery that holds so many bytes is over."""
        self._taken -= 1
        self._bytes -= size
        self._crowd_bytes[crowd] -= size
        self._tenant_bytes[crowd.tenant] -= size
        self._crowds[crowd] -= 1
        if not self._crowds[crowd]:
            del self._crowds[crowd], self._crowd_bytes[crowd]
        self._tenants[crowd.tenant] -= 1
        if not self._tenants[crowd.tenant]:
            del self._tenants[crowd.tenant], self._tenant_bytes[crowd.tenant]

    def is_full_for(self, crowd: Crowd) -> bool:
        """Whether it is the crowd's own doing, or that of its tenant, that no more of it may start."""
        return not self.left_for(crowd) and (self.free > 0 or crowd in self._crowds)

    def is_light(self, crowd: Crowd) -> bool:
        """Whether a crowd has next to nothing of what it may have."""
        return _LIGHT * self._crowds.get(crowd, 0) < self.left_for(crowd)

    def is_heavy(self, crowd: Crowd) -> bool:
        """Whether a crowd has most of what it may have."""
        return self._crowds.get(crowd, 0) > self.left_for(crowd)

    def left_for(self, crowd: Crowd) -> int:
        """How many more deliveries of the crowd may start now."""
        free = self.free
        held = self._crowds.get(crowd, 0)
        if held and self._crowd_bytes[crowd] > HOST_MULTIPLE * self.bytes_left:
            return 0
        return min(allowance(held, free, HOST_MULTIPLE), self._left_for_tenant(crowd.tenant, free))

    def _left_for_tenant(self, tenant: TenantId, free: int) -> int:
        held = self._tenants.get(tenant, 0)
        if held and self._tenant_bytes[tenant] > TENANT_MULTIPLE * self.bytes_left:
            return 0
        return allowance(held, free, TENANT_MULTIPLE)

    def shares(self) -> Shares:
        """What may be added, as a value that can be handed on."""
        free = self.free
        return Shares(
            free=free,
            crowds={crowd: self.left_for(crowd) for crowd in self._crowds},
            tenants={tenant: self._left_for_tenant(tenant, free) for tenant in self._tenants},
        )

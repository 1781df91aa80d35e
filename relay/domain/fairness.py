"""Fairness: how much of the room for deliveries one tenant, and one host of a tenant, may take.

Nobody has a fixed share, which would be too small for whoever is alone, and leave nothing when many are greedy.
Instead each may hold as much as is still free ("dynamic thresholds", Choudhury and Hahne, 1998). One host that
hangs ends up with half of the room, the next that hangs with half of the rest. Greedy hosts that do answer come to
equal parts, of which one stays free. So something is left for whoever comes next, and it is theirs at once.

What exceeds its share is set aside in the crowd of its tenant and host, where it stands in nobody's way.
"""

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from relay.domain.message import Message, TenantId
from relay.domain.place import place_of

#: A host may hold this many times what is free, so that alone it gets half of everything.
HOST_MULTIPLE = 1
#: And a tenant with all its hosts this many times: alone it gets three quarters.
TENANT_MULTIPLE = 3


class Crowd(Struct, frozen=True, kw_only=True):
    """What one tenant has for one host (without port; empty when the destination has none)."""

    tenant: TenantId
    host: str


def crowd_of(message: Message) -> Crowd:
    return Crowd(tenant=message.tenant, host=place_of(message.request.url)[0])


def allowance(held: int, free: int, multiple: int) -> int:
    """How many more may be taken by who holds `held`, to have at most `multiple` times what is free afterwards.

    Whoever holds nothing may take one as long as anything is free.
    """
    if held == 0 and free > 0:
        return max(1, multiple * free // (multiple + 1))
    return max(0, (multiple * free - held) // (multiple + 1))


class Shares(Struct, frozen=True, kw_only=True):
    """What may be added: `free` of anything, less for the crowds and tenants that hold something already.

    Only those are named that may not have all that is free for a newcomer.
    """

    free: int
    crowds: Mapping[Crowd, int] = {}
    tenants: Mapping[TenantId, int] = {}

    def of(self, crowd: Crowd) -> int:
        """How many more deliveries of the crowd may start, if no other does."""
        return min(
            self.crowds.get(crowd, allowance(0, self.free, HOST_MULTIPLE)),
            self.tenants.get(crowd.tenant, allowance(0, self.free, TENANT_MULTIPLE)),
        )

    def fitting(self, crowds: Iterable[Crowd]) -> Sequence[bool]:
        """Of deliveries that come in this order: which may start, if those before them do."""
        new_crowd = allowance(0, self.free, HOST_MULTIPLE)
        new_tenant = allowance(0, self.free, TENANT_MULTIPLE)
        left = dict(self.crowds)
        tenants = dict(self.tenants)
        answers = []
        for crowd in crowds:
            of_crowd = left.get(crowd, new_crowd)
            of_tenant = tenants.get(crowd.tenant, new_tenant)
            fits = of_crowd > 0 and of_tenant > 0
            answers.append(fits)
            left[crowd] = of_crowd - fits
            tenants[crowd.tenant] = of_tenant - fits
        return answers

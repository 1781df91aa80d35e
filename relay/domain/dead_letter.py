"""What is left of a message that failed for good, with the last answer its destination gave."""

from msgspec import Struct

from relay.domain.delivery import Attempt, DeadLetterId
from relay.domain.message import Message

__all__ = ["DeadLetter", "DeadLetterId"]


class DeadLetter(Struct, frozen=True, kw_only=True):
    """`id` is time-ordered, like message ids; `attempt` is the last one."""

    id: DeadLetterId
    failed_at: int
    message: Message
    attempt: Attempt
    retried: int = 0

"""How long to wait before the next attempt: the endpoint's wish, the sender's, or the default curve."""

import math

from relay.domain.expression import RetryDelay

_CAP_MS = 86_400_000
_CURVE = 2.5
_LAST_BELOW_CAP = 4  # e^(2.5 * 5) s is already more than a day, and exp() of a large number overflows


def default_delay_ms(retried: int) -> int:
    """min(1 day, e^(2.5 n)) seconds before retry n = `retried` + 1, the curve of the QStash documentation.

    >>> [default_delay_ms(retried) // 1000 for retried in range(5)]
    [12, 148, 1808, 22026, 86400]
    """
    n = retried + 1
    return _CAP_MS if n > _LAST_BELOW_CAP else round(math.exp(_CURVE * n) * 1000)


def next_delay_ms(retried: int, expression: RetryDelay | None, retry_after_ms: int | None) -> int:
    """The delay before the next attempt when `retried` retries were already made (0 after the first attempt).

    `retry_after_ms` is what the endpoint asked for, negative meaning at once; beyond one day it is ignored
    and the sender's expression or else the default curve applies.
    """
    if retry_after_ms is not None and retry_after_ms <= _CAP_MS:
        return max(0, retry_after_ms)
    if expression is not None:
        return expression.delay_ms(retried)
    return default_delay_ms(retried)

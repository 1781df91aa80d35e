"""Waiting for what must happen, on a machine that is busy with other things."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = 120


async def until(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]],
    otherwise: Callable[[], str] | str,
    *,
    within_s: float = PATIENCE_S,
) -> None:
    """Return as soon as the condition holds; fail with `otherwise` when it does not in time."""
    deadline = time.monotonic() + within_s
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        if time.monotonic() >= deadline:
            raise AssertionError(otherwise if isinstance(otherwise, str) else otherwise())
        await asyncio.sleep(0.005)

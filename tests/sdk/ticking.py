"""Schedules that fire at the next full minute, made by both clients."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from tests.sdk.clients import DEFAULT_USER, KINDS, Clients
from tests.sdk.endpoint import Endpoint, an_endpoint

_MINUTE_S = 60
#: Time enough to make the schedules before their minute has come.
_AHEAD_S = 5


class Ticking(NamedTuple):
    """For each kind of client the schedule it made and where that sends to. What sends to `silent` must not."""

    token: str
    tick_at: int
    label: str
    schedules: Mapping[str, str]
    endpoints: Mapping[str, Endpoint]
    silent: Endpoint


@asynccontextmanager
async def ticking_schedules(clients: Clients) -> AsyncIterator[Ticking]:
    token, receiver, label = DEFAULT_USER.token, DEFAULT_USER.receiver, "ticking"
    async with an_endpoint(receiver) as one, an_endpoint(receiver) as two, an_endpoint(receiver) as silent:
        endpoints = dict(zip(KINDS, (one, two), strict=True))
        tick_s = (int(time.time() + _AHEAD_S) // _MINUTE_S + 1) * _MINUTE_S
        # Once a year, so that there is one run to look at however long the other tests take.
        cron = f"{datetime.fromtimestamp(tick_s, UTC):%M %H %d %m} *"
        schedules = {}
        for kind, endpoint in endpoints.items():
            client = clients.of(kind, token)
            schedules[kind] = await client.schedule.create(
                destination=endpoint.url,
                cron=cron,
                body="tick",
                method="PUT",
                headers={"X-A": "b"},
                label=label,
            )
            paused = await client.schedule.create(destination=silent.url, cron=cron)
            await client.schedule.pause(paused)
            deleted = await client.schedule.create(destination=silent.url, cron=cron)
            await client.schedule.delete(deleted)
        yield Ticking(token, tick_s * 1000, label, schedules, endpoints, silent)

"""A relay that dies where it is told to: the parts of `relay serve` put together in the same way, but watched.

`python -m tests.crash.doomed --database URL [--at STEP] [--nth N] [--trouble KIND] [--poison TEXT] [--rate N]`,
with the environment of `relay serve`. The N-th time it reaches a step of `doom.STEPS` it kills itself with SIGKILL,
or, with a trouble of `watched.Trouble`, that begins; SIGUSR1 makes it begin and SIGUSR2 end at any time. The
troubles `ahead` and `behind` are of its clock: somebody sets it by an hour, and back when they end. With a poison
it kills itself whenever it is about to send a request that contains TEXT.

Its clock goes `rate` times as fast as the machine's, and agrees with it at the instant `--epoch` (Unix ms), so that
every start on the same epoch continues the same time. Leases, retry delays, schedules and retention then come to
pass in a fraction of their time; only what the relay measures with its event loop (network timeouts) does not.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from inspect import iscoroutinefunction
from typing import Any, cast

from relay import greeting, main
from relay.config import Config, load
from relay.domain.delivery import Attempt, Change, Settlement
from relay.domain.errors import Unavailable
from relay.domain.message import Message, MessageId, TenantId
from relay.engine.engine import Sends
from relay.log import BridgeHandler, StreamLog
from relay.wire.outbound import Outgoing
from storage.protocol import Claimed, ClaimTerms, Firing, Published, Retention, Storage, When
from tests.crash import watched, watched_postgres
from tests.crash.doom import STEPS, Doom, die
from tests.crash.watched import Trouble

#: How far off the clock is while it is in trouble.
STEPS_MS = {"ahead": 3_600_000, "behind": -3_600_000}


class FastClock:
    """`rate` ms for each of the machine's since `epoch`."""

    def __init__(self, epoch: int, rate: int) -> None:
        self._epoch = epoch
        self._rate = rate

    def now(self) -> int:
        return self._epoch + (time.time_ns() - self._epoch * 1_000_000) * self._rate // 1_000_000

    async def wait(self, event: asyncio.Event, until: int | None) -> bool:
        seconds = None if until is None else max(0, until - self.now()) / self._rate / 1000
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await event.wait()
        return event.is_set()


class SteppedClock(FastClock):
    """One that somebody sets, by `step_ms`, while it goes."""

    step_ms = 0

    def now(self) -> int:
        return super().now() + self.step_ms


class DoomedStorage:
    """Storage whose callers may not live to see the answer, or get none."""

    def __init__(self, storage: Storage, doom: Doom, trouble: Trouble) -> None:
        self._storage = storage
        self._doom = doom
        self._trouble = trouble

    def __getattr__(self, name: str) -> Any:
        """What is not doomed: the verbs that only ask, and those of the start."""
        answer = getattr(self._storage, name)
        if not iscoroutinefunction(answer) or name == "close":
            return answer

        async def ask(*arguments: Any, **others: Any) -> Any:
            self._need_storage()
            return await answer(*arguments, **others)

        return ask

    def _need_storage(self) -> None:
        if self._trouble.away:
            raise Unavailable("the storage is away", retry_after_s=1)

    async def publish(
        self, messages: Sequence[Message], *, now: int, claim: ClaimTerms | None = None
    ) -> Published:
        self._need_storage()
        with self._doom.during("publish"):
            published = await self._storage.publish(messages, now=now, claim=claim)
        self._doom.reached("publish", "told")
        return published

    async def claim(self, terms: ClaimTerms, *, now: When, after: Sequence[Settlement] = ()) -> Claimed:
        verbs = _verbs_of(after) if after else []
        self._need_storage()
        with self._doom.during("claim", *verbs):
            claimed = await self._storage.claim(terms, now=now, after=after)
        for verb in verbs:
            self._doom.reached(verb, "told")
        if claimed.claims:
            self._doom.reached("claim", "told")
        return claimed

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[MessageId]:
        verbs = _verbs_of(settlements)
        self._need_storage()
        with self._doom.during(*verbs):
            refused = await self._storage.settle(settlements)
        for verb in verbs:
            self._doom.reached(verb, "told")
        return refused

    async def fire(self, firing: Firing, *, now: int) -> bool:
        self._need_storage()
        with self._doom.during("fire"):
            won = await self._storage.fire(firing, now=now)
        self._doom.reached("fire", "told")
        return won

    async def redrive(self, tenant: TenantId, pairs: Any, *, now: int) -> Sequence[MessageId]:
        self._need_storage()
        with self._doom.during("redrive"):
            ids = await self._storage.redrive(tenant, pairs, now=now)
        self._doom.reached("redrive", "told")
        return ids

    async def prune(self, retention: Retention, *, now: int, limit: int) -> int:
        self._need_storage()
        with self._doom.during("prune"):
            rows = await self._storage.prune(retention, now=now, limit=limit)
        if rows:
            self._doom.reached("prune", "told")
        return rows


def _verbs_of(settlements: Sequence[Settlement]) -> list[str]:
    changes = {settlement.change for settlement in settlements}
    verbs = ["settle"]
    verbs += ["bury"] if Change.FAILED in changes else []
    verbs += ["hand_back"] if Change.RELEASED in changes else []
    return verbs


class DoomedSender:
    """Sends what it lives to send."""

    def __init__(self, sender: Sends, doom: Doom, poison: str | None) -> None:
        self._sender = sender
        self._doom = doom
        self._poison = None if poison is None else poison.encode()

    async def send(self, outgoing: Outgoing, *, timeout_ms: int, keep_bytes: int | None = None) -> Attempt:
        if self._poison is not None and self._poison in outgoing.head + outgoing.body:
            die()
        self._doom.reached("send", "asked")
        attempt = await self._sender.send(outgoing, timeout_ms=timeout_ms, keep_bytes=keep_bytes)
        self._doom.reached("send", "told")
        return attempt


class DoomedRelay(main.Relay):
    """The relay, with a sender it may not survive."""

    def __init__(self, *parts: Any, doom: Doom, poison: str | None, **others: Any) -> None:
        super().__init__(*parts, **others)
        self._engine._sender = DoomedSender(self._sender, doom, poison)


async def run(arguments: argparse.Namespace, config: Config) -> int:
    """As `relay.main.run`."""
    told_to_stop = main.hear_signals()
    trouble = Trouble(arguments.trouble)
    doom = Doom(arguments.at, arguments.nth, die if arguments.trouble is None else trouble.begin)
    watched.watch(doom, trouble)
    watched_postgres.watch(doom)
    clock = SteppedClock(arguments.epoch, arguments.rate)
    log = StreamLog(now=clock.now)
    loop = asyncio.get_running_loop()

    def begin() -> None:
        trouble.begin()
        clock.step_ms = STEPS_MS.get(arguments.trouble, 0)
        log.warning("trouble.began")

    def end() -> None:
        trouble.end()
        clock.step_ms = 0
        log.warning("trouble.ended")

    loop.add_signal_handler(signal.SIGUSR1, begin)
    loop.add_signal_handler(signal.SIGUSR2, end)
    logging.basicConfig(handlers=[BridgeHandler(log)], level=logging.WARNING, force=True)
    storage = cast(Storage, DoomedStorage(await main.open_storage(config.database_url), doom, trouble))
    try:
        credentials = await main.credentials_for("serve", storage, config, now=clock.now())
        relay = DoomedRelay(config, storage, clock=clock, log=log, doom=doom, poison=arguments.poison)
        url = await relay.start()
        print(greeting.text("serve", url, credentials, command=sys.argv[0]), flush=True)
        await told_to_stop.wait()
        await relay.stop()
    finally:
        await storage.close()
        log.close()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.doomed")
    parser.add_argument("--database", required=True)
    parser.add_argument("--port", default="0")
    parser.add_argument("--at", choices=STEPS, metavar="STEP")
    parser.add_argument("--nth", type=int, default=1)
    parser.add_argument("--poison")
    parser.add_argument("--trouble", choices=("full", "readonly", "away", *STEPS_MS))
    parser.add_argument("--rate", type=int, default=1)
    parser.add_argument("--epoch", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    flags = {"database_url": given.database, "port": given.port}
    sys.exit(main.run_loop(run(given, load(os.environ, flags=flags))))

"""One of several processes of a relay: the program that their parent starts."""

import asyncio
import contextlib
import dataclasses
import os
import sys
from pathlib import Path

import msgspec

from relay.greeting import Mode
from relay.main import (
    Relay,
    clock_for,
    configuration,
    ending,
    hear_signals,
    logging_to,
    opened,
    run_loop,
    stop,
)
from relay.metrics import SHARES
from relay.peers import Peers
from relay.pulse import ANSWER, STARTED


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What one of several processes is to be: its number, the port of all, and the directory they meet in."""

    mode: Mode
    flags: dict[str, str]
    number: int
    port: int
    directory: str


def main() -> int:
    """Be what the first line of standard input says, until told to stop; the exit status."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    return ending(lambda: run_loop(_serve(order)))


async def _serve(order: Order) -> int:
    """Serve until told to stop, or until there is no parent any more. Only the parent ends anything at once.

    What the parent asks is answered by the loop that everything else here runs in: no answer means it is stuck.
    """
    told_to_stop = hear_signals(again=lambda: None)
    stdin = sys.stdin.fileno()
    loop = asyncio.get_running_loop()

    def say(line: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), line)

    def hear_parent() -> None:
        if os.read(stdin, 65_536):
            say(ANSWER)
        else:  # it has gone
            loop.remove_reader(stdin)
            told_to_stop.set()

    loop.add_reader(stdin, hear_parent)
    config = dataclasses.replace(configuration(order.mode, order.flags), port=order.port)
    clock = clock_for(config.database_url)
    with logging_to(config, clock) as log:
        async with opened(config, clock, log) as storage:
            peers = Peers(Path(order.directory), number=order.number, count=config.workers, summed=SHARES)
            relay = Relay(config, storage, clock=clock, log=log, peers=peers)
            url = await relay.start()
            log.info("worker.started", worker=order.number, url=url)
            say(STARTED)
            await told_to_stop.wait()
            await stop(relay, log)
    return 0


if __name__ == "__main__":
    sys.exit(main())

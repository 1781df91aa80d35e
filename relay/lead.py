"""The parent of a relay of several processes: it reserves the port, sets up accounts, and sees to the processes."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

import msgspec

from relay.config import Config
from relay.greeting import Mode
from relay.main import (
    binding,
    clock_for,
    credentials_for,
    free_address,
    greet,
    hear_signals,
    logging_to,
    opened,
    url_of,
    warn_of_few_open_files,
    warn_of_replaced_tokens,
)
from relay.meeting import meeting_place
from relay.metrics import Metrics
from relay.peers import tell_of_parent
from relay.worker import Order
from relay.workers import CannotStart, Workers

#: What a process may take to end beside finishing its deliveries. Whoever started this relay must be more patient:
#: deploy/ allows five seconds more.
CLOSING_MS = 15_000
#: A process is killed when it was silent for so long, or for as long as a lease if that is shorter. What it had in
#: flight is taken over when its lease is over, killed or not. Whoever asks for liveness must be more patient.
LONGEST_SILENCE_MS = 30_000


async def lead(mode: Mode, config: Config, flags: Mapping[str, str]) -> int:
    """Have `config.workers` processes serve one port until SIGTERM or SIGINT; a second signal exits at once.

    Accounts are set up, and credentials told, here and once. The database is not needed after that.
    """
    led: list[Workers] = []

    def end_at_once() -> None:
        for workers in led:
            workers.kill()
        os._exit(1)

    told_to_stop = hear_signals(again=end_at_once)
    clock = clock_for(config.database_url)
    with (
        logging_to(config, clock) as log,
        reserved(config.host, config.port) as port,
        meeting_place() as (directory, kept),
    ):
        metrics = Metrics()

        def order(number: int) -> bytes:
            return msgspec.json.encode(
                Order(mode=mode, flags=dict(flags), number=number, port=port, directory=str(directory))
            )

        def count_loss() -> None:
            metrics.worker_restarts.inc()
            with contextlib.suppress(OSError):  # a full disk must not keep anybody from being replaced
                tell_of_parent(directory, metrics.render_of_parent())

        workers = Workers(
            [sys.executable, "-P", "-m", "relay.worker"],
            count=config.workers,
            order=order,
            silence_ms=min(config.lease_ms, LONGEST_SILENCE_MS),
            patience_ms=config.shutdown_timeout_ms + CLOSING_MS,
            clock=clock,
            log=log,
            on_loss=count_loss,
            inherited=(kept,),
        )

        led.append(workers)
        ended_in_time = True
        try:
            warn_of_few_open_files(config, log)
            async with opened(config, clock, log) as storage:
                credentials = await credentials_for(mode, storage, config, now=clock.now())
                warn_of_replaced_tokens(credentials, log)
                if await _unless(told_to_stop, workers.start()):
                    url = url_of(config.host, port)
                    await greet(mode, url, config.host, credentials, storage, clock)
                    log.info("relay.started", url=url, workers=config.workers)
            await told_to_stop.wait()
            log.info("relay.stopping")
        except CannotStart as problem:
            return problem.status if problem.status > 0 else 1
        finally:
            ended_in_time = await workers.stop()
        log.info("relay.stopped")
    return 0 if ended_in_time else 1


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether the work came to its end before the event was set; if not, it is given up."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait((task,))
        return False
    task.result()
    return True


@contextlib.contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """Keep a port (0: a free one) for processes that will share it; raises `ConfigError` when it cannot be had.

    The socket is bound and never listens, so that no connection ends up here.
    """
    with contextlib.ExitStack() as kept:
        with binding(host, port):
            family, address = free_address(host, port)
            shared = kept.enter_context(socket.socket(family, socket.SOCK_STREAM))
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind(address)
        yield address[1]

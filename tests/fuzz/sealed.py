"""A relay that can be told to call anything, and calls one address: a receiver of its own.

`python -m tests.fuzz.sealed` is `relay dev` on a free port, put together in the same way, but for what it sends
with. It prints its URL, the receiver's and a token, one a line. Three things keep it from the rest of the world,
each of them enough: it looks no name up, it makes no socket for any other address, and the interpreter refuses
either to anybody in the process. Where that last one had to, the others were not enough: an error in the log.
"""

import asyncio
import socket
import sys
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from relay import main
from relay.clock import SystemClock
from relay.config import Config
from relay.engine.egress import Egress, Refused
from relay.engine.resolver import Resolver
from relay.engine.sender import Sender
from relay.log import Log

_HOST = "127.0.0.1"
#: What a Python program does to reach another, or to learn where it is.
_REACHING = frozenset(
    {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.getnameinfo"}
    | {"socket.gethostbyname", "socket.gethostbyaddr"}
)


class OnlyReceiver(Egress):
    """Refuses every address but the receiver's."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._receiver = (_HOST, port)

    def socket(self, info: Any) -> socket.socket:
        """As `Egress.socket`; of what that refuses, only the receiver is not."""
        if info[4] != self._receiver:
            raise Refused(f"{info[4][0]} is outside, and this relay is sealed")
        return socket.socket(*info[:3])


def look_up_nothing(host: str) -> Sequence[str]:
    raise Refused(f"{host} is not looked up, this relay is sealed")


def seal_process(port: int, log: Log) -> None:
    """From here on, for as long as the process lives; what is refused is an error in the log."""

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        if event in _REACHING and not (event == "socket.connect" and arguments[1] == (_HOST, port)):
            log.error("seal.broken", reached=event, address=repr(arguments[1:] or arguments))
            raise Refused(f"{event}: this process is sealed")

    sys.addaudithook(refuse)


class SealedRelay(main.Relay):
    """The relay, with a sender that reaches nobody but the receiver."""

    def __init__(self, *parts: Any, port: int, **others: Any) -> None:
        super().__init__(*parts, **others)
        self._sender = self._engine._sender = Sender(
            egress=OnlyReceiver(port), clock=self._clock, resolver=Resolver(lookup=look_up_nothing)
        )


async def run(config: Config) -> int:
    """As `relay.main.run`."""
    told_to_stop = main.hear_signals()
    clock = SystemClock()
    receiver = await receiving()
    port = receiver.addresses[0][1]
    with main.logging_to(config, clock) as log:
        seal_process(port, log)
        async with main.opened(config, clock, log) as storage:
            credentials = await main.credentials_for("dev", storage, config, now=clock.now())
            relay = SealedRelay(config, storage, clock=clock, log=log, port=port)
            url = await relay.start()
            print(url, main.url_of(_HOST, port), credentials.token, sep="\n", flush=True)
            await told_to_stop.wait()
            await relay.stop()
    await receiver.cleanup()
    return 0


async def receiving() -> web.AppRunner:
    """The receiver: answers with the status that its path names."""

    async def receive(request: web.Request) -> web.Response:
        await request.read()
        status = request.path.strip("/")
        return web.Response(status=int(status) if status in ("404", "489", "500") else 200, text="received")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, _HOST, 0).start()
    return runner


if __name__ == "__main__":
    # Not uvloop: the interpreter sees only the sockets of its own library.
    sys.exit(asyncio.run(run(main.configuration("dev", {"port": "0"}))))

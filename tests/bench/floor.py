"""The stock floor: what accepting a message and then forwarding it costs with plain aiohttp and nothing else.

It answers a publish at once, with an id, and forwards the body in a task. It stores nothing, signs nothing,
retries nothing and remembers nothing: a relay that costs less CPU than this spends its features out of savings.
"""

import asyncio
import uuid

import uvloop
from aiohttp import ClientSession, TCPConnector, web

_SESSION = web.AppKey("session", ClientSession)
_TASKS = web.AppKey("tasks", set[asyncio.Task[None]])

#: As many deliveries at once as the relay allows by default. aiohttp's own default of 100 makes the rest queue.
_CONNECTIONS = 1000


async def _publish(request: web.Request) -> web.Response:
    body = await request.read()
    task = asyncio.create_task(
        _forward(request.app[_SESSION], request.match_info["url"], request.content_type, body)
    )
    request.app[_TASKS].add(task)
    task.add_done_callback(request.app[_TASKS].discard)
    return web.json_response({"messageId": f"msg_{uuid.uuid4().hex}"})


async def _forward(session: ClientSession, url: str, content_type: str, body: bytes) -> None:
    async with session.post(url, data=body, headers={"Content-Type": content_type}) as response:
        await response.read()


async def _readyz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ready"})


async def _serve() -> None:
    app = web.Application()
    app[_TASKS] = set()
    app.add_routes([web.post("/v2/publish/{url:.+}", _publish), web.get("/readyz", _readyz)])
    async with ClientSession(connector=TCPConnector(limit=_CONNECTIONS)) as session:
        app[_SESSION] = session
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        print(f"listening on http://{host}:{port}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve())

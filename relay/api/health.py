"""Whether the relay is up, whether it can work, and its numbers: for machines, without a token."""

from aiohttp import web

from relay.api.answer import Answer, error_answer, json_answer
from relay.api.services import Services


async def healthz(services: Services, request: web.Request) -> Answer:
    """Answers as long as the process does, for all of its siblings; storage is not asked."""
    silent = await services.alive()
    if silent:
        return error_answer(503, "not healthy: " + "; ".join(silent))
    return json_answer({"status": "ok"})


async def readyz(services: Services, request: web.Request) -> Answer:
    problems = await services.ready()
    if problems:
        return error_answer(503, "not ready: " + "; ".join(problems))
    return json_answer({"status": "ready"})


async def metrics(services: Services, request: web.Request) -> Answer:
    text = await services.metrics()
    return Answer(status=200, body=text, content_type="text/plain; version=0.0.4; charset=utf-8")

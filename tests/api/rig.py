"""A relay's API on a real socket over real storage, without an engine; every answer is held to openapi.yaml."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web
from msgspec.structs import replace
from multidict import CIMultiDict
from yarl import URL

from relay.api.app import NOT_OFFERED, build_app
from relay.api.auth import Authenticator, token_hash
from relay.api.bodies import Bodies
from relay.api.connection import ApiRunner, Bounds
from relay.api.publish import PREFIX
from relay.api.refusals import Refusals
from relay.api.services import Services
from relay.clock import FakeClock
from relay.domain.cron import Cron
from relay.domain.delivery import Attempt, released, settle
from relay.domain.message import Message, TenantId
from relay.domain.schedule import Run, RunOutcome, scheduled_messages
from relay.domain.tenant import Limits, Principal, Tenant
from relay.ids import Ids
from relay.wire.json import message_id_text
from relay.wire.target import Refusal
from storage.protocol import ClaimTerms, Firing, Receipt, Storage
from storage.sqlite import open_sqlite
from tests.api.specification import ALIASES, Specification
from tests.builders import OTHER_TENANT, TENANT

TOKEN = "eyJVc2VySUQiOiJ0ZXN0cyJ9+/="
READ_ONLY = "only-for-reading"
FOREIGN = "of-another-account"
DISABLED = "of-a-disabled-account"

AUTHORIZATION = f"Bearer {TOKEN}"

_DISABLED_TENANT = TenantId(1_000)

KEYS = {"current": f"sig_{'current':0<28}", "next": f"sig_{'next':0<28}"}


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error answer, which has nothing else in it."""
        (name,) = self.json
        assert name == "error"
        text = self.json["error"]
        assert isinstance(text, str)
        assert text
        return text


class Recorder:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, object]]] = []

    def info(self, event: str, /, **fields: object) -> None:
        self.lines.append((event, fields))

    def warning(self, event: str, /, **fields: object) -> None:
        self.lines.append((event, fields))

    def error(self, event: str, /, *, exc: BaseException | None = None, **fields: object) -> None:
        self.lines.append((event, {**fields, "exc": exc}))


class Doorway:
    """A publisher that stores what it is given. `fault`, when set, is raised instead; a closed `gate` is waited
    at."""

    def __init__(self, storage: Storage, clock: FakeClock) -> None:
        self._storage = storage
        self._clock = clock
        self.calls: list[Sequence[Message]] = []
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def publish(self, messages: Sequence[Message]) -> Sequence[Receipt]:
        if self.fault is not None:
            raise self.fault
        self.calls.append(messages)
        await self.gate.wait()
        return (await self._storage.publish(messages, now=self._clock.now())).receipts


async def _three_live() -> bytes:
    return b"relay_messages_live 3.0\n"


class Rig:
    """The server and a client of it."""

    def __init__(
        self,
        storage: Storage,
        session: aiohttp.ClientSession,
        publishing_session: aiohttp.ClientSession,
        specification: Specification,
        *,
        limits: Limits,
        bodies: Bodies,
        trusted_proxies: Sequence[str],
        walk: int,
    ) -> None:
        self.storage = storage
        self.clock = FakeClock()
        self.publisher = Doorway(storage, self.clock)
        self.log = Recorder()
        self.problems: list[str] = []
        self.silent: list[str] = []
        self.stopping = False
        #: Of addresses that may not be called.
        self.refusal: Refusal = lambda address: None
        self.violations: list[str] = []
        self.port = 0
        self.server: web.Server | None = None
        self.runner: ApiRunner | None = None
        #: Publishes that were answered before there was a router.
        self.by_lane = 0
        self._session = session
        self._publishing_session = publishing_session
        self.specification = specification
        fresh_keys = iter(f"sig_fresh{number:015}" for number in range(100))
        self.services = Services(
            storage=storage,
            publisher=self.publisher,
            authenticator=Authenticator(storage, self.clock, limits, self.log),
            bodies=bodies,
            clock=self.clock,
            ids=Ids(),
            limits=limits,
            log=self.log,
            refusals=Refusals(self.log, self.clock),
            alive=self._alive,
            ready=self._ready,
            metrics=_three_live,
            generate_key=lambda: next(fresh_keys),
            stopping=lambda: self.stopping,
            trusted_proxies=tuple(ip_network(network) for network in trusted_proxies),
            walk=walk,
            refusal=lambda address: self.refusal(address),
        )

    async def call(
        self,
        method: str,
        target: str,
        *,
        body: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Reply:
        """One request; `target` goes out as it is written."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        url = URL(f"http://127.0.0.1:{self.port}{target}", encoded=True)
        # A connection leaves the fast lane with the first request that is none of its: publishes have their own.
        session = self._publishing_session if target.startswith(PREFIX) else self._session
        data = BytesIO(body) if isinstance(body, bytes) else body
        async with session.request(method, url, data=data, headers=sent, allow_redirects=False) as response:
            reply = Reply(response.status, response.headers, await response.read())
        self._check_lane(reply)
        return reply

    async def call_json(
        self,
        method: str,
        target: str,
        body: object,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Reply:
        return await self.call(
            method,
            target,
            body=json.dumps(body).encode(),
            headers={**(headers or {}), "Content-Type": "application/json"},
            token=token,
        )

    async def publish(
        self,
        destination: str = "https://example.com/hook",
        *,
        body: bytes = b"hello",
        headers: Mapping[str, str] | None = None,
        token: str = TOKEN,
    ) -> str:
        """The id of a message that was accepted."""
        reply = await self.call("POST", f"/v2/publish/{destination}", body=body, headers=headers, token=token)
        assert reply.status == 200, reply.body
        message_id = reply.json["messageId"]
        assert isinstance(message_id, str)
        return message_id

    async def show(self, message_id: str, *, token: str = TOKEN) -> Any:
        reply = await self.call("GET", f"/v2/messages/{message_id}", token=token)
        assert reply.status == 200, reply.body
        return reply.json

    async def attempt(
        self,
        status: int | None = 200,
        *,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
        error: str | None = None,
    ) -> int:
        """Attempt everything that is due, with this outcome; how many there were."""
        now = self.clock.now()
        claimed = await self.storage.claim(ClaimTerms(limit=1000, lease_ms=30_000), now=now)
        settlements = [
            settle(
                claim,
                Attempt(
                    started_at=now, ended_at=now + 5, status=status, headers=headers, body=body, error=error
                ),
                next_id=self.services.ids.next,
            )
            for claim in claimed.claims
        ]
        assert list(await self.storage.settle(settlements)) == []
        self.clock.advance(5)
        return len(settlements)

    async def hand_back(self) -> None:
        """Take everything that is due and give it back unsent, as a shutdown does."""
        now = self.clock.now()
        claimed = await self.storage.claim(ClaimTerms(limit=1000, lease_ms=30_000), now=now)
        assert claimed.claims
        await self.storage.settle([released(claim, now=now) for claim in claimed.claims])

    async def schedule(
        self,
        destination: str = "https://example.com/hook",
        *,
        cron: str = "*/10 * * * *",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        token: str = TOKEN,
    ) -> str:
        """The id of a schedule that was accepted."""
        reply = await self.call(
            "POST",
            f"/v2/schedules/{destination}",
            body=body,
            headers={**(headers or {}), "Upstash-Cron": cron},
            token=token,
        )
        assert reply.status == 200, reply.body
        assert set(reply.json) == {"scheduleId"}
        schedule_id = reply.json["scheduleId"]
        assert isinstance(schedule_id, str)
        return schedule_id

    async def show_schedule(self, schedule_id: str, *, token: str = TOKEN) -> Any:
        reply = await self.call("GET", f"/v2/schedules/{schedule_id}", token=token)
        assert reply.status == 200, reply.body
        return reply.json

    async def spoil_cron(self, schedule_id: str) -> None:
        """Let the schedule's time zone be abolished."""
        view = await self.storage.schedule(TENANT, schedule_id)
        assert view is not None
        spoilt = replace(view.schedule, cron="CRON_TZ=Nowhere/Land * * * * *")
        await self.storage.put_schedule(spoilt, limit=100)

    async def put_group(self, *urls: str, name: str = "group", token: str = TOKEN, **named: str) -> None:
        """Put these endpoints into a URL group; `named` are URLs by the names of their endpoints."""
        endpoints: list[dict[str, str]] = [{"url": url} for url in urls]
        endpoints += [{"name": one, "url": url} for one, url in named.items()]
        reply = await self.call_json(
            "POST", f"/v2/topics/{name}/endpoints", {"endpoints": endpoints}, token=token
        )
        assert reply.status == 200, reply.body

    async def fire(self, schedule_id: str, *, error: str | None = None) -> str | None:
        """Let a tick pass; the id of its first message, or None when it failed with `error`."""
        view = await self.storage.schedule(TENANT, schedule_id)
        assert view is not None
        assert view.schedule.next_at is not None
        self.clock.advance(max(0, view.schedule.next_at - self.clock.now()))
        now = self.clock.now()
        group = await self.storage.url_group(TENANT, view.schedule.draft.url_group or "")
        messages = (
            scheduled_messages(view.schedule, group=group, next_id=self.services.ids.next, now=now)
            if error is None
            else ()
        )
        run = Run(
            tick_at=view.schedule.next_at,
            fired_at=now,
            outcome=RunOutcome.FIRED if error is None else RunOutcome.FAILED,
            message_ids=tuple(message.id for message in messages),
        )
        assert await self.storage.fire(
            Firing(
                schedule=view.schedule,
                runs=(run,),
                messages=messages,
                next_at=Cron.parse(view.schedule.cron).next_after(now),
                error=error,
            ),
            now=now,
        )
        return message_id_text(messages[0].id) if messages else None

    async def dead_letter(
        self,
        destination: str = "https://example.com/hook",
        *,
        body: bytes = b"hello",
        headers: Mapping[str, str] | None = None,
        token: str = TOKEN,
    ) -> tuple[str, str]:
        """A message that was refused with `404 Not Found`: its id and its dead letter's."""
        message_id = await self.publish(
            destination, body=body, headers={**(headers or {}), "Upstash-Retries": "0"}, token=token
        )
        await self.attempt(404, headers=(("content-type", "text/plain"),), body=b"404 Not Found")
        listed = (await self.call("GET", f"/v2/dlq?messageId={message_id}", token=token)).json
        (entry,) = listed["messages"]
        dlq_id = entry["dlqId"]
        assert isinstance(dlq_id, str)
        return message_id, dlq_id

    async def dead_letter_ids(self, *, token: str = TOKEN) -> list[str]:
        listed = (await self.call("GET", "/v2/dlq", token=token)).json
        return [entry["dlqId"] for entry in listed["messages"]]

    async def pages(self, member: str, path: str) -> list[list[Any]]:
        """What a list of many pages has under `member`, page by page; `path` has a query, but no cursor."""
        pages: list[list[Any]] = []
        cursor: str | None = ""
        while cursor is not None:
            reply = await self.call("GET", f"{path}&cursor={cursor}")
            pages.append(reply.json[member])
            cursor = reply.json.get("cursor")
        return pages

    @property
    def connections(self) -> int:
        """How many the server has open."""
        assert self.server is not None
        return len(self.server.connections)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def raw_call(
        self, method: str, target: bytes, *, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> Reply:
        """One request with a target, and header values, of any bytes."""
        fields = [
            (b"Host", b"relay"),
            (b"Authorization", b"Bearer " + TOKEN.encode()),
            (b"Content-Length", str(len(body)).encode()),
            *headers,
        ]
        head = b"".join(b"%s: %s\r\n" % field for field in fields)
        reader, writer = await self.connect()
        try:
            writer.write(b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method.encode(), target, head, body))
            reply = await next_reply(reader, method)
        finally:
            writer.close()
        self._check_lane(reply)
        return reply

    @property
    def refusals(self) -> list[dict[str, object]]:
        """What the log says of requests that were refused; that it says anything else is a failure."""
        assert {event for event, _ in self.log.lines} <= {"request.refused"}, self.log.lines
        return [fields for _, fields in self.log.lines]

    async def _alive(self) -> Sequence[str]:
        return self.silent

    async def _ready(self) -> Sequence[str]:
        return self.problems

    def _check_lane(self, reply: Reply) -> None:
        """Hold an answer that aiohttp has not seen, and therefore not signed, to the specification."""
        if "Server" not in reply.headers:
            self.by_lane += 1
            self.violations += self.specification.violations(
                "POST", f"{PREFIX}{{destination}}", reply.status, reply.headers["Content-Type"], reply.body
            )

    async def _check(self, request: web.Request, response: web.StreamResponse) -> None:
        """Hold an answer to the specification."""
        assert isinstance(response, web.Response)
        assert isinstance(response.body, bytes)
        resource = request.match_info.route.resource
        path = "" if resource is None else resource.canonical
        if path not in self.specification.document["paths"]:
            path = ALIASES.get(path, path.rstrip("/"))
        body, status = response.body, response.status
        if resource is None or path.removesuffix("/{rest}") in NOT_OFFERED:
            expected = (404, 405) if resource is None else (400,)
            if status not in expected or set(json.loads(body)) != {"error"}:
                self.violations.append(f"{request.method} {request.path}: {status} {body!r}")
            return
        method = "GET" if request.method == "HEAD" else request.method
        self.violations += self.specification.violations(
            method, path, status, response.headers["Content-Type"], body
        )


async def until(condition: Callable[[], bool]) -> None:
    """Let the server go on until the condition holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def next_reply(reader: asyncio.StreamReader, method: str = "POST") -> Reply:
    """The response to such a request, on a connection that may stay open."""
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").rstrip().split("\r\n")
        headers = CIMultiDict((name, value) for name, _, value in (line.partition(": ") for line in lines))
        length = 0 if method == "HEAD" else int(headers.get("Content-Length", "0"))
        body = await reader.readexactly(length)
    return Reply(int(status_line.split()[1]), headers, body)


@asynccontextmanager
async def running(
    path: Path,
    specification: Specification,
    *,
    limits: Limits | None = None,
    bodies: Bodies | None = None,
    trusted_proxies: Sequence[str] = (),
    walk: int = 1_000,
    lane: bool = True,
    bounds: Bounds = Bounds(),  # noqa: B008 - immutable
    max_closing_s: float = 5,
    backend: Callable[[str], Awaitable[Storage]] = open_sqlite,
) -> AsyncIterator[Rig]:
    """A rig whose violations fail the test at its end; `backend` opens its storage."""
    storage = await backend(str(path))
    try:
        await _furnish(storage)
        async with _client_session() as session, _client_session() as publishing_session:
            rig = Rig(
                storage,
                session,
                publishing_session,
                specification,
                limits=limits or Limits(),
                bodies=bodies or Bodies(),
                trusted_proxies=trusted_proxies,
                walk=walk,
            )
            app = build_app(rig.services)
            app.on_response_prepare.append(rig._check)
            runner = ApiRunner(
                app, services=rig.services, lane=lane, bounds=bounds, shutdown_timeout=max_closing_s
            )
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            rig.port = runner.addresses[0][1]
            rig.server = runner.server
            rig.runner = runner
            try:
                yield rig
            finally:
                await runner.cleanup()
            assert rig.violations == []
    finally:
        await storage.close()


def _client_session() -> aiohttp.ClientSession:
    """Sends what it is told to, and nothing of its own."""
    return aiohttp.ClientSession(
        skip_auto_headers=("Content-Type", "User-Agent", "Accept-Encoding", "Accept"), auto_decompress=False
    )


async def _furnish(storage: Storage) -> None:
    """Three accounts: the first has a full token and one that may only read, the last is disabled."""
    for tenant, user_id in ((TENANT, "tests"), (OTHER_TENANT, "others"), (_DISABLED_TENANT, "disabled")):
        await storage.put_tenant(
            Tenant(id=tenant, user_id=user_id, current_key=KEYS["current"], next_key=KEYS["next"]), now=0
        )
    for token, account, read_only in (
        (TOKEN, TENANT, False),
        (READ_ONLY, TENANT, True),
        (FOREIGN, OTHER_TENANT, False),
        (DISABLED, _DISABLED_TENANT, False),
    ):
        await storage.put_token(
            token_hash(token), Principal(tenant=TenantId(account), read_only=read_only), now=0
        )
    await storage.put_disabled(_DISABLED_TENANT, at=0)

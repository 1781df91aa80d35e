"""The composition root: configuration in, a running relay out. The only file that names a concrete backend."""

import asyncio
import contextlib
import errno
import logging
import os
import random
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from relay import accounts, greeting
from relay.accounts import Credentials
from relay.api.app import build_app
from relay.api.auth import Authenticator
from relay.api.bodies import Bodies
from relay.api.connection import ApiRunner
from relay.api.refusals import Refusals
from relay.api.services import Services
from relay.clock import Clock, SharedClock, SystemClock
from relay.config import Config, ConfigError, database_url, load
from relay.domain.errors import Unavailable
from relay.engine.egress import Egress
from relay.engine.engine import Engine
from relay.engine.janitor import Janitor
from relay.engine.scheduler import Scheduler
from relay.engine.sender import Sender
from relay.engine.service import Service
from relay.engine.signer import Signer
from relay.greeting import Mode
from relay.ids import Ids, random_name
from relay.log import BridgeHandler, Log, StreamLog
from relay.metrics import Metrics, depths
from relay.peers import Peers, Standing
from relay.question import Question
from signing import generate_key
from storage.copy import CannotCopy, Copied, refuse_unfinished
from storage.copy import copy as copy_all
from storage.postgres import open_postgres, open_postgres_accounts
from storage.protocol import Accounts, CannotOpen, Storage
from storage.sqlite import SqliteAccounts, file_of, open_accounts, open_sqlite

if TYPE_CHECKING:
    from storage.postgres.accounts import PostgresAccounts

T = TypeVar("T")

#: Development reaches what a laptop has: itself, its containers, its network.
_DEV_DEFAULTS = {
    "database_url": "sqlite://",
    "allow_networks": "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,"
    "100.64.0.0/10,fc00::/7,fe80::/10",
    "log_format": "text",
}
_POSTGRES = ("postgresql:", "postgres:")
#: What need not be said of where a database is.
_DEFAULTS = (("port", "5432"), ("schema", "relay"))
_BACKLOG = 1024
#: Files a process needs beside those of deliveries in flight: connections of publishers, the database, logs.
_OTHER_FILES = 256
#: How long `relay_ready` goes by what the last probe of readiness found out. Scrapes prove nothing themselves.
_PROOF_COUNTS_MS = 30_000
#: What a killed client or a stuck connection may hold up, once everything else has stopped.
_CLOSE_SECONDS = 2.0
#: How long one of several processes may take to look what is due, until it makes all of them unready.
_YOUNG_MS = 10_000


def main(mode: Mode, flags: Mapping[str, str]) -> int:
    """Run the relay until it is told to stop; the exit status. `flags` are those given, by field name."""
    return ending(lambda: run_loop(_run_as(mode, flags)))


#: What is said to the operator in one sentence, without a trace of where it came from.
PROBLEMS = (ConfigError, CannotOpen, CannotCopy, Unavailable, OSError)


def ending(program: Callable[[], int]) -> int:
    """The exit status of a program; what keeps it from starting is said in one sentence."""
    try:
        return program()
    except PROBLEMS as problem:
        print(f"relay: {problem}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


def _run_as(mode: Mode, flags: Mapping[str, str]) -> Coroutine[Any, Any, int]:
    config = configuration(mode, flags)
    _raise_open_files_limit()
    if config.workers == 1:
        return run(mode, config)
    from relay.lead import lead  # needs this module, and is needed by few

    return lead(mode, config, flags)


def configuration(mode: Mode, flags: Mapping[str, str]) -> Config:
    return load(os.environ, flags=flags, defaults=_DEV_DEFAULTS if mode == "dev" else None)


def _raise_open_files_limit() -> None:
    """Every delivery in flight is a connection; the usual soft limit of 1024 files is for users of `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def warn_of_few_open_files(config: Config, log: Log) -> None:
    """Deliveries that find no file descriptor are put off, and publishers that find none cannot connect."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = config.max_in_flight + _OTHER_FILES
    if limit != resource.RLIM_INFINITY and limit < needed:
        log.warning(
            "relay.few_open_files",
            limit=limit,
            needed=needed,
            hint="raise the limit (ulimit -n, LimitNOFILE) or lower RELAY_MAX_IN_FLIGHT",
        )


def run_command(program: Coroutine[Any, Any, T]) -> T:
    """What a command comes to that works on databases itself. SIGTERM ends it in order, as SIGINT does: nobody who
    shares a database takes it for one that is still at work."""

    async def told() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await program

    try:
        return run_loop(told())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def run_loop(program: Coroutine[Any, Any, T]) -> T:
    try:
        import uvloop
    except ImportError:  # not made for this platform
        return asyncio.run(program)
    return uvloop.run(program)


async def run(mode: Mode, config: Config) -> int:
    """Open, serve until SIGTERM or SIGINT, stop in order; a second signal exits at once."""
    told_to_stop = hear_signals()
    clock = clock_for(config.database_url)
    with logging_to(config, clock) as log:
        warn_of_few_open_files(config, log)
        # Before a database is made, or migrated, by a relay that will not serve it.
        with binding(config.host, config.port):
            free_address(config.host, config.port)
        async with opened(config, clock, log) as storage:
            credentials = await credentials_for(mode, storage, config, now=clock.now())
            warn_of_replaced_tokens(credentials, log)
            relay = Relay(config, storage, clock=clock, log=log)
            url = await relay.start()
            await greet(mode, url, config.host, credentials, storage, clock)
            log.info("relay.started", url=url)
            await told_to_stop.wait()
            await stop(relay, log)
    return 0


def warn_of_replaced_tokens(credentials: Credentials, log: Log) -> None:
    """Whoever has an older one is refused from now on, also by nodes that have run for long."""
    for setting in credentials.replaced:
        log.warning(
            "token.replaced",
            setting=setting,
            hint=f"{setting} was another one before, or a made one; clients that present that get 401 from now on",
        )


async def greet(
    mode: Mode, url: str, host: str, credentials: Credentials, storage: Storage, clock: Clock
) -> None:
    if mode == "serve":
        credentials = await accounts.to_tell(storage, credentials, clock=clock)
    print(greeting.text(mode, url, credentials, command=sys.argv[0]), flush=True)
    if mode == "dev" and greeting.is_exposed(host):
        print(greeting.EXPOSED.format(host=host), file=sys.stderr, flush=True)
    if mode == "serve":
        await accounts.remember_shown(storage, credentials)


async def stop(relay: "Relay", log: Log) -> None:
    log.info("relay.stopping", in_flight=relay.in_flight)
    await relay.stop()
    log.info("relay.stopped")


@contextlib.contextmanager
def logging_to(config: Config, clock: Clock) -> Iterator[Log]:
    log = StreamLog(now=clock.now, human=config.log_format == "text")
    logging.basicConfig(handlers=[BridgeHandler(log)], level=logging.WARNING, force=True)
    try:
        yield log
    finally:
        log.close()


@contextlib.asynccontextmanager
async def opened(config: Config, clock: Clock, log: Log) -> AsyncIterator[Storage]:
    try:
        storage = await open_storage(config.database_url, clock=clock, migrate=config.migrate)
    except Unavailable as problem:
        raise Unavailable(f"{problem} (set by RELAY_DATABASE_URL or --database)") from None
    try:
        await refuse_unfinished(storage)
        if versions := await storage.unknown_migrations():
            log.warning(
                "schema.newer",
                version=versions[-1],
                hint="a newer relay has migrated the database; what it added is ignored by this one",
            )
        yield storage
    finally:
        await storage.close()


def url_of(host: str, port: int) -> str:
    """Where whoever is on this machine reaches a relay that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def binding(host: str, port: int) -> Iterator[None]:
    """Say in one sentence why this address cannot be listened on; raises `ConfigError`."""
    try:
        yield
    except (OSError, UnicodeError) as problem:
        code = problem.errno if isinstance(problem, OSError) else None
        if code == errno.EADDRINUSE:
            reason = f"{host}:{port} is in use by another program; choose another with --port or RELAY_PORT"
        elif code in (errno.EACCES, errno.EPERM):
            reason = f"{host}:{port} needs privileges; choose another port with --port or RELAY_PORT"
        elif code == errno.EADDRNOTAVAIL or isinstance(problem, (socket.gaierror, UnicodeError)):
            reason = f'RELAY_HOST: "{host}" is not an address of this machine'
        else:
            reason = f"{host}:{port} cannot be listened on: {problem}"
        raise ConfigError(reason) from None


def free_address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """What can be bound for them now (port 0: a free one); raises `OSError`, also when the port is in use.

    A socket that shares its port would join another's. This one does not, and is gone when it has found out.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return family, probe.getsockname()


def migrate(flags: Mapping[str, str]) -> int:
    """Bring the database up to date, or create it; the exit status."""

    async def program(config: Config) -> int:
        storage = await open_storage(config.database_url)
        try:
            newer = await storage.unknown_migrations()
        finally:
            await storage.close()
        print("the database is up to date" + (", and more: a newer relay has migrated it" if newer else ""))
        return 0

    return ending(lambda: run_command(program(load(os.environ, flags=flags))))


def database(environment: Mapping[str, str], flags: Mapping[str, str]) -> str:
    """The name of the configured database, without a password."""
    return named(load(environment, flags=flags).database_url)


def administer(
    environment: Mapping[str, str],
    flags: Mapping[str, str],
    program: Callable[[Accounts, int], Coroutine[Any, Any, T]],
) -> T:
    """What `program` makes of the accounts of the configured database, and of the time there.

    Relays may run on the database meanwhile. Raises `PROBLEMS`, and what the program raises.
    """
    url = load(environment, flags=flags).database_url

    async def on_accounts() -> T:
        clock = clock_for(url)
        storage = await _open_accounts(url, clock)
        try:
            await refuse_unfinished(storage)
            return await program(storage, clock.now())
        finally:
            await storage.close()

    return run_command(on_accounts())


async def _open_accounts(url: str, clock: Clock) -> "PostgresAccounts | SqliteAccounts":
    if isinstance(clock, SharedClock):
        return await open_postgres_accounts(url, clock=clock)
    return await open_accounts(url)


def copy(
    source_url: str,
    target_url: str,
    *,
    progress: Callable[[str, int, int], None],
    starting_over: Callable[[], None],
    show: Callable[[Sequence[Copied]], None],
) -> int:
    """Carry everything from one database to another; 0 when both hold the same number of rows in the end.

    `progress` hears of the table, the rows of it that were dealt with, and of how many; `starting_over` that the
    source has changed since an earlier part of the copy; `show` of the end.
    """

    async def program() -> int:
        for flag, url in (("--from", source_url), ("--to", target_url)):
            _check_url(url, flag)
            _check_lasting(url, flag)
        if named(source_url) == named(target_url):
            raise CannotCopy("the source and the target are the same database")
        # The source is left as it is: not even its schema is brought up to date.
        async with (
            _whole(_existing(source_url), migrate=False) as source,
            _whole(target_url, migrate=True) as target,
        ):
            copied = await copy_all(
                source, target, name=named(source_url), progress=progress, starting_over=starting_over
            )
        show(copied)
        return 0 if all(one.source == one.target for one in copied) else 1

    return ending(lambda: run_command(program()))


@contextlib.asynccontextmanager
async def _whole(url: str, *, migrate: bool) -> AsyncIterator[Storage]:
    storage = await open_storage(url, migrate=migrate)
    try:
        yield storage
    finally:
        await storage.close()


def _check_lasting(url: str, flag: str) -> None:
    if url == "sqlite://":
        raise CannotCopy(
            f"{flag}: sqlite:// is gone when it is closed; name a file, such as sqlite:///relay.db"
        )


def _existing(url: str) -> str:
    """Opening a file makes it, and a mistyped source must not look like an empty one."""
    if url.startswith("sqlite:///") and not Path(path := url.removeprefix("sqlite:///")).exists():
        raise CannotCopy(f"there is no file {path}")
    return url


def named(url: str) -> str:
    """The database, without whoever may use it: the same name for the same one, and no password in it."""
    if not url.startswith(_POSTGRES):
        return str(file_of(url))
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2].removesuffix(":5432")
    shown = [
        (name, value)
        for name, value in parse_qsl(parts.query)
        if name in ("host", "port", "dbname", "database", "schema") and (name, value) not in _DEFAULTS
    ]
    return f"postgresql://{place}{parts.path}" + (f"?{urlencode(shown, safe='/')}" if shown else "")


def clock_for(url: str) -> SystemClock:
    """The clock of a relay on this database: the machine's, or one that agrees with all who share the database."""
    return SharedClock() if url.startswith(_POSTGRES) else SystemClock()


async def open_storage(url: str, *, clock: Clock | None = None, migrate: bool = True) -> Storage:
    """The backend that `url` names; raises `ConfigError` for one that does not exist.

    A `SharedClock` is set, and kept, by the clock of a database that is shared.
    """
    _check_url(url, "the URL of the database")
    if url.startswith(_POSTGRES):
        shared = clock if isinstance(clock, SharedClock) else None
        return await open_postgres(url, clock=shared, migrate=migrate)
    return await open_sqlite(url, migrate=migrate)


def _check_url(url: str, place: str) -> None:
    try:
        database_url(url)
    except ValueError as problem:
        raise ConfigError(f"{place}: {problem}") from None


class Relay:
    """One relay process: storage, engine and API, wired together. The caller owns the storage.

    With `peers` it shares its port with them, and answers for all of them.
    """

    def __init__(
        self, config: Config, storage: Storage, *, clock: Clock, log: Log, peers: Peers | None = None
    ) -> None:
        self._config = config
        self._storage = storage
        self._clock = clock
        self._log = log
        self._peers = peers
        self._stopping = False
        self._proof = Question(storage.ping, clock=clock)
        self._depths = Question(storage.stats, clock=clock)
        self._began_at = clock.now()
        self.metrics = Metrics()
        ids = Ids(node=storage.node, last=storage.last_id)
        egress = Egress(config.allow_networks)
        self._sender = Sender(
            egress=egress,
            clock=clock,
            connect_timeout_ms=config.connect_timeout_ms,
            max_response_bytes=config.max_response_bytes,
        )
        signer = Signer(storage, clock=clock, random_name=random_name)
        self._engine = Engine(
            storage,
            sender=self._sender,
            signer=signer,
            settings=config,
            clock=clock,
            ids=ids,
            log=log,
            metrics=self.metrics,
        )
        scheduler = Scheduler(
            storage,
            clock=clock,
            ids=ids,
            log=log,
            metrics=self.metrics,
            grace_ms=config.schedule_grace_ms,
            max_bytes=config.max_batch_bytes,
            random=random.random,
        )
        janitor = Janitor(
            storage,
            clock=clock,
            log=log,
            metrics=self.metrics,
            log_retention_ms=config.log_retention_ms,
            dlq_retention_ms=config.dlq_retention_ms,
            random=random.random,
        )
        self._service = Service(
            engine=self._engine, scheduler=scheduler, janitor=janitor, clock=clock, log=log
        )
        services = Services(
            storage=storage,
            publisher=self._engine,
            authenticator=Authenticator(storage, clock, config.limits(), log),
            bodies=Bodies(),
            clock=clock,
            ids=ids,
            limits=config.limits(),
            log=log,
            refusals=Refusals(log, clock),
            alive=self.mute,
            ready=self.problems,
            metrics=self.render_metrics,
            generate_key=generate_key,
            keys_changed=signer.forget,
            schedules_changed=scheduler.poke,
            stopping=lambda: self._stopping,
            trusted_proxies=config.trusted_proxies,
            refusal=egress.refusal,
        )
        self._runner = ApiRunner(
            build_app(services),
            services=services,
            handle_signals=False,
            shutdown_timeout=config.shutdown_timeout_ms / 1000,
        )

    @property
    def in_flight(self) -> int:
        return self._engine.in_flight

    async def start(self) -> str:
        """Begin to deliver and to listen; returns the URL the relay answers at."""
        from aiohttp import web

        await self._runner.setup()
        if self._peers is not None:
            await self._peers.listen(standing=self._standing, numbers=self._own_numbers)
        site = web.TCPSite(
            self._runner,
            self._config.host,
            self._config.port,
            backlog=_BACKLOG,
            reuse_port=self._peers is not None,
        )
        with binding(self._config.host, self._config.port):
            await site.start()
        self._service.start()
        host, port = self._runner.addresses[0][:2]
        return url_of(host, port)

    async def stop(self) -> None:
        """Stop accepting, let what is in flight finish up to the deadline, hand the rest back."""
        self._stopping = True
        until = self._clock.now() + self._config.shutdown_timeout_ms
        for site in list(self._runner.sites):
            await site.stop()
        await self._runner.hang_up_idle()
        await self._service.stop(until)
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._runner.cleanup()
        except TimeoutError:
            self._log.warning("relay.connections_cut")
        await self._proof.drop()
        await self._depths.drop()
        await self._sender.close()
        if self._peers is not None:
            await self._peers.close()

    async def mute(self) -> Sequence[str]:
        """Which of the processes of this relay do not answer."""
        return () if self._peers is None or self._stopping else await self._peers.mute()

    async def problems(self) -> Sequence[str]:
        """Why this relay cannot do its work now; empty when it can."""
        if self._peers is None or self._stopping:
            return await self._own_problems()
        return await self._peers.problems(self._standing())

    async def _standing(self) -> Standing:
        young = not self._engine.has_looked and self._clock.now() - self._began_at < _YOUNG_MS
        return Standing(problems=await self._own_problems(), joined=not (young or self._stopping))

    async def render_metrics(self) -> bytes:
        """The Prometheus text, true when it is asked for; depths are missing while they cannot be told."""
        own = await self._own_numbers()
        with contextlib.suppress(Unavailable):
            stats = await self._depths.answer()
            waiting_ms = 0 if stats.oldest_due_at is None else self._clock.now() - stats.oldest_due_at
            own += depths(
                live=stats.live,
                dead_letters=stats.dead_letters,
                oldest_due_seconds=max(0, waiting_ms) / 1000,
            )
        return own if self._peers is None else await self._peers.metrics(own)

    async def _own_problems(self) -> Sequence[str]:
        problems = self._service.problems()
        try:
            await self._proof.answer()
        except Unavailable as reason:
            problems.append(f"storage is unavailable: {reason}")
        return problems

    async def _own_numbers(self) -> bytes:
        unproven = self._proof.problem(within_ms=_PROOF_COUNTS_MS)
        self.metrics.ready.set(0 if self._service.problems() or unproven else 1)
        self.metrics.processes.set(self._config.workers)
        self.metrics.in_flight.set(self._engine.in_flight)
        self.metrics.clock_offset_seconds.set(self._storage.clock_offset_ms / 1000)
        return await asyncio.to_thread(self.metrics.render)


async def credentials_for(mode: Mode, storage: Storage, config: Config, *, now: int) -> Credentials:
    if mode == "dev":
        return await accounts.development(storage, now=now)
    return await accounts.production(storage, config, now=now, fresh_key=generate_key, fresh_name=random_name)


def hear_signals(*, again: Callable[[], None] = lambda: os._exit(1)) -> asyncio.Event:
    """Set by the first signal; every further one calls `again`, by default the end of the process.

    Called before anything else: a relay that is told to stop while it starts must not die half-way.
    """
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def tell() -> None:
        if told.is_set():
            again()
        told.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell)
    return told

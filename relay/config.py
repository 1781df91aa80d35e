"""Every setting with its unit, its default and its reason; the only reader of the environment.

Flags win over the environment, the environment over the defaults. An unknown `RELAY_...` variable or a wrong
value stops the start with one sentence. `python -m relay.config` prints `deploy/relay.env.example`.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from relay.domain.duration import parse_duration
from relay.domain.tenant import Limits

Network = IPv4Network | IPv6Network

PREFIX = "RELAY_"
#: Settings of the test suite share the prefix and are none of ours.
_FOREIGN = "RELAY_TEST_"
#: So do the variables by which Kubernetes tells every pod of a service that is named relay.
_SERVICE_LINK = re.compile(
    r"RELAY_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_VISIBLE = re.compile(r"[!-~]+")
#: 256 processes are told apart by their numbers; who starts the workers has one of them.
_MOST_WORKERS = 255


class ConfigError(Exception):
    """A setting that cannot be used, as one sentence naming it."""


def _text(value: str) -> str:
    return value


def _visible(value: str) -> str:
    if not _VISIBLE.fullmatch(value):
        raise ValueError("it must be visible ASCII characters without blanks")
    return value


#: Parameters of a PostgreSQL URL that say who asks.
_LOGIN = ("user", "password")


def database_url(value: str) -> str:
    """A URL of the shape of one that can be opened. The errors do not repeat it: it may hold a password."""
    if value.startswith("sqlite:"):
        if value != "sqlite://" and not re.match("sqlite:///+[^/]", value):
            raise ValueError(
                "sqlite: is followed by three slashes and a relative path, as in sqlite:///relay.db, or by four"
                " and an absolute one, as in sqlite:////var/lib/relay/relay.db"
            )
    elif value.startswith(("postgresql:", "postgres:")):
        _check_postgres(value)
    else:
        raise ValueError(
            "it must name a database this relay can open, such as sqlite:///relay.db or"
            " postgresql://user:password@host/database"
        )
    return value


def _check_postgres(url: str) -> None:
    """A password whose special characters were left as they are must not end up as a host that is looked up."""
    unreadable = ValueError(
        "it must be like postgresql://user:password@host:5432/database, where the characters @ / ? # [ ] and % of a"
        " user and a password are percent-encoded (@ is %40, # is %23, / is %2F); or leave the password out and"
        " set PGPASSWORD"
    )
    try:
        parts = urlsplit(url)
        login, _, hosts = parts.netloc.rpartition("@")
        for host in hosts.split(","):
            urlsplit(f"//{host}").port  # noqa: B018 - a port that is none is found when it is asked for
        asked = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise unreadable from None
    if (
        not url.startswith(f"{parts.scheme}://")
        or "#" in url
        or "@" in login + parts.path
        or any("@" in name or ("@" in value and name not in _LOGIN) for name, value in asked)
    ):
        raise unreadable
    if parts.path in ("", "/") and not {"dbname", "database", "service"} & {name for name, _ in asked}:
        raise ValueError("it names no database: postgresql://user:password@host:5432/database")


def _port(value: str) -> int:
    if "://" in value:
        raise ValueError(
            f'"{value}" is what Kubernetes sets for a service that is named relay (a service link); set'
            " enableServiceLinks: false for the pod, or give it a port of its own"
        )
    number = _count(value)
    if number > 65_535:
        raise ValueError("a port is a number from 0 to 65535")
    return number


def _count(value: str, least: str = "zero") -> int:
    if not re.fullmatch(r"[0-9]{1,12}", value):
        raise ValueError(f"it must be a whole number, {least} or more")
    return int(value)


def _positive(value: str) -> int:
    number = _count(value, "one")
    if number == 0:
        raise ValueError("it must be a whole number, one or more")
    return number


def _workers(value: str) -> int:
    number = _positive(value)
    if number > _MOST_WORKERS:
        raise ValueError(
            f"it must be at most {_MOST_WORKERS}: 256 processes can share a database, and whoever starts the others"
            " is one of them"
        )
    return number


def _bytes(value: str) -> int:
    """`1048576`, `512KiB`, `1MiB` or `1GiB`."""
    match = re.fullmatch(r"([0-9]{1,12})\s*(KiB|MiB|GiB)?", value)
    if match is None or int(match[1]) == 0:
        raise ValueError("it must be a number of bytes such as 1048576, 512KiB or 1MiB")
    return int(match[1]) << {None: 0, "KiB": 10, "MiB": 20, "GiB": 30}[match[2]]


def _duration(value: str) -> int:
    parsed = parse_duration(value)
    if parsed == 0:
        raise ValueError("it must be longer than zero")
    return parsed


def _networks(value: str) -> tuple[Network, ...]:
    networks = []
    for part in filter(None, (part.strip() for part in value.split(","))):
        try:
            networks.append(ip_network(part))
        except ValueError:
            raise ValueError(f'"{part}" is not a network such as 10.0.0.0/8 or fd00::/8') from None
    return tuple(networks)


def _token(value: str) -> str:
    if len(value) < 8 or not _VISIBLE.fullmatch(value):
        raise ValueError("a token is at least 8 visible ASCII characters without blanks")
    return value


def _key(value: str) -> str:
    if len(value) < 8 or not _VISIBLE.fullmatch(value):
        raise ValueError("a signing key is at least 8 visible ASCII characters without blanks")
    return value


def _log_format(value: str) -> str:
    if value not in ("json", "text"):
        raise ValueError("it must be json or text")
    return value


def _switch(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError("it must be yes or no")
    return value == "yes"


def _lease(value: str) -> int:
    parsed = _duration(value)
    if not 3_000 <= parsed <= 600_000:
        raise ValueError("it must be between 3s and 10m")
    return parsed


def _log_retention(value: str) -> int:
    parsed = _duration(value)
    if parsed < 600_000:
        raise ValueError("it must be at least 10m")
    return parsed


def _setting(default: Any, parse: Callable[[str], Any], example: str, reason: str) -> Any:
    return dataclasses.field(default=default, metadata={"parse": parse, "example": example, "reason": reason})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be set. A field `max_retries` is the variable `RELAY_MAX_RETRIES`."""

    host: str = _setting(
        "127.0.0.1", _text, "127.0.0.1", "Address to listen on. 0.0.0.0 listens on all of them."
    )
    port: int = _setting(8080, _port, "8080", "TCP port; 0 lets the system choose one.")
    workers: int = _setting(
        1,
        _workers,
        "1",
        "Processes that share the port, with PostgreSQL; other limits are each process's own.",
    )
    database_url: str = _setting(
        "sqlite:///relay.db",
        database_url,
        "sqlite:////var/lib/relay/relay.db",
        "Where messages live. Three slashes: relative to the working directory; four: absolute. Several relays"
        " share postgresql://user:password@host/database; ?pooler=transaction goes through a pgbouncer in"
        " transaction mode, ?schema=name has the tables elsewhere than in the schema relay. A password is"
        " percent-encoded in it, or left out and set in PGPASSWORD.",
    )
    migrate: bool = _setting(
        True,
        _switch,
        "yes",
        "Whether a start brings the database up to date. With no, run relay migrate before a newer version starts.",
    )
    token: str | None = _setting(
        None,
        _token,
        "",
        "The token clients present. Without one, the first start makes one and prints it once.",
    )
    readonly_token: str | None = _setting(
        None, _token, "", "A second token that may read everything but the signing keys, and change nothing."
    )
    current_signing_key: str | None = _setting(
        None,
        _key,
        "",
        "Deliveries are signed with it. Set both keys or neither; without them the first start makes a pair.",
    )
    next_signing_key: str | None = _setting(
        None, _key, "", "The key that becomes current at the next rotation; receivers accept both."
    )
    allow_networks: tuple[Network, ...] = _setting(
        (),
        _networks,
        "10.0.0.0/8,192.168.0.0/16",
        "Comma-separated networks that may be called besides public addresses. Keep it as small as your own"
        " services need: whoever can publish can reach them.",
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        (),
        _networks,
        "",
        "Networks whose X-Forwarded-For is believed when the publisher's address is recorded.",
    )
    max_message_bytes: int = _setting(1 << 20, _bytes, "1MiB", "Largest body of one message; beyond it: 413.")
    max_batch_bytes: int = _setting(100 << 20, _bytes, "100MiB", "Largest batch request; beyond it: 413.")
    max_retries: int = _setting(100, _count, "100", "Most retries a message may ask for; beyond it: 412.")
    max_delay_ms: int = _setting(
        Limits().max_delay_ms, _duration, "3653d", "Longest delay a message may ask for; beyond it: 412."
    )
    max_timeout_ms: int = _setting(
        Limits().max_timeout_ms, _duration, "12h", "Longest timeout a message may ask for; beyond it: 412."
    )
    default_timeout_ms: int = _setting(
        Limits().default_timeout_ms,
        _duration,
        "15m",
        "How long one attempt may take when its message does not say.",
    )
    connect_timeout_ms: int = _setting(
        10_000, _duration, "10s", "How long connecting may take, TLS included, within an attempt's timeout."
    )
    max_response_bytes: int = _setting(
        1 << 20, _bytes, "1MiB", "How much of a response is read and kept; the rest is cut off."
    )
    max_in_flight: int = _setting(
        1000, _positive, "1000", "Deliveries in progress at once; each costs a connection."
    )
    max_in_flight_bytes: int = _setting(
        64 << 20, _bytes, "64MiB", "Bodies held in memory at once; beyond it messages wait in storage."
    )
    lease_ms: int = _setting(
        30_000,
        _lease,
        "30s",
        "How long a delivery stays with a process that has gone silent before another takes it over.",
    )
    shutdown_timeout_ms: int = _setting(
        20_000, _duration, "20s", "How long SIGTERM waits for deliveries in flight; the rest is handed back."
    )
    log_retention_ms: int = _setting(
        14 * 86_400_000,
        _log_retention,
        "14d",
        "How long the log and finished messages stay readable (at least 10m).",
    )
    dlq_retention_ms: int = _setting(7 * 86_400_000, _duration, "7d", "How long dead letters stay.")
    schedule_grace_ms: int = _setting(
        86_400_000, _duration, "24h", "How late a missed run of a schedule may still be caught up."
    )
    region: str = _setting(
        "EU-CENTRAL-1", _visible, "EU-CENTRAL-1", "What deliveries say in their upstash-region header."
    )
    log_format: str = _setting("json", _log_format, "json", "json for machines, text for people.")

    def limits(self) -> Limits:
        """The part of the settings that bounds what a publisher may ask for."""
        return Limits(
            max_message_bytes=self.max_message_bytes,
            largest_message_bytes=self.max_in_flight_bytes,
            max_batch_bytes=self.max_batch_bytes,
            max_retries=self.max_retries,
            max_delay_ms=self.max_delay_ms,
            max_timeout_ms=self.max_timeout_ms,
            default_timeout_ms=self.default_timeout_ms,
            max_parallelism=self.max_in_flight,
        )


_FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def parsed(name: str, value: str) -> Any:
    """A value of the setting with this field name, spelled like its variable; `ValueError` says what is wrong."""
    return _FIELDS[name].metadata["parse"](value.strip())


def _variable(name: str) -> str:
    """Units are part of our names and of the values people write, so variables go without them."""
    return PREFIX + name.removesuffix("_ms").upper()


_VARIABLES = {_variable(name): name for name in _FIELDS}


def load(
    environment: Mapping[str, str] = os.environ,
    *,
    flags: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Config:
    """The configuration from flags, then environment, then `defaults`; raises `ConfigError`.

    `flags` and `defaults` go by field names and hold text, like the environment. An empty variable counts as
    not set.
    """
    given: dict[str, tuple[str, str]] = {name: (name, value) for name, value in (defaults or {}).items()}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or variable.startswith(_FOREIGN):
            continue
        if _SERVICE_LINK.fullmatch(variable):
            continue
        if variable not in _VARIABLES:
            raise ConfigError(f"{variable} is not a setting of the relay; {_meant(variable)}")
        if value:
            given[_VARIABLES[variable]] = (variable, value)
    for name, value in (flags or {}).items():
        given[name] = (f"--{name.removesuffix('_url').replace('_', '-')}", value)
    values: dict[str, Any] = {}
    for name, (source, value) in given.items():
        try:
            values[name] = parsed(name, value)
        except ValueError as problem:
            raise ConfigError(f"{source}: {problem}") from None
    config = Config(**values)
    if (config.current_signing_key is None) != (config.next_signing_key is None):
        raise ConfigError(
            "RELAY_CURRENT_SIGNING_KEY and RELAY_NEXT_SIGNING_KEY are set together or not at all"
        )
    if config.current_signing_key is not None and config.current_signing_key == config.next_signing_key:
        raise ConfigError("RELAY_CURRENT_SIGNING_KEY and RELAY_NEXT_SIGNING_KEY must differ")
    if config.token is not None and config.token == config.readonly_token:
        raise ConfigError("RELAY_TOKEN and RELAY_READONLY_TOKEN must differ")
    if config.workers > 1 and config.database_url.startswith("sqlite:"):
        raise ConfigError(
            f"{config.workers} workers need PostgreSQL (postgresql://...): a SQLite file has one writer, and a"
            " second one brought 0.96 times the throughput and longer waits when it was measured"
        )
    if config.max_in_flight_bytes < config.max_message_bytes:
        raise ConfigError(
            "RELAY_MAX_IN_FLIGHT_BYTES must not be smaller than RELAY_MAX_MESSAGE_BYTES: the largest message would"
            " never be delivered"
        )
    if config.default_timeout_ms > config.max_timeout_ms:
        raise ConfigError("RELAY_DEFAULT_TIMEOUT must not be longer than RELAY_MAX_TIMEOUT")
    return config


def _meant(variable: str) -> str:
    names = [known.removeprefix(PREFIX) for known in _VARIABLES]
    close = difflib.get_close_matches(variable.removeprefix(PREFIX), names, 1)
    return f"did you mean {PREFIX}{close[0]}?" if close else "see deploy/relay.env.example"


def example() -> str:
    """The text of `deploy/relay.env.example`: every variable, commented out, with its reason."""
    lines = [
        "# Every setting of the relay. Uncomment what you change; the value shown is the default, or an example",
        "# where there is no default. Durations: 10s, 2m, 1d10h. Sizes: bytes, KiB, MiB, GiB.",
    ]
    for variable, name in _VARIABLES.items():
        metadata = _FIELDS[name].metadata
        lines += ["", f"# {metadata['reason']}", f"#{variable}={metadata['example']}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(example(), end="")

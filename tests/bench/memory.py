"""What waiting messages cost in memory, and what idling costs in CPU: `python -m tests.bench.memory`.

The messages are published through the running relay, in batches, delayed by a day; then the relay is started
again on the same database. What is in flight may cost memory, what is stored must not.
"""

import argparse
import http.client
import json
import time
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.bench import filling, machine, systems
from tests.bench.table import Finding, conclude, show

_BATCH = 500
_BODY = "x" * 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure."""

    messages: int = 100_000
    idle_seconds: float = 10
    directory: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Idle:
    """A relay that has nothing to do."""

    resident_mb: float
    peak_mb: float
    #: Percent of one core.
    cpu_percent: float


def measure(options: Options) -> list[Finding]:
    """Publish, wait, and print the table."""
    with systems.workspace(options.directory) as directory, machine.on_core(machine.LOAD_CORE):
        flushes = machine.fdatasync_rate(directory)
        database = directory / "relay.db"
        with systems.relay(database) as system:
            empty = _idle(system, options.idle_seconds)
            began = time.perf_counter()
            _publish(system, options.messages)
            seconds = time.perf_counter() - began
            full = _idle(system, options.idle_seconds)
        with systems.relay(database) as system:
            again = _idle(system, options.idle_seconds)
        stored = uvloop.run(filling.alive(database))
        if stored != options.messages:
            raise RuntimeError(f"{stored} of {options.messages} messages are alive")
    count = f"{options.messages:,}"
    show(
        f"Messages that wait for tomorrow, and a relay that idles for {options.idle_seconds:g} s",
        ("", "RSS MB", "peak MB", "idle CPU %"),
        [
            (name, f"{idle.resident_mb:.1f}", f"{idle.peak_mb:.1f}", f"{idle.cpu_percent:.2f}")
            for name, idle in (
                ("none", empty),
                (f"{count}, just published", full),
                (f"{count}, started again", again),
            )
        ],
    )
    print(f"  published in {seconds:.1f} s by one client in batches; fdatasync/s here: {flushes:.0f}")
    return [
        Finding(
            what=f"resident memory, {count} pending / none",
            value=f"{again.resident_mb / empty.resident_mb:.2f} ({again.resident_mb:.0f} MB; just after"
            f" publishing them {full.resident_mb:.0f} MB)",
            aim="bounded by what is in flight",
        ),
        Finding(
            what=f"idle CPU with {count} pending",
            value=f"{max(full.cpu_percent, again.cpu_percent):.2f} % of a core",
            aim="< 1 %",
        ),
    ]


def _publish(system: systems.System, count: int) -> None:
    item = {
        "destination": "http://127.0.0.1:9/hook",
        "headers": {"Upstash-Delay": "1d", "Content-Type": "text/plain"},
        "body": _BODY,
    }
    headers = {"Authorization": f"Bearer {systems.TOKEN}", "Content-Type": "application/json"}
    deadline = time.monotonic() + 60 + count / 200
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=60)
    try:
        for first in range(0, count, _BATCH):
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {first} of {count} messages were published in time")
            batch = json.dumps([item] * min(_BATCH, count - first))
            connection.request("POST", "/v2/batch", body=batch, headers=headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise RuntimeError(f"a batch was answered {response.status}: {answer[:300]!r}")
    finally:
        connection.close()


def _idle(system: systems.System, seconds: float) -> _Idle:
    time.sleep(2)  # what a start or a burst leaves to do is not idling
    cpu, began = system.cpu(), time.perf_counter()
    time.sleep(seconds)
    share = (system.cpu() - cpu) / (time.perf_counter() - began)
    resident_mb, peak_mb = machine.memory_mb(system.pid)
    return _Idle(resident_mb=resident_mb, peak_mb=peak_mb, cpu_percent=share * 100)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description=__doc__)
    parser.add_argument("--full", action="store_true", help="a million messages (minutes)")
    parser.add_argument("--messages", type=int, default=Options().messages)
    parser.add_argument("--seconds", type=float, default=Options().idle_seconds, help="of idling, each time")
    parser.add_argument("--directory", type=Path, help="where the database is made (default: the system's)")
    given = parser.parse_args()
    systems.stop_on_sigterm()
    conclude(
        measure(
            Options(
                messages=1_000_000 if given.full else given.messages,
                idle_seconds=given.seconds,
                directory=given.directory,
            )
        )
    )


if __name__ == "__main__":
    main()

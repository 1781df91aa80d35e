"""CPU per message end to end, against the stock floor: `python -m tests.bench.end_to_end`.

A message of the relay is published, committed with the disk told to flush, signed, delivered, settled and
entered in the history, the log line included. A message of the floor is accepted and forwarded. Both run pinned
to one core, the load on the other, in turns; every run is a fresh process and, for the relay, a fresh database.
"""

import argparse
import pstats
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.bench import filling, load, machine, systems
from tests.bench.table import Finding, conclude, show, spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure."""

    pairs: int = 5
    messages: int = 10_000
    connections: int = load.CONNECTIONS
    directory: Path | None = None


def measure(options: Options) -> list[Finding]:
    """Run the pairs and print the table."""
    relay: list[load.Run] = []
    floor: list[load.Run] = []
    flushes: list[float] = []
    with systems.workspace(options.directory) as directory, machine.on_core(machine.LOAD_CORE):
        for pair in range(options.pairs):
            with systems.floor(directory) as system:
                floor.append(_run(system, options))
            flushes.append(machine.fdatasync_rate(directory))
            database = directory / f"{pair}.db"
            with systems.relay(database) as system:
                relay.append(_run(system, options))
                _prove_recorded(system, relay[-1].messages)
            if left := uvloop.run(filling.alive(database)):
                raise RuntimeError(f"{left} messages were delivered and not settled")
            print(
                f"pair {pair + 1} of {options.pairs}: relay {relay[-1].cpu_micros:.0f} us,"
                f" floor {floor[-1].cpu_micros:.0f} us",
                flush=True,
            )
    ratios = [a.cpu_micros / b.cpu_micros for a, b in zip(relay, floor, strict=True)]
    show(
        f"End to end, {options.messages} messages of 1 KB, {options.connections} connections, closed loop,"
        f" {options.pairs} pairs: median (min-max)",
        (
            "",
            "CPU us/message",
            "other threads us",
            "messages/s",
            "waiting at most",
            "load's core %",
            "strangers on its core %",
        ),
        [_row("relay", relay), _row("stock floor", floor)],
    )
    print(f"  fdatasync/s here: {spread(flushes)}")
    return [
        Finding(what="CPU per message, relay / stock floor", value=spread(ratios, 2), aim="<= 1.0, then 0.5"),
        Finding(
            what="messages/s end to end, one core",
            value=f"{spread([run.rate for run in relay])}, fdatasync/s {statistics.median(flushes):.0f}",
        ),
    ]


def profile(options: Options) -> None:
    """One run of the relay under cProfile: the functions of the event loop's thread that cost most."""
    with systems.workspace(options.directory) as directory, machine.on_core(machine.LOAD_CORE):
        written = directory / "relay.prof"
        with systems.relay(directory / "profiled.db", profile=written) as system:
            run = _run(system, options)
        pstats.Stats(str(written)).sort_stats("tottime").print_stats(45)
    print(
        f"{run.cpu_micros:.0f} us a message under the profiler, which watches the event loop's thread only."
    )
    print("For all threads without its cost: py-spy record --native -d 20 -p PID, while a loop of this runs.")


def _run(system: systems.System, options: Options) -> load.Run:
    return uvloop.run(
        load.closed_run(
            system,
            messages=options.messages,
            warm_up=min(1000, options.messages),
            connections=options.connections,
        )
    )


def _prove_recorded(system: systems.System, messages: int) -> None:
    """Deliveries must have been counted and entered in the history: else the number is worthless."""
    delivered = system.metric('relay_attempts_total{outcome="delivered"}')
    if delivered < messages:
        raise RuntimeError(f"the relay counted {delivered:.0f} of {messages} deliveries")
    entries = system.json("/v2/logs?count=10")["logs"]
    if not any(entry["state"] == "DELIVERED" for entry in entries):
        raise RuntimeError(f"the history does not end with deliveries: {entries}")


def _row(name: str, runs: Sequence[load.Run]) -> tuple[str, ...]:
    return (
        name,
        spread([run.cpu_micros for run in runs]),
        spread([(run.cpu_seconds - run.main_thread_seconds) / run.messages * 1e6 for run in runs]),
        spread([run.rate for run in runs]),
        spread([run.backlog for run in runs]),
        spread([run.load_share * 100 for run in runs]),
        spread([run.strangers_share * 100 for run in runs]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.end_to_end", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--messages", type=int, default=10_000, help="in each run")
    parser.add_argument("--connections", type=int, default=load.CONNECTIONS)
    parser.add_argument("--directory", type=Path, help="where databases are made (default: the system's)")
    parser.add_argument("--profile", action="store_true", help="one run of the relay under cProfile")
    given = parser.parse_args()
    options = Options(
        pairs=given.pairs,
        messages=given.messages,
        connections=given.connections,
        directory=given.directory,
    )
    systems.stop_on_sigterm()
    if given.profile:
        profile(options)
    else:
        conclude(measure(options))


if __name__ == "__main__":
    main()

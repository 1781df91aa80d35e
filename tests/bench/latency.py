"""How long a publish takes, and a message from end to end: `python -m tests.bench.latency`.

An open loop: messages are sent evenly, whatever the answers do, at 20 a second and at half the highest rate the
relay reached in a closed loop in the same run; the stock floor gets the same rates. A publish is measured from
the request to its answer (for the relay: durable), a message from its request to its arrival at the endpoint.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.bench import load, machine, systems
from tests.bench.table import Finding, conclude, percentile, show

_QUIET_RATE = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure: seconds of each open loop, messages of the closed loop that finds the highest rate."""

    seconds: float = 20
    messages: int = 10_000
    directory: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Latencies:
    """All in milliseconds, in rising order."""

    publish: Sequence[float]
    end_to_end: Sequence[float]
    late: Sequence[float]
    #: Percent of the system's core that other programs took meanwhile.
    strangers: float


def measure(options: Options) -> list[Finding]:
    """Run the loops and print the table."""
    with (
        systems.workspace(options.directory) as directory,
        machine.on_core(machine.LOAD_CORE),
        systems.floor(directory) as floor,
        systems.relay(directory / "relay.db") as relay,
    ):
        flushes = machine.fdatasync_rate(directory)
        highest = uvloop.run(load.closed_run(relay, messages=options.messages)).rate
        uvloop.run(load.closed_run(floor, messages=1000))
        measured = {
            (rate, system.name): uvloop.run(_open_loop(system, rate=rate, seconds=options.seconds))
            for rate in (_QUIET_RATE, highest / 2)
            for system in (relay, floor)
        }
    show(
        f"Latency in ms over {options.seconds:g} s each (highest rate measured: {highest:.0f}/s):"
        " p50 / p90 / p99 / max",
        ("", "publish", "end to end", "load late by, p99", "strangers on its core %"),
        [
            (
                f"{name} at {rate:.0f}/s",
                _percentiles(latencies.publish),
                _percentiles(latencies.end_to_end),
                f"{percentile(latencies.late, 99):.2f}",
                f"{latencies.strangers:.0f}",
            )
            for (rate, name), latencies in measured.items()
        ],
    )
    print(f"  fdatasync/s here: {flushes:.0f}")
    findings = []
    for rate, aim in ((_QUIET_RATE, "p50 <= 3, p99 <= 10"), (highest / 2, "")):
        ours, theirs = measured[rate, relay.name].end_to_end, measured[rate, floor.name].end_to_end
        ratio = percentile(ours, 50) / percentile(theirs, 50)
        findings.append(
            Finding(
                what=f"end to end at {rate:.0f}/s, ms",
                value=f"p50 {percentile(ours, 50):.2f}, p99 {percentile(ours, 99):.2f},"
                f" {ratio:.2f} of the floor's p50, fdatasync/s {flushes:.0f}",
                aim=aim,
            )
        )
    return findings


async def _open_loop(system: systems.System, *, rate: float, seconds: float) -> _Latencies:
    async with load.receiver() as endpoint:
        warming = load.Ledger(first=0, count=10)
        await load.open_loop(system, endpoint, warming, rate=_QUIET_RATE)
        await warming.all_arrived(seconds=30)
        ledger = load.Ledger(first=10, count=max(20, int(rate * seconds)))
        began, cpu, busy = time.perf_counter(), system.cpu(), machine.busy_seconds()
        late = await load.open_loop(system, endpoint, ledger, rate=rate)
        await ledger.all_arrived(seconds=30)
        await load.quiet(system)
        strangers = (machine.busy_seconds() - busy) - (system.cpu() - cpu)
        sent = ledger.sent
        return _Latencies(
            publish=sorted((b - a) * 1000 for a, b in zip(sent, ledger.answered, strict=True)),
            end_to_end=sorted((b - a) * 1000 for a, b in zip(sent, ledger.arrived, strict=True)),
            late=sorted(seconds * 1000 for seconds in late),
            strangers=max(0.0, strangers) / (time.perf_counter() - began) * 100,
        )


def _percentiles(ordered: Sequence[float]) -> str:
    return " / ".join(f"{percentile(ordered, percent):.2f}" for percent in (50, 90, 99, 100))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.latency", description=__doc__)
    parser.add_argument("--seconds", type=float, default=Options().seconds, help="of each loop")
    parser.add_argument("--messages", type=int, default=Options().messages, help="to find the highest rate")
    parser.add_argument("--directory", type=Path, help="where the database is made (default: the system's)")
    given = parser.parse_args()
    systems.stop_on_sigterm()
    conclude(measure(Options(seconds=given.seconds, messages=given.messages, directory=given.directory)))


if __name__ == "__main__":
    main()

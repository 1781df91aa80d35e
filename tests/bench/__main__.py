"""All benchmarks in their short form, and one summary: `python -m tests.bench` (about five minutes).

Read the ratios; rates belong to the machine. Each program alone measures longer: `python -m tests.bench.NAME -h`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import (
    bloat,
    claim,
    drain,
    end_to_end,
    fairness,
    gates,
    latency,
    limits,
    memory,
    nodes,
    systems,
)
from tests.bench.table import Finding, show


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--directory", type=Path, help="where databases are made (default: the system's)")
    directory: Path | None = parser.parse_args().directory
    systems.stop_on_sigterm()
    programs: dict[str, Callable[[], list[Finding]]] = {
        "end_to_end": lambda: end_to_end.measure(end_to_end.Options(messages=5_000, directory=directory)),
        "latency": lambda: latency.measure(latency.Options(seconds=10, messages=5_000, directory=directory)),
        "drain": lambda: drain.measure(
            drain.Options(messages=50_000, floor_messages=5_000, directory=directory)
        ),
        "claim": lambda: claim.measure(claim.Options(sizes=(1_000, 100_000), directory=directory)),
        "claim on PostgreSQL": lambda: claim.measure(
            claim.Options(sizes=(1_000, 100_000), postgres=True, directory=directory)
        ),
        "gates": lambda: gates.measure(gates.Options(closed=(0, 10_000), directory=directory)),
        "limits": lambda: limits.measure(limits.Options(rounds=1, seconds=3, directory=directory)),
        "memory": lambda: memory.measure(
            memory.Options(messages=50_000, idle_seconds=5, directory=directory)
        ),
        "fairness": lambda: fairness.measure(
            fairness.Options(messages=20_000, seconds=5, directory=directory)
        ),
        "nodes": lambda: nodes.measure(nodes.Options(rounds=1, messages=3_000, directory=directory)),
        "bloat": lambda: bloat.measure(bloat.Options(messages=50_000, idle_seconds=5, directory=directory)),
    }
    findings: list[Finding] = []
    failed = False
    for name, measure in programs.items():
        print(f"\n--- {name}", flush=True)
        try:
            findings += measure()
        except (RuntimeError, TimeoutError, OSError) as problem:
            # One program's trouble must not cost the others' numbers, nor go unseen.
            failed = True
            findings.append(Finding(what=name, value=f"FAILED: {str(problem) or repr(problem)}"))
    show(
        "Summary",
        ("", "measured", "aim"),
        [(finding.what, finding.value, finding.aim) for finding in findings],
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""`python -m tests.crash`: play every scenario on every backend, and print what became of the messages.

Exits with 1 when a promise was broken; then the last lines say which, and where the relay's log is.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crash.scenarios import BACKENDS, all_of, play
from tests.crash.world import Outcome

_WIDTHS = (49, 11, 9, 6, 8, 10)
_LEGEND = """
Accepted are publishes answered 2xx, and messages of schedules. Lost are those of them that never arrived at the
endpoint. Doubled are attempts made once more than they count: in flight when a node died, froze or lost its way to
the database for longer than a lease, they may have reached the endpoint, and are made again; a request that finds
its idle connection closed is sent once more, too. Recovered is the longest time from such a moment to the last
arrival of what was owed by then.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--backend", choices=list(BACKENDS), action="append")
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios whose name contains TEXT")
    given = parser.parse_args()
    failures: list[str] = []
    totals: list[Sequence[str]] = []
    _row("scenario", "backend", "accepted", "lost", "doubled", "recovered")
    for backend in given.backend or BACKENDS:
        began = time.monotonic()
        outcomes = _play_all(backend, given.only, failures)
        sums = (sum(one.accepted for one in outcomes), sum(one.lost for one in outcomes))
        doubled = sum(one.doubled for one in outcomes)
        totals.append(
            [f"together, in {time.monotonic() - began:.0f} s", backend, *map(str, (*sums, doubled))]
        )
        failures += [f"{backend} has lost messages"] if sums[1] else []
    for total in totals:
        _row(*total)
    print(_LEGEND)
    for failure in failures:
        print(f"BROKEN: {failure}\n")
    return 1 if failures else 0


def _play_all(backend: str, only: str, failures: list[str]) -> Sequence[Outcome]:
    outcomes = []
    for scenario in all_of(backend):
        if only not in scenario.name:
            continue
        directory = Path(tempfile.mkdtemp(prefix="relay-crash-"))
        try:
            outcome = asyncio.run(play(scenario, directory, backend))
        except AssertionError as broken:
            failures.append(f"{scenario.name} on {backend} (see {directory}/relay.log): {broken}")
            _row(scenario.name, backend, "BROKEN")
            continue
        shutil.rmtree(directory)
        outcomes.append(outcome)
        took = "-" if outcome.recovered_s is None else f"{outcome.recovered_s:.1f} s"
        _row(scenario.name, backend, *map(str, (outcome.accepted, outcome.lost, outcome.doubled)), took)
    return outcomes


def _row(name: str, backend: str, *numbers: str) -> None:
    columns = [number.rjust(width) for number, width in zip(numbers, _WIDTHS[2:], strict=False)]
    print(name.ljust(_WIDTHS[0]), backend.ljust(_WIDTHS[1]), *columns, flush=True)


if __name__ == "__main__":
    sys.exit(main())

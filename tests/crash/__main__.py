"""`python -m tests.crash`: play every scenario and print what became of the messages.

Exits with 1 when a promise was broken; then the last lines say which, and where the relay's log is.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.crash.scenarios import BACKENDS, all_of, play

_WIDTHS = (42, 9, 6, 8, 11)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--backend", choices=list(BACKENDS), default="sqlite")
    parser.add_argument("--only", default="", metavar="TEXT", help="scenarios whose name contains TEXT")
    given = parser.parse_args()
    began = time.monotonic()
    failures: list[str] = []
    accepted = lost = doubled = 0
    _row("scenario", "accepted", "lost", "doubled", "recovered")
    for scenario in all_of(given.backend):
        if given.only not in scenario.name:
            continue
        directory = Path(tempfile.mkdtemp(prefix="relay-crash-"))
        try:
            outcome = asyncio.run(play(scenario, directory, given.backend))
        except AssertionError as broken:
            failures.append(f"{scenario.name} (see {directory}/relay.log): {broken}")
            _row(scenario.name, "BROKEN")
            continue
        shutil.rmtree(directory)
        accepted += outcome.accepted
        lost += outcome.lost
        doubled += outcome.doubled
        took = "-" if outcome.recovered_s is None else f"{outcome.recovered_s:.1f} s"
        _row(scenario.name, str(outcome.accepted), str(outcome.lost), str(outcome.doubled), took)
    _row("together", str(accepted), str(lost), str(doubled))
    print(
        f"\n{given.backend}, {time.monotonic() - began:.0f} s. Doubled are attempts made once more than they count:"
    )
    print("in flight at a death they may have reached the endpoint, and are made again.")
    for failure in failures:
        print(f"\nBROKEN: {failure}")
    return 1 if failures or lost else 0


def _row(name: str, *numbers: str) -> None:
    columns = [number.rjust(width) for number, width in zip(numbers, _WIDTHS[1:], strict=False)]
    print(name.ljust(_WIDTHS[0]), *columns, flush=True)


if __name__ == "__main__":
    sys.exit(main())

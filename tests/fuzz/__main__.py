"""schemathesis against a live relay: `python -m tests.fuzz [--seconds N] [--seed N]`, 60 s unless told otherwise.

It makes requests up from openapi.yaml, right ones and wrong ones, and holds every answer to it. The relay is
sealed, so nothing of what is made up leaves the machine. The run fails on any answer that the description does not
have, on any 5xx, and on anything the relay calls an error in its log.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

_ROOT = Path(__file__).parents[2]
_PATIENCE_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with TemporaryDirectory(prefix="relay-fuzz-") as directory:
        return _fuzz(Path(directory), given.seconds, given.seed)


def _fuzz(directory: Path, seconds: int, seed: int) -> int:
    output, log = directory / "relay.out", directory / "relay.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
    # The working directory is not for what is made up, so the packages have to be named.
    environment |= {"PYTHONPATH": str(_ROOT), "RELAY_LOG_FORMAT": "json", "NO_PROXY": "*"}
    with (
        output.open("wb") as stdout,
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.sealed"],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        ) as relay,
    ):
        try:
            url, receiver, token = _announced(relay, output, log)
            status = subprocess.run(
                _command(url, token, seconds, seed),
                cwd=directory,
                env={
                    **environment,
                    "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
                    "FUZZ_RELAY": url,
                    "FUZZ_RECEIVER": receiver,
                    "FUZZ_TOKEN": token,
                },
                timeout=seconds + 120,
            ).returncode
            alive = relay.poll() is None
        finally:
            relay.terminate()
            relay.wait(_PATIENCE_S)
    delivered, complaints = _read(log)
    print(f"the relay made {delivered} attempts; errors in its log: {len(complaints)}")
    print(*complaints[:20], sep="\n")
    if not alive:
        print("the relay died")
    if not delivered:
        print("nothing was delivered, so there is not much that this has shown")
    return 1 if status or complaints or not alive or not delivered else 0


def _announced(relay: "subprocess.Popen[bytes]", output: Path, log: Path) -> list[str]:
    deadline = time.monotonic() + _PATIENCE_S
    while len(lines := output.read_text().splitlines()) < 3:
        if relay.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the relay did not start:\n{log.read_text()}")
        time.sleep(0.05)
    return lines


def _command(url: str, token: str, seconds: int, seed: int) -> list[str]:
    return [
        str(Path(sys.executable).with_name("schemathesis")),
        f"--config-file={Path(__file__).with_name('schemathesis.toml')}",
        "run",
        str(_ROOT / "openapi.yaml"),
        f"--url={url}",
        f"--header=Authorization: Bearer {token}",
        f"--max-time={seconds}",
        f"--seed={seed}",
        # How often made-up values do not fit says nothing of the relay.
        "--suppress-health-check=filter_too_much",
        "--no-color",
    ]


def _read(log: Path) -> tuple[int, list[str]]:
    """How many attempts were made, and the lines about what went wrong in the relay itself."""
    lines = log.read_text().splitlines()
    events = [json.loads(line) for line in lines]
    complaints = [line for line, event in zip(lines, events, strict=True) if event["level"] == "error"]
    return sum(event["event"] == "delivery.attempted" for event in events), complaints


if __name__ == "__main__":
    sys.exit(main())

"""What a command gets from the shell it was started in: environment, streams and time."""

import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import tzinfo
from typing import BinaryIO, NamedTuple, TextIO


class Shell(NamedTuple):
    """`now` is in Unix ms, `pause` takes seconds; `zone` None means the machine's own time zone."""

    environment: Mapping[str, str]
    stdin: BinaryIO
    stdout: TextIO
    stderr: TextIO
    now: Callable[[], int]
    pause: Callable[[float], None]
    zone: tzinfo | None = None


def this_shell() -> Shell:
    return Shell(
        environment=os.environ,
        # A program may be started with its standard input closed.
        stdin=io.BytesIO() if sys.stdin is None else sys.stdin.buffer,
        stdout=sys.stdout,
        stderr=sys.stderr,
        now=lambda: time.time_ns() // 1_000_000,
        pause=time.sleep,
    )

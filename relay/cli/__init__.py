"""The `relay` command."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from relay.cli import (
    copy,
    dlq,
    flow_control,
    keys,
    logs,
    messages,
    publish,
    queues,
    schedules,
    serve,
    tenants,
    tokens,
    url_groups,
)
from relay.cli.commands import Commands
from relay.cli.outcome import BROKEN_PIPE, INTERRUPTED, Failure
from relay.cli.output import printable
from relay.cli.shell import Shell, this_shell


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the arguments of this process) and return its exit code."""
    shell = this_shell()
    try:
        # What a terminal's or file's encoding lacks is spelled out instead of ending the command.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return run(argv, shell)
    except BrokenPipeError:
        # The reader has left; the interpreter must not try to write the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def run(argv: Sequence[str] | None, shell: Shell) -> int:
    """`main` in a given shell. Help, version and usage errors go to the streams of this process."""
    try:
        given = sys.argv[1:] if argv is None else argv
        # Who types the name alone wants to know what there is.
        args, unknown = parser().parse_known_args(given or ["--help"])
        if unknown:
            # By the command's own parser: its usage has what was meant.
            args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        code: int = args.run(args, shell)
        shell.stdout.flush()
        return code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except Failure as failure:
        shell.stdout.flush()
        print(f"relay: {printable(str(failure))}", file=shell.stderr)
        return failure.code
    except KeyboardInterrupt:
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="relay",
        usage="relay COMMAND ...",
        description="Durable HTTP messages: publish now, deliver signed, retried, later or again and again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = Commands(top, "COMMAND", overview=True)
    for module in (
        serve, publish, messages, logs, schedules, queues, url_groups, flow_control, dlq, keys, tenants,
        tokens, copy,
    ):  # fmt: skip
        module.register(commands)
    top.epilog = commands.describe()
    return top


class _Version(argparse.Action):
    """Looked up only when asked for: reading package metadata takes longer than most commands."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"relay {version('relay-http')}")
        parser.exit()

"""Doing one thing to each of several ids, so that one that is missing does not stop the others."""

from collections.abc import Callable, Sequence

from relay.cli.outcome import NOT_FOUND, OK, Failure
from relay.cli.output import Output, printable


def each(
    ids: Sequence[str],
    act: Callable[[str], None],
    output: Output,
    document: Callable[[list[str]], object],
) -> int:
    """Act on every id; the exit code says whether one was missing.

    Any other failure ends the command, after `document`, given the missing ids, has been printed for what was done
    until then.
    """
    missing: list[str] = []
    try:
        for id in ids:
            try:
                act(id)
            except Failure as failure:
                if failure.code != NOT_FOUND:
                    raise
                output.note(str(failure))
                missing.append(id)
    finally:
        output.document(document(missing))
    return NOT_FOUND if missing else OK


def change_each(names: Sequence[str], past: str, act: Callable[[str], None], output: Output) -> int:
    """Act on every one of them by name; `past` says what has happened to them then."""
    changed: list[str] = []

    def change(name: str) -> None:
        act(name)
        output.line(f"{printable(name)}  {past}")
        changed.append(name)

    return each(names, change, output, lambda missing: {past: changed, "notFound": missing})

"""How a command ends: the exit codes, and the failure that carries one with a sentence for people."""

OK = 0
REFUSED = 1
USAGE = 2
UNREACHABLE = 3
NOT_FOUND = 4
INTERRUPTED = 128 + 2
#: What a shell reports for a program that SIGPIPE ended, as it would have ended us without an interpreter.
BROKEN_PIPE = 128 + 13

LEGEND = """\
exit codes:
  0    done
  1    the relay said no; its reason is on standard error
  2    the command was not understood, or QSTASH_URL or QSTASH_TOKEN is missing
  3    the relay could not be reached
  4    there is no such message, dead letter, schedule, tenant or token
  130  interrupted"""


class Failure(Exception):  # noqa: N818 - not every one is somebody's error
    """Ends the command with `code`; the message is one sentence. `status` is the HTTP status behind it, if any."""

    def __init__(self, message: str, code: int, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed in a while: nobody answered, or the relay is in trouble itself."""
        return self.code == UNREACHABLE or (self.status is not None and self.status >= 500)


def misused(message: str) -> Failure:
    return Failure(message, USAGE)

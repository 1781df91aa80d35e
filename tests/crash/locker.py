"""A foreign process that locks a SQLite database until its input ends: `python -m tests.crash.locker FILE`."""

import sys
from contextlib import closing
from pathlib import Path

from storage.sqlite import driver

if __name__ == "__main__":
    with closing(driver.connect_writer(Path(sys.argv[1]))) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        print("locked", flush=True)
        sys.stdin.read()

"""Another process that locks a store: a real one with an open transaction, like a paused `sqlite3` shell."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOLD = """
import sqlite3, sys, time
path, kind, rows, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
def connect():
    return sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=60, isolation_level=None)
def count():
    try:
        database = connect()
        found = database.execute("SELECT count(*) FROM steps").fetchone()[0]
        database.close()
        return found
    except sqlite3.Error:
        return -1  # not created yet
until = time.monotonic() + 120
while count() < rows:
    assert time.monotonic() < until, "no such store"
    time.sleep(0.02)
database = connect()
database.execute("BEGIN IMMEDIATE" if kind == "writer" else "BEGIN")
seen = database.execute("SELECT count(*) FROM steps").fetchone()[0]
print(seen, time.monotonic(), flush=True)
if seconds:
    time.sleep(seconds)
else:
    sys.stdin.readline()
again = database.execute("SELECT count(*) FROM steps").fetchone()[0]
database.execute("COMMIT")
print(again, time.monotonic(), flush=True)
"""


@dataclass
class Holder:
    """`begins` and `lets_go` return (rows of `steps` that it sees, `time.monotonic()`) when the lock begins and ends.

    What it sees can't change in between.
    """

    process: subprocess.Popen[str]

    def begins(self) -> tuple[int, float]:
        return self._line()

    def lets_go(self) -> tuple[int, float]:
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        return self._line()

    def _line(self) -> tuple[int, float]:
        assert self.process.stdout is not None
        seen, moment = self.process.stdout.readline().split()
        return int(seen), float(moment)


@contextlib.contextmanager
def hold(path: Path, kind: str, *, rows: int = 0, seconds: float = 0) -> Iterator[Holder]:
    """Once the store has `rows` steps, open a transaction of a `reader` or a `writer`.

    It lasts `seconds`, or until `lets_go` is called.
    """
    command = [sys.executable, "-c", HOLD, str(path), kind, str(rows), str(seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Holder(process)
        finally:
            process.kill()

"""Real faults: the command with storage calls that fail, or that kill it, at a chosen place and count.

`tests/faults.c` intercepts the C library's calls. A warm process has everything imported and forks a child per run, so
that a run takes a second; `fresh=True` starts a new Python instead.
"""

import atexit
import ctypes
import errno
import functools
import importlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tests.conftest import PROJECT, command_environment
from tests.warm_drawing import Prepared, make_sketch

if TYPE_CHECKING:
    from viz.charts.figure import Chart

TIMEOUT = 300.0  # seconds that a run may take on a shared machine
ORPHANS = 30.0  # seconds that a drawing process may outlive its trainer
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


@dataclass(frozen=True)
class Fault:
    """The `at`-th call that matches fails with `error`, or sends the signal `number`.

    operations: of write, sync, rename, link, unlink, truncate, create (also mkdir) and open (for writing), with commas.
    places: patterns (fnmatch) of paths relative to the run's folder, with | between them; * also matches /.
    when: the signal is sent before the call, after it, or when half of a write's bytes are written.
    forever: every later call fails too.
    Each process counts its own calls. In the drawing process the signal goes to the trainer; a SIGKILL to both.
    """

    operations: str
    places: str
    at: int = 1
    error: int = 0
    number: signal.Signals = signal.SIGKILL
    when: str = "before"
    forever: bool = False

    def __str__(self) -> str:
        what = errno.errorcode[self.error] if self.error else f"{self.number.name} {self.when}"
        return f"{what} {self.operations} {self.at}{' on' if self.forever else ''} {self.places}"

    def environment(self) -> dict[str, str]:
        return {
            "FAULT_OPERATIONS": self.operations,
            "FAULT_PLACES": self.places,
            "FAULT_AT": str(self.at),
            "FAULT_ERRNO": str(self.error),
            "FAULT_SIGNAL": "0" if self.error else str(int(self.number)),
            "FAULT_WHEN": self.when,
            "FAULT_FOREVER": str(int(self.forever)),
        }


@dataclass(frozen=True)
class Call:
    """A recorded call. `began` and `ended` number the beginnings and ends of calls in one process; `offset` and `size`
    are those of a write, in bytes."""

    process: int
    operation: str
    count: int
    began: int
    ended: int
    offset: int
    size: int
    path: str
    to: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    code: int  # the exit code, or minus the signal that ended it
    out: str
    err: str
    landed: tuple[Call, ...]  # the faults that happened
    calls: tuple[Call, ...]  # every call that succeeded, if they were recorded
    left: tuple[str, ...]  # command lines of processes that did not end with the run


class Warm:
    """A process that has imported everything and runs the command in a forked child, one run at a time."""

    def __init__(self, library: Path) -> None:
        self._library = library
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults"],
            cwd=PROJECT,
            env={
                **command_environment(),
                "LD_PRELOAD": str(library),
                "OMP_NUM_THREADS": "2",
                "FAULT_MEASURED": str(library.with_name("measured.json")),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self,
        *arguments: object,
        folder: Path,
        fault: Fault | None = None,
        records: bool = False,
        fresh: bool = False,
        environment: dict[str, str] | None = None,
    ) -> Outcome:
        """Run `train_slimpajama.py ARGUMENTS` in `folder`, with a fault in that folder, and wait for its end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        aside = folder.with_name(f"{folder.name}.said")  # outside the folder, in which calls may fail
        aside.mkdir(exist_ok=True)
        log = aside / "faults.log"
        log.write_text("")
        variables = {
            "FAULT_FOLDER": str(folder.resolve()),
            "FAULT_LOG": str(log),
            "FAULT_RECORDS": str(int(records)),
            "FAULT_AT": "0",
            **(fault.environment() if fault else {}),
            **(environment or {}),
        }
        words = [str(word) for word in arguments]
        request = {"words": words, "cwd": str(folder), "aside": str(aside), "variables": variables, "fresh": fresh}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the warm process ended (exit {self._process.poll()}) while it ran {words}"
        answer = json.loads(line)
        out, err = ((aside / name).read_text(errors="replace") for name in ("out", "err"))
        assert not answer["late"], f"not done after {TIMEOUT:.0f} s: {words} with {fault}\n{out}\n{err}"
        seen = read_log(log)
        return Outcome(
            code=answer["code"],
            out=out,
            err=err,
            landed=tuple(call for kind, call in seen if kind == "landed"),
            calls=tuple(call for kind, call in seen if kind == "call"),
            left=tuple(answer["left"]),
        )

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@functools.cache
def warm() -> Warm:
    """The warm process of this session."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    process = Warm(build(folder))
    atexit.register(process.close)
    return process


def build(folder: Path) -> Path:
    """Compile the library; the C++ compiler that `--compile` needs is enough."""
    library = folder / "faults.so"
    compiler = next((found for name in ("cc", "gcc", "g++", "c++", "clang++") if (found := shutil.which(name))), None)
    assert compiler is not None, "tests/faults.c needs a C or C++ compiler"
    language = ["-x", "c++"] if compiler.endswith("++") else []
    subprocess.run(
        [compiler, *language, "-shared", "-fPIC", "-O1", "-o", library, PROJECT / "tests" / "faults.c"], check=True
    )
    return library


def read_log(path: Path) -> list[tuple[str, Call]]:
    """The entries of the library's log: `landed` or `call`, and the call."""
    seen = []
    for line in path.read_text(errors="replace").splitlines():
        kind, process, operation, *numbers, name, to = line.split("\t")
        seen.append((kind, Call(int(process), operation, *map(int, numbers), path=name, to=to)))
    return seen


USED_BY_A_RUN = (
    *("datasets", "matplotlib", "pyarrow.parquet", "sentencepiece", "viz.charts.renderer", "viz.visualizer"),
    *(f"trainer.{name}" for name in ("cli", "assemble", "trainer")),
    *("trainer.observe.terminal", "trainer.run.folders", "trainer.run.provenance"),
)
"""What the warm process imports before it forks."""


def serve() -> None:
    """The warm process: one request per line of standard input, one answer per line of the original standard output."""
    import torch

    for name in USED_BY_A_RUN:
        importlib.import_module(name)
    chart = make_sketch()
    torch.ones(1).normal_()  # what torch does at its first use; too small for a parallel region, whose threads a
    # fork would not copy
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)  # a killed trainer's drawing process becomes our child
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _leave(_become(request, chart))
        print(json.dumps(_wait_for(child)), file=answers, flush=True)


def _become(request: dict[str, Any], chart: "Chart") -> int:
    """In the child: arm the fault and run the command."""
    os.setsid()
    os.chdir(request["cwd"])
    aside = Path(request["aside"])
    wanted = {0: os.open(os.devnull, os.O_RDONLY)}
    wanted |= {number: os.open(aside / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for number, name in _STREAMS}
    for number, file in wanted.items():
        os.dup2(file, number)
        os.close(file)
    os.environ.update(request["variables"])
    script = str(PROJECT / "train_slimpajama.py")
    if request["fresh"]:
        os.execv(sys.executable, [sys.executable, script, *request["words"]])
    from trainer.assemble import Builders
    from trainer.cli import main
    from viz.charts.render_process import DrawingOptions
    from viz.visualizer import TrainingVisualizer

    drawing = DrawingOptions(start=Prepared(chart, _arm_drawing))
    builders = Builders(measure_flops=_measure_once, visualizer=functools.partial(TrainingVisualizer, drawing=drawing))
    os.environ["FAULT_TRAINER"] = str(os.getpid())
    ctypes.CDLL(None).faults_arm()
    sys.argv = [script, *request["words"]]
    try:
        return main(request["words"], builders)
    except Exception:  # noqa: BLE001 - as the interpreter itself would end
        traceback.print_exc()
        return 1


def _arm_drawing() -> None:
    os.environ["FAULT_WORKER"] = "1"
    ctypes.CDLL(None).faults_arm()


def _measure_once(*arguments: Any, **options: Any) -> dict[str, float]:
    """What the first run of this session has measured of the machine. It can't be measured before the forks: a product
    that large leaves threads behind, which a fork would not copy."""
    from trainer.learning.flops import measure_flops

    known = Path(os.environ["FAULT_MEASURED"])
    if not known.exists():
        known.write_text(json.dumps(measure_flops(*arguments, **options)))
    found: dict[str, float] = json.loads(known.read_text())
    return found


def _leave(code: int) -> NoReturn:
    """End the child as the interpreter would, without the second that it needs to clear every module."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_STREAMS = ((1, "out"), (2, "err"))


def _wait_for(child: int) -> dict[str, Any]:
    """Wait for the run and for the processes that it left; kill those that stay."""
    until, late, code = time.monotonic() + TIMEOUT, False, 0
    left: list[str] = []
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return {"code": code, "late": late, "left": left}
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            until = time.monotonic() + ORPHANS
        elif not ended and time.monotonic() > until:
            living = _children()
            late = late or child in living
            left += [_command_line(process) for process in living]
            for process in living:
                os.kill(process, signal.SIGKILL)
            until = time.monotonic() + ORPHANS
        elif not ended:
            time.sleep(0.005)


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return str(process)


def count_complete_files(folder: Path) -> int:
    """Check that every JSON file and image is complete. Returns how many there are."""
    from PIL import Image

    found = 0
    for path in sorted(folder.glob("*.json")):
        read_json(path)
        found += 1
    for path in sorted(folder.glob("training_*.png")):
        with Image.open(path) as picture:
            picture.verify()
        with Image.open(path) as picture:
            picture.load()  # `verify` looks at the chunks' checksums, this at the pixels
        found += 1
    return found


def read_json(path: Path) -> Any:
    """Strictly: NaN and Infinity are errors."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def has_sound_store(folder: Path) -> bool:
    """Return whether there is a store; check that its readers can open it and that SQLite finds no fault in it."""
    from viz.record.reader import StoreReader

    if not (folder / "run.db").exists():
        return False
    # SQLite checks a copy: it would repair what a kill left, and readers must work without that.
    with tempfile.TemporaryDirectory() as place:
        for path in folder.glob("run.db*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, place)
        database = sqlite3.connect(Path(place) / "run.db")
        try:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            if not database.execute("PRAGMA user_version").fetchone()[0]:
                return False  # the run ended before its first transaction: the store is empty
        finally:
            database.close()
    with StoreReader(folder / "run.db") as store:
        assert store.run()["run_id"] and store.columns() is not None
    return True


def load_checkpoints(folder: Path) -> list[int]:
    """The steps of all checkpoints; each of them must load."""
    from trainer.base.checkpoint_file import fault_of, read_state
    from trainer.run.checkpoints import CheckpointManager

    steps = []
    for step, path in CheckpointManager(folder).all():
        assert not fault_of(path) and path.with_name(f"{path.name}.sha256").exists(), path
        assert read_state(path)["step"] == step
        steps.append(step)
    return steps


def one_line(outcome: Outcome, code: int) -> str:
    """Return the only line on standard error of a run that ended with this exit code."""
    lines = outcome.err.splitlines()
    assert outcome.code == code, (outcome.code, outcome.err, outcome.out)
    assert len(lines) == 1 and lines[0].startswith("train_slimpajama.py: "), outcome.err
    return lines[0]


if __name__ == "__main__":
    serve()

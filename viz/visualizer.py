"""What the trainer talks to: `TrainingVisualizer` keeps the record of a run and has it drawn.

It writes the store itself; pictures and JSON files are made by `viz.worker`, a child process, because the trainer's own
process would stand still meanwhile. Nothing that happens to that process can stop or slow training.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from viz.filesystem import part_name
from viz.schema import rows_of
from viz.store import StoreWriter

MOST_WAITING = 10  # charts; the oldest beyond are dropped
CLOSE_SECONDS = 60.0  # how long `close` waits for the last chart and the JSON files
_ROOT = Path(__file__).resolve().parent.parent

Command = dict[str, Any]


class TrainingVisualizer:
    """Keeps the record of one run in `folder`: `run.db`, `metrics_history.json`, `training_latest.png` and so on.

        viz = TrainingVisualizer("training_viz")
        viz.update({"step": 0, "loss": 2.5, "accuracy": 0.1, "throughput": 35.2, "learning_rate": 1e-6}, "in", "out")
        viz.generate_charts(1)
        viz.save_metrics_json()
        viz.close()

    Every method may raise OSError when the store can't be written any more.
    """

    def __init__(
        self,
        folder: Path | str,
        run: Mapping[str, Any] | None = None,
        *,
        resume_from: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Make the store of a new run, or go on with the one that is there as of `resume_from` finished documents.

        `run`: columns of the table `run` (`viz/schema.py`), such as config, source, model; what is missing is NULL.
        `say`: told in one line what went wrong with the drawing; called from another thread.
        Raises FileExistsError if a new run finds a store, FileNotFoundError if there is none to resume, ValueError for
        one that can't be read.
        """
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        described = {"run_id": uuid.uuid4().hex[:12]} | dict(run or {})
        self._store = StoreWriter(self.folder / "run.db", described, resume=resume_from is not None)
        self._drawing = _DrawingProcess(self.folder, say, self.record_event)
        self._through = 0  # finished documents that this object has seen
        self._closed = False
        if resume_from is not None:
            self.rewind(resume_from)

    def update(self, metrics: Mapping[str, Any], input_text: str = "", output_text: str = "") -> None:
        """Record one step, or one generation; `viz/store.py` documents the keys. Raises ValueError for others."""
        self._store.add_rows(rows_of(metrics, input_text, output_text))
        if metrics.get("loss") is not None:
            self._through = max(self._through, metrics["step"] + 1)

    def record_event(self, step: int, kind: str, detail: str) -> None:
        """Keep something that happened for good: no rewind removes it."""
        self._store.add("events", {"time": time.time(), "step": step, "kind": kind, "detail": detail})

    def record_evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """Record an evaluation after document `step`. `values`: the other columns of the table `evaluations`."""
        self._store.add("evaluations", {"step": step, **values})

    def generate_charts(self, step: int) -> None:
        """Have the run drawn as of `step` finished documents. Returns at once."""
        self._store.after_commit(lambda: self._drawing.ask({"chart": step}))

    def save_metrics_json(self) -> None:
        """Have the JSON files brought up to date, if that takes at most 1 % of the time so far. Returns at once."""
        self._store.after_commit(lambda: self._drawing.ask({"export": True, "force": False}))

    def flush(self) -> None:
        """Return when all rows so far are on disk for good."""
        self._store.flush()

    def rewind(self, step: int) -> None:
        """Forget the rows from `step` on (never events), and the pictures of more than `step` documents."""
        self._store.rewind(step)
        self._through = min(self._through, step)
        self._drawing.ask({"rewind": step})

    def close(self, outcome: str = "done") -> None:
        """Finish what was asked for, with a chart of the last step and complete JSON files, and leave one store file.

        Waits at most a minute for the drawing. `outcome`: how the run ended, kept in the store. Twice is once.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._store.update_run(ended=time.time(), outcome=outcome)
            self._store.flush()
            self._drawing.finish(self._through)
        finally:
            self._drawing.stop()
            self._store.close()


class _DrawingProcess:
    """The child process as seen from here: a thread hands it one command at a time and reads the answer.

    If the process dies it is started again once, with the command that it died of. The second time it is given up,
    until `finish` tries a last fresh one.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], record_event: Callable[[int, str, str], None]) -> None:
        self._folder, self._say, self._record_event = folder, say, record_event
        self._wake = threading.Condition()
        self._commands: deque[Command] = deque()
        self._process: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - its standard error, kept off the progress bar
        self._deaths = 0
        self._newest = 0  # the greatest chart asked for
        self._dropped: list[int] = []
        self._last_error = ""
        self._last_try = self._stopping = False
        self._thread = self._start()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._serve, name="drawing", daemon=True)
        thread.start()
        return thread

    def ask(self, command: Command) -> None:
        """Queue a command. Of more than 10 waiting charts the oldest are dropped, with an event."""
        with self._wake:
            if command in self._commands:
                return  # an export that waits already
            if "rewind" in command:
                self._newest = min(self._newest, command["rewind"])
                self._commands = deque(c for c in self._commands if c.get("chart", 0) <= command["rewind"])
            self._newest = max(self._newest, command.get("chart", 0))
            self._commands.append(command)
            charts = [c for c in self._commands if "chart" in c]
            for old in charts[: max(0, len(charts) - MOST_WAITING)]:
                self._commands.remove(old)
                self._dropped.append(old["chart"])  # told by the other thread: this one may be the store's own
            self._wake.notify_all()

    def finish(self, step: int) -> None:
        """Have what was asked for, a chart of `step` and all JSON files made; wait for it, and say it if they are not.

        If the process has died twice, a last fresh one is tried.
        """
        until = time.monotonic() + CLOSE_SECONDS
        final: list[Command] = [{"export": True, "force": True}, {"finish": True}]
        with self._wake:
            chart: list[Command] = [{"chart": step}] if step > self._newest else []
            self._commands.extend(chart + final)
            self._newest = max(self._newest, step)
            self._wake.notify_all()
        self._thread.join(CLOSE_SECONDS)
        if not self._thread.is_alive() and self._deaths > 1:
            self._deaths, self._last_try = 1, True
            chart = [{"chart": self._newest}] if self._newest else []
            self._commands.extend([final[0], *chart, final[1]])
            self._thread = self._start()
            self._thread.join(until - time.monotonic())
        late = f"took more than {CLOSE_SECONDS:.0f} s" if self._thread.is_alive() else ""
        if late or self._deaths > 1:
            problem = (
                f"Drawing {late or f'failed ({self._last_words()})'}: the last chart or the JSON files are missing."
            )
            self._tell(
                self._newest,
                "drawing_unfinished",
                f"{problem} The record is safe; python -m viz chart {self._folder} (and export) makes them again.",
            )

    def stop(self) -> None:
        """End the process, finished or not."""
        with self._wake:
            self._stopping = True
            if self._process is not None:
                self._process.kill()
            self._wake.notify_all()
        self._thread.join()
        self._errors.close()

    def _serve(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._commands or self._stopping)
                if self._stopping:
                    break
                command = self._commands.popleft()
                given_up = self._deaths > 1
                dropped, self._dropped = self._dropped, []
            for chart in dropped:
                self._note(chart, "chart_dropped", f"drawing was more than {MOST_WAITING} charts behind")
            if not given_up:
                self._carry_out(command)
            if "finish" in command:
                break
        self._reap()

    def _carry_out(self, command: Command) -> None:
        answer = self._exchange(command)
        while not answer and not self._stopping:
            self._reap()
            self._deaths += 1
            step = command.get("chart", self._newest)
            if self._deaths > 1:
                if not self._last_try:
                    text = f"The drawing process died again ({self._last_words()}): no more charts before the end."
                    self._tell(step, "drawing_given_up", f"{text} Training goes on.")
                return
            text = f"The drawing process died ({self._last_words()}) and was started again. Training goes on."
            self._tell(step, "drawing_restarted", text)
            answer = self._exchange(command)
        if "failed" in answer and answer["error"] != self._last_error:  # a defect is said once, not every 50 steps
            self._last_error = answer["error"]
            self._tell(
                command.get("chart", self._newest), "drawing_failed", f"{_named(command)} failed: {answer['error']}"
            )

    def _exchange(self, command: Command) -> dict[str, Any]:
        """The answer to a command; empty if the process could not be started, or died of it."""
        try:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
        except (OSError, ValueError):
            return {}
        return answer

    def _running(self) -> subprocess.Popen[str]:
        with self._wake:
            if self._process is None and not self._stopping:
                single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
                paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "viz.worker", str(self._folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    encoding="utf-8",
                    cwd=_ROOT,  # `-m` looks there first: nothing in the user's folder may stand for our modules
                    env=os.environ | single | {"PYTHONPATH": paths, "PYTHONIOENCODING": "utf-8"},
                    start_new_session=True,  # Ctrl-C reaches a terminal's whole group; this one finishes its chart
                )
            if self._process is None:
                raise OSError("stopping")
            return self._process

    def _reap(self) -> None:
        with self._wake:
            process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()
        for left in self._folder.glob(part_name("*", process.pid)):
            left.unlink(missing_ok=True)

    def _last_words(self) -> str:
        """The last line of its standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4000))
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "it said nothing")

    def _tell(self, step: int, kind: str, text: str) -> None:
        self._say(text)
        self._note(step, kind, text)

    def _note(self, step: int, kind: str, text: str) -> None:
        with suppress(OSError, RuntimeError):  # a store that can't be written is told to the trainer by its own calls
            self._record_event(step, kind, text)


def _named(command: Command) -> str:
    return f"Drawing training_step_{command['chart']:06d}.png" if "chart" in command else "Writing the JSON files"

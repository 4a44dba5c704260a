"""The drawing process (`viz.charts.renderer`), seen from the trainer: a thread hands it one command at a time.

A process that dies, or that is silent for `answer_seconds`, is replaced once, and told the command that it failed at.
The second time drawing is given up, until `finish` tries a last fresh process.
"""

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.child_process import ROOT, environment
from common.file_replacement import temporary_name
from viz.record.runs import KEEP_CHARTS

MOST_WAITING = 10  # charts; the oldest beyond are dropped

DrawingCommand = dict[str, Any]


@dataclass(frozen=True)
class DrawingOptions:
    """How the drawing process is started, and how long it may take."""

    start: Callable[..., Any] = subprocess.Popen
    """Start the process; takes the arguments of `subprocess.Popen` and returns what behaves like one."""
    answer_seconds: float = 60.0
    """A chart takes 0.1 s, so a process that sends no answer for this long hangs."""
    close_seconds: float = 60.0
    """How long `finish` waits for the last chart and the JSON files, whatever happens."""
    last_answer_seconds: float = 20.0
    """How long, of that time, a process started before `finish` has: the rest is left for a fresh one."""


USUAL_DRAWING = DrawingOptions()


class DrawingProcess:
    """Commands are queued by `ask` and carried out in order. Nothing here raises, and only `finish` waits."""

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        record_event: Callable[[int, str, str], None],
        keep_charts: int = KEEP_CHARTS,
        options: DrawingOptions = USUAL_DRAWING,
    ) -> None:
        self._keep_charts, self._options = keep_charts, options
        self._folder, self._say, self._record_event = folder, say, record_event
        self._wake = threading.Condition()
        self._commands: deque[DrawingCommand] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - its standard error, kept off the progress bar
        self._deaths = 0
        self._hung = False  # the last death: it had to be killed
        self._newest = self._drawn = 0  # the greatest chart asked for, and the greatest that was made
        self._rewind: int | None = None  # what a rewind left to forget, that no process has carried out
        self._dropped: list[int] = []
        self._errors_told: set[str] = set()
        self._finish_until: float | None = None  # monotonic
        self._is_last = False  # the process that runs was started by `finish`: there is no other after it
        self._last_try = self._stopping = False
        self._thread = self._start()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._serve, name="drawing", daemon=True)
        thread.start()
        return thread

    def ask(self, command: DrawingCommand) -> None:
        """Queue a command. Of more than 10 waiting charts the oldest are dropped, with an event."""
        with self._wake:
            if "rewind" in command:
                self._go_back(command["rewind"])
            elif command not in self._commands:  # else an export that waits already
                self._newest = max(self._newest, command.get("chart", 0))
                self._commands.append(command)
            charts = [c for c in self._commands if "chart" in c]
            for old in charts[: max(0, len(charts) - MOST_WAITING)]:
                self._commands.remove(old)
                self._dropped.append(old["chart"])  # told by the other thread: this one may be the store's own
            self._wake.notify_all()

    def _go_back(self, step: int) -> None:
        # First of all: what still waits, exports too, must not be made of the rows that the process remembers. What it
        # is at now may be of them; it forgets that next.
        self._newest, self._drawn = min(self._newest, step), min(self._drawn, step)
        self._rewind = step if self._rewind is None else min(self._rewind, step)
        kept = [c for c in self._commands if "rewind" not in c and c.get("chart", 0) <= step]
        self._commands = deque([{"rewind": self._rewind}, *kept])

    def finish(self, step: int) -> None:
        """Have what was asked for, a chart of `step` and all JSON files made; wait for it, and say it if they are not.

        Returns within `close_seconds`. If the process has died or hung twice, a last fresh one is tried.
        """
        began = time.monotonic()
        final: list[DrawingCommand] = [{"export": True, "force": True}, {"finish": True}]
        with self._wake:
            # Drawn again where it was: the evaluation at the end came after it.
            chart: list[DrawingCommand] = [{"chart": step}] if step else []
            self._commands.extend(chart + final)
            self._newest = max(self._newest, step)
            self._finish_until = began + self._options.close_seconds
            self._wake.notify_all()
        self._thread.join(self._options.close_seconds)
        if not self._thread.is_alive() and self._deaths > 1 and time.monotonic() < self._finish_until:
            self._deaths, self._last_try = 1, True
            forget: list[DrawingCommand] = [{"rewind": self._rewind}] if self._rewind is not None else []
            chart = [{"chart": self._newest}] if self._newest else []
            self._commands.extend([*forget, final[0], *chart, final[1]])
            self._thread = self._start()
            self._thread.join(max(0.0, self._finish_until - time.monotonic()))
        late = f"took more than {self._options.close_seconds:.0f} s" if self._thread.is_alive() else ""
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
        self._thread.join(2 * 5 + 5)  # longer only where the kernel can't end the process
        if not self._thread.is_alive():
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

    def _carry_out(self, command: DrawingCommand) -> None:
        answer = self._exchange(command)
        while not answer and not self._stopping:
            self._reap()
            self._deaths += 1
            if self._finish_until is not None and time.monotonic() >= self._finish_until:
                self._deaths = 2
                return  # `finish` tells it
            step = command.get("chart", self._newest)
            how = f"hung (no answer while {_named(command)})" if self._hung else f"died ({self._last_words()})"
            if self._deaths > 1:
                if not self._last_try:
                    text = f"The drawing process {how} again: no more charts before the end."
                    self._tell(step, "drawing_given_up", f"{text} Training goes on.")
                return
            text = f"The drawing process {how} and was started again. Training goes on."
            self._tell(step, "drawing_restarted", text)
            answer = self._exchange(command)
        if "done" in answer:
            self._note_done(command)
        elif "failed" in answer:
            self._tell_failed(command, answer["error"])

    def _note_done(self, command: DrawingCommand) -> None:
        with self._wake:
            if self._rewind is not None and self._rewind == command.get("rewind"):
                self._rewind = None
            if self._drawn < command.get("chart", 0) <= self._newest:  # greater: the run has gone back meanwhile
                self._drawn = command["chart"]

    def _tell_failed(self, command: DrawingCommand, error: str) -> None:
        """A defect is said once, not every 50 steps; two errors that differ in a number are one."""
        kind = re.sub(r"\d+", "0", error)
        if kind not in self._errors_told:
            self._errors_told.add(kind)
            text = f"{_named(command)} failed: {error}"
            self._tell(command.get("chart", self._newest), "drawing_failed", text[:1].upper() + text[1:])

    def _exchange(self, command: DrawingCommand) -> dict[str, Any]:
        """The answer to a command; empty if the process could not be started, died of it or hangs."""
        self._hung = False
        try:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(command).encode() + b"\n")
            answer: dict[str, Any] = json.loads(self._read_line(process.stdout.fileno()) or b"{}")
        except (OSError, ValueError):
            return {}
        return answer

    def _read_line(self, descriptor: int) -> bytes:
        """One line of the process; empty when it has ended, or hangs."""
        asked, line, poll = time.monotonic(), b"", select.poll()
        poll.register(descriptor, select.POLLIN)
        while not line.endswith(b"\n"):
            left = self._answer_until(asked) - time.monotonic()
            # Looked at once more when the time is up: we may have been stopped ourselves (Ctrl-Z) all the while.
            if poll.poll(1000 * min(max(left, 0), 0.2)):
                part = os.read(descriptor, 65536)
                if not part:
                    return b""
                line += part
            elif left <= 0 or self._stopping:
                self._hung = not self._stopping
                return b""
        return line

    def _answer_until(self, asked: float) -> float:
        if self._finish_until is None:
            return asked + self._options.answer_seconds
        if self._is_last:
            return self._finish_until
        began = self._finish_until - self._options.close_seconds
        last = max(asked, began) + self._options.last_answer_seconds
        return min(asked + self._options.answer_seconds, last, self._finish_until)

    def _running(self) -> subprocess.Popen[bytes]:
        with self._wake:
            if self._process is None and not self._stopping:
                self._is_last = self._finish_until is not None
                self._process = self._options.start(
                    [sys.executable, "-m", "viz.charts.renderer", str(self._folder), str(self._keep_charts)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    bufsize=0,  # what poll() says of the pipe is all there is
                    cwd=ROOT,
                    env=environment(),
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
        if self._hung:
            process.kill()  # also ends a stopped one
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        for _ in range(2):
            try:
                process.wait(5)
                break
            except subprocess.TimeoutExpired:  # of a killed one, if the kernel waits for a disk: nobody can end that
                process.kill()
        for left in self._folder.glob(temporary_name("*", process.pid)):
            with suppress(OSError):
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


def _named(command: DrawingCommand) -> str:
    if "chart" in command:
        return f"drawing training_step_{command['chart']:06d}.png"
    if "rewind" in command:
        return f"forgetting what is after step {command['rewind']}"
    return "ending" if "finish" in command else "writing the JSON files"

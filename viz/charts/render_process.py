"""The trainer's side of the drawing process (`viz.charts.renderer`): a thread sends it one command at a time.

A process that dies, or that sends no answer for `answer_seconds`, is replaced once and given the same command again.
If that fails too, nothing more is drawn until `finish` tries one last process.
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

from common.child_process import FOLDER, environment
from common.file_replacement import temporary_name
from viz.record.runs import KEEP_CHARTS

MOST_WAITING = 10  # charts; if more wait, the oldest are dropped

DrawingCommand = dict[str, Any]


@dataclass(frozen=True)
class DrawingOptions:
    """How the drawing process is started, and how long it may take."""

    start: Callable[..., Any] = subprocess.Popen
    """Starts the process: called like `subprocess.Popen`, and returns an object that behaves like one."""
    answer_seconds: float = 60.0
    """A chart takes 0.2 s, so a process that sends no answer for this long hangs."""
    close_seconds: float = 60.0
    """How long `finish` waits for the last chart and the JSON files, whatever happens."""
    last_answer_seconds: float = 20.0
    """How long, of that time, a process started before `finish` may take; the rest is left for a new one."""


DEFAULT_DRAWING = DrawingOptions()


class DrawingProcess:
    """Executes the commands that `ask` queues, in order. No method raises, and only `finish` waits."""

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None],
        record_event: Callable[[int, str, str], None],
        keep_charts: int = KEEP_CHARTS,
        options: DrawingOptions = DEFAULT_DRAWING,
    ) -> None:
        self._keep_charts, self._options = keep_charts, options
        self._folder, self._say, self._record_event = folder, say, record_event
        self._wake = threading.Condition()
        self._commands: deque[DrawingCommand] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - its standard error, which would break the progress bar
        self._deaths = 0
        self._hung = False  # the last process had to be killed
        self._newest = self._drawn = 0  # the latest chart requested, and the latest drawn
        self._rewind: int | None = None  # a rewind that no process has executed yet
        self._dropped: list[int] = []
        self._errors_reported: set[str] = set()
        self._finish_until: float | None = None  # monotonic
        self._is_last = False  # the current process was started by `finish`; no other follows
        self._last_try = self._stopping = False
        self._thread = self._start()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._serve, name="drawing", daemon=True)
        thread.start()
        return thread

    def ask(self, command: DrawingCommand) -> None:
        """Queue a command. If more than 10 charts wait, the oldest are dropped and an event is recorded."""
        with self._wake:
            if "rewind" in command:
                self._go_back(command["rewind"])
            elif command not in self._commands:  # otherwise an export that already waits
                self._newest = max(self._newest, command.get("chart", 0))
                self._commands.append(command)
            charts = [c for c in self._commands if "chart" in c]
            for old in charts[: max(0, len(charts) - MOST_WAITING)]:
                self._commands.remove(old)
                self._dropped.append(old["chart"])  # reported by the other thread: this one may be the writer's
            self._wake.notify_all()

    def _go_back(self, step: int) -> None:
        # Before all waiting commands, exports too: the process must not use the deleted rows that it has read. What it
        # is drawing now may use them, and is deleted by this command.
        self._newest, self._drawn = min(self._newest, step), min(self._drawn, step)
        self._rewind = step if self._rewind is None else min(self._rewind, step)
        kept = [c for c in self._commands if "rewind" not in c and c.get("chart", 0) <= step]
        self._commands = deque([{"rewind": self._rewind}, *kept])

    def finish(self, step: int) -> None:
        """Wait until the queued commands, a chart of `step` and all JSON files are done; report it if they are not.

        Returns within `close_seconds`. If the process has died or hung twice, one last process is tried.
        """
        began = time.monotonic()
        final: list[DrawingCommand] = [{"export": True, "force": True}, {"finish": True}]
        with self._wake:
            # Drawn even if it exists, because the final evaluation came after it.
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
            what = late or f"failed ({self._last_words()})"
            problem = f"Drawing {what}, so the last chart or the JSON files are missing."
            make = f"python -m viz chart {self._folder} && python -m viz export {self._folder}"
            text = f"{problem} The record is complete. Make them: {make}"
            self._report(self._newest, "drawing_unfinished", text)

    def stop(self) -> None:
        """End the process, finished or not."""
        with self._wake:
            self._stopping = True
            if self._process is not None:
                self._process.kill()
            self._wake.notify_all()
        self._thread.join(2 * 5 + 5)  # longer only if the kernel can't end the process
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
                self._record(chart, "chart_dropped", f"drawing was more than {MOST_WAITING} charts behind")
            if not given_up:
                self._execute(command)
            if "finish" in command:
                break
        self._reap()

    def _execute(self, command: DrawingCommand) -> None:
        answer = self._exchange(command)
        while not answer and not self._stopping:
            self._reap()
            self._deaths += 1
            if self._finish_until is not None and time.monotonic() >= self._finish_until:
                self._deaths = 2
                return  # `finish` reports it
            step = command.get("chart", self._newest)
            how = f"hung (no answer while {_named(command)})" if self._hung else f"died ({self._last_words()})"
            if self._deaths > 1:
                if not self._last_try:
                    text = f"The drawing process {how} again: no more charts until the run ends."
                    self._report(step, "drawing_given_up", f"{text} Training continues.")
                return
            text = f"The drawing process {how} and was restarted. Training continues."
            self._report(step, "drawing_restarted", text)
            answer = self._exchange(command)
        if "done" in answer:
            self._mark_done(command)
        elif "failed" in answer:
            self._report_failed(command, answer["error"])

    def _mark_done(self, command: DrawingCommand) -> None:
        with self._wake:
            if self._rewind is not None and self._rewind == command.get("rewind"):
                self._rewind = None
            if self._drawn < command.get("chart", 0) <= self._newest:  # greater: the run was rolled back meanwhile
                self._drawn = command["chart"]

    def _report_failed(self, command: DrawingCommand, error: str) -> None:
        """Report an error once, not at every chart; errors that differ only in a number count as one."""
        kind = re.sub(r"\d+", "0", error)
        if kind not in self._errors_reported:
            self._errors_reported.add(kind)
            text = f"{_named(command)} failed: {error}"
            self._report(command.get("chart", self._newest), "drawing_failed", text[:1].upper() + text[1:])

    def _exchange(self, command: DrawingCommand) -> dict[str, Any]:
        """Send a command and return the answer: empty if the process could not be started, died or hangs."""
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
        """Read one line from the process: empty if it has ended or hangs."""
        asked, line, poll = time.monotonic(), b"", select.poll()
        poll.register(descriptor, select.POLLIN)
        while not line.endswith(b"\n"):
            left = self._answer_until(asked) - time.monotonic()
            # Polled once more when the time is up: this process may itself have been stopped (Ctrl-Z).
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
                    bufsize=0,  # poll() does not see what a buffer holds
                    cwd=FOLDER,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C reaches the terminal's whole group; this one finishes its chart
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
            process.kill()  # ends a stopped process too
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        for _ in range(2):
            try:
                process.wait(5)
                break
            except subprocess.TimeoutExpired:  # a killed process can stay while the kernel waits for a disk
                process.kill()
        for left in self._folder.glob(temporary_name("*", process.pid)):
            with suppress(OSError):
                left.unlink(missing_ok=True)

    def _last_words(self) -> str:
        """Return the last line of its standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 4000))
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no error output")

    def _report(self, step: int, kind: str, text: str) -> None:
        self._say(text)
        self._record(step, kind, text)

    def _record(self, step: int, kind: str, text: str) -> None:
        with suppress(OSError, RuntimeError):  # the trainer's own calls report a store that can't be written
            self._record_event(step, kind, text)


def _named(command: DrawingCommand) -> str:
    if "chart" in command:
        return f"drawing training_step_{command['chart']:06d}.png"
    if "rewind" in command:
        return f"discarding what follows step {command['rewind']}"
    return "shutting down" if "finish" in command else "writing the JSON files"

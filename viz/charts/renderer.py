"""The child process that draws and exports on request: `python -m viz.charts.renderer FOLDER CHARTS`.

CHARTS is the number of numbered charts to keep.

It reads commands as JSON lines from standard input and writes one answer to each to standard output:

    {"chart": 50}                       draw the run as of 50 documents
    {"export": true, "force": false}    the JSON files; if not forced, only while that takes at most 1 % of the time
    {"rewind": 40}                      rows from step 40 on were deleted: discard them and the charts of more documents
    {"finish": true}                    answer and end

Answers: {"done": COMMAND, "seconds": 0.1} (with "skipped": true for an export that was not due yet) or
{"failed": COMMAND, "error": "one line"}. The process also ends when standard input is closed, so that it never
outlives its parent.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from viz.charts.chart_files import delete_charts_after, draw_run, thin_charts
from viz.charts.figure import Chart
from viz.record.exports import Exporter
from viz.record.reader import Columns, StoreReader
from viz.views.run_view import Viewer

EXPORT_SHARE = 0.01  # of the time since the start, at most, is spent rewriting JSON
SECONDS_PER_ROW = 1e-5  # expected cost of a first export


class Worker:
    """Executes commands; keeps the chart, the reader and the exporter between them."""

    def __init__(self, folder: Path, keep_charts: int, chart: Chart | None = None) -> None:
        self.folder = folder
        self._keep_charts = keep_charts
        self._chart = chart or Chart()
        self._store: StoreReader | None = None
        self._started = time.monotonic()
        self._exporting = self._last_export = 0.0  # seconds
        self._reset()

    def _reset(self) -> None:
        self._viewer: Viewer | None = None
        self._exporter, self._exported = Exporter(), 0

    def execute(self, command: dict[str, Any]) -> dict[str, Any]:
        """Execute one command; return what the answer contains besides `done` and `seconds`."""
        if "finish" in command:
            return {}
        if "rewind" in command:
            self._reset()
            delete_charts_after(self.folder, command["rewind"])
            return {}
        if self._store is None:
            self._store = StoreReader(self.folder / "run.db")
        if self._viewer is None:
            self._viewer = Viewer(self._store)
        if "chart" in command:
            draw_run(self._chart, self._viewer, self.folder, command["chart"])
            thin_charts(self.folder, self._keep_charts)
            return {}
        self._viewer.series.read(self._store)
        exported = self._export(self._store, self._viewer.series.columns(), command["force"])
        return {} if exported else {"skipped": True}

    def _export(self, store: StoreReader, columns: Columns, force: bool) -> bool:
        began = time.monotonic()
        rows = len(columns["steps"])
        expected = max(self._last_export, (rows - self._exported) * SECONDS_PER_ROW)
        if not force and self._exporting + expected > EXPORT_SHARE * (began - self._started):
            return False
        self._exporter.export(store, columns, self.folder)
        self._exported = rows
        self._last_export = time.monotonic() - began
        self._exporting += self._last_export
        return True


def main(folder: Path, keep_charts: int, chart: Chart | None = None) -> None:
    """Execute commands until standard input ends. `chart`: one that exists already, since making one takes 0.3 s."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C and requests a last chart
    os.nice(10)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints must not mix with the answers
    worker = Worker(folder, keep_charts, chart)
    for line in sys.stdin:
        command = json.loads(line)
        began = time.monotonic()
        try:
            answer = {"done": command} | worker.execute(command) | {"seconds": round(time.monotonic() - began, 4)}
        except Exception as error:  # noqa: BLE001 - reported to the parent; the next chart may succeed
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            answer = {"failed": command, "error": problem}
        try:
            print(json.dumps(answer), file=answers, flush=True)
        except BrokenPipeError:
            return  # the parent is gone
        if "finish" in command:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

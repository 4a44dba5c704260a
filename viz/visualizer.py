"""The trainer's interface to the record: `TrainingVisualizer` stores a run and has it drawn.

It writes the store itself. A child process, `viz.charts.renderer`, makes charts and JSON files, so that training does
not wait for them. Nothing that happens to that process can stop or slow training.
"""

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from viz.charts.render_process import DEFAULT_DRAWING, DrawingOptions, DrawingProcess
from viz.record.files import remove_leftovers
from viz.record.runs import KEEP_CHARTS
from viz.record.schema import make_row, rows_of
from viz.record.writer import StoreWriter
from viz.stats.retention import Retention


class TrainingVisualizer:
    """Keeps the record of one run in `folder`: `run.db`, `metrics_history.json`, `training_latest.png` and so on.

        viz = TrainingVisualizer("training_viz")
        viz.update({"step": 0, "loss": 2.5, "accuracy": 0.1, "throughput": 35.2, "learning_rate": 1e-6}, "in", "out")
        viz.generate_charts(1)
        viz.save_metrics_json()
        viz.close()

    While another process locks the store, only `flush` and `close` wait, unless the lock lasts for hours.
    Every method may raise OSError if the store can't be written. Nothing is lost then, including the arguments of the
    call that raised: don't repeat it. Call `recover` to write everything once the store can be written.
    """

    def __init__(
        self,
        folder: Path | str,
        run: Mapping[str, Any] | None = None,
        *,
        resume_from: int | None = None,
        keep_charts: int = KEEP_CHARTS,
        keep_documents: int | None = None,
        say: Callable[[str], None] = print,
        drawing: DrawingOptions = DEFAULT_DRAWING,
        retention: Callable[[int], Retention] = Retention,
        network_file_system: bool | None = None,
    ) -> None:
        """Create the store of a new run, or continue the existing one from `resume_from` finished documents.

        `run`: columns of the table `run` (`viz/record/schema.py`), such as config, source, model; missing ones are
            NULL.
        `keep_charts`: maximum number of numbered charts; beyond it they are thinned out evenly.
        `keep_documents`: number of newest documents whose tokens are all kept (`viz/stats/retention.py`); None: all.
        `say`: called with one line if drawing fails or another process locks the store; also from other threads.
        `drawing`: how the drawing process is started, and its time limits.
        `retention`: makes the `Retention` of `keep_documents`. `network_file_system`: see `StoreWriter`.
        Raises FileExistsError if a new run finds a store, FileNotFoundError if there is none to resume, ValueError if
        it can't be read.
        """
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        described = {"run_id": uuid.uuid4().hex[:12]} | dict(run or {})
        self._store = StoreWriter(
            self.folder / "run.db",
            described,
            resume=resume_from is not None,
            say=say,
            network_file_system=network_file_system,
        )
        remove_leftovers(self.folder)
        self._drawing = DrawingProcess(self.folder, say, self.record_event, keep_charts, drawing)
        self._retention = None if keep_documents is None else retention(keep_documents)
        self._through = resume_from or 0  # finished documents in the record
        self._closed = False
        if resume_from is not None:
            self.rewind(resume_from)
            self._empty_old_documents()  # fewer may be kept now than before

    def update(self, metrics: Mapping[str, Any], input_text: str = "", output_text: str = "") -> None:
        """Record one step or one generation. Raises ValueError for a key that `viz/record/schema.py` does not list."""
        rows = rows_of(metrics, input_text, output_text)
        if metrics.get("loss") is not None:
            self._through = max(self._through, metrics["step"] + 1)
        self._store.add_rows(rows)
        if metrics.get("loss") is not None and self._retention and self._retention.is_due(self._through):
            self._empty_old_documents()

    def _empty_old_documents(self) -> None:
        if self._retention is not None:
            self._store.keep_up(self._retention.next_change)

    def record_event(self, step: int, kind: str, detail: str) -> None:
        """Record an event. It stays: no rewind removes it."""
        self._store.add("events", {"time": time.time(), "step": step, "kind": kind, "detail": detail})

    def record_evaluation(self, step: int, parts: Sequence[Mapping[str, Any]]) -> None:
        """Record an evaluation after document `step`, for a whole split and for each source in it.

        `parts`: the other columns of the table `evaluations`; without `source`, it is the whole split.
        """
        rows = [make_row("evaluations", {"step": step, "source": "", **part}) for part in parts]
        self._store.add_rows([("evaluations", row) for row in rows])

    def record_probe(self, step: int, document: int, loss: float, accuracy: float, token_losses: npt.ArrayLike) -> None:
        """Record the document of step `document` re-measured after document `step`: columns of the table `probes`."""
        values = {"step": step, "document": document, "loss": loss, "accuracy": accuracy, "token_losses": token_losses}
        self._store.add("probes", values)

    def generate_charts(self, step: int) -> None:
        """Request a chart as of `step` finished documents. Returns immediately."""
        self._store.after_commit(lambda: self._drawing.ask({"chart": step}))

    def save_metrics_json(self) -> None:
        """Request an update of the JSON files, if that takes at most 1 % of the time so far. Returns immediately."""
        self._store.after_commit(lambda: self._drawing.ask({"export": True, "force": False}))

    def flush(self) -> None:
        """Return when all rows so far are durably on disk, however long another process locks the store."""
        self._store.flush()

    def recover(self) -> None:
        """Write everything that waits since a call raised OSError; return when it is durably on disk.

        Then everything works as before. Raises OSError if it still can't be written; nothing is lost.
        """
        self._store.recover()

    def rewind(self, step: int) -> None:
        """Delete the rows from `step` on (never events), and the charts of more than `step` documents.

        Returns when that is on disk or, while another process locks the store, immediately: it is still done before
        anything recorded later. The charts are deleted after the one being drawn; none of them reappears.
        """
        self._through = min(self._through, step)

        def then() -> None:  # in the writer's thread, like everything the retention does
            if self._retention is not None:
                self._retention.rewind(step)
            self._drawing.ask({"rewind": step})

        self._store.rewind(step, then)

    def close(self, outcome: str = "done") -> None:
        """Finish all requests, a chart of the last step and complete JSON files, and leave a single store file.

        Waits at most a minute for the drawing. `outcome`: how the run ended, kept in the store. A second call does
        nothing. Raises OSError if the store can't be written, after a second attempt; then nothing is drawn.
        """
        if self._closed:
            return
        self._closed = True
        try:
            try:
                self._store.update_run(ended=time.time(), outcome=outcome)
                self._store.flush()
            except OSError:
                self._store.recover()
            self._drawing.finish(self._through)
        finally:
            self._drawing.stop()
            self._store.close()

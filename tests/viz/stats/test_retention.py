"""Which documents keep their tokens: by the rule as it is told, after a resume, a rewind and a full disk too."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viz.record.schema import Statement
from viz.record.writer import StoreReader
from viz.stats.averages import WINDOW
from viz.stats.retention import BLOCK, FURTHEST, Retention
from viz.stats.series import Series
from viz.views.document import describe_document
from viz.views.run_view import Viewer
from viz.visualizer import TrainingVisualizer

ROOT = Path(__file__).parents[3]
KEEP, STEPS = 1500, 5600
SPIKED = {777: "spike", 2001: "skipped update", 2002: "spike", 5500: "spike"}
PROBED = (1234, 3333)
EMPTIED = "SELECT step FROM documents WHERE token_ids IS NULL ORDER BY step"
ROWS = "SELECT * FROM documents ORDER BY step"


def metrics_of(step: int, tokens: int = 4) -> dict[str, Any]:
    """A document of one of three sources; some have a loss that is not finite. The same each time it is asked for."""
    random = np.random.default_rng(step)
    source = ("common", "common", "rare")[step % 3] if step % 250 else "rarest"
    loss = random.normal({"common": 4.0, "rare": 2.0, "rarest": 3.0}[source], 0.6)
    token_losses = random.gamma(2, 2, tokens - 1)
    return {
        "step": step, "loss": float("nan") if step % 333 == 0 else loss, "source": source, "shard": "file",
        "row": step, "text_hash": random.bytes(32), "document_bytes": 40, "token_losses": token_losses,
        "token_ids": random.integers(0, 8192, tokens), "token_ranks": random.integers(0, 300, tokens - 1),
    }  # fmt: skip


def record(viz: TrainingVisualizer, begin: int, end: int) -> None:
    for step in range(begin, end):
        viz.update(metrics_of(step))
        if step in SPIKED:
            viz.record_event(step, SPIKED[step], "")
        for document in PROBED:
            if step in (document, document + 1):
                viz.record_probe(step, document, 1.0, 0.5, [1.0, 1.0])


def finish(viz: TrainingVisualizer) -> None:
    """Close it without the last picture."""
    viz._drawing.stop()
    viz._store.close()


def ask(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / "run.db") as database:
        rows = database.execute(sql).fetchall()
    database.close()
    return rows


def expected(steps: int, keep: int) -> set[int]:
    """Steps of the documents that are emptied: the rule once more, slowly."""
    series = Series()
    made = [metrics_of(step) for step in range(steps)]
    blank = {name: np.full(steps, np.nan) for name in ("accuracy", "gradient_norm", "seconds", "tokens", "throughput")}
    names = np.array([one["source"] for one in made], dtype=object)
    losses = np.array([one["loss"] for one in made])
    series.extend(
        blank | {"loss": losses, "source": names, "seconds_waited": blank["seconds"]} | {"steps": np.arange(steps)}
    )
    excess, emptied = series.excess.values(), set()
    for begin in range(0, steps - keep - BLOCK + 1, BLOCK):
        block = {step: excess[step] for step in range(begin, begin + BLOCK)}
        ordered = sorted((step for step in block if np.isfinite(block[step])), key=block.__getitem__)
        kept = {*ordered[:FURTHEST], *ordered[-FURTHEST:], *range(WINDOW), *SPIKED, *PROBED}
        emptied |= block.keys() - kept
    return emptied


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of a run that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    viz = TrainingVisualizer(folder, keep_documents=KEEP)
    record(viz, 0, STEPS)
    finish(viz)
    return folder


def test_the_newest_stay_and_of_the_others_what_one_would_open(whole: Path) -> None:
    emptied = {step for (step,) in ask(whole, EMPTIED)}
    assert emptied == expected(STEPS, KEEP)
    assert emptied < set(range(4000)) and len(emptied) > 3600
    with StoreReader(whole / "run.db") as store:
        assert store.documents_trained() == STEPS == len(store.text_hashes()[0])
        for step in (*SPIKED, *PROBED, 199, STEPS - KEEP):
            (kept,) = store.documents(step)
            assert kept["token_ids"].tolist() == metrics_of(step)["token_ids"].tolist()
        (row,) = store.documents(min(emptied))
        given = metrics_of(min(emptied))
        assert {name: row[name] for name in ("token_ids", "token_losses", "token_ranks")} == dict.fromkeys(
            ("token_ids", "token_losses", "token_ranks")
        )
        for name in ("source", "shard", "row", "text_hash", "document_bytes"):
            assert row[name] == given[name]


def test_all_stay_where_nothing_is_said(tmp_path: Path) -> None:
    viz = TrainingVisualizer(tmp_path)
    record(viz, 0, 2200)
    finish(viz)
    assert ask(tmp_path, EMPTIED) == []


def test_a_run_that_was_stopped_and_one_that_went_back_keep_the_same(whole: Path, tmp_path: Path) -> None:
    viz = TrainingVisualizer(tmp_path, keep_documents=KEEP)
    record(viz, 0, 2600)
    finish(viz)
    viz = TrainingVisualizer(tmp_path, keep_documents=KEEP, resume_from=2550)
    record(viz, 2550, 5000)
    viz.rewind(1700)  # into a block that was emptied
    viz._store.flush()
    assert len(ask(tmp_path, EMPTIED)) < 1700
    record(viz, 1700, STEPS)
    finish(viz)
    assert ask(tmp_path, ROWS) == ask(whole, ROWS)


def test_the_comparison_can_fail(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: who does not notice that the run went back leaves what was made anew as it is."""
    monkeypatch.setattr(Retention, "rewind", lambda retention, step: None)
    viz = TrainingVisualizer(tmp_path, keep_documents=KEEP)
    record(viz, 0, 5000)
    viz.rewind(1700)
    record(viz, 1700, STEPS)
    finish(viz)
    assert ask(tmp_path, ROWS) != ask(whole, ROWS)


def test_a_resumed_run_may_keep_fewer_and_then_more(tmp_path: Path) -> None:
    viz = TrainingVisualizer(tmp_path)
    record(viz, 0, 4100)
    finish(viz)
    viz = TrainingVisualizer(tmp_path, resume_from=4100, keep_documents=1)
    finish(viz)
    emptied = {step for (step,) in ask(tmp_path, EMPTIED)}
    assert emptied == expected(4100, 1) and max(emptied) > 3900
    viz = TrainingVisualizer(tmp_path, resume_from=4100, keep_documents=3000)
    record(viz, 4100, 5001)
    finish(viz)
    assert {step for (step,) in ask(tmp_path, EMPTIED)} == emptied  # what is gone is gone, and no more


class InPlace(Retention):
    """Makes rows smaller where they stand, as a plain UPDATE does."""

    def _change_of_next(self, fetch: Any) -> tuple[Statement, ...]:
        emptied = "token_ids = NULL, token_losses = NULL, token_ranks = NULL"
        sql = f"UPDATE documents SET {emptied} WHERE step >= ? AND step < ?"
        return tuple((sql, values[:2]) for _, values in super()._change_of_next(fetch))


def size_of_file(folder: Path, keep: int | None, steps: int) -> int:
    viz = TrainingVisualizer(folder, keep_documents=keep)
    for step in range(steps):
        viz.update(metrics_of(step, tokens=256))
    finish(viz)
    return (folder / "run.db").stat().st_size


def test_the_file_grows_by_a_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the control: by UPDATE, which frees no page, it would grow as if all were kept."""
    short, long = (size_of_file(tmp_path / f"{steps}", 500, steps) for steps in (2500, 5500))
    assert (
        long - short
    ) / 3000 < 400  # bytes a step, where a document with its tokens takes more than three times that
    everything = size_of_file(tmp_path / "all", None, 5500)
    assert everything > 5500 * 1200 and long < everything / 2
    monkeypatch.setattr("viz.visualizer.Retention", InPlace)
    assert size_of_file(tmp_path / "in place", 500, 5500) > 0.95 * everything


def test_what_can_not_be_read_is_asked_for_again(whole: Path) -> None:
    """A query that fails leaves everything as it was, wherever it fails."""
    database = sqlite3.connect(whole / "run.db")

    def changes_of(fail_at: int) -> list[tuple[Statement, ...]]:
        retention, count, found = Retention(1), 0, []

        def fetch(sql: str, values: Any = ()) -> list[tuple[Any, ...]]:
            nonlocal count
            count += 1
            if count == fail_at:
                raise sqlite3.OperationalError("disk I/O error")
            return database.execute(sql, values).fetchall()

        while len(found) < 3:
            try:
                found.append(retention.next_change(fetch))
            except sqlite3.OperationalError:
                continue
        return found

    assert {repr(changes_of(fail_at)) for fail_at in range(10)} == {repr(changes_of(-1))}
    database.close()


def test_a_full_disk_surfaces_and_nothing_is_lost(whole: Path, tmp_path: Path) -> None:
    """The block is emptied when there is room again, and rows that came meanwhile are there."""
    fill = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from tests.viz.stats.test_retention import record, finish, KEEP, STEPS\n"
        "from viz.visualizer import TrainingVisualizer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "folder = Path(sys.argv[1]); viz = TrainingVisualizer(folder, keep_documents=KEEP)\n"
        "viz._drawing.stop()\n"
        "record(viz, 0, KEEP + 999); viz.flush()\n"
        "room = (folder / 'run.db-wal').stat().st_size + 60_000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))\n"
        "record(viz, KEEP + 999, KEEP + 1000)\n"
        "try: viz.flush()\n"
        "except OSError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "viz._store.recover()\n"
        "record(viz, KEEP + 1000, STEPS); finish(viz)\n"
    )
    command = [sys.executable, "-c", fill, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.count("the store can't be written") == 1, done
    assert ask(tmp_path, ROWS) == ask(whole, ROWS)


def test_what_is_read_of_an_emptied_record(whole: Path) -> None:
    with StoreReader(whole / "run.db") as store:
        viewer = Viewer(store)
        now, then = viewer.look().positions, viewer.look(2500).positions
        assert [one.documents for one in now] == [WINDOW, WINDOW]
        # Of the 200 documents before step 2500 a few are left, each for being unlike the others: no mean of them.
        assert [one.documents for one in then] == [WINDOW]
        assert all(stand_out.step in range(STEPS) for stand_out in viewer.look().stand_outs)
        with pytest.raises(
            ValueError, match="the tokens of step 2,500 are no longer kept: its document is file row 2500"
        ):
            describe_document(store, 2500)
        assert store.token_ids(2500) is None and store.token_losses(2500, 2501) == []

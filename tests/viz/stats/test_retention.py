"""Which documents keep their tokens: the stated rule, also after a resume, a rewind and a full disk."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viz.conftest import execute, run_python
from viz.record.reader import StoreReader
from viz.record.schema import Statement
from viz.stats.averages import WINDOW
from viz.stats.retention import BLOCK, EXTREMES, Retention
from viz.stats.series import Series
from viz.views.document import describe_document
from viz.views.run_view import Viewer
from viz.visualizer import TrainingVisualizer

KEEP, STEPS = 1500, 5600
SPIKED = {777: "spike", 2001: "skipped update", 2002: "spike", 5500: "spike"}
PROBED = (1234, 3333)
EMPTIED = "SELECT step FROM documents WHERE token_ids IS NULL ORDER BY step"


def metrics_of(step: int, tokens: int = 4) -> dict[str, Any]:
    """A document of one of three sources, the same on every call; some losses are not finite."""
    random = np.random.default_rng(step)
    source = ("common", "common", "rare")[step % 3] if step % 250 else "rarest"
    loss = random.normal({"common": 4.0, "rare": 2.0, "rarest": 3.0}[source], 0.6)
    token_losses = random.gamma(2, 2, tokens - 1)
    return {
        "step": step, "loss": float("nan") if step % 333 == 0 else loss, "source": source, "shard": "file",
        "row": step, "text_hash": random.bytes(32), "document_bytes": 40, "token_losses": token_losses,
        "token_ids": random.integers(0, 8192, tokens), "token_ranks": random.integers(0, 300, tokens - 1),
    }  # fmt: skip


def record(viz: TrainingVisualizer, begin: int, end: int, tokens: int = 4) -> None:
    for step in range(begin, end):
        viz.update(metrics_of(step, tokens))
        if step in SPIKED:
            viz.record_event(step, SPIKED[step], "")
        for document in PROBED:
            if step in (document, document + 1):
                viz.record_probe(step, document, 1.0, 0.5, [1.0, 1.0])


def finish(viz: TrainingVisualizer) -> None:
    """Close it without the last image."""
    viz._drawing.stop()
    viz._store.close()


def record_run(folder: Path, begin: int = 0, end: int = STEPS, **options: Any) -> None:
    viz = TrainingVisualizer(folder, resume_from=begin or None, **options)
    record(viz, begin, end)
    finish(viz)


def emptied_in(folder: Path) -> set[int]:
    return {step for (step,) in execute(folder / "run.db", EMPTIED)}


def rows_in(folder: Path) -> list[tuple[Any, ...]]:
    return execute(folder / "run.db", "SELECT * FROM documents ORDER BY step")


def expected(steps: int, keep: int) -> set[int]:
    """Steps of the documents that lose their tokens: the rule once more, slowly."""
    series = Series()
    made = [metrics_of(step) for step in range(steps)]
    unknown = ("accuracy", "gradient_norm", "seconds", "seconds_waited", "tokens", "throughput")
    columns = {name: np.full(steps, np.nan) for name in unknown} | {"steps": np.arange(steps)}
    columns["source"] = np.array([one["source"] for one in made], dtype=object)
    series.extend(columns | {"loss": np.array([one["loss"] for one in made])})
    excess, emptied = series.excess.values(), set()
    for begin in range(0, steps - keep - BLOCK + 1, BLOCK):
        block = {step: excess[step] for step in range(begin, begin + BLOCK)}
        ordered = sorted((step for step in block if np.isfinite(block[step])), key=block.__getitem__)
        kept = {*ordered[:EXTREMES], *ordered[-EXTREMES:], *range(WINDOW), *SPIKED, *PROBED}
        emptied |= block.keys() - kept
    return emptied


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    record_run(folder, keep_documents=KEEP)
    return folder


def test_the_newest_documents_and_the_notable_ones_keep_their_tokens(uninterrupted: Path) -> None:
    emptied = emptied_in(uninterrupted)
    assert emptied == expected(STEPS, KEEP)
    assert emptied < set(range(4000)) and len(emptied) > 3600
    with StoreReader(uninterrupted / "run.db") as store:
        assert store.documents_trained() == STEPS == len(store.text_hashes()[0])
        for step in (*SPIKED, *PROBED, 199, STEPS - KEEP):
            (kept,) = store.documents(step)
            assert kept["token_ids"].tolist() == metrics_of(step)["token_ids"].tolist()
        (row,) = store.documents(min(emptied))
        given = metrics_of(min(emptied))
        assert {row[name] for name in ("token_ids", "token_losses", "token_ranks")} == {None}
        for name in ("source", "shard", "row", "text_hash", "document_bytes"):
            assert row[name] == given[name]


def record_with_rewind(folder: Path, retention: Callable[[int], Retention]) -> None:
    viz = TrainingVisualizer(folder, keep_documents=KEEP, resume_from=2550, retention=retention)
    record(viz, 2550, 5000)
    viz.rewind(1700)  # into a block that was emptied
    viz.flush()
    assert len(emptied_in(folder)) < 1700
    record(viz, 1700, STEPS)
    finish(viz)


class Forgetful(Retention):
    """Ignores rewinds."""

    def rewind(self, step: int) -> None:
        pass


def test_a_resume_and_a_rewind_keep_the_same_documents(uninterrupted: Path, tmp_path: Path) -> None:
    """The control, which ignores the rewind, does not empty what was trained again."""
    for retention in (Retention, Forgetful):
        folder = tmp_path / retention.__name__
        record_run(folder, end=2600, keep_documents=KEEP)
        record_with_rewind(folder, retention)
        assert (rows_in(folder) == rows_in(uninterrupted)) is (retention is Retention)


def test_a_resumed_run_may_keep_fewer_documents_and_then_more(tmp_path: Path) -> None:
    record_run(tmp_path, end=4100)
    assert emptied_in(tmp_path) == set()  # by default all of them
    record_run(tmp_path, 4100, 4100, keep_documents=1)
    emptied = emptied_in(tmp_path)
    assert emptied == expected(4100, 1) and max(emptied) > 3900
    record_run(tmp_path, 4100, 5001, keep_documents=3000)
    assert emptied_in(tmp_path) == emptied


class InPlace(Retention):
    """Makes rows smaller in place, as a plain UPDATE does."""

    def _change_of_next(self, fetch: Any) -> tuple[Statement, ...]:
        emptied = "token_ids = NULL, token_losses = NULL, token_ranks = NULL"
        sql = f"UPDATE documents SET {emptied} WHERE step >= ? AND step < ?"
        return tuple((sql, values[:2]) for _, values in super()._change_of_next(fetch))


@pytest.mark.full
def test_the_file_grows_by_a_fraction(tmp_path: Path) -> None:
    """The control, which updates rows in place, frees no page: the file grows as if all tokens were kept."""

    def size_of_file(name: str, steps: int, **options: Any) -> int:
        viz = TrainingVisualizer(tmp_path / name, **options)
        record(viz, 0, steps, tokens=256)
        finish(viz)
        return (tmp_path / name / "run.db").stat().st_size

    short = size_of_file("short", 2500, keep_documents=500)
    long = size_of_file("long", 5500, keep_documents=500)
    assert (long - short) / 3000 < 400  # bytes per step, less than a third of those of a document with tokens
    everything = size_of_file("all", 5500)
    assert everything > 5500 * 1200 and long < everything / 2
    assert size_of_file("in place", 5500, keep_documents=500, retention=InPlace) > 0.95 * everything


def test_a_failed_query_is_repeated(uninterrupted: Path) -> None:
    """A query that fails changes no state, whichever it is."""
    database = sqlite3.connect(uninterrupted / "run.db")

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


def test_a_full_disk_is_reported_and_nothing_is_lost(uninterrupted: Path, tmp_path: Path) -> None:
    """The block is emptied once there is space again, and rows that arrived meanwhile are there."""
    fill = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from tests.viz.stats.test_retention import record, finish, KEEP, STEPS\n"
        "from viz.visualizer import TrainingVisualizer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "folder = Path(sys.argv[1]); viz = TrainingVisualizer(folder, keep_documents=KEEP)\n"
        "viz._drawing.stop()\n"
        "record(viz, 0, KEEP + 999); viz.flush()\n"
        "allowed = (folder / 'run.db-wal').stat().st_size + 60_000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, resource.RLIM_INFINITY))\n"
        "record(viz, KEEP + 999, KEEP + 1000)\n"
        "try: viz.flush()\n"
        "except OSError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "viz.recover()\n"
        "record(viz, KEEP + 1000, STEPS); finish(viz)\n"
    )
    done = run_python("-c", fill, tmp_path, timeout=120)
    assert done.stdout.count("the store can't be written") == 1, done
    assert rows_in(tmp_path) == rows_in(uninterrupted)


def test_views_of_an_emptied_record(uninterrupted: Path) -> None:
    with StoreReader(uninterrupted / "run.db") as store:
        viewer = Viewer(store)
        now, then = viewer.look().positions, viewer.look(2500).positions
        assert [one.documents for one in now] == [WINDOW, WINDOW]
        # Few of the 200 documents before step 2500 remain, each because it is unusual: no mean of them is shown.
        assert [one.documents for one in then] == [WINDOW]
        assert all(stand_out.step in range(STEPS) for stand_out in viewer.look().stand_outs)
        with pytest.raises(ValueError, match=r"tokens of step 2,500 are no longer kept.* row 2500"):
            describe_document(store, 2500)
        assert store.token_ids(2500) is None and store.token_losses(2500, 2501) == []

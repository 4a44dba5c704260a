"""Whole runs while the store is locked or the drawing process fails: the rows are equal, and no step waits."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs.conftest import DOCUMENTS, QUICK, STEPS, Capture, Train, table
from tests.viz.holding import hold
from viz.charts.render_process import DrawingOptions
from viz.visualizer import TrainingVisualizer

LONG = "--repeat --checkpoint-interval 1000000".split()


Undisturbed = Callable[[int], Path]


@pytest.fixture
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The record of an undisturbed run of this many steps, made once for this file."""

    def run(steps: int) -> Path:
        out = tmp_path_factory.getbasetemp() / f"undisturbed{steps}"
        if not out.exists():
            assert train("--steps", steps, *LONG, "--out", out) == 0
        return out / "training_viz"

    return run


def waits_in(folder: Path) -> list[float]:
    """Seconds of each step after the first ten, which warm up."""
    return [seconds for (seconds,) in table(folder, "SELECT seconds FROM steps ORDER BY step")[10:]]


@pytest.mark.parametrize(
    ("journal", "kind"),
    [*(pytest.param(name, "reader", marks=pytest.mark.full) for name in ("rollback", "log")), ("log", "writer")],
)
@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.full)])
def test_training_never_waits_for_a_process_that_locks_its_store(
    train: Train, undisturbed: Undisturbed, tmp_path: Path, capsys: Capture, journal: str, kind: str, seconds: int
) -> None:
    assert QUICK.visualizer is not None
    visualizer = functools.partial(QUICK.visualizer, network_file_system=journal == "rollback")
    steps = 120 if seconds < 10 else 3000
    expected = undisturbed(steps)
    held = tmp_path / "held" / "training_viz"
    with hold(held / "run.db", kind, rows=20, seconds=seconds) as holder:
        assert train("--steps", steps, *LONG, "--out", "held", builders=replace(QUICK, visualizer=visualizer)) == 0
        ended = time.monotonic()
        seen, held_from = holder.begins()
        still_seen, held_until = holder.lets_go()
    assert seen == still_seen
    assert seen < steps - 40
    assert held_from < ended
    if (journal, kind) != ("log", "reader"):
        assert held_until < ended  # the end waits for the lock where it must, and nothing else does
    assert max(waits_in(held)) < seconds / 3
    for sql in (STEPS, DOCUMENTS):
        assert table(held, sql) == table(expected, sql)
    assert table(held, "SELECT count(*) FROM steps") == [(steps,)]
    said = capsys.readouterr()
    assert (said.out + said.err).count("waiting for another process") <= 1


@pytest.mark.parametrize(
    ("blow", "word"),
    [
        (signal.SIGKILL, "The drawing process died"),
        pytest.param(signal.SIGSTOP, "The drawing process hung", marks=pytest.mark.full),
    ],
)
def test_training_continues_when_the_drawing_process_dies_or_hangs(
    train: Train, undisturbed: Undisturbed, tmp_path: Path, capsys: Capture, blow: signal.Signals, word: str
) -> None:
    # A separate process, which can be found.
    drawing = DrawingOptions(answer_seconds=15.0, last_answer_seconds=3.0)
    builders = replace(QUICK, visualizer=functools.partial(TrainingVisualizer, drawing=drawing))
    expected = undisturbed(120)
    struck = []

    def strike() -> None:
        while not (tmp_path / "struck" / "training_viz" / "training_step_000020.png").exists():
            time.sleep(0.01)
        struck.extend(drawing_processes(tmp_path))
        for process in struck:
            os.kill(process, blow)

    striking = threading.Thread(target=strike, daemon=True)
    striking.start()
    assert train("--steps", 120, *LONG, "--viz-interval", 20, "--out", "struck", builders=builders) == 0
    striking.join(1)
    assert len(struck) == 1
    folder = tmp_path / "struck" / "training_viz"
    assert max(waits_in(folder)) < 1
    for sql in (STEPS, DOCUMENTS):
        assert table(folder, sql) == table(expected, sql)
    said = capsys.readouterr()
    assert (said.out + said.err).count(word) == 1
    assert (folder / "training_latest.png").read_bytes() == (folder / "training_step_000120.png").read_bytes()
    assert (folder / "metrics_history.json").stat().st_size > 7_000
    assert not Path(f"/proc/{struck[0]}").exists()


def drawing_processes(below: Path) -> list[int]:
    """The drawing processes of this process for runs below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes()
            if parent == os.getpid() and b"viz.charts.renderer" in words and os.fsencode(below) in words:
                found.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return found

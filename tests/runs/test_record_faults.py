"""Whole runs while another program holds the store, and while the drawing process dies or hangs: training is untouched.

The oracle: steps and documents equal those of a run that nobody disturbed, and no step waited.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs.conftest import DOCUMENTS, STEPS, Train, table
from tests.viz.holding import hold

LONG = "--repeat --checkpoint-interval 1000000".split()


Undisturbed = Callable[[int], Path]


@pytest.fixture
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The record of a run of so many steps that nobody disturbs, made once for all tests here."""

    def run(steps: int) -> Path:
        out = tmp_path_factory.getbasetemp() / f"undisturbed{steps}"
        if not out.exists():
            assert train("--steps", steps, *LONG, "--out", out) == 0
        return out / "training_viz"

    return run


def waits_in(folder: Path) -> list[float]:
    """Seconds of each step but the first ten, which warm up."""
    return [seconds for (seconds,) in table(folder, "SELECT seconds FROM steps ORDER BY step")[10:]]


@pytest.mark.parametrize(
    ("journal", "kind"),
    [pytest.param("rollback", "reader", marks=pytest.mark.full), ("log", "writer"), ("log", "reader")],
)
@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.full)])
def test_training_never_waits_for_a_program_that_holds_its_store(
    train: Train,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    journal: str,
    kind: str,
    seconds: int,
) -> None:
    monkeypatch.setattr("viz.record.writer.is_on_network", lambda _: journal == "rollback")
    steps = 160 if seconds < 10 else 3000
    expected = undisturbed(steps)
    held = tmp_path / "held" / "training_viz"
    with hold(held / "run.db", kind, rows=20, seconds=seconds) as holder:
        assert train("--steps", steps, *LONG, "--out", "held") == 0
        ended = time.monotonic()
        seen, held_from = holder.begins()
        still_seen, held_until = holder.lets_go()
    assert seen == still_seen
    assert seen < steps - 40
    assert held_from < ended
    if (journal, kind) != ("log", "reader"):
        assert held_until < ended  # where it has to, the end waits for it, and nothing else does
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
def test_a_run_whose_drawing_process_is_struck_down(
    train: Train,
    undisturbed: Undisturbed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    blow: signal.Signals,
    word: str,
) -> None:
    monkeypatch.setattr("viz.charts.render_process.subprocess", subprocess)  # a process of its own, that can be found
    monkeypatch.setattr("viz.charts.render_process.ANSWER_SECONDS", 15.0)
    monkeypatch.setattr("viz.charts.render_process.LAST_ANSWER_SECONDS", 3.0)
    expected = undisturbed(160)
    struck = []

    def strike() -> None:
        while not (tmp_path / "struck" / "training_viz" / "training_step_000020.png").exists():
            time.sleep(0.01)
        struck.extend(drawing_processes(tmp_path))
        for process in struck:
            os.kill(process, blow)

    striking = threading.Thread(target=strike, daemon=True)
    striking.start()
    assert train("--steps", 160, *LONG, "--viz-interval", 20, "--out", "struck") == 0
    striking.join(1)
    assert len(struck) == 1
    folder = tmp_path / "struck" / "training_viz"
    assert max(waits_in(folder)) < 1
    for sql in (STEPS, DOCUMENTS):
        assert table(folder, sql) == table(expected, sql)
    said = capsys.readouterr()
    assert (said.out + said.err).count(word) == 1
    assert (folder / "training_latest.png").read_bytes() == (folder / "training_step_000160.png").read_bytes()
    assert (folder / "metrics_history.json").stat().st_size > 10_000
    assert not Path(f"/proc/{struck[0]}").exists()


def drawing_processes(below: Path) -> list[int]:
    """The children of this process that draw for a run below a folder."""
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

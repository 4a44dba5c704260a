"""The drawing process is killed, stopped and broken, and the run is rolled back: training is not affected."""

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.viz.conftest import Metrics, execute, start_python
from tests.viz.test_visualizer import (
    FILES,
    WARM,
    events_of,
    names_in,
    start_every_process_with,
    wait_for,
    worker_of,
    worker_of_after_a_chart,
)  # fmt: skip
from tests.warm_drawing import Forked
from viz.charts.render_process import DrawingOptions
from viz.record.reader import StoreReader
from viz.visualizer import TrainingVisualizer


def pictures_in(folder: Path) -> list[int]:
    return sorted(int(name[14:20]) for name in names_in(folder) if name.startswith("training_step_"))


def history_of(folder: Path) -> dict[str, list[Any]]:
    history: dict[str, list[Any]] = json.loads((folder / "metrics_history.json").read_bytes())
    return history


def is_gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


def train(viz: TrainingVisualizer, metrics: Metrics, steps: range, every: int, **changed: Any) -> float:
    """Record steps like a trainer, with a chart every `every` steps; return the longest call in seconds."""
    longest = 0.0
    for step in steps:
        row = metrics(step, **changed)
        began = time.monotonic()
        viz.update(row)
        if (step + 1) % every == 0:
            viz.generate_charts(step + 1)
            viz.save_metrics_json()
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.002)
    return longest


def test_a_process_that_hangs_is_replaced_and_that_is_reported(tmp_path: Path, metrics: Metrics) -> None:
    messages: list[str] = []
    warm = DrawingOptions(start=Forked, answer_seconds=5.0)  # a cold start may take longer next to other tests
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=warm)
    stopped = worker_of_after_a_chart(viz, metrics)
    os.kill(stopped, signal.SIGSTOP)
    longest = train(viz, metrics, range(1, 20), every=10)
    viz.flush()
    wait_for(lambda: messages)
    wait_for(lambda: (tmp_path / "training_step_000020.png").exists(), 60)
    assert longest < 0.5 and is_gone(stopped)
    viz.close()
    assert len(messages) == 1 and "hung (no answer while drawing training_step_0000" in messages[0]
    assert events_of(tmp_path) == ["drawing_restarted"]
    assert pictures_in(tmp_path) == [1, 10, 20]


@pytest.mark.parametrize("when", ["before a chart", "before the end"])
def test_a_process_that_dies_is_replaced_and_that_is_reported(tmp_path: Path, metrics: Metrics, when: str) -> None:
    messages: list[str] = []
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=WARM)
    os.kill(worker_of_after_a_chart(viz, metrics), signal.SIGKILL)
    viz.update(metrics(1))
    if when == "before a chart":
        viz.generate_charts(2)
        wait_for(lambda: (tmp_path / "training_step_000002.png").exists())
    viz.close()
    assert len(messages) == 1 and "died" in messages[0] and "\n" not in messages[0]
    assert events_of(tmp_path) == ["drawing_restarted"]
    assert names_in(tmp_path) == FILES | {"training_step_000001.png", "training_step_000002.png"}
    assert history_of(tmp_path)["steps"] == [0, 1]


def test_a_process_that_hangs_does_not_cost_the_last_chart(tmp_path: Path, metrics: Metrics) -> None:
    messages: list[str] = []
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=DrawingOptions(last_answer_seconds=2.0))
    stopped = worker_of_after_a_chart(viz, metrics)
    longest = train(viz, metrics, range(1, 30), every=10)
    viz.flush()
    wait_for(lambda: (tmp_path / "training_step_000030.png").exists())
    os.kill(stopped, signal.SIGSTOP)
    viz.update(metrics(30))
    began = time.monotonic()
    viz.close()
    assert 1.5 < time.monotonic() - began < 30
    assert longest < 0.5 and is_gone(stopped)
    assert len(messages) == 1 and "hung" in messages[0]
    assert pictures_in(tmp_path)[-1] == 31
    assert (tmp_path / "training_latest.png").read_bytes() == (tmp_path / "training_step_000031.png").read_bytes()
    assert history_of(tmp_path)["steps"] == list(range(31))
    assert names_in(tmp_path) >= FILES


def test_if_every_process_hangs_closing_takes_a_limited_time(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_every_process_with("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", tmp_path, monkeypatch)
    messages: list[str] = []
    short = DrawingOptions(answer_seconds=1.0, last_answer_seconds=1.0, close_seconds=5.0)
    viz = TrainingVisualizer(tmp_path / "viz", say=messages.append, drawing=short)
    assert train(viz, metrics, range(30), every=10) < 0.5
    worker = worker_of(viz)
    began = time.monotonic()
    viz.close()
    assert time.monotonic() - began < 5 + 3 and is_gone(worker)
    assert len(messages) <= 3 and "python -m viz chart" in messages[-1]
    with StoreReader(tmp_path / "viz" / "run.db") as store:
        assert len(store.columns()["steps"]) == 30


def test_a_trainer_that_was_stopped_accepts_a_late_answer(tmp_path: Path) -> None:
    run = (
        "import sys, time; from viz.charts.render_process import DrawingOptions\n"
        "from viz.visualizer import TrainingVisualizer\n"
        "v = TrainingVisualizer(sys.argv[1], drawing=DrawingOptions(answer_seconds=4.0))\n"
        "v.update({'step': 0, 'loss': 1.0}); v.generate_charts(1); v.flush()\n"
        "while not v._drawing._process: time.sleep(0.01)\n"
        "time.sleep(0.2); print('asked', flush=True); sys.stdin.readline(); v.close()\n"
    )
    with start_python("-c", run, tmp_path) as trainer:
        try:
            assert trainer.stdout.readline() == "asked\n"
            trainer.send_signal(signal.SIGSTOP)  # Ctrl-Z: the drawing process is in another session and continues
            wait_for((tmp_path / "training_latest.png").exists, 60)
            time.sleep(4.5)
            trainer.send_signal(signal.SIGCONT)
            messages = trainer.communicate("\n", timeout=60)[0]
        finally:
            trainer.kill()
    assert "hung" not in messages and events_of(tmp_path) == []


def test_a_corrupt_row_affects_only_its_charts(tmp_path: Path, metrics: Metrics) -> None:
    messages: list[str] = []
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=WARM)
    worker_of_after_a_chart(viz, metrics)
    viz.update(metrics(1))
    viz.flush()
    execute(tmp_path / "run.db", "UPDATE steps SET loss = 'spoiled' WHERE step = 1")
    longest = train(viz, metrics, range(2, 30), every=10)
    viz.flush()
    wait_for(lambda: messages)
    assert longest < 0.5
    execute(tmp_path / "run.db", "UPDATE steps SET loss = 2.5 WHERE step = 1")
    viz.close()
    assert len(messages) == 1 and "training_step_000010.png failed: ValueError" in messages[0]
    assert events_of(tmp_path) == ["drawing_failed"] and pictures_in(tmp_path)[-1] == 30
    assert history_of(tmp_path)["loss"][1] == 2.5


def test_a_full_disk_affects_only_the_charts(tmp_path: Path, metrics: Metrics) -> None:
    messages: list[str] = []
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=WARM)
    worker = worker_of_after_a_chart(viz, metrics)
    before = (tmp_path / "training_latest.png").read_bytes()
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    longest = train(viz, metrics, range(1, 30), every=10)  # two charts fail: it is reported once
    viz.flush()
    wait_for(lambda: messages)
    assert longest < 0.5 and (tmp_path / "training_latest.png").read_bytes() == before
    wait_for(lambda: not [name for name in names_in(tmp_path) if name.endswith(".tmp")])  # JSON may still be written
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    viz.close()
    assert len(messages) == 1 and "training_step_000010.png failed: OSError" in messages[0]
    assert pictures_in(tmp_path)[-1] == 30 and len(history_of(tmp_path)["steps"]) == 30


def test_chart_names_that_are_taken_by_folders_affect_only_these_charts(tmp_path: Path, metrics: Metrics) -> None:
    messages: list[str] = []
    for step in (10, 20):
        (tmp_path / f"training_step_{step:06d}.png").mkdir()
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=WARM)
    train(viz, metrics, range(30), every=10)
    viz.close()
    assert len(messages) == 1 and "training_step_000010.png failed" in messages[0] and "\n" not in messages[0]
    latest = (tmp_path / "training_latest.png").read_bytes()
    assert latest == (tmp_path / "training_step_000030.png").read_bytes()
    assert not [name for name in names_in(tmp_path) if name.endswith(".tmp")]


def test_temporary_files_of_a_killed_process_are_removed_at_the_next_start(tmp_path: Path, metrics: Metrics) -> None:
    viz = TrainingVisualizer(tmp_path, drawing=WARM)
    viz.update(metrics(0))
    viz.close()
    leave = (
        "import os, sys; from pathlib import Path; from common.file_replacement import replace_file\n"
        "def pieces():\n"
        "    yield bytes(100_000); print(os.getpid(), flush=True); sys.stdin.readline(); yield b'end'\n"
        "replace_file(Path(sys.argv[1]), lambda file: file.writelines(pieces()), durable=False)"
    )
    for name in ("training_step_000050.png", "metrics_history.json"):
        with start_python("-c", leave, tmp_path / name) as dead:
            dead.stdout.readline()
            dead.kill()
    assert len([name for name in names_in(tmp_path) if name.endswith(".tmp")]) == 2
    others = {f".notes.txt.{dead.pid}.tmp", f".training_step_000050.png.{dead.pid}.tmp.txt", "training.tmp"}
    for name in others:
        (tmp_path / name).write_text("a user's own")
    # The process of another run, or `python -m viz chart`, is alive and still writing.
    with start_python("-c", leave, tmp_path / "training_step_000099.png") as alive:
        alive.stdout.readline()
        TrainingVisualizer(tmp_path, resume_from=1, drawing=WARM).close()
        left = {name for name in names_in(tmp_path) if ".tmp" in name}
        assert left == others | {f".training_step_000099.png.{alive.pid}.tmp"}
        alive.communicate("\n", timeout=20)
    assert (tmp_path / "training_step_000099.png").stat().st_size == 100_003


def test_a_rewind_while_charts_are_being_drawn(tmp_path: Path, metrics: Metrics) -> None:
    messages: list[str] = []
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=WARM)
    worker = worker_of_after_a_chart(viz, metrics)
    train(viz, metrics, range(1, 35), every=10)
    viz.flush()
    wait_for(lambda: (tmp_path / "training_step_000030.png").exists())
    wait_for(lambda: (tmp_path / "metrics_history.json").exists() or not viz._drawing._commands)
    os.kill(worker, signal.SIGSTOP)
    train(viz, metrics, range(35, 80), every=5)  # 35 or 40 is being drawn, the others and an export wait
    viz.record_evaluation(79, [{"split": "held_out", "loss": 3.0}, {"split": "held_out", "source": "a", "loss": 3.0}])
    viz.record_evaluation(31, [{"split": "held_out", "loss": 3.5}])
    viz.flush()
    began = time.monotonic()
    viz.rewind(32)
    assert time.monotonic() - began < 2  # although the process is stopped
    viz.record_event(32, "roll-back", "to step 32")
    train(viz, metrics, range(32, 45), every=10, loss=77.0)
    viz.save_metrics_json()
    viz.flush()
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: (tmp_path / "training_step_000040.png").exists() and not viz._drawing._commands, 60)
    time.sleep(0.2)
    assert pictures_in(tmp_path) == [1, 10, 20, 30, 40]
    latest = (tmp_path / "training_latest.png").read_bytes()
    assert latest == (tmp_path / "training_step_000040.png").read_bytes()
    viz.close()
    assert pictures_in(tmp_path) == [1, 10, 20, 30, 40, 45]
    history = history_of(tmp_path)
    assert history["steps"] == list(range(45))
    assert [loss == 77 for loss in history["loss"]] == [False] * 32 + [True] * 13
    assert json.loads((tmp_path / "run.json").read_bytes())["json_through_step"] == 44
    assert messages == [] and [kind for kind in events_of(tmp_path) if kind != "chart_dropped"] == ["roll-back"]
    assert execute(tmp_path / "run.db", "SELECT step FROM evaluations") == [(31,)]


def test_an_export_after_a_rewind_has_no_deleted_row(tmp_path: Path, metrics: Metrics) -> None:
    viz = TrainingVisualizer(tmp_path, drawing=WARM)
    worker = worker_of_after_a_chart(viz, metrics)
    train(viz, metrics, range(1, 40), every=100)
    viz._drawing.ask({"export": True, "force": True})
    viz.generate_charts(39)
    wait_for(lambda: viz._drawing._drawn == 39)  # the export is done, and every answer was read
    os.kill(worker, signal.SIGSTOP)
    viz.generate_charts(39)
    viz.flush()
    wait_for(lambda: not viz._drawing._commands)
    viz._drawing.ask({"export": True, "force": True})  # waits, and would use rows that the process has read
    viz.rewind(20)
    train(viz, metrics, range(20, 30), every=100, loss=77.0)
    viz.flush()
    (tmp_path / "run.json").unlink()
    os.kill(worker, signal.SIGCONT)
    wait_for(lambda: (tmp_path / "run.json").exists())
    assert history_of(tmp_path)["loss"][20:] == [77.0] * 10
    viz.close()


def test_a_rewind_reaches_a_process_started_later(tmp_path: Path, metrics: Metrics) -> None:
    messages: list[str] = []
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=WARM)
    for first in (0, 20):  # it dies twice, so drawing is given up
        train(viz, metrics, range(first, first + 20), every=20)
        wait_for((tmp_path / f"training_step_{first + 20:06d}.png").exists, 60)
        os.kill(worker_of(viz), signal.SIGKILL)
    viz.generate_charts(40)
    wait_for(lambda: len(messages) == 2)
    viz.rewind(25)
    train(viz, metrics, range(25, 30), every=5, loss=77.0)
    viz.close()
    assert pictures_in(tmp_path) == [20, 30]
    assert (tmp_path / "training_latest.png").read_bytes() == (tmp_path / "training_step_000030.png").read_bytes()
    assert history_of(tmp_path)["loss"][25:] == [77.0] * 5


JUMP = """
import itertools, time
clock = itertools.cycle([1e9, 2e9, 0.0, 1.7e9, 5.0])
time.time = lambda: next(clock)
"""


def test_a_clock_that_jumps_changes_only_stored_times(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_every_process_with(JUMP, tmp_path, monkeypatch)  # the drawing process
    clock: dict[str, Any] = {}
    exec(JUMP.replace("time.time = ", "jumping = "), clock)  # noqa: S102 - the same clock here
    monkeypatch.setattr(time, "time", clock["jumping"])
    messages: list[str] = []
    folder = tmp_path / "viz"
    viz = TrainingVisualizer(folder, say=messages.append)
    began = time.monotonic()
    train(viz, metrics, range(40), every=10)
    for step in range(10):
        viz.record_event(step, "checkpoint", str(step))
    viz.flush()
    viz.rewind(35)
    train(viz, metrics, range(35, 40), every=10)
    viz.close()
    assert time.monotonic() - began < 60 and messages == []
    with StoreReader(folder / "run.db") as store:
        assert [event["detail"] for event in store.events()] == [str(step) for step in range(10)]
        assert len({event["time"] for event in store.events()}) > 3  # the clock did jump
    assert history_of(folder)["steps"] == list(range(40))
    assert pictures_in(folder)[-1] == 40
    run = json.loads((folder / "run.json").read_bytes())
    assert run["started"] is not None and run["ended"] is not None

"""The visualizer with its real child process, which is killed, stopped and overtaken."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.viz.conftest import Metrics, run_python, start_python
from tests.warm_drawing import Forked
from viz.charts.render_process import DrawingOptions
from viz.record.reader import StoreReader
from viz.visualizer import TrainingVisualizer

WARM = DrawingOptions(start=Forked)
"""A drawing process that starts in no time; `test_the_example_of_the_founding_documents` uses a real one."""


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:  # the machine may be busy
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.01)


def worker_of(viz: TrainingVisualizer) -> int:
    """Wait until the drawing process runs; return its id."""
    wait_for(lambda: viz._drawing._process)
    return viz._drawing._process.pid


def events_of(folder: Path) -> list[str]:
    with StoreReader(folder / "run.db") as store:
        return [event["kind"] for event in store.events()]


def start_every_process_with(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every Python that is started from now on execute `code` first."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(folder / "site"))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


FILES = {"run.db", "metrics_history.json", "text_samples.json", "run.json", "training_latest.png"}


def test_the_example_of_the_founding_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    viz = TrainingVisualizer("training_viz")
    for step in range(60):
        metrics = {"step": step, "loss": 2.5, "accuracy": 0.1, "throughput": 35.2, "learning_rate": 1e-6}
        viz.update(metrics, "in text", "out text") if step % 50 == 0 else viz.update(metrics)
        if step + 1 == 50:
            viz.generate_charts(50)
            viz.save_metrics_json()
    viz.close()
    viz.close()
    folder = tmp_path / "training_viz"
    assert names_in(folder) == FILES | {"training_step_000050.png", "training_step_000060.png"}
    assert (folder / "training_latest.png").read_bytes() == (folder / "training_step_000060.png").read_bytes()
    assert len(json.loads((folder / "metrics_history.json").read_bytes())["loss"]) == 60
    assert [sample["step"] for sample in json.loads((folder / "text_samples.json").read_bytes())] == [0, 50]
    run = json.loads((folder / "run.json").read_bytes())
    assert (run["outcome"], run["json_through_step"]) == ("done", 59) and run["ended"] is not None
    assert events_of(folder) == []


def test_a_run_without_documents_can_be_closed(tmp_path: Path) -> None:
    TrainingVisualizer(tmp_path, {"source": "x"}, drawing=WARM).close("no document")
    assert names_in(tmp_path) == FILES - {"training_latest.png"}
    assert json.loads((tmp_path / "run.json").read_bytes())["outcome"] == "no document"


def test_training_does_not_wait_for_drawing(tmp_path: Path, metrics: Metrics) -> None:
    viz = TrainingVisualizer(tmp_path, drawing=WARM)
    os.kill(worker_of_after_a_chart(viz, metrics), signal.SIGSTOP)  # drawing is stopped
    given = [metrics(step) for step in range(1, 301)]
    costs = []
    for row in given:
        began = time.perf_counter()
        viz.update(row)
        if row["step"] % 50 == 0:
            viz.generate_charts(row["step"])
            viz.save_metrics_json()
        costs.append(time.perf_counter() - began)
    viz.flush()
    assert sorted(costs)[len(costs) // 2] < 200e-6  # typically 20; the machine may be busy
    os.kill(worker_of(viz), signal.SIGCONT)
    viz.close()
    assert "training_step_000300.png" in names_in(tmp_path)


def worker_of_after_a_chart(viz: TrainingVisualizer, metrics: Metrics) -> int:
    viz.update(metrics(0))
    viz.generate_charts(1)
    wait_for(lambda: (viz.folder / "training_latest.png").exists())
    return worker_of(viz)


def test_each_chart_is_drawn_after_its_rows_are_committed(tmp_path: Path, metrics: Metrics) -> None:
    viz = TrainingVisualizer(tmp_path, drawing=WARM)
    for step in range(30):
        viz.update(metrics(step))
        if step + 1 == 10:
            viz.generate_charts(10)
    viz.close()
    early = (tmp_path / "training_step_000010.png").read_bytes()
    (tmp_path / "training_step_000010.png").unlink()
    viz = TrainingVisualizer(tmp_path, resume_from=10, drawing=WARM)
    viz.generate_charts(10)
    viz.close()
    assert (tmp_path / "training_step_000010.png").read_bytes() == early


def test_after_two_deaths_only_close_tries_again(tmp_path: Path, metrics: Metrics) -> None:
    messages: list[str] = []
    viz = TrainingVisualizer(tmp_path, say=messages.append, drawing=WARM)
    os.kill(worker_of_after_a_chart(viz, metrics), signal.SIGKILL)
    viz.update(metrics(1))
    viz.generate_charts(2)
    wait_for(lambda: (tmp_path / "training_step_000002.png").exists())
    os.kill(worker_of(viz), signal.SIGKILL)
    for step in (2, 3):
        viz.update(metrics(step))
        viz.generate_charts(step + 1)
        viz.flush()
    wait_for(lambda: len(messages) == 2)
    assert "no more charts" in messages[1]
    assert not (tmp_path / "training_step_000003.png").exists()
    viz.close()
    assert len(messages) == 2
    assert events_of(tmp_path) == ["drawing_restarted", "drawing_given_up"]
    assert (tmp_path / "training_step_000004.png").exists()
    assert json.loads((tmp_path / "metrics_history.json").read_bytes())["steps"] == [0, 1, 2, 3]


def test_a_process_that_cannot_start_affects_only_the_charts(
    tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    start_every_process_with("import sys, os; print('no library', file=sys.stderr); os._exit(1)", tmp_path, monkeypatch)
    viz = TrainingVisualizer(tmp_path / "viz", say=messages.append)
    viz.update(metrics(0))
    viz.generate_charts(1)
    viz.close()
    assert "no library" in messages[0]  # the last line of its standard error
    assert "python -m viz chart" in messages[-1]
    assert len(messages) == 3
    assert names_in(tmp_path / "viz") == {"run.db"}
    monkeypatch.delenv("PYTHONPATH")
    run_python("-m", "viz", "chart", tmp_path / "viz")
    assert (tmp_path / "viz" / "training_latest.png").exists()


def test_the_oldest_charts_are_dropped_when_drawing_falls_behind(tmp_path: Path, metrics: Metrics) -> None:
    viz = TrainingVisualizer(tmp_path, drawing=WARM)
    worker = worker_of_after_a_chart(viz, metrics)
    os.kill(worker, signal.SIGSTOP)
    for step in range(1, 31):
        viz.update(metrics(step))
        viz.generate_charts(step + 1)
    viz.flush()
    os.kill(worker, signal.SIGCONT)
    viz.close()
    drawn = {int(name[14:20]) for name in names_in(tmp_path) if name.startswith("training_step_")}
    assert set(range(22, 32)) <= drawn  # the ten newest
    assert len(drawn) <= 12
    with StoreReader(tmp_path / "run.db") as store:
        dropped = [event["step"] for event in store.events() if event["kind"] == "chart_dropped"]
    assert sorted(drawn | set(dropped)) == list(range(1, 32))


def test_a_resumed_run_continues_its_store(tmp_path: Path, metrics: Metrics) -> None:
    viz = TrainingVisualizer(tmp_path, {"run_id": "r1"}, drawing=WARM)
    for step in range(20):
        viz.update(metrics(step))
        if (step + 1) % 5 == 0:
            viz.generate_charts(step + 1)
    viz.record_event(19, "interrupt", "Ctrl-C")
    viz.close("interrupted")
    viz = TrainingVisualizer(tmp_path, {"device": "cpu"}, resume_from=12, drawing=WARM)
    viz.update(metrics(12, loss=99.0))
    viz.generate_charts(13)
    viz.close()
    numbered = {name for name in names_in(tmp_path) if name.startswith("training_step_")}
    assert numbered == {f"training_step_{step:06d}.png" for step in (5, 10, 13)}
    history = json.loads((tmp_path / "metrics_history.json").read_bytes())
    assert history["steps"] == list(range(13))
    assert history["loss"][-1] == 99.0
    run = json.loads((tmp_path / "run.json").read_bytes())
    assert (run["run_id"], run["device"], run["outcome"]) == ("r1", "cpu", "done")
    assert events_of(tmp_path) == ["interrupt"]


def test_the_drawing_process_ends_with_a_killed_trainer(tmp_path: Path) -> None:
    run = (
        "import sys, time; from viz.visualizer import TrainingVisualizer\n"
        "viz = TrainingVisualizer(sys.argv[1]); viz.update({'step': 0, 'loss': 1.0}); viz.generate_charts(1)\n"
        "while not (viz.folder / 'training_latest.png').exists(): time.sleep(0.01)\n"
        "print(viz._drawing._process.pid, flush=True); time.sleep(60)\n"
    )
    with start_python("-c", run, tmp_path) as trainer:
        worker = int(trainer.stdout.readline())
        assert os.getsid(worker) == worker  # its own session, which Ctrl-C in a terminal does not reach
        trainer.kill()
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text(), 10)


def test_the_last_chart_is_redrawn_with_the_final_evaluation(tmp_path: Path, metrics: Metrics) -> None:
    viz = TrainingVisualizer(tmp_path, drawing=WARM)
    for step in range(20):
        viz.update(metrics(step))
    viz.generate_charts(20)
    path = tmp_path / "training_step_000020.png"
    wait_for(path.exists)
    before = path.read_bytes()
    measured = {"split": "validation", "loss": 4.0, "accuracy": 0.1, "bits_per_byte": 1.0}
    viz.record_evaluation(19, [{**measured, "source": "", "documents": 2, "tokens": 9, "bytes": 30, "seconds": 1.0}])
    viz.close()
    assert path.read_bytes() != before
    assert (tmp_path / "training_latest.png").read_bytes() == path.read_bytes()

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from viz.record.schema import rows_of
from viz.record.writer import StoreWriter

Metrics = Callable[..., dict[str, Any]]
Ask = Callable[[dict[str, Any]], dict[str, Any]]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def process(filled: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "viz.charts.renderer", str(filled), "3"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        yield started
        started.kill()


@pytest.fixture
def ask(process: subprocess.Popen[str]) -> Ask:
    def exchange(command: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    return exchange


def test_it_draws_exports_and_ends(filled: Path, process: subprocess.Popen[str], ask: Ask) -> None:
    answer = ask({"chart": 10})
    assert answer["done"] == {"chart": 10}
    assert 0 < answer["seconds"] < 30
    assert (filled / "training_step_000010.png").read_bytes() == (filled / "training_latest.png").read_bytes()
    assert ask({"export": True, "force": True})["done"]
    assert len(json.loads((filled / "metrics_history.json").read_bytes())["steps"]) == 20
    assert ask({"finish": True})["done"] == {"finish": True}
    assert process.wait(10) == 0


def test_it_keeps_the_given_number_of_charts(filled: Path, ask: Ask) -> None:
    for step in (5, 10, 15, 20):
        ask({"chart": step})
    assert sorted(path.name[-6:-4] for path in filled.glob("training_step_*")) == ["05", "15", "20"]


def test_it_sees_new_rows_and_a_rewind(filled: Path, ask: Ask, metrics: Metrics) -> None:
    ask({"chart": 20})
    writer = StoreWriter(filled / "run.db", {}, resume=True)
    writer.rewind(10)
    writer.add_rows(rows_of(metrics(10, loss=77.0)))
    writer.flush()
    assert ask({"rewind": 10})["done"]
    assert not list(filled.glob("*.png"))
    ask({"export": True, "force": True})
    history = json.loads((filled / "metrics_history.json").read_bytes())
    writer.close()
    assert history["steps"] == list(range(11))
    assert history["loss"][-1] == 77.0


def test_json_exports_take_at_most_one_percent_of_the_time(filled: Path, ask: Ask) -> None:
    ask({"chart": 10})
    answers = [ask({"export": True, "force": False}) for _ in range(30)]
    done = [answer for answer in answers if "skipped" not in answer]
    assert len(done) < 30
    assert "skipped" not in ask({"export": True, "force": True})


def test_a_chart_that_fails_is_reported_and_the_next_one_drawn(filled: Path, ask: Ask) -> None:
    (filled / "training_step_000010.png").mkdir()
    answer = ask({"chart": 10})
    assert answer["failed"] == {"chart": 10}
    assert "training_step_000010.png" in answer["error"] and "\n" not in answer["error"]
    (filled / "training_step_000010.png").rmdir()
    assert "done" in ask({"chart": 10})
    assert not [path for path in filled.iterdir() if path.name.endswith(".tmp")]


def test_it_ends_with_its_input(process: subprocess.Popen[str], ask: Ask) -> None:
    ask({"chart": 10})
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


def test_it_ignores_ctrl_c_and_has_a_low_priority(process: subprocess.Popen[str], ask: Ask) -> None:
    ask({"chart": 10})
    os.kill(process.pid, signal.SIGINT)
    assert "done" in ask({"chart": 20})
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10


def test_neither_torch_nor_the_trainer_nor_pyplot_is_loaded(filled: Path) -> None:
    look = (
        "import sys; from pathlib import Path; from viz.charts.renderer import Worker\n"
        "worker = Worker(Path(sys.argv[1]), 500)\n"
        "worker.execute({'chart': 10}); worker.execute({'export': True, 'force': True})\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", look, str(filled)]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "matplotlib" in loaded
    assert {"torch", "trainer", "matplotlib.pyplot"} & set(loaded) == set()

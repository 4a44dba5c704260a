import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.viz.conftest import run_python, start_python

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def process(filled: Path) -> Iterator[subprocess.Popen[str]]:
    with start_python("-m", "viz.charts.renderer", filled, 3) as started:
        yield started
        started.kill()


@pytest.fixture
def ask(process: subprocess.Popen[str]) -> Ask:
    def exchange(command: dict[str, Any]) -> dict[str, Any]:
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    return exchange


def test_it_draws_exports_ignores_ctrl_c_and_ends(filled: Path, process: subprocess.Popen[str], ask: Ask) -> None:
    answer = ask({"chart": 10})
    assert answer["done"] == {"chart": 10}
    assert 0 < answer["seconds"] < 30
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10
    os.kill(process.pid, signal.SIGINT)
    assert (filled / "training_step_000010.png").read_bytes() == (filled / "training_latest.png").read_bytes()
    assert ask({"export": True, "force": True})["done"]
    assert len(json.loads((filled / "metrics_history.json").read_bytes())["steps"]) == 20
    assert ask({"finish": True})["done"] == {"finish": True}
    assert process.wait(10) == 0


def test_it_keeps_the_given_number_of_charts(filled: Path, ask: Ask) -> None:
    for step in (5, 10, 15, 20):
        ask({"chart": step})
    assert sorted(path.name[-6:-4] for path in filled.glob("training_step_*")) == ["05", "15", "20"]


def test_json_exports_take_at_most_one_percent_of_the_time(filled: Path, ask: Ask) -> None:
    ask({"chart": 10})
    answers = [ask({"export": True, "force": False}) for _ in range(30)]
    done = [answer for answer in answers if "skipped" not in answer]
    assert len(done) < 30
    assert "skipped" not in ask({"export": True, "force": True})


def test_neither_torch_nor_the_trainer_nor_pyplot_is_loaded(filled: Path) -> None:
    look = (
        "import sys; from pathlib import Path; from viz.charts.renderer import Worker\n"
        "worker = Worker(Path(sys.argv[1]), 500)\n"
        "worker.execute({'chart': 10}); worker.execute({'export': True, 'force': True})\n"
        "print(*sys.modules)"
    )
    loaded = run_python("-c", look, filled).stdout.split()
    assert "matplotlib" in loaded
    assert {"torch", "trainer", "matplotlib.pyplot"} & set(loaded) == set()

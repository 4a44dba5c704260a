import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import PROJECT
from tests.viz.conftest import Metrics, run_python, write_store
from viz.__main__ import main


def test_charts_and_json_are_rebuilt_from_the_store_alone(filled: Path) -> None:
    drawn = run_python("-m", "viz", "chart", filled)
    assert drawn.stdout.strip() == str(filled / "training_step_000020.png")
    assert (filled / "training_latest.png").exists()
    assert main(["export", str(filled)]) == 0
    assert (filled / "metrics_history.json").exists()


def test_a_run_is_found_by_its_store_and_by_its_out_folder(
    filled: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tmp_path = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    shutil.copytree(filled, tmp_path / "out" / "training_viz")
    for name in ("out", "out/training_viz", "out/training_viz/run.db"):
        assert main(["chart", name]) == 0
        assert capsys.readouterr().out.strip() == "out/training_viz/training_step_000020.png"
        assert main(["document", "7", name]) == 0
        assert main(["compare", name, "out"]) == 0
        capsys.readouterr()
    assert main(["runs", "out"]) == 0
    assert "r1" in capsys.readouterr().out
    (tmp_path / "out" / "training_viz" / "earlier" / "a").mkdir(parents=True)
    shutil.move(tmp_path / "out" / "training_viz" / "run.db", tmp_path / "out" / "training_viz" / "earlier" / "a")
    assert main(["chart", "out"]) == 2
    assert "only earlier ones: python -m viz runs out" in capsys.readouterr().err


def test_ctrl_c_is_quiet(filled: Path) -> None:
    for wait in (0.3, 1.5):  # while Python itself starts, no code of ours can handle the signal
        process = subprocess.Popen(
            [sys.executable, "-m", "viz", "timelapse", str(filled), *"--size 6000x3600 -o x.gif".split()],
            cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
        assert process.returncode in (130, -signal.SIGINT) and "matplotlib" not in printed


def test_charts_and_time_lapses_of_any_size_and_step(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dark.png"
    assert main(["chart", str(filled), "-o", str(path), "--size", "640x400", "--step", "10", "--dark"]) == 0
    with Image.open(path) as picture:
        assert picture.size == (640, 400)
        assert sum(picture.convert("RGB").getpixel((1, 1))) < 150
    monkeypatch.chdir(tmp_path)
    assert main(["chart", str(filled), "--step", "10", "--size", "640x400"]) == 0  # not over the numbered charts
    assert capsys.readouterr().out.splitlines()[-1] == "chart.png" and (tmp_path / "chart.png").exists()
    assert main(["chart", str(filled), "--step", "10"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "chart.png"
    assert not list(filled.glob("training_*.png"))
    assert main(["timelapse", str(filled), "--frames", "3", "--size", "640x400", "--seconds", "1"]) == 0
    assert capsys.readouterr().out == "timelapse.gif (3 frames)\n"
    with Image.open("timelapse.gif") as film:
        assert (film.n_frames, film.size) == (3, (640, 400))


def test_all_charts_of_a_run_are_redrawn(tmp_path: Path, metrics: Metrics, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(tmp_path, map(metrics, range(12)), config={"viz_interval": 5})
    assert main(["chart", str(tmp_path), "--all", "--size", "640x400"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / f"training_step_0000{step}.png") for step in ("05", "10", "12")
    ]


def test_the_document_of_a_step(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["document", "0,007", str(filled)]) == 0  # with a comma, as in the chart
    assert capsys.readouterr().out.startswith("Step 7: python-docs, hf://datasets/")


def make_run(folder: Path, metrics: Metrics, run_id: str, better: float = 0.0) -> Path:
    losses = [5.0 + (step % 7) - better + 0.01 * (step % 3) for step in range(60)]
    calls = [metrics(step, loss=loss, text_hash=bytes([step]) * 32) for step, loss in enumerate(losses)]
    write_store(folder, calls, run_id=run_id, tokenizer_hash="t", source="s", outcome="done")
    (folder / ".run").write_text(json.dumps({"run_id": run_id, "test": False, "viz": str(folder), "checkpoints": "x"}))
    return folder


def test_two_runs_by_folder_and_by_id(
    tmp_path: Path, metrics: Metrics, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    now = make_run(tmp_path / "viz", metrics, "new-1", better=0.25)
    make_run(now / "earlier" / "old-1", metrics, "old-1")
    assert main(["compare", "old-1", str(now), "--in", str(now)]) == 0
    first, *_, path = capsys.readouterr().out.splitlines()
    assert first.startswith("B is better by 0.25") and "over 60 shared documents" in first
    assert path == "comparison.png" and Path(path).read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(now / "run.db"), "old-1", "--in", str(now), "-o", str(tmp_path / "c.png")]) == 0
    assert capsys.readouterr().out.startswith("A is better by 0.25")
    assert main(["compare", "old-1", str(now), "--in", str(now), "-o", "no/such/folder.png"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("B is better by 0.25")  # the result is printed anyway
    assert printed.err.count("\n") == 1


def test_runs_are_listed_and_deleted_after_confirmation(
    tmp_path: Path, metrics: Metrics, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = make_run(tmp_path / "viz", metrics, "new-1")
    old = make_run(now / "earlier" / "old-1", metrics, "old-1")
    assert main(["runs", str(now)]) == 0
    assert {"new-1", "old-1"} <= set(capsys.readouterr().out.split())
    for answer, gone in (("\n", False), ("n\n", False), ("", False), ("y\n", True)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert main(["runs", str(now), "--delete", "old-1"]) == 0
        printed = capsys.readouterr().out
        assert str(old) in printed and "60 documents" in printed
        assert ("Nothing was deleted" in printed) is not gone and old.exists() is not gone
    assert (now / "run.db").exists()
    assert main(["runs", str(now), "--delete", "new-1", "--yes"]) == 0
    assert not (now / "run.db").exists()


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["chart", "DIR", "--step", "21"], "has 20 documents"),
        (["chart", "DIR", "--all", "--step", "5"], "omit --output and --step"),
        (["timelapse", "DIR", "-o", "film.mp4"], ".gif or .png"),
        (["document", "20", "DIR"], "no step 20: its steps are 0 to 19"),
        (["runs", "DIR", "--delete", "nobody"], "no run with that id"),
        (["compare", "nobody", "DIR"], "nobody is neither the folder of a run nor the id of a run in training_viz"),
        (["compare", "DIR", "EMPTY"], "B has no steps yet"),
        (["chart", "NOTHING"], "(no run.db)"),
        (["compare", "DIR", "DIR", "--since", "20"], "share no document from step 20 of A on"),
        (["chart", "DIR", "-o", "no/such/folder.png"], "no/such/folder.png: No such file or directory"),
        (["chart", "DIR", "-o", "chart.jpg"], "must end in .png"),
        (["compare", "DIR", "DIR", "-o", "c.jpg"], "must end in .png"),
        (["timelapse", "DIR", "--frames", "1"], "not 1 in 12 s"),
        (["runs", "no-such-folder"], "no-such-folder is not a folder"),
    ],
)
def test_an_impossible_request_is_exit_2_and_one_line(
    filled: Path,
    tmp_path_factory: pytest.TempPathFactory,
    arguments: list[str],
    printed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = write_store(tmp_path_factory.mktemp("empty"))
    places = {"DIR": str(filled), "EMPTY": str(empty), "NOTHING": str(tmp_path_factory.mktemp("nothing"))}
    assert main([places.get(word, word) for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m viz: ") and printed in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["chart", "--size", "big"], ["chart", "--size", "100x100"], ["chart", "--size", "1000x9000"],
        ["chart", "--step", "0"], ["document", "-1"], ["document", "1.5"], ["compare", "a", "b", "--since", "-5"],
        ["timelapse", "--frames", "x"], ["timelapse", "--seconds", "nan"], ["draw"], [],
    ],
)  # fmt: skip
def test_an_invalid_command_line_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("python -m viz: ") and "--help" in line


@pytest.mark.parametrize("command", [["chart"], ["document", "7"], ["timelapse"], ["export"], ["compare", "DIR"]])
def test_a_damaged_store_is_exit_2_and_one_line(
    filled: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(filled)
    data = bytearray((filled / "run.db").read_bytes())
    data[2 * 8192 :] = b"\xff" * (len(data) - 2 * 8192)
    (filled / "run.db").write_bytes(data)
    assert main([*(word.replace("DIR", str(filled)) for word in command), str(filled)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m viz: ")


def test_a_closed_pipe_is_not_an_error(filled: Path) -> None:
    command = f"{sys.executable} -m viz document 7 {filled} | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Step 7") and done.stderr == ""

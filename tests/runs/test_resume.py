"""A resumed run continues exactly: same curve, same store, next document."""

import copy
import json
import os
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest
import torch

from tests.runs.conftest import (
    DOCUMENTS,
    SMALL,
    STEPS,
    Capture,
    Train,
    count_steps,
    error_line,
    start,
    table,
    wait_until,
)
from trainer.base.checkpoint_file import read_state, write_state


def equal_runs(one: Path, other: Path, step: int) -> None:
    """Rows and final weights, moments and counts of two runs are the same to the last bit."""
    assert table(one / "training_viz", STEPS) == table(other / "training_viz", STEPS)
    assert table(one / "training_viz", DOCUMENTS) == table(other / "training_viz", DOCUMENTS)
    states = [read_state(folder / "checkpoints" / f"checkpoint_step_{step}.bin") for folder in (one, other)]
    for key in ("model", "average", "optimizer", "recipe", "stability", "health", "samples", "step", "tokenizer"):
        _assert_equal(states[0][key], states[1][key])
    tallies = [state["tally"] for state in states]
    for key in ("first", "last", "texts"):
        assert tallies[0][key] == tallies[1][key]
    assert tallies[0]["totals"][:2] == tallies[1]["totals"][:2]
    assert tallies[0]["averages"][:2] == tallies[1]["averages"][:2]  # of loss and accuracy, not of time
    samples = [
        table(folder / "training_viz", "SELECT step, prompt, output FROM text_samples") for folder in (one, other)
    ]
    assert samples[0] == samples[1]


def _assert_equal(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)]  # NaN is not equal to itself
        assert torch.equal(*bits)
    elif isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_equal(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        for pair in zip(one, other, strict=True):
            _assert_equal(*pair)
    else:
        assert one == other


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_stopped_twice_equals_not_stopped(train: Train, tmp_path: Path, dtype: str) -> None:
    assert train("--steps", 24, "--out", "whole", "--dtype", dtype) == 0
    assert train("--steps", 7, "--out", "parts", "--dtype", dtype) == 0
    assert train("--resume", "--steps", 15, "--out", "parts") == 0
    assert train("--resume", "--steps", 24, "--out", "parts") == 0
    equal_runs(tmp_path / "whole", tmp_path / "parts", 24)
    resumes = table(tmp_path / "parts" / "training_viz", "SELECT step FROM events WHERE kind = 'resume'")
    assert resumes == [(7,), (15,)]


def test_going_back_to_an_older_checkpoint_rewinds_the_record(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 20, "--out", "whole") == 0
    assert train("--steps", 20, "--out", "back", "--checkpoint-interval", 5) == 0
    chosen = tmp_path / "back" / "checkpoints" / "checkpoint_step_10.bin"
    assert train("--resume", chosen, "--out", "back") == 0
    equal_runs(tmp_path / "whole", tmp_path / "back", 20)


def signal_at(number: signal.Signals, rows: int, words: list[object], folder: Path) -> tuple[int, str]:
    """Start the command and send it a signal once its store has `rows` rows. Returns its exit code and its output."""
    # Whatever started these tests (`nohup`) may ignore SIGHUP.
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); from trainer.cli import main; exit(main())"
    process = start([*SMALL, *map(str, words)], folder, code)
    wait_until(lambda: count_steps(folder / "training_viz") >= rows, process)
    os.killpg(process.pid, number)
    output, error = process.communicate(timeout=300)
    return process.returncode, output + error


def test_ctrl_c_saves_and_the_run_resumes_exactly(train: Train, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").mkdir()
    words = ["--dataset", corpus, "--steps", 3000, "--repeat"]
    code, output = signal_at(signal.SIGINT, 20, words, tmp_path / "cut")
    assert code == 130, output
    viz = tmp_path / "cut" / "training_viz"
    done = count_steps(viz)
    assert 20 <= done < 3000
    assert "Stopping after this step" in output and f"checkpoint_step_{done}.bin" in output and "--resume" in output
    assert (viz / f"training_step_{done:06d}.png").exists()
    assert len(json.loads((viz / "metrics_history.json").read_text())["steps"]) == done
    assert train("--resume", "--steps", done + 10, "--out", tmp_path / "cut") == 0
    assert train("--steps", done + 10, "--repeat", "--out", tmp_path / "whole") == 0
    equal_runs(tmp_path / "whole", tmp_path / "cut", done + 10)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.full)]
)
def test_other_signals_save_too(corpus: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    returned, output = signal_at(number, 3, ["--dataset", corpus, "--steps", 100_000, "--repeat"], tmp_path)
    assert returned == code, output
    assert list((tmp_path / "checkpoints").glob("checkpoint_step_*.bin"))


def test_a_finished_run_and_nothing_to_resume_are_reported(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--resume") == 2
    assert "nothing to resume" in error_line(capsys)
    assert train("--steps", 4) == 0
    before = table(tmp_path / "training_viz", STEPS)
    assert train("--resume") == 0
    assert "--steps 8" in capsys.readouterr().out
    assert table(tmp_path / "training_viz", STEPS) == before


@pytest.mark.parametrize(
    "flags", [["--seed", 1], ["--max-seq-length", 32], ["--model-size", "small"], ["--dataset", "x"]]
)
def test_a_flag_that_would_change_the_run_is_refused(train: Train, flags: list[object], capsys: Capture) -> None:
    assert train("--steps", 2) == 0
    capsys.readouterr()
    assert train("--resume", "--steps", 4, *flags) == 2
    error = error_line(capsys)
    assert str(flags[0]) in error and str(flags[1]) in error


def test_changed_data_is_refused(train: Train, tmp_path: Path, capsys: Capture) -> None:
    data = tmp_path / "data.txt"
    data.write_text("\n\n".join(f"Paragraph {number} is long enough to be used." for number in range(30)))
    assert train("--dataset", data, "--steps", 3) == 0
    data.write_text(data.read_text() + "\n\nOne more paragraph that was not there.")
    assert train("--resume", "--steps", 5) == 2
    assert "has changed" in capsys.readouterr().err


def test_an_earlier_run_is_resumed_by_its_id(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--steps", 3) == 0
    assert train("--steps", 2, "--seed", 1) == 0
    run_id = next((tmp_path / "checkpoints" / "earlier").iterdir()).name
    assert f"--resume {run_id}" in capsys.readouterr().out
    assert train("--resume", run_id, "--steps", 6) == 0
    assert len(table(tmp_path / "training_viz" / "earlier" / run_id, STEPS)) == 6
    assert len(table(tmp_path / "training_viz", STEPS)) == 2


def test_a_changed_learning_rate_is_recorded_as_an_event(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 3) == 0
    assert train("--resume", "--steps", 5, "--learning-rate", 0.5, "--warmup-steps", 0) == 0
    rates = [rate for (rate,) in table(tmp_path / "training_viz", "SELECT learning_rate FROM steps ORDER BY step")]
    assert rates[3:] == [0.5, 0.5] and rates[2] < 0.001
    detail = table(tmp_path / "training_viz", "SELECT detail FROM events WHERE kind = 'resume'")[0][0]
    assert "initial_learning_rate 0.001 → 0.5" in detail and "not bit-identical" in detail


def test_a_checkpoint_of_another_run_does_not_change_this_record(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--steps", 5, "--out", "a") == 0
    assert train("--steps", 8, "--out", "b") == 0
    shutil.copytree(tmp_path / "a" / "checkpoints", tmp_path / "stray", ignore=shutil.ignore_patterns(".run*"))
    before = table(tmp_path / "b" / "training_viz", STEPS)
    assert train("--resume", "stray/checkpoint_step_5.bin", "--viz-dir", "b/training_viz", "--steps", 9) == 2
    assert "copied out of run" in capsys.readouterr().err
    shutil.copy(tmp_path / "a" / "checkpoints" / ".run", tmp_path / "stray")
    shutil.copytree(tmp_path / "b" / "training_viz", tmp_path / "lost")
    shutil.rmtree(tmp_path / "a" / "training_viz")
    assert train("--resume", "--checkpoint-dir", "stray", "--viz-dir", "lost", "--steps", 9) == 2
    assert "is the record of run" in capsys.readouterr().err
    assert table(tmp_path / "b" / "training_viz", STEPS) == before


def test_a_record_that_ends_before_the_checkpoint_is_refused(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--steps", 9, "--checkpoint-interval", 3) == 0
    assert train("--resume", "checkpoints/checkpoint_step_3.bin", "--steps", 5) == 0
    assert "--resume --steps 10" in capsys.readouterr().out  # not from the older checkpoint again
    newest = next((tmp_path / "checkpoints" / "earlier").rglob("checkpoint_step_9.bin"))
    assert train("--resume", newest, "--steps", 12) == 2
    assert "moved or copied out of run" in capsys.readouterr().err
    shutil.copy(newest, tmp_path / "checkpoints")
    assert train("--resume", "--steps", 12) == 2
    assert "ends before it" in capsys.readouterr().err
    assert [row[0] for row in table(tmp_path / "training_viz", STEPS)] == [0, 1, 2, 3, 4]


def test_a_run_of_an_earlier_version_is_refused_before_anything_moves(
    train: Train, tmp_path: Path, capsys: Capture
) -> None:
    assert train("--steps", 9, "--checkpoint-interval", 3) == 0
    with sqlite3.connect(tmp_path / "training_viz" / "run.db") as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    path = tmp_path / "checkpoints" / "checkpoint_step_3.bin"
    state = read_state(path)
    for changed in (state, {name: value for name, value in state.items() if name != "display"}):  # as 0.3 wrote it
        write_state(path, changed)
        assert train("--resume", path, "--steps", 12) == 2
        assert "earlier version of this program" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    assert train("--resume") == 0  # nothing is left to train
    assert "Already finished" in capsys.readouterr().out


def test_a_resume_that_fails_moves_nothing(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 9, "--checkpoint-interval", 3) == 0
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert train("--resume", "checkpoints/checkpoint_step_3.bin", "--device", "cuda:7") == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before


def test_a_config_file_that_started_a_run_also_resumes_it(train: Train, tmp_path: Path, corpus: Path) -> None:
    settings = {"dtype": "auto", "compile": None, "model_size": "tiny", "vocab_size": 400, "dataset": str(corpus)}
    (tmp_path / "c.json").write_text(json.dumps(settings))
    assert train("--config", "c.json", "--steps", 3, small=False) == 0
    assert train("--resume", "--config", "c.json", "--steps", 5) == 0


def test_a_resume_uses_the_number_of_threads_of_its_run(train: Train, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert train("--steps", 3) == 0
        torch.set_num_threads(2)
        assert train("--resume", "--steps", 5) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert (
        "not bit-identical"
        not in table(tmp_path / "training_viz", "SELECT detail FROM events WHERE kind = 'resume'")[0][0]
    )


def test_a_missing_record_starts_again_at_the_checkpoint(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--steps", 4) == 0
    (tmp_path / "training_viz" / "run.db").unlink()
    assert train("--resume", "--steps", 6) == 0
    assert "a new record starts at step 4" in capsys.readouterr().out
    assert [row[0] for row in table(tmp_path / "training_viz", STEPS)] == [4, 5]


def test_the_comparison_can_fail(train: Train, tmp_path: Path) -> None:
    """Controls: the comparison detects a resume that lost a moment, a step count, the average or the cursor."""
    assert train("--steps", 12, "--out", "whole") == 0
    assert train("--steps", 8, "--out", "parts") == 0
    path = tmp_path / "parts" / "checkpoints" / "checkpoint_step_8.bin"
    whole = read_state(path)
    for forgotten in ("exp_avg_sq", "momentum", "step", "average", "cursor"):
        state = copy.deepcopy(whole)
        if forgotten == "cursor":
            state["samples"]["cursor"]["row"] += 1
        elif forgotten == "average":
            state["average"]["model.norm.weight"].zero_()
        else:
            for moments in state["optimizer"].values():
                if forgotten in moments:
                    moments[forgotten].zero_()
        write_state(path, state)
        assert train("--resume", path, "--steps", 12, "--out", "parts") == 0
        try:
            equal_runs(tmp_path / "whole", tmp_path / "parts", 12)
        except AssertionError:
            continue
        pytest.fail(f"the comparison does not detect a lost {forgotten}")
    write_state(path, whole)
    assert train("--resume", path, "--steps", 12, "--out", "parts") == 0
    equal_runs(tmp_path / "whole", tmp_path / "parts", 12)


def test_weights_alone_cannot_be_resumed(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--steps", 3) == 0
    path = tmp_path / "checkpoints" / "checkpoint_step_3.bin"
    state = read_state(path)
    for missing in ("config", "kernels"):
        write_state(path, {key: value for key, value in state.items() if key != missing})
        assert train("--resume", "--steps", 5) == 2
        error = error_line(capsys)
        assert missing in error and "--pretrained-checkpoint" in error


def test_a_folder_that_would_split_a_run_is_refused(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 5, "--out", "a") == 0
    assert train("--resume", "a/checkpoints/checkpoint_step_5.bin", "--out", "c", "--steps", 9) == 2
    assert len(table(tmp_path / "a" / "training_viz", STEPS)) == 5


def test_going_back_twice_keeps_both_pasts(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 6, "--checkpoint-interval", 3) == 0
    for rate in (0.01, 0.02):
        assert train("--resume", "checkpoints/checkpoint_step_3.bin", "--learning-rate", rate) == 0
    aside = sorted((tmp_path / "checkpoints" / "earlier").rglob("checkpoint_step_6.bin"))
    assert all(path.with_name(f"{path.name}.sha256").exists() for path in aside)
    assert len({path.read_bytes() for path in [*aside, tmp_path / "checkpoints" / "checkpoint_step_6.bin"]}) == 3


def test_a_relative_dataset_is_found_from_another_folder(
    train: Train, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(corpus, tmp_path / "here.jsonl")
    assert train("--dataset", "here.jsonl", "--steps", 4) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train("--resume", "--out", "..", "--steps", 8) == 0
    rows = table(tmp_path / "training_viz", "SELECT row FROM documents ORDER BY step")
    assert [row for (row,) in rows] == list(range(8))


def test_a_resume_without_checkpoints_reports_where_the_next_one_would_start(train: Train, capsys: Capture) -> None:
    assert train("--steps", 4) == 0
    capsys.readouterr()
    assert train("--resume", "--no-checkpoint", "--steps", 8) == 0
    assert "--resume --steps 16 (continues from step 4; later steps were not saved)" in capsys.readouterr().out


def test_a_copy_of_checkpoints_does_not_change_the_original_record(train: Train, tmp_path: Path) -> None:
    assert train("--steps", 9, "--checkpoint-interval", 3, "--out", "a") == 0
    shutil.copytree(tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints")
    assert train("--resume", "--steps", 20, "--out", "a") == 0
    before = table(tmp_path / "a" / "training_viz", STEPS)
    assert train("--resume", "--steps", 12, "--out", "b") == 0
    assert table(tmp_path / "a" / "training_viz", STEPS) == before
    assert [row[0] for row in table(tmp_path / "b" / "training_viz", STEPS)] == [9, 10, 11]


def test_a_checkpoint_without_its_digest_is_reported(train: Train, tmp_path: Path, capsys: Capture) -> None:
    assert train("--steps", 4) == 0
    (tmp_path / "checkpoints" / "checkpoint_step_4.bin.sha256").unlink()
    assert train("--resume", "--steps", 6) == 0
    assert "has no .sha256 file" in capsys.readouterr().out
    assert table(tmp_path / "training_viz", "SELECT count(*) FROM events WHERE kind = 'checkpoint unchecked'") == [(1,)]


def test_a_finished_run_that_lost_its_images_gets_them_back(train: Train, tmp_path: Path) -> None:
    """The state after a kill between the last checkpoint and the last chart."""
    assert train("--steps", 7) == 0
    viz = tmp_path / "training_viz"
    for name in ("run.json", "training_step_000007.png", "training_latest.png"):
        (viz / name).unlink()
    assert train("--resume") == 0
    assert (viz / "training_step_000007.png").exists() and (viz / "training_latest.png").exists()
    assert json.loads((viz / "run.json").read_text())["json_through_step"] == 6

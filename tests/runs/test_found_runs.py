"""Real runs as `viz.record.runs` finds them: the commands that it prints work, and a deletion removes one run only."""

import hashlib
import shlex
import shutil
from pathlib import Path

import pytest

from common.run_marker import read_marker
from tests.conftest import PROJECT
from tests.runs.conftest import QUICK, SMALL, Capture, Train, table
from trainer.cli import main
from trainer.run.folders import Folders, RunFolder
from viz.record.runs import delete_run, find_runs
from viz.views.run_list import describe_runs

VIZ = Path("training_viz")


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs and two test runs in one folder, which is returned."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in ("--steps 6 --checkpoint-interval 3", "--steps 8", "--test --steps 4", "--test --steps 5"):
            assert main([*SMALL, "--dataset", str(corpus), *words.split()], QUICK) == 0
    return folder


@pytest.fixture
def four(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same runs, as if made in the folder of this test."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for mark in tmp_path.rglob(".run"):
        mark.write_text(mark.read_text().replace(str(made), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_pasted(command: str) -> int:
    program, script, *words = shlex.split(command)
    assert program == "python" and Path(script).resolve() == PROJECT / "train_slimpajama.py"
    return main(words, QUICK)


def contents(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_each_command_resumes_its_run(four: Path, capsys: Capture) -> None:
    runs = find_runs(VIZ)
    assert [(run.is_test, run.documents, run.steps_asked) for run in runs] == [
        *((True, 5, 5), (True, 4, 4)), *((False, 8, 8), (False, 6, 6))
    ]  # fmt: skip
    places = ["test", f"test/earlier/{runs[1].run_id}", "", f"earlier/{runs[3].run_id}"]
    assert [run.record for run in runs] == [VIZ / place for place in places]
    assert [run.checkpoints for run in runs] == [four / "checkpoints" / place for place in places]
    print(describe_runs(runs))
    said = capsys.readouterr().out.splitlines()
    commands = [line.partition("resume: ")[2] for line in said if "resume: " in line]
    assert commands == [run.resume_command for run in runs]
    for command, run in zip(commands, runs, strict=True):
        assert run_pasted(command) == 0
        assert table(run.record, "SELECT run_id, count(*) FROM run, steps") == [(run.run_id, 2 * run.documents)]


def test_commands_work_from_elsewhere_and_after_a_move(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = four / "elsewhere"
    elsewhere.mkdir()
    for name in ("training_viz", "checkpoints"):
        (four / name).rename(elsewhere / name)
    for run in find_runs(Path("elsewhere/training_viz"))[:2]:
        assert run_pasted(str(run.resume_command)) == 0
    monkeypatch.chdir(elsewhere / "checkpoints")
    for run in find_runs(Path("../training_viz"))[2:]:
        assert run_pasted(str(run.resume_command)) == 0
    steps = [run.documents for run in find_runs(elsewhere / "training_viz")]
    assert steps == [10, 8, 16, 12]


def test_a_run_that_ran_out_of_documents_resumes_with_repeat(train: Train, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n\n".join(f"Paragraph {number} of a few." * 3 for number in range(20)))
    assert train("--steps", 40, "--dataset", "few.txt") == 0
    (run,) = find_runs(VIZ)
    assert run.outcome == "documents ended" and str(run.resume_command).endswith(f"--resume {run.run_id} --repeat")
    assert run_pasted(str(run.resume_command)) == 0
    (run,) = find_runs(VIZ)
    assert (run.documents, run.outcome) == (40, "done")


def test_separate_viz_and_checkpoint_folders(train: Train) -> None:
    assert train("--steps", 4, "--viz-dir", "pictures", "--checkpoint-dir", "states/here") == 0
    (run,) = find_runs(Path("pictures"))
    assert run_pasted(str(run.resume_command)) == 0
    assert find_runs(Path("pictures"))[0].documents == 8


def test_without_checkpoints_there_is_no_command(train: Train) -> None:
    assert train("--steps", 4, "--no-checkpoint") == 0
    (run,) = find_runs(VIZ)
    assert run.resume_command is None and run.why_not == "there is no checkpoint"


def test_deleting_a_run_deletes_nothing_else(four: Path) -> None:
    note = VIZ / "earlier" / "notes.txt"
    note.write_text("mine")
    for run in find_runs(VIZ):
        ours = (run.record, run.checkpoints)
        before = contents(four)
        delete_run(run)
        gone = before.keys() - contents(four).keys()
        assert {path.parent for path in gone} == {four / folder for folder in ours if folder}
        assert contents(four) == {path: digest for path, digest in before.items() if path not in gone}
    assert set(contents(four)) == {four / note}
    assert not (VIZ / "test").exists() and not (four / "checkpoints" / "test").exists()


def test_a_running_run_is_not_deleted(train: Train) -> None:
    assert train("--steps", 4) == 0
    (found,) = find_runs(VIZ)
    folders = Folders(VIZ, Path("checkpoints"))
    living = RunFolder(folders, str(read_marker(VIZ)["run_id"]), test=False)
    before = contents(Path())
    with pytest.raises(ValueError, match="is in use by a run"):
        delete_run(found)
    (running,) = find_runs(VIZ)
    assert running.is_running and running.resume_command is None
    assert contents(Path()) == before
    living.release()
    delete_run(found)
    assert find_runs(VIZ) == []

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.base.checkpoint_file import STATE_HEADER, write_state
from trainer.errors import MachineError, UserError
from trainer.run.checkpoints import CheckpointManager
from trainer.run.folders import (
    Folders,
    RunFolder,
    check_disk,
    checkpoint_bytes,
    locate_run,
    new_run,
    record_bytes,
    resume_run,
)


@pytest.fixture
def root(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "viz", tmp_path / "checkpoints")


def run_once(root: Folders, *, test: bool = False, say: Callable[[str], object] = print, steps: Any = (5,)) -> str:
    """Start a run, write its files and end it. Returns its id."""
    run = new_run(root, test=test)
    run.begin("python train_slimpajama.py", say)
    (run.viz / "run.db").write_text(run.run_id)
    (run.viz / "training_step_000005.png").touch()
    for step in steps:
        write_state(CheckpointManager(run.checkpoints).path(step), {**STATE_HEADER, "model": {}})
    run.release()
    return run.run_id


def test_a_new_run_moves_the_old_one_and_prints_how_to_resume_it(root: Folders) -> None:
    printed: list[str] = []
    old = run_once(root)
    (root.viz / "notes.txt").write_text("mine")
    new = run_once(root, say=printed.append)
    assert (root.viz / "run.db").read_text() == new
    assert (root.viz / "earlier" / old / "run.db").read_text() == old
    assert (root.checkpoints / "earlier" / old / "checkpoint_step_5.bin").exists()
    assert (root.viz / "notes.txt").read_text() == "mine"  # not a file of the run: it stays
    assert len(printed) == 1 and f"--resume {old}" in printed[0]
    assert locate_run(root, old, test=False)[0].viz == root.viz / "earlier" / old


def test_a_test_run_never_moves_a_real_one(root: Folders, tmp_path: Path) -> None:
    alone = Folders(root.viz / "alone", root.checkpoints / "alone")
    assert run_once(alone, test=True) == (alone.viz / "run.db").read_text()  # in an empty folder, it stays there
    assert locate_run(alone, "", test=True)[0] == alone
    real = run_once(root)
    with pytest.raises(UserError, match="no test run"):
        locate_run(root, "", test=True)
    test = run_once(root, test=True)
    assert (root.viz / "run.db").read_text() == real
    assert (root.viz / "test" / "run.db").read_text() == test
    assert (root.checkpoints / "test" / "checkpoint_step_5.bin").exists()
    again = run_once(root, test=True)
    assert (root.viz / "test" / "run.db").read_text() == again
    assert (root.viz / "test" / "earlier" / test / "run.db").exists()
    assert locate_run(root, "", test=True)[0] == root.below("test")
    assert locate_run(root, "", test=False)[0] == root
    run_once(Folders(tmp_path / "v2", tmp_path / "c2"), test=True)
    run_once(Folders(root.viz, tmp_path / "c2"), test=True)  # only the record folder is that of the real run
    assert (root.viz / "run.db").read_text() == real


def test_two_runs_in_one_folder(root: Folders) -> None:
    first = new_run(root, test=False)
    first.begin("c", lambda line: None)
    for folders in (root, Folders(root.viz, root.viz / "other"), Folders(root.viz / "other", root.checkpoints)):
        with pytest.raises(UserError, match=f"in use by run {first.run_id}|in use by a run that is starting"):
            RunFolder(folders, "x", test=False)
    with pytest.raises(UserError, match=f"in use by run {first.run_id}"):  # although it has no checkpoint yet
        resume_run(root, None, refused=print)
    first.release()
    new_run(root, test=False).release()


def test_resume_skips_damaged_checkpoints_and_accepts_a_path_but_no_unknown_id(root: Folders) -> None:
    with pytest.raises(UserError, match="no run with this id"):
        locate_run(root, "20990101-000000-abcd", test=False)
    run_id, printed = run_once(root, steps=(5, 10)), []
    (root.checkpoints / "checkpoint_step_10.bin").write_bytes(b"torn")
    run, path, _ = resume_run(root, None, refused=printed.append)
    assert (run.run_id, path.name) == (run_id, "checkpoint_step_5.bin")
    assert "checkpoint_step_10.bin" in printed[0]
    run.release()
    chosen = root.checkpoints / "checkpoint_step_5.bin"
    run, path, _ = resume_run(*locate_run(root, str(chosen), test=False), refused=pytest.fail)
    assert path == chosen
    run.release()


def test_too_little_disk_space_is_reported_with_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    check_disk({tmp_path: 1, tmp_path / "other": 1})
    with pytest.raises(MachineError, match=r"1000000\.0 TB, but only .* are free"):
        check_disk({tmp_path: 10**18})
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(MachineError):  # each fits, but not both
        check_disk({tmp_path: free * 2 // 3, tmp_path / "other": free * 2 // 3})
    assert checkpoint_bytes(10**6, 3) == 48 * 10**6
    assert record_bytes(1000, 256, 20) > 1000 * 256 * 8
    assert record_bytes(10_000, 256, 20, 200_000) == record_bytes(10_000, 256, 20)
    assert record_bytes(10**6, 256, 20, 200_000) < record_bytes(10**6, 256, 20) / 2
    assert record_bytes(10**6, 256, 20, 2000) > 10**6 * 460  # measured, `docs/files.md`


def test_runs_that_share_one_folder_can_be_located(tmp_path: Path) -> None:
    """A second run with the same checkpoint folder and another record folder, and vice versa."""
    shared = tmp_path / "shared"
    for first, second in (
        (Folders(tmp_path / "v1", shared / "a"), Folders(tmp_path / "v2", shared / "a")),
        (Folders(shared / "b", tmp_path / "c1"), Folders(shared / "b", tmp_path / "c2")),
    ):
        printed: list[str] = []
        old = run_once(first)
        new = run_once(second, say=printed.append)
        assert len(printed) == 1 and f"--resume {old}" in printed[0]
        folders, _ = locate_run(second, old, test=False)
        assert (folders.viz / "run.db").read_text() == old
        assert CheckpointManager(folders.checkpoints).all()
        assert (second.viz / "run.db").read_text() == new and CheckpointManager(second.checkpoints).all()
        assert locate_run(second, "", test=False)[0] == second


def test_a_copied_project_writes_to_the_copy(root: Folders, tmp_path: Path) -> None:
    run_once(root)
    shutil.copytree(root.viz, tmp_path / "copy" / "viz")
    shutil.copytree(root.checkpoints, tmp_path / "copy" / "checkpoints")
    copy = Folders(tmp_path / "copy" / "viz", tmp_path / "copy" / "checkpoints")
    assert locate_run(copy, "", test=False)[0] == copy

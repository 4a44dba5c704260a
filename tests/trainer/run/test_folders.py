import shutil
from pathlib import Path

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


def live_once(
    root: Folders, *, test: bool = False, said: list[str] | None = None, steps: tuple[int, ...] = (5,)
) -> str:
    """A run that begins, writes and ends; returns its id."""
    run = new_run(root, test=test)
    run.begin("python train_slimpajama.py", (said if said is not None else []).append)
    (run.viz / "run.db").write_text(run.run_id)
    (run.viz / "training_step_000005.png").touch()
    for step in steps:
        write_state(CheckpointManager(run.checkpoints).path(step), {**STATE_HEADER, "model": {}})
    run.release()
    return run.run_id


def test_a_new_run_moves_the_old_one_and_says_how_to_go_on(root: Folders) -> None:
    said: list[str] = []
    old = live_once(root)
    (root.viz / "notes.txt").write_text("mine")
    new = live_once(root, said=said)
    assert (root.viz / "run.db").read_text() == new
    assert (root.viz / "earlier" / old / "run.db").read_text() == old
    assert (root.checkpoints / "earlier" / old / "checkpoint_step_5.bin").exists()
    assert (root.viz / "notes.txt").read_text() == "mine"  # not ours: stays
    assert len(said) == 1 and f"--resume {old}" in said[0]
    assert locate_run(root, old, test=False)[0].viz == root.viz / "earlier" / old


def test_a_test_run_never_moves_a_real_one(root: Folders) -> None:
    alone = Folders(root.viz / "alone", root.checkpoints / "alone")
    assert live_once(alone, test=True) == (alone.viz / "run.db").read_text()  # an empty folder: it lives there
    assert locate_run(alone, "", test=True)[0] == alone
    real = live_once(root)
    with pytest.raises(UserError, match="no test run"):
        locate_run(root, "", test=True)
    test = live_once(root, test=True)
    assert (root.viz / "run.db").read_text() == real
    assert (root.viz / "test" / "run.db").read_text() == test
    assert (root.checkpoints / "test" / "checkpoint_step_5.bin").exists()
    again = live_once(root, test=True)
    assert (root.viz / "test" / "run.db").read_text() == again
    assert (root.viz / "test" / "earlier" / test / "run.db").exists()
    assert locate_run(root, "", test=True)[0] == root.below("test")
    assert locate_run(root, "", test=False)[0] == root


def test_two_runs_in_one_folder(root: Folders) -> None:
    first = new_run(root, test=False)
    first.begin("c", lambda line: None)
    for folders in (root, Folders(root.viz, root.viz / "other"), Folders(root.viz / "other", root.checkpoints)):
        with pytest.raises(UserError, match=rf"in use by run {first.run_id}|in use by run \?"):
            RunFolder(folders, "x", test=False)
    with pytest.raises(UserError, match=f"in use by run {first.run_id}"):  # although it has no checkpoint yet
        resume_run(root, None, refused=print)
    first.release()
    new_run(root, test=False).release()


def test_nothing_to_resume_is_said(root: Folders) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        resume_run(root, None, refused=print)
    with pytest.raises(UserError, match="no run of that id"):
        locate_run(root, "20990101-000000-abcd", test=False)


def test_resume_skips_what_is_damaged_and_takes_what_is_named(root: Folders) -> None:
    run_id, said = live_once(root, steps=(5, 10)), []
    (root.checkpoints / "checkpoint_step_10.bin").write_bytes(b"torn")
    run, path, _ = resume_run(root, None, refused=said.append)
    assert (run.run_id, path.name) == (run_id, "checkpoint_step_5.bin")
    assert "checkpoint_step_10.bin" in said[0]
    run.release()
    chosen = root.checkpoints / "checkpoint_step_5.bin"
    run, path, _ = resume_run(*locate_run(root, str(chosen), test=False), refused=pytest.fail)
    assert path == chosen
    run.release()


def test_a_folder_that_can_not_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        new_run(Folders(tmp_path / "file" / "viz", tmp_path / "c"), test=False)


def test_too_little_disk_is_said_with_both_numbers(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    check_disk({tmp_path: 1, tmp_path / "other": 1})
    with pytest.raises(MachineError, match=r"1000000\.0 TB and .* free"):
        check_disk({tmp_path: 10**18})
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(MachineError):  # each would fit, both do not
        check_disk({tmp_path: free * 2 // 3, tmp_path / "other": free * 2 // 3})
    assert checkpoint_bytes(10**6, 3) == 48 * 10**6
    assert record_bytes(1000, 256, 20) > 1000 * 256 * 8
    assert record_bytes(10_000, 256, 20, 200_000) == record_bytes(10_000, 256, 20)
    assert record_bytes(10**6, 256, 20, 200_000) < record_bytes(10**6, 256, 20) / 2
    assert record_bytes(10**6, 256, 20, 2000) > 10**6 * 460  # measured, `docs/files.md`


def test_runs_that_share_one_folder_are_found_again(tmp_path: Path) -> None:
    """A second run with another record folder but the same checkpoint folder, and the other way round."""
    shared = tmp_path / "shared"
    for first, second in (
        (Folders(tmp_path / "v1", shared / "a"), Folders(tmp_path / "v2", shared / "a")),
        (Folders(shared / "b", tmp_path / "c1"), Folders(shared / "b", tmp_path / "c2")),
    ):
        said: list[str] = []
        old = live_once(first)
        new = live_once(second, said=said)
        assert len(said) == 1 and f"--resume {old}" in said[0]
        folders, _ = locate_run(second, old, test=False)
        assert (folders.viz / "run.db").read_text() == old
        assert CheckpointManager(folders.checkpoints).all()
        assert (second.viz / "run.db").read_text() == new and CheckpointManager(second.checkpoints).all()
        assert locate_run(second, "", test=False)[0] == second


def test_a_copied_project_writes_to_the_copy(root: Folders, tmp_path: Path) -> None:
    live_once(root)
    shutil.copytree(root.viz, tmp_path / "copy" / "viz")
    shutil.copytree(root.checkpoints, tmp_path / "copy" / "checkpoints")
    copy = Folders(tmp_path / "copy" / "viz", tmp_path / "copy" / "checkpoints")
    assert locate_run(copy, "", test=False)[0] == copy


def test_a_test_run_beside_half_of_a_real_one_moves_nothing(tmp_path: Path) -> None:
    real = live_once(Folders(tmp_path / "v", tmp_path / "c1"))
    live_once(Folders(tmp_path / "vt", tmp_path / "ct"), test=True)
    live_once(Folders(tmp_path / "v", tmp_path / "ct"), test=True)
    assert (tmp_path / "v" / "run.db").read_text() == real

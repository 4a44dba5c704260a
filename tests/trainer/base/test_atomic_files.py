import multiprocessing
import os
from pathlib import Path

from trainer.base.atomic_files import FileLock, remove_unfinished


def _try_lock(path: Path) -> None:
    try:
        FileLock(path)
    except BlockingIOError:
        os._exit(7)
    os._exit(0)


def test_a_lock_keeps_other_processes_out_until_it_is_released(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    lock = FileLock(tmp_path / "lock")
    codes = []
    for _ in range(2):
        process = context.Process(target=_try_lock, args=(tmp_path / "lock",))
        process.start()
        process.join()
        codes.append(process.exitcode)
        lock.release()
    assert codes == [7, 0]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in (".checkpoint_step_5.bin.123.tmp", "..run.123.tmp", ".checkpoint_step_5.bin.sha256.9.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "mine.tmp").touch()
    (tmp_path / ".mine.tmp").touch()
    remove_unfinished(tmp_path, ("checkpoint_step_*.bin", "checkpoint_step_*.bin.sha256", ".run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "mine.tmp"]

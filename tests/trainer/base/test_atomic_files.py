import multiprocessing
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from common.file_replacement import replace_file
from trainer.base.atomic_files import FileLock, remove_unfinished, sha256_of_file


def test_replaces_whole_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        replace_file(path, lambda file, content=content: file.write(content), durable=True)
        assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(path, write, durable=True)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_is_called_before_naming_sees_the_bytes_and_no_name(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", []

    def before(aside: Path) -> None:
        seen.append((aside.read_bytes(), path.exists(), aside.parent == tmp_path))

    replace_file(path, lambda file: file.write(b"x"), durable=True, before_naming=before)
    assert seen == [(b"x", False, True)]


def _try_lock(path: Path) -> None:
    try:
        FileLock(path)
    except BlockingIOError:
        os._exit(7)
    os._exit(0)


def test_a_lock_holds_another_process_off_until_released(tmp_path: Path) -> None:
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


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "f").startswith("ba7816bf8f01cfea")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".checkpoint_step_5.bin.123.tmp", "..run.123.tmp", ".checkpoint_step_5.bin.sha256.9.tmp"):
        (tmp_path / name).touch()
    (tmp_path / "mine.tmp").touch()
    (tmp_path / ".mine.tmp").touch()
    remove_unfinished(tmp_path, ("checkpoint_step_*.bin", "checkpoint_step_*.bin.sha256", ".run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "mine.tmp"]

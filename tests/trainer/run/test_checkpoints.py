import os
import threading
import time
import zipfile
from pathlib import Path

import pytest
import torch

from trainer.base.checkpoint_file import read_state, write_state
from trainer.errors import UserError
from trainer.run.checkpoints import CheckpointManager, snapshot


def make_state(number: float) -> dict[str, object]:
    return {"format": "train_slimpajama.checkpoint", "version": 1, "model": {"w": torch.full((1000,), float(number))}}


def save(manager: CheckpointManager, *steps: int) -> None:
    for step in steps:
        manager.save(step, make_state(step))
    manager.wait()


def fail(why: str) -> None:
    pytest.fail(why)


def test_saved_states_can_be_loaded(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    save(manager, 10, 9, 100)
    assert manager.all() == [(step, tmp_path / f"checkpoint_step_{step}.bin") for step in (9, 10, 100)]
    found = manager.load_newest(fail)
    assert found is not None and found[0] == tmp_path / "checkpoint_step_100.bin"
    assert torch.equal(found[1]["model"]["w"], torch.full((1000,), 100.0))
    older = manager.load_newest(fail, at_most=99)
    assert older is not None and older[0].name == "checkpoint_step_10.bin"
    assert manager.load_newest(fail, at_most=8) is None


def test_the_state_may_change_while_it_is_written(tmp_path: Path) -> None:
    manager, state, resume_writing = CheckpointManager(tmp_path), make_state(1), threading.Event()
    manager.save(1, state, before_naming=lambda: (resume_writing.wait(60), None)[1])
    state["model"]["w"].fill_(2)  # type: ignore[index]
    assert not manager.wait_for_disk() and not manager.all()  # delayed: it has no name yet
    resume_writing.set()
    manager.wait()
    assert manager.wait_for_disk()
    assert torch.equal(read_state(manager.path(1))["model"]["w"], torch.ones(1000))


def test_a_slow_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `before_naming` can postpone the next checkpoint, not the disk."""
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (time.sleep(0.3), sync(file))[1])
    manager = CheckpointManager(tmp_path)
    manager.save(1, make_state(1))
    assert manager.wait_for_disk() and manager.all()


def test_a_snapshot_shares_no_memory() -> None:
    tensors = [torch.zeros(3), torch.zeros(2), torch.zeros(1)]
    copy = snapshot({"a": tensors[0], "b": [tensors[1], {"c": tensors[2]}], "d": "text"})
    for tensor in tensors:
        tensor.fill_(1)
    assert not any(part.any() for part in (copy["a"], copy["b"][0], copy["b"][1]["c"])) and copy["d"] == "text"


def test_the_newest_checkpoints_and_every_nth_are_kept(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=2, keep_every=40)
    save(manager, *range(10, 101, 10))
    assert [step for step, _ in manager.all()] == [40, 80, 90, 100]
    assert len(list(tmp_path.glob("*.sha256"))) == 4


def test_nothing_is_deleted_before_the_newer_checkpoint_is_on_disk(tmp_path: Path) -> None:
    manager, there = CheckpointManager(tmp_path, keep=1), []
    save(manager, 1)
    manager.save(2, make_state(2), before_naming=lambda: there.append(manager.path(1).exists()))
    manager.wait()
    assert there == [True] and [step for step, _ in manager.all()] == [2]

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    manager.save(3, make_state(3), before_naming=refuse)
    with pytest.raises(OSError, match="No space"):
        manager.wait()
    assert [step for step, _ in manager.all()] == [2]
    manager.wait()  # raised only once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_step_2.bin", "checkpoint_step_2.bin.sha256"]


def test_a_failure_is_raised_by_the_next_save_or_check(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path / "missing")
    manager.save(1, make_state(1))
    with pytest.raises(FileNotFoundError):
        manager.save(2, make_state(2))
    manager.save(3, make_state(3))
    with pytest.raises(FileNotFoundError):
        while True:
            manager.raise_failure()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("with_digest", [True, False])
def test_a_truncated_checkpoint_is_reported_and_the_previous_one_loaded(tmp_path: Path, with_digest: bool) -> None:
    """Truncated inside and at the end of each zip entry, in the zip directory, and to 0 bytes."""
    manager = CheckpointManager(tmp_path)
    save(manager, 1, 2)
    whole = manager.path(2).read_bytes()
    with zipfile.ZipFile(manager.path(2)) as parts:
        entries = parts.infolist()
    cuts = {0, 1, len(whole) - 1, len(whole) - 23}
    cuts |= {entry.header_offset + more for entry in entries for more in (0, 20, 60, entry.file_size)}
    if not with_digest:
        (tmp_path / "checkpoint_step_2.bin.sha256").unlink()
    for cut in sorted(cut for cut in cuts if cut < len(whole)):
        manager.path(2).write_bytes(whole[:cut])
        refused: list[str] = []
        found = manager.load_newest(refused.append)
        assert found is not None and found[0] == manager.path(1), cut
        assert len(refused) == 1 and str(manager.path(2)) in refused[0] and "\n" not in refused[0]


def test_a_single_flipped_bit_is_detected(tmp_path: Path) -> None:
    """Also in the middle of the weights, where torch itself does not notice."""
    manager = CheckpointManager(tmp_path)
    save(manager, 1, 2)
    size = manager.path(2).stat().st_size
    for offset in range(0, size, size // 40):
        flip(manager.path(2), offset)
        refused: list[str] = []
        found = manager.load_newest(refused.append)
        assert found is not None and found[0] == manager.path(1) and "SHA-256" in refused[0]
        flip(manager.path(2), offset)
    found = manager.load_newest(fail)
    assert found is not None and found[0] == manager.path(2)


def test_overwriting_a_checkpoint_is_safe_at_every_moment(tmp_path: Path) -> None:
    """Until the new file gets its name, the old one is still valid."""
    manager = CheckpointManager(tmp_path)
    save(manager, 5)
    digests = tmp_path / "checkpoint_step_5.bin.sha256"
    state, seen = make_state(7), []
    real_replace = Path.replace

    def look(path: Path, target: Path) -> Path:
        if target == manager.path(5):
            seen.append((len(digests.read_text().splitlines()), float(read_state(manager.path(5))["model"]["w"][0])))
        return real_replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", look)
        write_state(manager.path(5), state)
    assert seen == [(2, 5.0)]
    assert float(read_state(manager.path(5))["model"]["w"][0]) == 7.0 and len(digests.read_text().splitlines()) == 1


def test_prefixes_of_parameter_names_are_removed(tmp_path: Path) -> None:
    names = ["module._orig_mod.module.w", "_orig_mod.v", "u", "modular"]
    write_state(tmp_path / "x.bin", {**make_state(1), "model": {name: torch.zeros(1) for name in names}})
    assert list(read_state(tmp_path / "x.bin")["model"]) == ["w", "v", "u", "modular"]
    write_state(tmp_path / "x.bin", {**make_state(1), "model": {name: torch.zeros(1) for name in ("w", "module.w")}})
    with pytest.raises(UserError, match="twice"):
        read_state(tmp_path / "x.bin")


def test_a_folder_is_no_checkpoint_and_digests_without_a_file_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_step_7.bin").mkdir()
    (tmp_path / "checkpoint_step_3.bin.sha256").touch()
    manager = CheckpointManager(tmp_path)
    save(manager, 5)
    assert [step for step, _ in manager.all()] == [5]
    assert not (tmp_path / "checkpoint_step_3.bin.sha256").exists()
    manager.save(7, make_state(7))
    with pytest.raises(OSError, match=r"checkpoint_step_7\.bin"):
        manager.wait()

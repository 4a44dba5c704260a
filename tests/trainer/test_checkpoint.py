from pathlib import Path

import pytest
import torch

from trainer.checkpoint import CheckpointManager, remove_unfinished
from trainer.errors import UserError
from trainer.state_file import read_state


def _state(number: float) -> dict[str, object]:
    return {"format": "train_slimpajama.checkpoint", "version": 1, "model": {"w": torch.full((1000,), number)}}


def test_saved_states_come_back(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    for step in (10, 9, 100):
        path = manager.save(step, _state(step))
        assert path.name == f"checkpoint_step_{step}.bin"
    assert [step for step, _ in manager.all()] == [9, 10, 100]
    newest = manager.newest_valid(lambda bad, why: pytest.fail(why))
    assert newest == tmp_path / "checkpoint_step_100.bin"
    assert torch.equal(read_state(newest)["model"]["w"], torch.full((1000,), 100.0))


def test_a_damaged_one_is_named_and_the_one_before_it_taken(tmp_path: Path) -> None:
    manager, refused = CheckpointManager(tmp_path), []
    for step in (1, 2):
        manager.save(step, _state(step))
    damaged = tmp_path / "checkpoint_step_2.bin"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1  # one bit, in the middle of the weights: torch itself would not notice
    damaged.write_bytes(content)
    assert manager.newest_valid(lambda bad, why: refused.append(bad)) == tmp_path / "checkpoint_step_1.bin"
    assert refused == [damaged]
    with pytest.raises(UserError, match="damaged"):
        read_state(damaged)


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.bin")
    (tmp_path / "text.bin").write_text("hello")
    for name in ("list.bin", "text.bin", "missing.bin"):
        with pytest.raises(UserError) as caught:
            read_state(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (Path.touch, (self.path,))


def test_nothing_in_a_checkpoint_can_run(tmp_path: Path) -> None:
    torch.save({**_state(1), "config": _Canary(tmp_path / "ran")}, tmp_path / "evil.bin")
    with pytest.raises(UserError, match=r"evil\.bin"):
        read_state(tmp_path / "evil.bin")
    assert not (tmp_path / "ran").exists()


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint_step_5.bin.123.tmp").touch()
    (tmp_path / "mine.tmp").touch()
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.tmp"]

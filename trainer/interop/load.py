"""A checkpoint as the commands on it use it: found, opened, its model and its tokenizer ready."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base.checkpoint_file import load_newest, read_state
from trainer.data.pretrained_tokenizer import tokenizer_of
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError
from trainer.model.language_model import LanguageModel, shape_of


@dataclass(frozen=True)
class TrainedModel:
    """What a checkpoint holds."""

    path: Path
    state: Mapping[str, Any]
    """All of it: `step`, `config` and `source` too where a run wrote it."""
    model: LanguageModel
    """float32 on the CPU."""
    tokenizer: Tokenizer


def open_trained_model(checkpoint: Path | None, folder: Path) -> TrainedModel:
    """The model of a checkpoint.

    Args:
        checkpoint: a file, or a folder: the newest in it that is whole. What is passed by is said on standard error.
        folder: where to look if that is None.

    Raises:
        UserError: there is none, it can't be read, or it holds no tokenizer.
        Diverged: its weights are not finite.
    """
    path = checkpoint or folder
    if path.is_dir() or not checkpoint:
        path, state = _newest_checkpoint(path)
    else:
        state = read_state(path)
    tokenizer = stored_tokenizer(state, str(path))
    return TrainedModel(path, state, LanguageModel.from_checkpoint(state), tokenizer)


def stored_tokenizer(state: Mapping[str, Any], name: str) -> Tokenizer:
    """The tokenizer that a checkpoint was trained with. Raises UserError where it holds none, or a damaged one."""
    if not isinstance(state.get("tokenizer"), bytes):
        raise UserError(f"{name} holds weights but no tokenizer: name a checkpoint that a training run wrote")
    _, vocab_size = shape_of(state, name)
    return tokenizer_of(state["tokenizer"], vocab_size, name)


def _newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    newest = load_newest(folder, lambda why: print(f"Passed by: {why}", file=sys.stderr))
    if newest is None:
        raise UserError(f"no checkpoint in {folder}: train one first (python train_slimpajama.py), or name a file")
    return newest

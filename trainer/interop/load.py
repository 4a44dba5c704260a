"""Open a checkpoint for a command: find it, read it, and build its model and tokenizer."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.run_marker import training_command
from trainer.base.checkpoint_file import load_newest, read_state
from trainer.data.pretrained_tokenizer import tokenizer_of
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UserError
from trainer.model.language_model import LanguageModel, shape_of


@dataclass(frozen=True)
class TrainedModel:
    """The content of a checkpoint."""

    path: Path
    state: Mapping[str, Any]
    """The complete state. A run's checkpoint includes `step`, `config` and `source`."""
    model: LanguageModel
    """float32 on the CPU."""
    tokenizer: Tokenizer


def open_trained_model(checkpoint: Path | None, folder: Path) -> TrainedModel:
    """Open a checkpoint and build its model and tokenizer.

    Args:
        checkpoint: a file, or a folder whose newest complete checkpoint is used; skipped ones are reported on standard
            error.
        folder: the folder to use if `checkpoint` is None.

    Raises:
        UserError: there is no checkpoint, it can't be read, or it has no tokenizer.
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
    """Return the tokenizer in a checkpoint. Raises UserError if it is missing or damaged."""
    if not isinstance(state.get("tokenizer"), bytes):
        raise UserError(f"{name} contains weights but no tokenizer: use a checkpoint written by a training run")
    _, vocab_size = shape_of(state, name)
    return tokenizer_of(state["tokenizer"], vocab_size, name)


def _newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    newest = load_newest(folder, lambda reason: print(f"Skipped checkpoint: {reason}", file=sys.stderr))
    if newest is None:
        raise UserError(f"no checkpoint in {folder}: train one first ({training_command()}), or name a file")
    return newest

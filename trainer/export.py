"""`python -m trainer.export [CHECKPOINT] OUT/`: write a trained model as a folder that `transformers` opens.

The folder holds the weights, the tokenizer, their configuration and a model card (README.md).
"""

import argparse
import errno
import inspect
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common.file_replacement import sync_folder
from trainer.arguments import CommandParser, exit_code_of
from trainer.config import ModelShape
from trainer.data.pretrained_tokenizer import PretrainedTokenizer
from trainer.data.tokenizer import Tokenizer
from trainer.errors import MachineError, UserError
from trainer.interop.load import TrainedModel, open_trained_model
from trainer.interop.tokenizer_json import special_tokens, to_tokenizer_json
from trainer.interop.transformers_folder import CARRIED, model_config
from trainer.model.language_model import LanguageModel
from trainer.observe.totals import Tally
from trainer.run.checkpoints import RUN_STATE, misfit

_MARK = {"exported_by": "train_slimpajama"}
"""Metadata in the weights file. A program that trains the model further and saves it here replaces it."""
_OUR_FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
}
_MACHINE_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)


def export(arguments: argparse.Namespace) -> None:
    """Write the folder atomically and print the code that opens it.

    Raises:
        UserError: the checkpoint does not exist or is invalid, `transformers` can't represent its tokenizer, or the
            folder has other files.
        MachineError: the disk is full or fails.
        Diverged: the weights are not finite.
    """
    out: Path = arguments.out
    try:
        _check_free(out)
        trained = open_trained_model(arguments.checkpoint, arguments.checkpoint_dir)
        files = _small_files(trained, out.resolve().name)
        # The averaged weights, float32, under the names of `Qwen3ForCausalLM`.
        weights = {name: weight.detach() for name, weight in trained.model.named_parameters()}
        _write_folder(out.resolve(), files, weights)
    except OSError as error:
        kind = MachineError if error.errno in _MACHINE_FAILS else UserError
        raise kind(f"{out} can't be written: {error.strerror or error}") from error
    print(f"Wrote {out} from {trained.path}: {', '.join(sorted([*files, 'model.safetensors']))}")
    print(_snippet(str(out)))


def _check_free(out: Path) -> None:
    """Raise `UserError` unless `out` does not exist, is empty, or has only the files of an earlier export."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is not a folder: choose another name")
    if out.resolve() == Path.cwd():
        raise UserError(f"{out} is the current folder, which the export would replace: choose another one")
    names = {path.name for path in out.iterdir()}
    if names and (names - _OUR_FILES or not _is_export(out)):
        other = min(names - _OUR_FILES or names)
        raise UserError(
            f"{out} has files that are not from an earlier export ({other}): choose a new or an empty folder"
        )


def _is_export(folder: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return (file.metadata() or {}).items() >= _MARK.items()
    except (OSError, SafetensorError):
        return False


def _small_files(trained: TrainedModel, name: str) -> dict[str, bytes]:
    """Return name → content of every file but the weights."""
    model, tokenizer, state = trained.model, trained.tokenizer, trained.state
    sampling = inspect.signature(LanguageModel.generate).parameters
    end = _end(state)
    files = {
        "README.md": _model_card(state, model.shape, model.vocab_size, name=name, opening=_snippet(".")),
        "config.json": _json(
            {**model_config(model.shape, model.vocab_size), **_length(state), **end, "dtype": "float32"}
        ),
        "generation_config.json": _json(
            {"do_sample": True, **{key: sampling[key].default for key in ("temperature", "top_k")}, **end}
        ),
        "tokenizer.json": to_tokenizer_json(tokenizer, _trained_texts(trained)),
        "tokenizer_config.json": _json(_tokenizer_config(tokenizer, end)),
    }
    # Also the SentencePiece model: a run that starts from this folder uses it as its tokenizer.
    own = {} if isinstance(tokenizer, PretrainedTokenizer) else {"tokenizer.model": tokenizer.model_bytes}
    return {file: content.encode() for file, content in files.items()} | own


def _length(state: Mapping[str, Any]) -> dict[str, int]:
    """The longest text: that of the pretrained model, or of the documents trained on."""
    places: list[tuple[Any, str]] = [
        (state.get("pretrained"), "max_position_embeddings"),
        (state.get("config"), "max_seq_length"),
    ]
    known = [part[key] for part, key in places if not misfit(part, {key: int})]
    return {"max_position_embeddings": max(known)} if any(known) else {}


def _end(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """The end-of-text tokens of the pretrained model, if any. Our own training uses none."""
    carried: Any = state.get("pretrained")
    return {"eos_token_id": carried["eos_token_id"]} if not misfit(carried, CARRIED) and carried["eos_token_id"] else {}


def _tokenizer_config(tokenizer: Tokenizer, end: Mapping[str, list[int]]) -> dict[str, Any]:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    # Only tokens that the tokenizer already recognizes in text: naming another one would make it recognize that too.
    named = special_tokens(tokenizer, end.get("eos_token_id", []))
    return config | ({"eos_token": named[0]} if named else {})


def _trained_texts(trained: TrainedModel) -> list[str]:
    """The text of the last documents, to test the exported tokenizer on."""
    if misfit(trained.state.get("tally"), RUN_STATE["tally"]):
        return []
    known = trained.tokenizer.vocab_size
    return [
        trained.tokenizer.DecodeIds(ids)
        for _, _, ids in trained.state["tally"]["texts"]
        if max(ids, default=known) < known
    ]


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _snippet(folder: str) -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model, tokenizer = (kind.from_pretrained({folder!r}) for kind in (AutoModelForCausalLM, AutoTokenizer))"
    )


def _write_folder(out: Path, files: Mapping[str, bytes], weights: Mapping[str, Tensor]) -> None:
    """Write everything into a temporary folder next to `out`, then rename it once all of it is on disk."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    aside, before = (out.with_name(f".{out.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        aside.mkdir()
        for name, content in files.items():
            (aside / name).write_bytes(content)
        save_file(dict(weights), aside / "model.safetensors", metadata={"format": "pt", **_MARK})
        # The library creates a file that only its owner can read.
        (aside / "model.safetensors").chmod((aside / "config.json").stat().st_mode)
        for path in (*aside.iterdir(), aside):
            sync_folder(path)
        if out.exists():
            out.rename(before)
        try:
            aside.rename(out)
        except BaseException:  # also Ctrl-C
            if before.exists() and not out.exists():
                before.rename(out)
            raise
    except SafetensorError as error:
        raise MachineError(f"{out} can't be written: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_folder(out.parent)
    shutil.rmtree(before, ignore_errors=True)


def _model_card(state: Mapping[str, Any], shape: ModelShape, vocab_size: int, *, name: str, opening: str) -> str:
    """Return the model card: Markdown with the Hub's metadata block.

    Args:
        state: the checkpoint; without the state of a run in it, the card has no training details.
        opening: Python code that creates `model` and `tokenizer`.
    """
    from huggingface_hub import ModelCard, ModelCardData  # takes 0.2 s to import

    data = ModelCardData(library_name="transformers", pipeline_tag="text-generation")
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {_plain(name)}",
        "",
        f"A language model with the Qwen3 architecture and {shape.parameters(vocab_size) / 1e6:.1f} M parameters "
        f"({shape}, vocabulary of {vocab_size:,}), trained with `train_slimpajama` on one document per step.",
        "",
        *_training(state),
        "",
        "It was trained without tokens that mark the beginning or the end of a text, so `max_new_tokens` sets the "
        "length of its output. No license is stated, because the licenses of the documents were not recorded.",
        "",
        "```python",
        opening,
        'ids = tokenizer("The", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=100)[0]))",
        "```",
        "",
    ]
    return str(ModelCard("\n".join(lines)))


def _training(state: Mapping[str, Any]) -> list[str]:
    """The training details of a checkpoint, as a Markdown table."""
    if misfit(state):
        return ["The training data are not recorded in the checkpoint."]
    tally = Tally()
    tally.load_state_dict(state["tally"])
    _, loss, window = tally.first_and_last()
    source, settings, epoch = state["source"], state["config"], state["samples"]["cursor"]["epoch"]
    start = settings.get("pretrained_checkpoint")
    rows = {
        "data": f"`{_plain(source['name'])}`, revision `{_plain(source['revision'])}`",
        "trained on": f"{tally.documents:,} documents, {tally.tokens:,} predictions, "
        f"at most {settings.get('max_seq_length')} tokens per document",
        "epochs": f"{epoch + 1}",
        "initial weights": f"`{_plain(start)}`" if isinstance(start, str) else "random",
        "loss": f"{loss:.4f} nats per token: the mean over the last {window} documents, each measured before the "
        "update it contributed to",
        "run": f"`{_plain(state['run_id'])}`",
    }
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())]


def _plain(text: str) -> str:
    """Replace characters that would break a line or a table of Markdown."""
    return "".join(character if character.isprintable() and character not in "`|<>" else "?" for character in text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        prog="python -m trainer.export", description="Write a trained model as a folder that transformers opens."
    )
    parser.add_checkpoint()
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write: new, empty, or an earlier export")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 (user input), 4 (diverged), 5 (machine) or 130 (Ctrl-C)."""
    return exit_code_of(lambda: export(_parse(argv)))


if __name__ == "__main__":
    sys.exit(main())

"""The parts of a run, made from what it is told: documents, tokenizer, model in its step, evaluator."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from trainer import python_library
from trainer.checkpoint import CheckpointManager
from trainer.config import FIELDS, TrainingConfig
from trainer.device import choose_device, choose_dtype, has_native_bf16, make_deterministic, why_not_compile
from trainer.documents import DocumentStream, open_documents
from trainer.errors import UserError
from trainer.evaluator import Evaluator
from trainer.model import LanguageModel
from trainer.records import Cursor
from trainer.samples import held_out_samples
from trainer.sources import DataSource, embedded_source, is_local, resolve_source
from trainer.stability import InstabilityDetector
from trainer.state_file import read_state
from trainer.step import TrainingStep
from trainer.tokenizer import Tokenizer, collect_training_texts
from trainer.usable import usable_texts

State = Mapping[str, Any]
"""What a checkpoint holds."""
EVALUATION_DOCUMENTS = 64
TYPICAL_DOCUMENTS = 20


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a trainer is made of. The documents stand where training begins."""

    config: TrainingConfig
    """With everything decided that was left open."""
    documents: DocumentStream
    tokenizer: Tokenizer
    step: TrainingStep
    evaluator: Evaluator | None
    typical_predictions: int
    """Of a document: of the first ones, or of those that the run has been trained on before."""


def make_parts(
    config: TrainingConfig, state: State | None, say: Callable[[str], None], note: Callable[[str, str], None]
) -> Parts:
    """The parts of a new run, or those of the run that goes on from `state`.

    Args:
        note: told the kind and the detail of what happens on the way.

    Raises:
        UserError: settings and files that do not go together.
        SourceUnreachable: a named source, or that of the run that goes on, gives no document.
    """
    if config.deterministic:
        make_deterministic()
    device = choose_device(config.device)
    config, dtype = _decide(config, device, state, say)
    weights, origin = (state, "the checkpoint") if state is not None else _pretrained(config, say)
    at_hand = _tokenizer_at_hand(config, weights)
    documents = _open_documents(config, state, say, note)
    tokenizer = at_hand or Tokenizer.train(collect_training_texts(usable_texts(documents)), config.vocab_size)
    if state is None:
        first = islice(usable_texts(documents), TYPICAL_DOCUMENTS)
        lengths = [len(tokenizer.encode_prefix(text, config.max_seq_length)) - 1 for text in first]
        typical = sum(lengths) / len(lengths)
    else:
        documents_done, tokens_done, *_ = state["tally"]["totals"]
        typical = tokens_done / max(documents_done, 1)
    model = LanguageModel(config.shape, tokenizer.vocab_size, seed=config.seed)
    if weights is not None:
        model.take_weights(weights, origin)
    step = TrainingStep(
        model.to(device),
        dtype=dtype,
        max_seq_length=config.max_seq_length,
        compile=bool(config.compile),
        detector=InstabilityDetector(spike=config.spike),
    )
    if state is not None:
        step.load_state_dict(state)  # here, so that what does not fit is refused before anything is touched
    evaluator = _evaluator(config, documents, tokenizer, model)
    return Parts(config, documents, tokenizer, step, evaluator, max(1, round(typical)))


def _decide(
    config: TrainingConfig, device: torch.device, state: State | None, say: Callable[[str], None]
) -> tuple[TrainingConfig, torch.dtype]:
    """What is decided once per run: dtype, whether the step is compiled, how many threads compute."""
    if state is not None and state["kernels"]["threads"] <= (os.cpu_count() or 1):
        torch.set_num_threads(state["kernels"]["threads"])
    dtype = choose_dtype(config.dtype, device)
    if dtype == torch.bfloat16 and not has_native_bf16(device):
        say(f"bf16 is emulated on {device}, which is slower than fp32: --dtype fp32 is faster here")
    compile = bool(config.compile)
    if compile and (lacking := why_not_compile(device)):
        say(f"--compile: {lacking}, so the step runs without it")
        compile = False
    name = "bf16" if dtype == torch.bfloat16 else "fp32"
    return dataclasses.replace(config, dtype=name, compile=compile), dtype


def _open_documents(
    config: TrainingConfig, state: State | None, say: Callable[[str], None], note: Callable[[str, str], None]
) -> DocumentStream:
    """The stream: of a new run from its first document, of a resumed one from its cursor in the very same data."""

    def embedded() -> DataSource:
        library = python_library.prepare()
        return embedded_source(library.shards, library.revision)

    old = state["source"] if state is not None else None
    name = old["name"] if old else config.dataset
    if old and is_local(name) and old["folder"] != str(Path.cwd()):
        name = str(Path(old["folder"], name))  # resumed from another folder than it was started in
    documents = open_documents(
        name,
        embedded=embedded,
        say=say,
        config=config.dataset_config,
        split=config.dataset_split,
        revision=old["revision"] if old else config.dataset_revision,
        text_column=config.text_column,
        repeat=config.repeat,
        cursor=Cursor(**state["samples"]["cursor"]) if state is not None else Cursor(),
        max_stall=config.max_stall * 60,
        on_event=note,
    )
    if old is None:
        return documents
    return dataclasses.replace(documents, source=dataclasses.replace(documents.source, note=old["note"]))


def _pretrained(config: TrainingConfig, say: Callable[[str], None]) -> tuple[State | None, str]:
    """The state that `--pretrained-checkpoint` names, and its path; None where a run starts from nothing."""
    if config.pretrained_checkpoint is None:
        return None, ""
    path = Path(config.pretrained_checkpoint)
    if path.is_dir():
        found = CheckpointManager(path).load_newest(lambda why: say(f"Passed by: {why}"))
        if found is None:
            raise UserError(f"--pretrained-checkpoint {path}: no checkpoint in this folder that is whole")
        path, state = found
    else:
        state = read_state(path)
    if not isinstance(state.get("tokenizer"), bytes):
        raise UserError(f"{path} holds no tokenizer, without which its weights mean nothing")
    return state, str(path)


def _tokenizer_at_hand(config: TrainingConfig, weights: State | None) -> Tokenizer | None:
    """The one that the weights were trained with, or the file named; None where one is to be trained."""
    if weights is not None:
        found = Tokenizer.from_bytes(weights["tokenizer"])
    elif config.tokenizer is not None:
        found = Tokenizer.load(Path(config.tokenizer))
    else:
        return None
    is_asked_for = config.vocab_size != FIELDS["vocab_size"].default
    if is_asked_for and (config.tokenizer or config.pretrained_checkpoint) and config.vocab_size != found.vocab_size:
        raise UserError(
            f"--vocab-size {config.vocab_size} is for a tokenizer that is trained here; this one has "
            f"{found.vocab_size} pieces: leave it out"
        )
    return found


def _evaluator(
    config: TrainingConfig, documents: DocumentStream, tokenizer: Tokenizer, model: LanguageModel
) -> Evaluator | None:
    """What judges the model on held-out documents: a source's own validation split, else what training leaves out."""
    if config.evaluation_interval is None:
        return None
    source, own_split = documents.source, documents.source.has_validation
    if own_split:
        source = resolve_source(source.name, config=source.config, split="validation", revision=source.revision)
    documents = dataclasses.replace(documents, source=source, cursor=Cursor(), repeat=False)
    samples = held_out_samples(documents, tokenizer, config.max_seq_length, EVALUATION_DOCUMENTS, own_split=own_split)
    if not samples:
        raise UserError(f"--evaluation-interval: {source.name} has no document to hold out (one in 100 is)")
    return Evaluator(model, {"validation": samples})

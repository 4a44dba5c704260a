"""The parts of a run, made from what it is told: documents, tokenizer, model in its step, evaluator."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from trainer.base.checkpoint_file import checkpoints_in, load_newest, read_state
from trainer.base.device import (
    choose_device,
    choose_dtype,
    has_native_bf16,
    keep_freed_memory,
    make_deterministic,
    multiply_fp32_by_onednn,
)
from trainer.config import FIELDS, ModelShape, TrainingConfig, size_of
from trainer.data import stdlib_corpus as python_library
from trainer.data.document_filter import usable_texts
from trainer.data.document_stream import DocumentStream, open_documents
from trainer.data.sample_stream import SampleStream, held_out_samples
from trainer.data.sources import DataSource, embedded_source, is_local, resolve_source
from trainer.data.tokenizer import Tokenizer, collect_training_texts
from trainer.errors import RunError, UserError
from trainer.interop.load import stored_tokenizer
from trainer.interop.transformers_folder import is_transformers_folder, read_transformers_folder
from trainer.learning.compilation import compile_where_it_pays
from trainer.learning.flops import measure_flops
from trainer.learning.spike_detector import InstabilityDetector
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel, shape_of
from trainer.observe.evaluation import Evaluator, evaluation_interval
from trainer.observe.terminal import Progress
from trainer.records import Cursor, Document, Sample, Visualizer
from trainer.run.checkpoints import CheckpointManager
from trainer.run.folders import RunFolder
from trainer.run.provenance import changes, kernels
from trainer.trainer import Trainer

State = Mapping[str, Any]
"""What a checkpoint holds."""
EVALUATION_DOCUMENTS = 64
EVALUATION_PATIENCE = 30.0
"""Seconds that a run waits for them at its start, where nobody has asked for an evaluation."""
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
    trial_seconds: float
    """Of a step on a document as long as the first ones, or as those trained on before."""
    flops: Mapping[str, float]
    """As `measure_flops` finds them."""
    pretrained: State | None
    """What checkpoints carry on of the folder that the weights once came from (`CARRIED`)."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run's weights come from: the checkpoint that it goes on from, or a pretrained model."""

    state: State
    name: str
    shape: ModelShape
    vocab_size: int


def find_origin(config: TrainingConfig, state: State | None, say: Callable[[str], None]) -> Origin | None:
    """The origin of the run that goes on from `state`, or of a new one; None where that draws new weights.

    Raises:
        UserError: what `--pretrained-checkpoint` names can't be used, or `--model-size` is another.
    """
    if state is not None:
        found, name = state, "the checkpoint"
    elif config.pretrained_checkpoint is None:
        return None
    else:
        found, name = _pretrained(Path(config.pretrained_checkpoint), say)
    shape, vocab_size = shape_of(found, name)
    if config.model_size is not None and shape != config.shape:
        raise UserError(
            f"--model-size {config.model_size} is not what {name} holds ({size_of(shape) or shape}): leave it out"
        )
    return Origin(found, name, shape, vocab_size)


def make_parts(
    config: TrainingConfig,
    state: State | None,
    origin: Origin | None,
    say: Callable[[str], None],
    note: Callable[[str, str], None],
    *,
    compiling: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Parts:
    """The parts of a new run, or those of the run that goes on from `state`.

    Args:
        origin: what `find_origin` found for it.
        note: told the kind and the detail of what happens on the way.
        compiling: entered while the step is compiled, where an exception out of a signal would be swallowed.

    Raises:
        UserError: settings and files that do not go together.
        SourceUnreachable: a named source, or that of the run that goes on, gives no document.
    """
    if config.deterministic:
        make_deterministic()
    keep_freed_memory()
    device = choose_device(config.device)
    shape = origin.shape if origin is not None else config.shape
    config, dtype = _decide(dataclasses.replace(config, model_size=size_of(shape)), device, state, say)
    if device.type == "cpu" and dtype == torch.float32:
        multiply_fp32_by_onednn()
    at_hand = _tokenizer_at_hand(config, origin)
    documents = _open_documents(config, state, say, note)
    tokenizer = at_hand or Tokenizer.train(collect_training_texts(usable_texts(documents)), config.vocab_size)
    if state is None:
        first = islice(usable_texts(documents), TYPICAL_DOCUMENTS)
        lengths = [len(tokenizer.encode_prefix(text, config.max_seq_length)) - 1 for text in first]
        typical = sum(lengths) / len(lengths)
    else:
        documents_done, tokens_done, *_ = state["tally"]["totals"]
        typical = tokens_done / max(documents_done, 1)
    model = LanguageModel(shape, tokenizer.vocab_size, seed=config.seed)
    if origin is not None:
        model.copy_weights(origin.state, origin.name)
    step = TrainingStep(
        model.to(device),
        dtype=dtype,
        max_seq_length=config.max_seq_length,
        detector=InstabilityDetector(spike=config.spike),
    )
    seconds = step.trial_seconds(max(1, round(typical)))
    is_compiled = compile_where_it_pays(
        step.compile, config.compile, step.device, steps=config.num_steps, seconds=seconds, say=say, compiling=compiling
    )
    config = dataclasses.replace(config, compile=is_compiled)
    if is_compiled:
        seconds = step.trial_seconds(max(1, round(typical)))
    if state is not None:
        step.load_state_dict(state)  # here, so that what does not fit is refused before anything is touched
    evaluator = _evaluator(config, documents, tokenizer, step.averaged, note)
    pretrained = origin.state.get("pretrained") if origin is not None else None
    flops = measure_flops(shape, tokenizer.vocab_size, step.lengths[-1], dtype=dtype, device=device)
    return Parts(config, documents, tokenizer, step, evaluator, seconds, flops, pretrained)


def _decide(
    config: TrainingConfig, device: torch.device, state: State | None, say: Callable[[str], None]
) -> tuple[TrainingConfig, torch.dtype]:
    """What is decided once per run before its parts are made: dtype, how many threads compute."""
    if state is not None and state["kernels"]["threads"] <= (os.cpu_count() or 1):
        torch.set_num_threads(state["kernels"]["threads"])
    dtype = choose_dtype(config.dtype, device)
    if dtype == torch.bfloat16 and not has_native_bf16(device):
        say(f"bf16 is emulated on {device}, which is slower than fp32: --dtype fp32 is faster here")
    return dataclasses.replace(config, dtype="bf16" if dtype == torch.bfloat16 else "fp32"), dtype


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


def _pretrained(path: Path, say: Callable[[str], None]) -> tuple[State, str]:
    """The state that `--pretrained-checkpoint` names, and the file or folder that it is of."""
    if is_transformers_folder(path):
        if checkpoints_in(path):
            say(f"{path} holds a transformers model and checkpoints: the model is taken (name a checkpoint to have it)")
        return read_transformers_folder(path), str(path)
    if not path.is_dir():
        return read_state(path), str(path)
    found = load_newest(path, lambda why: say(f"Passed by: {why}"))
    if found is None:
        raise UserError(
            f"--pretrained-checkpoint {path}: neither a whole checkpoint in this folder nor a transformers config.json"
        )
    path, state = found
    return state, str(path)


def _tokenizer_at_hand(config: TrainingConfig, origin: Origin | None) -> Tokenizer | None:
    """The one that the weights were trained with, or the file named; None where one is to be trained."""
    if origin is not None:
        found = stored_tokenizer(origin.state, origin.name)
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
    config: TrainingConfig,
    documents: DocumentStream,
    tokenizer: Tokenizer,
    model: Callable[[], LanguageModel],
    note: Callable[[str, str], None],
) -> Evaluator | None:
    """What judges the model on held-out documents; None where that is off, or comes by itself and can't be had."""
    if not evaluation_interval(config.evaluation_interval, config.num_steps):
        return None
    try:
        patience = math.inf if config.evaluation_interval else EVALUATION_PATIENCE
        return Evaluator(model, {"validation": _held_out(config, documents, tokenizer, patience)})
    except (RunError, OSError) as error:
        if config.evaluation_interval:
            raise
        note("no evaluation", f"No evaluation in this run: {error}")
        return None


def _held_out(
    config: TrainingConfig, documents: DocumentStream, tokenizer: Tokenizer, patience: float = math.inf
) -> list[Sample]:
    """The first documents of a source's own validation split, else of what training leaves out: always the same.

    Raises:
        UserError: there is none.
        SourceUnreachable: they can't be read, or not within `patience` seconds.
    """
    source, own_split = documents.source, documents.source.has_validation
    if source.split == "validation":
        raise UserError(f"{source.name} is trained on its validation split, so that nothing is held out")
    end = time.monotonic() + patience

    def read() -> Iterator[Document]:
        # Resolved here, in the thread that reads: the Hub may take its time over that, too.
        found = source
        if own_split:
            found = resolve_source(source.name, config=source.config, split="validation", revision=source.revision)
        yield from dataclasses.replace(
            documents, source=found, cursor=Cursor(), repeat=False, should_stop=lambda: time.monotonic() > end
        )

    samples = held_out_samples(
        read(), tokenizer, config.max_seq_length, EVALUATION_DOCUMENTS, own_split=own_split, seconds=patience
    )
    if not samples:
        raise UserError(f"{source.name} has no document to hold out for an evaluation (one in 100 is)")
    return samples


def held_out_of_run(
    config: TrainingConfig, state: State, tokenizer: Tokenizer, say: Callable[[str], None]
) -> list[Sample]:
    """What the run that `state` is of measures itself on. Raises as `make_parts` does."""
    return _held_out(config, _open_documents(config, state, say, lambda kind, detail: say(detail)), tokenizer)


def assemble_trainer(
    parts: Parts,
    run: RunFolder,
    state: State | None,
    should_stop: Callable[[], bool],
    open_record: Callable[[Callable[[str], None]], Visualizer],
) -> Trainer:
    """Build the trainer from its parts. With `state`, it continues where that was saved.

    Args:
        open_record: returns the run's record, given the function that prints a line above the progress bar.
    """
    progress, source = Progress(parts.config.num_steps), parts.documents.source
    trainer = Trainer(
        parts.config,
        model=parts.step.model,
        tokenizer=parts.tokenizer,
        samples=SampleStream(
            dataclasses.replace(
                parts.documents,
                on_event=lambda kind, detail: trainer.note(kind, detail),
                should_stop=should_stop,
            ),
            parts.tokenizer,
            parts.config.max_seq_length,
            hold_out=not source.has_validation,
            should_stop=should_stop,
            on_fault=lambda detail: trainer.note_often("bad row", detail),
            state=None if state is None else state["samples"],
        ),
        step=parts.step,
        viz=open_record(progress.say),
        checkpoints=CheckpointManager(
            run.checkpoints, keep=parts.config.keep_checkpoints, keep_every=parts.config.keep_every
        ),
        progress=progress,
        evaluator=parts.evaluator,
        identity={
            "run_id": run.run_id,
            "source": {
                "name": source.name,
                "revision": source.revision,
                "note": source.note,
                "folder": str(Path.cwd()),  # what a relative name is relative to
            },
            "kernels": kernels(parts.step.device),
            "pretrained": parts.pretrained,
        },
        should_stop=should_stop,
    )
    if state is not None:
        trainer.load_state_dict(state)
        changed, is_exact = changes(state, parts.config, parts.step.device)
        exactness = "" if is_exact else "not exact to the last bit"
        detail = "; ".join(filter(None, (f"after {state['step']:,} documents", changed, exactness)))
        if not is_exact:
            progress.say(f"Resumed {detail}")
            trainer.health.roll_backs = 0  # something was changed, so that going back may help again
        trainer.viz.record_event(state["step"], "resume", detail)
    return trainer

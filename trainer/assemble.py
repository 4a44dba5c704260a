"""Assembles a run: from the config to its parts (documents, tokenizer, training step, evaluator) and the `Trainer`."""

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
from trainer.data import stdlib_corpus
from trainer.data.document_filter import usable_texts
from trainer.data.document_stream import DocumentStream, open_documents
from trainer.data.sample_stream import SampleStream, held_out_samples
from trainer.data.sources import DataSource, embedded_source, is_local, resolve_source
from trainer.data.tokenizer import Tokenizer, collect_training_texts
from trainer.errors import RunError, UserError
from trainer.interop.load import stored_tokenizer
from trainer.interop.transformers_folder import is_transformers_folder, read_transformers_folder
from trainer.learning.compilation import compile_where_it_pays, compiling_pays
from trainer.learning.flops import measure_flops
from trainer.learning.spike_detector import InstabilityDetector
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel, shape_of
from trainer.observe.evaluation import AUTOMATIC_EVALUATION, AutomaticEvaluation, Evaluator, evaluation_interval
from trainer.observe.forgetting import Probes
from trainer.observe.terminal import Progress
from trainer.records import Cursor, Document, Sample, Visualizer
from trainer.run.checkpoints import CheckpointManager
from trainer.run.folders import RunFolder
from trainer.run.provenance import changes, kernels
from trainer.trainer import Trainer

State = Mapping[str, Any]
"""The content of a checkpoint."""
EVALUATION_DOCUMENTS = 64
TYPICAL_DOCUMENTS = 20


@dataclasses.dataclass(frozen=True)
class Builders:
    """What a run is built from. Replace an entry to try another part without changing a module."""

    open_documents: Callable[..., DocumentStream] = open_documents
    training_step: Callable[..., TrainingStep] = TrainingStep
    probes: Callable[..., Probes] = Probes
    checkpoints: Callable[..., CheckpointManager] = CheckpointManager
    visualizer: Callable[..., Visualizer] | None = None
    """None: `viz.visualizer.TrainingVisualizer`, which only the command line may import."""
    automatic_evaluation: AutomaticEvaluation = AUTOMATIC_EVALUATION
    compiling_pays: Callable[[int, float, str], bool] = compiling_pays
    measure_flops: Callable[..., Mapping[str, float]] = measure_flops
    use_onednn_for_fp32: Callable[[], None] = multiply_fp32_by_onednn


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a trainer. The document stream is at the position where training starts."""

    config: TrainingConfig
    """With all automatic settings resolved."""
    documents: DocumentStream
    tokenizer: Tokenizer
    step: TrainingStep
    evaluator: Evaluator | None
    trial_seconds: float
    """Seconds of a step on a document of typical length."""
    flops: Mapping[str, float]
    """Result of `measure_flops`."""
    pretrained: State | None
    """What checkpoints keep of the pretrained model that the weights came from (`CARRIED`)."""


@dataclasses.dataclass(frozen=True)
class StartingWeights:
    """The weights that a run starts from: those of the resumed checkpoint or of a pretrained model."""

    state: State
    name: str
    shape: ModelShape
    vocab_size: int


def find_starting_weights(
    config: TrainingConfig, state: State | None, say: Callable[[str], None]
) -> StartingWeights | None:
    """Return the weights of a run that resumes from `state`, or of a new run; None: it starts from random weights.

    Raises:
        UserError: `--pretrained-checkpoint` can't be used, or `--model-size` does not match it.
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
            f"--model-size {config.model_size} does not match {name} ({size_of(shape) or shape}): omit --model-size"
        )
    return StartingWeights(found, name, shape, vocab_size)


def make_parts(
    config: TrainingConfig,
    state: State | None,
    weights: StartingWeights | None,
    say: Callable[[str], None],
    note: Callable[[str, str], None],
    builders: Builders,
    *,
    compiling: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Parts:
    """Make the parts of a new run, or of a run that resumes from `state`.

    Args:
        weights: result of `find_starting_weights`.
        note: called with kind and detail of each event.
        builders: constructors of the parts.
        compiling: context entered while the step is compiled, which swallows exceptions of signal handlers.

    Raises:
        UserError: settings and files contradict each other.
        SourceUnreachable: the requested source, or that of the resumed run, gives no document.
    """
    if config.deterministic:
        make_deterministic()
    keep_freed_memory()
    device = choose_device(config.device)
    shape = weights.shape if weights is not None else config.shape
    config, dtype = _decide(dataclasses.replace(config, model_size=size_of(shape)), device, state, say)
    if device.type == "cpu" and dtype == torch.float32:
        builders.use_onednn_for_fp32()
    existing = _existing_tokenizer(config, weights)
    documents = _open_documents(config, state, say, note, builders)
    tokenizer = existing or Tokenizer.train(collect_training_texts(usable_texts(documents)), config.vocab_size)
    if state is None:
        first = islice(usable_texts(documents), TYPICAL_DOCUMENTS)
        lengths = [len(tokenizer.encode_prefix(text, config.max_seq_length)) - 1 for text in first]
        typical = sum(lengths) / len(lengths)
    else:
        documents_done, tokens_done, *_ = state["tally"]["totals"]
        typical = tokens_done / max(documents_done, 1)
    model = LanguageModel(shape, tokenizer.vocab_size, seed=config.seed)
    if weights is not None:
        model.copy_weights(weights.state, weights.name)
    step = builders.training_step(
        model.to(device),
        dtype=dtype,
        max_seq_length=config.max_seq_length,
        detector=InstabilityDetector(spike=config.spike),
    )
    seconds = step.trial_seconds(max(1, round(typical)))
    is_compiled = compile_where_it_pays(
        step.compile,
        config.compile,
        step.device,
        steps=config.num_steps,
        seconds=seconds,
        say=say,
        compiling=compiling,
        pays=builders.compiling_pays,
    )
    config = dataclasses.replace(config, compile=is_compiled)
    if is_compiled:
        seconds = step.trial_seconds(max(1, round(typical)))
    if state is not None:
        step.load_state_dict(state)  # here, so that an invalid state is refused before any file changes
    evaluator = _evaluator(config, documents, tokenizer, step.averaged, note, builders.automatic_evaluation)
    pretrained = weights.state.get("pretrained") if weights is not None else None
    flops = builders.measure_flops(shape, tokenizer.vocab_size, step.lengths[-1], dtype=dtype, device=device)
    return Parts(config, documents, tokenizer, step, evaluator, seconds, flops, pretrained)


def _decide(
    config: TrainingConfig, device: torch.device, state: State | None, say: Callable[[str], None]
) -> tuple[TrainingConfig, torch.dtype]:
    """Decide the dtype and the number of threads, once per run."""
    if state is not None and state["kernels"]["threads"] <= (os.cpu_count() or 1):
        torch.set_num_threads(state["kernels"]["threads"])
    dtype = choose_dtype(config.dtype, device)
    if dtype == torch.bfloat16 and not has_native_bf16(device):
        say(f"bf16 is emulated on {device}: --dtype fp32 is faster")
    return dataclasses.replace(config, dtype="bf16" if dtype == torch.bfloat16 else "fp32"), dtype


def _open_documents(
    config: TrainingConfig,
    state: State | None,
    say: Callable[[str], None],
    note: Callable[[str, str], None],
    builders: Builders,
) -> DocumentStream:
    """Open the stream at the first document, or for a resumed run at its cursor in the same data."""

    def embedded() -> DataSource:
        library = stdlib_corpus.prepare()
        return embedded_source(library.shards, library.revision)

    old = state["source"] if state is not None else None
    name = old["name"] if old else config.dataset
    if old and is_local(name) and old["folder"] != str(Path.cwd()):
        name = str(Path(old["folder"], name))  # the run was started in another folder
    documents = builders.open_documents(
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
    """Return the state that `--pretrained-checkpoint` names, and its file or folder."""
    if is_transformers_folder(path):
        if checkpoints_in(path):
            say(f"{path} contains a transformers model and checkpoints: using the model (to use a checkpoint, name it)")
        return read_transformers_folder(path), str(path)
    if not path.is_dir():
        return read_state(path), str(path)
    found = load_newest(path, lambda why: say(f"Skipped checkpoint: {why}"))
    if found is None:
        raise UserError(
            f"--pretrained-checkpoint {path}: the folder contains no valid checkpoint and no transformers config.json"
        )
    path, state = found
    return state, str(path)


def _existing_tokenizer(config: TrainingConfig, weights: StartingWeights | None) -> Tokenizer | None:
    """Return the tokenizer of the weights or of `--tokenizer`; None: it has to be trained."""
    if weights is not None:
        found = stored_tokenizer(weights.state, weights.name)
    elif config.tokenizer is not None:
        found = Tokenizer.load(Path(config.tokenizer))
    else:
        return None
    is_set = config.vocab_size != FIELDS["vocab_size"].default
    if is_set and (config.tokenizer or config.pretrained_checkpoint) and config.vocab_size != found.vocab_size:
        raise UserError(
            f"--vocab-size {config.vocab_size} is for training a tokenizer, but this tokenizer has a vocabulary of "
            f"{found.vocab_size}: omit --vocab-size"
        )
    return found


def _evaluator(
    config: TrainingConfig,
    documents: DocumentStream,
    tokenizer: Tokenizer,
    model: Callable[[], LanguageModel],
    note: Callable[[str, str], None],
    automatic: AutomaticEvaluation,
) -> Evaluator | None:
    """Return the evaluator; None if evaluation is disabled, or is automatic and there are no held-out documents."""
    if not evaluation_interval(config.evaluation_interval, config.num_steps, automatic):
        return None
    try:
        patience = math.inf if config.evaluation_interval else automatic.patience
        return Evaluator(model, {"validation": _held_out(config, documents, tokenizer, patience)})
    except (RunError, OSError) as error:
        if config.evaluation_interval:
            raise
        note("no evaluation", f"This run is not evaluated: {error}")
        return None


def _held_out(
    config: TrainingConfig, documents: DocumentStream, tokenizer: Tokenizer, patience: float = math.inf
) -> list[Sample]:
    """Return the first documents of the source's validation split, or else of those held out from training.

    Raises:
        UserError: there are none.
        SourceUnreachable: they can't be read within `patience` seconds.
    """
    source, own_split = documents.source, documents.source.has_validation
    if source.split == "validation":
        raise UserError(f"{source.name} trains on its validation split, so nothing is held out")
    end = time.monotonic() + patience

    def read() -> Iterator[Document]:
        # Resolved here, in the reading thread, because the Hub may be slow to answer.
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
        raise UserError(f"{source.name} has no held-out document to evaluate on (one document in 100 is held out)")
    return samples


def held_out_of_run(
    config: TrainingConfig, state: State, tokenizer: Tokenizer, say: Callable[[str], None]
) -> list[Sample]:
    """Return the held-out documents of the run that `state` belongs to. Raises like `make_parts`."""
    documents = _open_documents(config, state, say, lambda kind, detail: say(detail), Builders())
    return _held_out(config, documents, tokenizer)


def assemble_trainer(
    parts: Parts,
    run: RunFolder,
    state: State | None,
    should_stop: Callable[[], bool],
    open_record: Callable[[Callable[[str], None]], Visualizer],
    builders: Builders,
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
        checkpoints=builders.checkpoints(
            run.checkpoints, keep=parts.config.keep_checkpoints, keep_every=parts.config.keep_every
        ),
        progress=progress,
        evaluator=parts.evaluator,
        automatic_evaluation=builders.automatic_evaluation,
        make_probes=builders.probes,
        identity={
            "run_id": run.run_id,
            "source": {
                "name": source.name,
                "revision": source.revision,
                "note": source.note,
                "folder": str(Path.cwd()),  # that relative names refer to
            },
            "kernels": kernels(parts.step.device),
            "pretrained": parts.pretrained,
        },
        should_stop=should_stop,
    )
    if state is not None:
        trainer.load_state_dict(state)
        changed, is_exact = changes(state, parts.config, parts.step.device)
        exactness = "" if is_exact else "not bit-identical"
        detail = "; ".join(filter(None, (f"after {state['step']:,} documents", changed, exactness)))
        if not is_exact:
            progress.say(f"Resumed {detail}")
            trainer.health.roll_backs = 0  # after a change, rolling back may help again
        trainer.viz.record_event(state["step"], "resume", detail)
    return trainer

"""Train a language model, one document per step: `python train_slimpajama.py --steps 10000`.

Composes the rooms of `trainer/` and `viz/`: flags → config → parts → `Trainer.train()`. What needs torch is imported
inside the functions, so that a mistake on the command line is answered before seconds of imports.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.arguments import Arguments, parse_arguments
from trainer.config import FIELDS, TrainingConfig, check_files, refuse_ranks
from trainer.errors import MachineError, RunError, UserError

if TYPE_CHECKING:
    import torch

    from trainer.documents import DocumentStream
    from trainer.evaluator import Evaluator
    from trainer.model import LanguageModel
    from trainer.run_folder import Folders, RunFolder
    from trainer.step import TrainingStep
    from trainer.tokenizer import Tokenizer
    from trainer.trainer import Trainer
    from viz.visualizer import TrainingVisualizer

COMMAND = "python train_slimpajama.py"
EVALUATION_DOCUMENTS = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; the README lists them."""
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        refuse_ranks()
        if arguments.resume is not None:
            return resume(arguments)
        return start(arguments)
    except RunError as error:
        print(f"train_slimpajama.py: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("train_slimpajama.py: interrupted before the first step; nothing was trained", file=sys.stderr)
        return 130


def start(arguments: Arguments) -> int:
    """A new run."""
    config = arguments.merge()
    check_files(config)
    from trainer.run_folder import new_run

    run = new_run(_root(arguments), test=arguments.test)
    try:
        return _train(arguments, config, run, None)
    finally:
        run.release()


def resume(arguments: Arguments) -> int:
    """Go on with an earlier run, from its newest whole checkpoint or from the one named."""
    from trainer.run_folder import locate_run, resume_run, set_aside_newer
    from trainer.state_file import read_state

    root = _root(arguments)
    folders, chosen = locate_run(root, arguments.resume or "", test=arguments.test)
    run, path = resume_run(folders, chosen, say=print)
    try:
        state = read_state(path)
        if "config" not in state:
            raise UserError(f"{path} holds weights alone, no run to go on with: use --pretrained-checkpoint {path}")
        folder_names = {"viz_dir": str(root.viz), "checkpoint_dir": str(root.checkpoints)}
        config = arguments.merge({**state["config"], **folder_names, "dataset_names": [state["source"]["name"]]})
        if state["step"] >= config.num_steps:
            print(
                f"Already finished: {state['step']:,} documents are trained, of {config.num_steps:,} asked for. "
                f"To go on: {_resume_command(arguments)} --steps {2 * state['step']}"
            )
            return 0
        set_aside_newer(run, state["step"], print)
        print(f"Resuming run {run.run_id} after {state['step']:,} documents, from {path}")
        return _train(arguments, config, run, state)
    finally:
        run.release()


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of, before it is joined."""

    arguments: Arguments
    config: TrainingConfig
    run: "RunFolder"
    state: Mapping[str, Any] | None
    """Of the checkpoint to go on from; None for a new run."""
    documents: "DocumentStream"
    tokenizer: "Tokenizer"
    step: "TrainingStep"
    evaluator: "Evaluator | None"


def _train(arguments: Arguments, config: TrainingConfig, run: "RunFolder", state: Mapping[str, Any] | None) -> int:
    """Make the parts, say what will happen, train, say what happened."""
    from trainer.signals import StopSignals

    parts = _make_parts(arguments, config, run, state)
    opening = _opening(parts)
    if state is None:
        run.begin(COMMAND + _folder_flags(arguments), print)
    print("\n".join(opening), flush=True)
    with StopSignals() as stop:  # from here on Ctrl-C is a stop that saves
        trainer = _join(parts, stop.is_set)
        outcome = trainer.train()
        print("\n".join(_closing(parts, trainer, outcome)), flush=True)
    return stop.exit_code if outcome == "interrupted" else 0


def _make_parts(
    arguments: Arguments, config: TrainingConfig, run: "RunFolder", state: Mapping[str, Any] | None
) -> Parts:
    from trainer.device import choose_device
    from trainer.model import LanguageModel
    from trainer.samples import usable_texts
    from trainer.step import TrainingStep

    device = choose_device(config.device)
    config, dtype = _settle(config, device)
    documents = _open_documents(config, state)
    tokenizer = _tokenizer(config, documents, state)
    if state is None and next(usable_texts(documents), None) is None:
        raise UserError(f"--dataset {config.dataset} holds no document that can be trained on")
    model = LanguageModel(config.shape, tokenizer.vocab_size, seed=config.seed)
    if config.pretrained_checkpoint is not None and state is None:
        model.load_checkpoint(_pretrained_path(config))
    step = TrainingStep(
        model.to(device), dtype=dtype, max_seq_length=config.max_seq_length, compile=bool(config.compile)
    )
    evaluator = _evaluator(config, documents, tokenizer, model)
    return Parts(arguments, config, run, state, documents, tokenizer, step, evaluator)


def _join(parts: Parts, should_stop: Callable[[], bool]) -> "Trainer":
    """The trainer of these parts; a resumed one stands where its state was saved."""
    from trainer.checkpoint import CheckpointManager
    from trainer.progress import Progress
    from trainer.provenance import changes
    from trainer.samples import SampleStream
    from trainer.trainer import Trainer

    progress, source, state = Progress(parts.config.num_steps), parts.documents.source, parts.state
    trainer = Trainer(
        parts.config,
        model=parts.step.model,
        tokenizer=parts.tokenizer,
        samples=SampleStream(
            dataclasses.replace(parts.documents, on_event=lambda kind, detail: trainer.note(kind, detail)),
            parts.tokenizer,
            parts.config.max_seq_length,
            hold_out=not source.has_validation,
            should_stop=should_stop,
            state=None if state is None else state["samples"],
        ),
        step=parts.step,
        viz=_visualizer(parts, progress.say),
        checkpoints=CheckpointManager(parts.run.checkpoints),
        progress=progress,
        evaluator=parts.evaluator,
        identity={
            "run_id": parts.run.run_id,
            "source": {"name": source.name, "revision": source.revision, "note": source.note},
        },
        should_stop=should_stop,
    )
    if state is not None:
        trainer.load_state_dict(state)
        trainer.viz.record_event(state["step"], "resume", changes(state["config"], parts.config, state["step"]))
    return trainer


def _evaluator(
    config: TrainingConfig, documents: "DocumentStream", tokenizer: "Tokenizer", model: "LanguageModel"
) -> "Evaluator | None":
    """What judges the model on held-out documents: a source's own validation split, else what training leaves out."""
    from trainer.evaluator import Evaluator
    from trainer.records import Cursor
    from trainer.samples import held_out_samples
    from trainer.sources import resolve_source

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


def _visualizer(parts: Parts, say: Callable[[str], None]) -> "TrainingVisualizer":
    """The record: a new one, or that of the resumed run from its step on."""
    from trainer.provenance import describe_run
    from viz.visualizer import TrainingVisualizer

    store = parts.run.viz / "run.db"
    resume_from = parts.state["step"] if parts.state is not None else None
    if resume_from is not None and not store.exists():
        say(f"{store} is gone: the record begins again at step {resume_from:,}")
        resume_from = None
    about = describe_run(
        parts.config,
        source=parts.documents.source,
        tokenizer=parts.tokenizer,
        device=parts.step.device,
        program=Path(__file__).resolve().parent,
    )
    try:
        return TrainingVisualizer(
            parts.run.viz, {"run_id": parts.run.run_id, **about}, resume_from=resume_from, say=say
        )
    except (OSError, ValueError) as error:
        raise MachineError(f"{store} can't be opened: {error}") from error


def _settle(config: TrainingConfig, device: "torch.device") -> tuple[TrainingConfig, "torch.dtype"]:
    """The config with everything decided that is decided once per run: the dtype, and whether the step is compiled."""
    import torch

    from trainer.device import choose_dtype, has_native_bf16, why_not_compile

    dtype = choose_dtype(config.dtype, device)
    if dtype == torch.bfloat16 and not has_native_bf16(device):
        print(f"bf16 is emulated on {device}, which is slower than fp32: --dtype fp32 is faster here")
    compile = bool(config.compile)
    if compile and (lacking := why_not_compile(device)):
        print(f"--compile: {lacking}, so the step runs without it")
        compile = False
    names = {torch.bfloat16: "bf16", torch.float32: "fp32"}
    return dataclasses.replace(config, dtype=names[dtype], compile=compile), dtype


def _open_documents(config: TrainingConfig, state: Mapping[str, Any] | None) -> "DocumentStream":
    """The stream: of a new run from its first document, of a resumed one from its cursor in the very same data."""
    from trainer import python_library
    from trainer.documents import open_documents
    from trainer.records import Cursor
    from trainer.sources import DataSource, embedded_source

    def embedded() -> DataSource:
        library = python_library.prepare()
        return embedded_source(library.shards, library.revision)

    old = state["source"] if state is not None else None
    documents = open_documents(
        old["name"] if old else config.dataset,
        embedded=embedded,
        say=print,
        config=config.dataset_config,
        split=config.dataset_split,
        revision=old["revision"] if old else config.dataset_revision,
        text_column=config.text_column,
        repeat=config.repeat,
        cursor=Cursor(**state["samples"]["cursor"]) if state is not None else Cursor(),
        max_stall=config.max_stall * 60,
    )
    if old is None:
        return documents
    if documents.source.revision != old["revision"]:
        raise UserError(
            f"{old['name']} is not what this run was trained on: its revision is {documents.source.revision[:12]}, "
            f"the run has {old['revision'][:12]}. A new run starts without --resume"
        )
    return dataclasses.replace(documents, source=dataclasses.replace(documents.source, note=old["note"]))


def _tokenizer(config: TrainingConfig, documents: "DocumentStream", state: Mapping[str, Any] | None) -> "Tokenizer":
    """The run's own; that of the weights it starts from; the file named; or one trained on the first documents."""
    from trainer.samples import usable_texts
    from trainer.tokenizer import Tokenizer, collect_training_texts

    if state is not None:
        return Tokenizer.from_bytes(state["tokenizer"])
    if config.pretrained_checkpoint is not None:
        from trainer.state_file import read_state

        path = _pretrained_path(config)
        pretrained = read_state(path)
        if config.tokenizer is not None:
            raise UserError("--tokenizer and --pretrained-checkpoint both bring a tokenizer: keep one")
        if "tokenizer" not in pretrained:
            raise UserError(f"{path} holds no tokenizer: its weights mean nothing without the one they learned with")
        return Tokenizer.from_bytes(pretrained["tokenizer"])
    if config.tokenizer is not None:
        return Tokenizer.load(Path(config.tokenizer))
    texts = collect_training_texts(usable_texts(documents))
    return Tokenizer.train(texts, config.vocab_size)


def _pretrained_path(config: TrainingConfig) -> Path:
    from trainer.checkpoint import CheckpointManager

    path = Path(str(config.pretrained_checkpoint))
    if not path.is_dir():
        return path
    newest = CheckpointManager(path).newest_valid(lambda bad, why: print(f"{bad} is passed by: {why}"))
    if newest is None:
        raise UserError(f"--pretrained-checkpoint {path}: no checkpoint_step_N.bin in this folder")
    return newest


def _opening(parts: Parts) -> list[str]:
    """The opening lines. Raises `MachineError` when the disk is too small for what the run will write."""
    from trainer.briefing import opening_lines
    from trainer.run_folder import bytes_needed, check_disk

    config, run = parts.config, parts.run
    first = parts.state["step"] if parts.state is not None else 0
    documents = config.num_steps - first
    needed = bytes_needed(config.shape.parameters(parts.tokenizer.vocab_size), config, first)
    return opening_lines(
        config,
        source=parts.documents.source,
        tokenizer=parts.tokenizer,
        device=parts.step.device,
        viz=run.viz,
        documents=documents,
        seconds=documents * parts.step.trial_seconds(config.max_seq_length - 1),
        needed=needed,
        free=check_disk(run.viz, needed),
    )


def _closing(parts: Parts, trainer: "Trainer", outcome: str) -> list[str]:
    """The closing lines."""
    from trainer.briefing import closing_lines

    endings = {
        "done": "Done",
        "interrupted": "Stopped",
        "documents ended": f"The documents ended before step {parts.config.num_steps:,}",
    }
    checkpoint = trainer.checkpoints.path(trainer.global_step)
    again = _resume_command(parts.arguments) if checkpoint.exists() else COMMAND
    return closing_lines(
        endings[outcome],
        tally=trainer.tally,
        counts=trainer.samples.state_dict(),
        texts=trainer.recent_texts(),
        viz=parts.run.viz,
        checkpoint=checkpoint if checkpoint.exists() else None,
        go_on=f"{again} --steps {2 * parts.config.num_steps}" if outcome == "done" else again,
    )


def _root(arguments: Arguments) -> "Folders":
    """The folders that this command line speaks of, before `earlier/` and `test/`."""
    from trainer.run_folder import Folders

    asked = {**arguments.from_file, **arguments.typed}
    names = [asked.get(key, FIELDS[key].default) for key in ("viz_dir", "checkpoint_dir")]
    return Folders(*map(Path, names))


def _folder_flags(arguments: Arguments) -> str:
    """What to type so that a later command finds the same folders."""
    root = _root(arguments)
    flags = "" if str(root.viz) == FIELDS["viz_dir"].default else f" --viz-dir {root.viz}"
    return flags + (
        "" if str(root.checkpoints) == FIELDS["checkpoint_dir"].default else f" --checkpoint-dir {root.checkpoints}"
    )


def _resume_command(arguments: Arguments) -> str:
    test = " --test" if arguments.test else ""
    return f"{COMMAND}{test}{_folder_flags(arguments)} --resume{' ' + arguments.resume if arguments.resume else ''}"


if __name__ == "__main__":
    sys.exit(main())

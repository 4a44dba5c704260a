"""The command line of `train_slimpajama.py`: flags → config → parts → `Trainer.train()`, connected to the record.

Imports that load torch are inside functions, so that a mistake on the command line is reported at once.
"""

import dataclasses
import io
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.run_marker import INSTALLED_PROGRAM, PROGRAM, PROJECT, read_marker
from trainer.arguments import Arguments, check_combinations, parse_arguments, refuse_ranks
from trainer.base.signals import NOTHING_TRAINED, StopSignals
from trainer.config import FIELDS, TrainingConfig
from trainer.errors import MachineError, RunError, UserError

if TYPE_CHECKING:
    from trainer.assemble import Builders, Parts
    from trainer.records import Visualizer
    from trainer.run.folders import Folders, RunFolder
    from trainer.trainer import Trainer


TYPED = tuple(setting.metadata["flag"] for setting in FIELDS.values() if setting.metadata.get("typed"))
"""Flags of the settings that a resumed run changes only by the flag itself."""


def main(argv: Sequence[str] | None = None, builders: "Builders | None" = None) -> int:
    """Run the command line and return the exit code (`docs/exit-codes.md`).

    Args:
        builders: the parts that a run is built from; None: the usual ones.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may not have `→`
    stop = StopSignals()
    try:
        arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
        refuse_ranks()
        with stop:
            begin = start if arguments.resume is None else resume
            return begin(arguments, stop, builders)
    except RunError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(NOTHING_TRAINED, stop.exit_code)
    except OSError as error:
        return _fail(f"machine failure: {error}", MachineError.exit_code)
    except (MemoryError, RuntimeError) as error:
        from trainer.base.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        advice = "reduce --model-size or --max-seq-length. Saved checkpoints are intact: use --resume to continue"
        return _fail(f"out of memory: {advice}", MachineError.exit_code)


def _fail(line: str, exit_code: int) -> int:
    print(f"{PROGRAM}: {line}", file=sys.stderr)
    return exit_code


def start(arguments: Arguments, stop: StopSignals, builders: "Builders | None") -> int:
    """Start a new run."""
    config = arguments.merge()
    check_combinations(config)
    from trainer.run.folders import new_run

    run = new_run(folders_of(arguments), test=arguments.test)
    try:
        return _train(arguments, config, run, None, stop, [], builders)
    finally:
        run.release()


def resume(arguments: Arguments, stop: StopSignals, builders: "Builders | None") -> int:
    """Resume an earlier run from its newest valid checkpoint, or from the one that `--resume` names."""
    from trainer.base.checkpoint_file import digest_path
    from trainer.run.checkpoints import misfit
    from trainer.run.folders import locate_run, resume_run

    folders, chosen = locate_run(folders_of(arguments), arguments.resume or "", test=arguments.test)
    events: list[tuple[str, str]] = []

    def refused(why: str) -> None:
        print(f"Skipped checkpoint: {why}")
        events.append(("checkpoint refused", why))

    run, path, state = resume_run(folders, chosen, refused=refused)
    if not digest_path(path).exists():
        print(f"{path} has no .sha256 file: damage to it can't be detected")
        events.append(("checkpoint unchecked", str(path)))
    try:
        if missing := misfit(state):
            if _is_of_earlier_version(run):
                raise UserError(_earlier_version(run, path))
            raise UserError(
                f"{path} is not a complete checkpoint: {missing!r} is missing or invalid. "
                f"To start a new run from its weights: --pretrained-checkpoint {path}"
            )
        run.run_id = state["run_id"]
        if chosen is not None and "viz_dir" in arguments.typed and run.viz != folders_of(arguments).viz:
            raise UserError(f"{path} belongs to the run in {run.viz}; omit --out and --viz-dir")
        if chosen is not None and read_marker(run.checkpoints).get("run_id") != state["run_id"]:
            raise UserError(
                f"{path} was moved or copied out of run {state['run_id']}, whose record may have changed since. "
                f"To start a new run from its weights: --pretrained-checkpoint {path}"
            )
        config = arguments.merge({**state["config"], "dataset_names": [state["source"]["name"]]})
        config = dataclasses.replace(config, viz_dir=str(run.viz), checkpoint_dir=str(run.checkpoints))
        is_current = _check_record(run, path, state)
        if state["step"] >= config.num_steps:
            if is_current:
                _finish_record(run, state["step"], builders)
            typed = {FIELDS[key].metadata["flag"]: value for key, value in arguments.typed.items()}
            again = [f" {flag} {typed[flag]}" for flag in TYPED if flag in typed]
            print(
                f"Already finished: trained on {state['step']:,} of {config.num_steps:,} documents. "
                f"To train longer: {resume_command(arguments, run)}{''.join(again)} "
                f"--steps {state['step'] + typed.get('--cooldown', state['step'])}"
            )
            return 0
        if not is_current:
            raise UserError(_earlier_version(run, path))
        print(f"Resuming run {run.run_id} after {state['step']:,} documents, from {path}")
        return _train(arguments, config, run, state, stop, events, builders)
    finally:
        run.release()


def _is_of_earlier_version(run: "RunFolder") -> bool:
    from viz.record.reader import StoreReader

    try:
        with StoreReader(run.viz / "run.db") as record:
            return not record.is_current
    except (OSError, ValueError):
        return False


def _earlier_version(run: "RunFolder", path: Path) -> str:
    return (
        f"{run.viz / 'run.db'} was written by an earlier version of this program; it can be viewed but not resumed. "
        f"To start a new run from its weights: --pretrained-checkpoint {path}"
    )


def _check_record(run: "RunFolder", path: Path, state: Mapping[str, Any]) -> bool:
    """Refuse a checkpoint that does not belong to the record: resuming would overwrite another history.

    Returns whether this version can resume the record.
    """
    from viz.record.reader import StoreReader

    store = run.viz / "run.db"
    if not store.exists():
        return True
    try:
        with StoreReader(store) as record:
            is_current = record.is_current
            run_id, steps = record.run()["run_id"], record.columns(max(state["step"] - 1, 0))["steps"]
    except ValueError as error:
        raise UserError(f"{error}. Move the file away to resume with a new record") from error
    if run_id != state["run_id"]:
        raise UserError(
            f"{path} belongs to run {state['run_id']}, but {store} is the record of run {run_id}. "
            "Pass both folders of the same run: --viz-dir and --checkpoint-dir"
        )
    if not len(steps):
        raise UserError(
            f"{path} is from step {state['step']:,}, but {store} ends before it: resume from an older checkpoint"
        )
    return is_current


def _finish_record(run: "RunFolder", step: int, builders: "Builders | None") -> None:
    """Write the last chart and JSON files if the run was killed after its last step, before it could."""
    try:
        written = json.loads((run.viz / "run.json").read_bytes())  # the last file that a run writes
        is_complete = written["json_through_step"] == step - 1 and written["outcome"] is not None
        is_complete = is_complete and not list(run.viz.glob("run.db-*"))  # a clean end leaves one file
    except (OSError, ValueError, KeyError, TypeError):
        is_complete = False
    if not is_complete and (run.viz / "run.db").exists():
        _visualizer_class(builders)(run.viz, resume_from=step).close("done")


def _train(
    arguments: Arguments,
    config: TrainingConfig,
    run: "RunFolder",
    state: Mapping[str, Any] | None,
    stop: StopSignals,
    events: list[tuple[str, str]],
    builders: "Builders | None",
) -> int:
    """Make the parts, print the plan, train, print the summary.

    Args:
        events: (kind, detail) of the events before there was a record.
    """
    from trainer.assemble import Builders, assemble_trainer, find_starting_weights, make_parts
    from trainer.observe.terminal import say
    from trainer.run.checkpoints import CheckpointManager
    from trainer.run.folders import bytes_needed, check_disk

    def note(kind: str, detail: str) -> None:
        say(detail)
        events.append((kind, detail))

    builders = builders or Builders()
    page = _page(arguments, run, say)  # first, so that a port in use is reported at once
    first = state["step"] if state is not None else 0
    weights = find_starting_weights(config, state, say)
    shape, vocab_size = (weights.shape, weights.vocab_size) if weights else (config.shape, config.vocab_size)
    needed = bytes_needed(config, shape.parameters(vocab_size), run, first)
    check_disk(needed)
    parts = make_parts(config, state, weights, say, note, builders, compiling=stop.at_once)
    del weights  # they are in the model now
    opening = _opening(parts, run, first, sum(needed.values()))
    stop.hold()  # from here on, Ctrl-C saves before it stops
    if state is None:
        run.begin(start_command(arguments), say)
    elif moved := CheckpointManager(run.checkpoints).set_aside_newer(first, run.run_id):
        note("checkpoints set aside", moved)
    say("\n".join(opening))

    def open_record(say: Callable[[str], None]) -> "Visualizer":
        return _visualizer(parts, run, state, say, _visualizer_class(builders))

    trainer = assemble_trainer(parts, run, state, stop.is_set, open_record, builders)
    for kind, detail in events:
        trainer.viz.record_event(first, kind, detail)
    with page:
        outcome = trainer.train()
        say("\n".join(_closing(arguments, run, trainer, outcome)))
    return stop.exit_code if outcome == "interrupted" else 0


def _page(arguments: Arguments, run: "RunFolder", say: Callable[[str], None]) -> AbstractContextManager[None]:
    """Return a context that serves the live page (if `--serve` was given). The port is bound now."""
    if arguments.serve is None:
        return nullcontext()
    from viz.page.process import listen, page_beside

    try:
        listening = listen(arguments.serve or None)
    except OSError as error:
        raise UserError(f"--serve: {error.strerror}") from error
    return page_beside(run.viz, listening, say)


def _visualizer_class(builders: "Builders | None") -> Callable[..., "Visualizer"]:
    if builders is not None and builders.visualizer is not None:
        return builders.visualizer
    from viz.visualizer import TrainingVisualizer

    return TrainingVisualizer


def _visualizer(
    parts: "Parts",
    run: "RunFolder",
    state: Mapping[str, Any] | None,
    say: Callable[[str], None],
    make_visualizer: Callable[..., "Visualizer"],
) -> "Visualizer":
    """Open the record: a new one, or the resumed run's, continued at its step."""
    from trainer.run.provenance import describe_run

    store = run.viz / "run.db"
    resume_from = state["step"] if state is not None else None
    if resume_from is not None and not store.exists():
        say(f"{store} is missing: a new record starts at step {resume_from:,}")
        resume_from = None
    about = describe_run(
        parts.config,
        shape=parts.step.model.shape,
        recipe=dataclasses.asdict(parts.step.optimizer.recipe),
        flops=parts.flops,
        source=parts.documents.source,
        tokenizer=parts.tokenizer,
        device=parts.step.device,
        program=PROJECT,
    )
    try:
        return make_visualizer(
            run.viz,
            {"run_id": run.run_id, **about},
            resume_from=resume_from,
            keep_charts=parts.config.keep_charts,
            keep_documents=parts.config.keep_documents,
            say=say,
        )
    except (OSError, ValueError) as error:
        raise MachineError(str(error)) from error


def _opening(parts: "Parts", run: "RunFolder", first: int, needed: int) -> list[str]:
    """Return the opening lines."""
    from trainer.observe.terminal import opening_lines

    documents = parts.config.num_steps - first
    return opening_lines(
        parts.config,
        shape=parts.step.model.shape,
        source=parts.documents.source,
        tokenizer=parts.tokenizer,
        device=parts.step.device,
        viz=run.viz,
        documents=documents,
        seconds=documents * parts.trial_seconds,
        needed=needed,
    )


def _closing(arguments: Arguments, run: "RunFolder", trainer: "Trainer", outcome: str) -> list[str]:
    """Return the closing lines."""
    from trainer.observe.terminal import closing_lines

    endings = {
        "done": "Done",
        "interrupted": "Stopped",
        "documents ended": f"Out of documents before step {trainer.config.num_steps:,}",
    }
    more = {"done": f" --steps {2 * trainer.config.num_steps}", "interrupted": "", "documents ended": " --repeat"}
    saved = trainer.checkpoints.all()
    command = resume_command(arguments, run) + more[outcome] if saved else None
    if saved and saved[-1][0] < trainer.global_step:
        command = f"{command} (continues from step {saved[-1][0]:,}; later steps were not saved)"
    return closing_lines(
        endings[outcome],
        tally=trainer.tally,
        counts=trainer.samples.state_dict(),
        texts=trainer.recent_texts(),
        viz=run.viz,
        checkpoint=saved[-1][1] if saved else None,
        resume_command=command,
        uniform_loss=math.log(trainer.tokenizer.vocab_size),
    )


def folders_of(arguments: Arguments) -> "Folders":
    """Return the folders that a command line names, before `earlier/` and `test/`."""
    from trainer.run.folders import Folders

    given = {**arguments.from_file, **arguments.typed}
    return Folders(*(Path(given.get(key, FIELDS[key].default)) for key in ("viz_dir", "checkpoint_dir")))


def start_command(arguments: Arguments) -> str:
    """Return the command with the flags that select the same folders."""
    from trainer.run.folders import Folders

    folders = folders_of(arguments)
    out = folders.viz.parent
    if folders == Folders(out / "training_viz", out / "checkpoints"):
        return _program() if out == Path() else f"{_program()} --out {shlex.quote(str(out))}"
    named = {"viz_dir": folders.viz, "checkpoint_dir": folders.checkpoints}
    flags = [
        f" {FIELDS[key].metadata['flag']} {shlex.quote(str(folder))}"
        for key, folder in named.items()
        if str(folder) != FIELDS[key].default
    ]
    return _program() + "".join(flags)


def resume_command(arguments: Arguments, run: "RunFolder") -> str:
    """Return the command that resumes the run, which it finds in the usual folder, by its id or by its folder."""
    from trainer.run.folders import Folders

    root = folders_of(arguments)
    usual = (root, root.below("test")) if arguments.test else (root,)
    test = " --test" if arguments.test else ""
    if Folders(run.viz, run.checkpoints) in usual:
        return f"{start_command(arguments)}{test} --resume"
    if run.run_id == arguments.resume:
        return f"{start_command(arguments)}{test} --resume {run.run_id}"
    return f"{_program()} --checkpoint-dir {shlex.quote(str(run.checkpoints))} --resume"


def _program() -> str:
    """Return the program as it was called, so that the command works from the same folder."""
    if Path(sys.argv[0]).name == INSTALLED_PROGRAM:
        return INSTALLED_PROGRAM
    return f"python {shlex.quote(sys.argv[0] if sys.argv[0].endswith(PROGRAM) else PROGRAM)}"

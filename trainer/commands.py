"""The commands that are printed for a person to paste: what to type to find a run again and go on with it."""

import shlex
import sys
from pathlib import Path

from trainer.arguments import Arguments
from trainer.config import FIELDS
from trainer.run.folders import Folders, RunFolder

PROGRAM = "train_slimpajama.py"


def folders_of(arguments: Arguments) -> Folders:
    """The folders that a command line speaks of, before `earlier/` and `test/`."""
    asked = {**arguments.from_file, **arguments.typed}
    return Folders(*(Path(asked.get(key, FIELDS[key].default)) for key in ("viz_dir", "checkpoint_dir")))


def start_command(arguments: Arguments) -> str:
    """The program with the flags by which it finds the same folders again."""
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


def resume_command(arguments: Arguments, run: RunFolder) -> str:
    """What goes on from the newest checkpoint of the run, found in the usual folder, by its id or by its folder."""
    root = folders_of(arguments)
    usual = (root, root.below("test")) if arguments.test else (root,)
    test = " --test" if arguments.test else ""
    if Folders(run.viz, run.checkpoints) in usual:
        return f"{start_command(arguments)}{test} --resume"
    if run.run_id == arguments.resume:
        return f"{start_command(arguments)}{test} --resume {run.run_id}"
    return f"{_program()} --checkpoint-dir {shlex.quote(str(run.checkpoints))} --resume"


def _program() -> str:
    """As it was called here, so that the command works from the same folder."""
    return f"python {shlex.quote(sys.argv[0] if sys.argv[0].endswith(PROGRAM) else PROGRAM)}"

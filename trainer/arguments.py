"""The command line: typed flags, a config file and a resumed run become one `TrainingConfig`."""

import argparse
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from trainer.config import FIELDS, TYPES, TrainingConfig, check_value, nearest
from trainer.errors import MachineError, RunError, UserError

VERSION = "0.5.0"
TEST_PRESET: Mapping[str, Any] = types.MappingProxyType(
    {
        "num_steps": 100,
        "max_seq_length": 128,
        "warmup_steps": 20,
        "viz_interval": 25,
        "display_samples": 10,
        "checkpoint_interval": 50,
        "dataset": "python-library",
    }
)
_REMOVED_FLAGS = {
    "--max-chunks": "one step is one document now: write --steps N",
    "--tokens-per-chunk": "one step is one document now: write --steps N for how many, --max-seq-length N for how long",
}


def whole_number(minimum: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `minimum` to the largest seed that torch takes."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"expected a whole number from {minimum} on, found {text!r}")
        return int(text)

    return parse


def number_or(word: str) -> Callable[[str], int | None]:
    """An argparse type: a whole number, or the word that stands for no bound."""

    def parse(text: str) -> int | None:
        if text == word:
            return None
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number or {word}, found {text!r}") from None

    return parse


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings in a JSON file whose keys are field names. Raises `UserError` for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected an object of settings, found {type(content).__name__}")
    for key in content:
        if key not in FIELDS:
            flags = {setting.metadata["flag"][2:].replace("-", "_"): name for name, setting in FIELDS.items()}
            raise UserError(f"--config {path}: unknown key {key!r}{nearest(flags.get(key) or key, FIELDS)}")
        value = tuple(content[key]) if isinstance(content[key], list) else content[key]
        try:
            check_value(FIELDS[key], value)
        except UserError as error:
            raise UserError(f"--config {path}: {error}") from error
        content[key] = value
    return content


@dataclass(frozen=True)
class Arguments:
    """A parsed command line: settings by layer, and what is asked for beside settings."""

    typed: Mapping[str, Any]
    from_file: Mapping[str, Any]
    test: bool
    resume: str | None
    """None: a new run. "": the newest run of the folder. Else a run id or the path of a checkpoint."""
    serve: int | None = None
    """The port of the live page; 0: the first free one; None: no page."""

    def merge(self, resumed: Mapping[str, Any] | None = None) -> TrainingConfig:
        """The config of this run; typed flag, file, resumed run, preset, default: the first wins.

        Raises:
            UserError: a value out of bounds, or one that a resumed run can't change; both values are named.
        """
        preset = TEST_PRESET if self.test else {}
        asked = {**self.from_file, **self.typed}
        if resumed is not None:
            # A run has decided what was left open: `auto` means what it decided.
            asked = {key: value for key, value in asked.items() if value != FIELDS[key].metadata.get("undecided", ...)}
            self._refuse_changes(asked, resumed)
        known = {key: value for key, value in (resumed or {}).items() if key in FIELDS}
        return TrainingConfig(**{**preset, **known, **asked})

    def _refuse_changes(self, asked: Mapping[str, Any], resumed: Mapping[str, Any]) -> None:
        for key, value in asked.items():
            options, old = FIELDS[key].metadata, resumed.get(key, FIELDS[key].default)
            if value == old or (key == "dataset" and value in resumed.get("dataset_names", ())):
                continue
            if options.get("fixed"):
                raise UserError(
                    f"{options['flag']} {value} can't be changed in a resumed run, which has {old}: "
                    "leave it out, or start a new run without --resume"
                )
            if options.get("typed") and key not in self.typed:
                raise UserError(
                    f"the config file's {key} {value} differs from the resumed run's {old}: "
                    f"type {options['flag']} {value} to change it"
                )


class _OneLineParser(argparse.ArgumentParser):
    """argparse that raises `UserError` with one line instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        hint = ""
        if unknown:
            hint = nearest(unknown.group(1).split("=")[0], self._option_string_actions)
        raise UserError(f"{message}{hint or ' (--help lists the flags)'}")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="train_slimpajama.py",
        description="Train a language model, one document per step, and keep a record of every document.",
        epilog="Watch training_viz/training_latest.png while it runs. Ctrl-C saves; --resume goes on.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, setting in FIELDS.items():
        flag, wanted = setting.metadata["flag"], TYPES[name]
        shown = "" if setting.default in (None, (), False, True) else f" (default: {setting.default})"
        text = (setting.metadata["help"] + shown).replace("%", "%%")
        if name == "compile":
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
        elif wanted is bool:
            parser.add_argument(flag, dest=name, action="store_false" if setting.default else "store_true", help=text)
        elif typing.get_origin(wanted) is tuple:
            parser.add_argument(flag, dest=name, action="append", metavar="TEXT", help=text)
        else:
            choices, unbounded = setting.metadata.get("choices"), setting.metadata.get("unbounded")
            metavar = setting.metadata.get("metavar") or ("|".join(choices) if choices else "N")
            kind = next((number for number in (int, float) if wanted in (number, number | None)), str)
            parse = number_or(unbounded) if unbounded else kind
            parser.add_argument(flag, dest=name, type=parse, metavar=metavar, help=text)
    parser.add_argument("--gpu", type=int, metavar="N", help="the same as --device cuda:N")
    parser.add_argument("--out", metavar="DIR", help="write to DIR/training_viz and DIR/checkpoints")
    parser.add_argument(
        "--config", metavar="FILE.json", help="settings from a file; its keys are the field names of TrainingConfig"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN|PATH",
        help="go on with the folder's newest run, a run id, or a checkpoint",
    )
    parser.add_argument(
        "--serve",
        nargs="?",
        const=0,
        type=whole_number(1),
        metavar="PORT",
        help="open a live page on the run while it lasts (default: the first free port from 8000 on)",
    )
    parser.add_argument("--test", action="store_true", help="smoke run: 100 steps on embedded data, under a minute")
    parser.add_argument("--version", action="version", version=f"train_slimpajama {VERSION}")
    return parser


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read a command line and the config file it names.

    Raises:
        UserError: one line that says what is wrong and what to write instead.
    """
    for word in argv:
        flag = word.split("=")[0]
        if flag in _REMOVED_FLAGS:
            raise UserError(f"{flag} is gone: {_REMOVED_FLAGS[flag]}")
    typed = vars(_parser().parse_args(argv))
    test, resume, serve = typed.pop("test", False), typed.pop("resume", None), typed.pop("serve", None)
    if serve is not None and serve > 65_535:
        raise UserError(f"--serve {serve}: ports end at 65535")
    config_path, out, gpu = typed.pop("config", None), typed.pop("out", None), typed.pop("gpu", None)
    if gpu is not None:
        if "device" in typed:
            raise UserError(f"--gpu {gpu} and --device {typed['device']} name the device twice: keep one")
        if gpu < 0:
            raise UserError(f"--gpu must be 0 or more, not {gpu}")
        typed["device"] = f"cuda:{gpu}"
    if out is not None:
        if not out.strip():
            raise UserError("--out must not be empty")
        typed.setdefault("viz_dir", str(Path(out) / "training_viz"))
        typed.setdefault("checkpoint_dir", str(Path(out) / "checkpoints"))
    if "prompt" in typed:
        typed["prompt"] = tuple(typed["prompt"])
    if resume is not None and "pretrained_checkpoint" in typed:
        raise UserError("--resume and --pretrained-checkpoint both say where to start from: keep one")
    for key, value in typed.items():
        check_value(FIELDS[key], value)
    from_file = read_config_file(Path(config_path)) if config_path is not None else {}
    return Arguments(typed=typed, from_file=from_file, test=test, resume=resume, serve=serve)


def refuse_ranks(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `UserError` when a launcher started more than one process: each would train the same documents."""
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        value = environment.get(name, "1")
        if value.isdigit() and int(value) > 1:
            raise UserError(
                f"{name}={value}: several ranks are not built yet, start one process: python train_slimpajama.py"
            )


def check_combinations(config: TrainingConfig) -> None:
    """Raise `UserError` for settings that can't be together, and for a file that one names and that is not there."""
    hub_only = {"dataset_config": None, "dataset_split": "train", "dataset_revision": None}
    for name, default in hub_only.items():
        if config.dataset in ("auto", "python-library") and getattr(config, name) != default:
            raise UserError(
                f"{FIELDS[name].metadata['flag']} {getattr(config, name)} is for a Hub dataset: name it with --dataset"
            )
    if config.tokenizer is not None and config.pretrained_checkpoint is not None:
        raise UserError("--tokenizer and --pretrained-checkpoint both bring a tokenizer: keep one")
    if config.tokenizer is not None and not Path(config.tokenizer).is_file():
        raise UserError(f"--tokenizer {config.tokenizer}: no such file")
    if config.pretrained_checkpoint is not None and not Path(config.pretrained_checkpoint).exists():
        raise UserError(f"--pretrained-checkpoint {config.pretrained_checkpoint}: no such file or folder")


class CommandParser(argparse.ArgumentParser):
    """The parser of the `python -m trainer.…` commands: a mistake raises `UserError` with one line."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def add_checkpoint(self) -> None:
        """Add `checkpoint` and `checkpoint_dir`, the arguments of `open_trained_model`."""
        self.add_argument(
            "checkpoint",
            nargs="?",
            type=Path,
            help="a file, or a folder to take the newest checkpoint from (default: --checkpoint-dir)",
        )
        self.add_argument(
            "--checkpoint-dir",
            type=Path,
            default=Path("checkpoints"),
            metavar="DIR",
            help="folder to take the newest checkpoint from (default: checkpoints)",
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def exit_code_of(command: Callable[[], None]) -> int:
    """Run a command and return its exit code (docs/exit-codes.md); print a failure as one line on standard error."""
    try:
        command()
        print(end="", flush=True)  # flush here, where a failure is still reported as one line
    except RunError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader has closed the pipe (`| head`)
        _discard_output()
    except OSError as error:
        print(f"the machine failed: {error}", file=sys.stderr)
        _discard_output()
        return MachineError.exit_code
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    return 0


def _discard_output() -> None:
    """Discard further output: Python flushes again when it exits, and must not fail there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

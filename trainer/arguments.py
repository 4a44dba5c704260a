"""The command line: flags, a config file and the settings of a resumed run become one `TrainingConfig`."""

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

from trainer.config import FIELDS, TYPES, VERSION, TrainingConfig, check_value, nearest
from trainer.errors import MachineError, RunError, UserError

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
    "--max-chunks": "one step is now one document. Use --steps N",
    "--tokens-per-chunk": "one step is now one document. Use --steps N and --max-seq-length N",
}


def whole_number(minimum: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from `minimum` to the largest seed that torch accepts."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not minimum <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, found {text!r}")
        return int(text)

    return parse


def number_or(word: str) -> Callable[[str], int | None]:
    """Return an argparse type: a whole number, or the word that stands for no limit (None)."""

    def parse(text: str) -> int | None:
        if text == word:
            return None
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number or {word}, found {text!r}") from None

    return parse


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file whose keys are field names. Raises `UserError` for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: expected a JSON object of settings, found {type(content).__name__}")
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
    """A parsed command line: settings by their source, and the flags that are not settings."""

    typed: Mapping[str, Any]
    """Settings given on the command line."""
    from_file: Mapping[str, Any]
    test: bool
    resume: str | None
    """None: a new run. "": the newest run of the folder. Otherwise a run id or the path of a checkpoint."""
    serve: int | None = None
    """Port of the live page; 0: the first free one; None: no page."""

    def merge(self, resumed: Mapping[str, Any] | None = None) -> TrainingConfig:
        """Return the config of this run. Precedence: flag, config file, resumed run, preset, default.

        Raises:
            UserError: a value is out of bounds, or a resumed run can't change it; the message names both values.
        """
        preset = TEST_PRESET if self.test else {}
        given = {**self.from_file, **self.typed}
        if resumed is not None:
            # The resumed run has already resolved `auto`, so `auto` stands for the value it chose.
            given = {key: value for key, value in given.items() if value != FIELDS[key].metadata.get("undecided", ...)}
            self._refuse_changes(given, resumed)
        known = {key: value for key, value in (resumed or {}).items() if key in FIELDS}
        return TrainingConfig(**{**preset, **known, **given})

    def _refuse_changes(self, given: Mapping[str, Any], resumed: Mapping[str, Any]) -> None:
        for key, value in given.items():
            options, old = FIELDS[key].metadata, resumed.get(key, FIELDS[key].default)
            if value == old or (key == "dataset" and value in resumed.get("dataset_names", ())):
                continue
            if options.get("fixed"):
                raise UserError(
                    f"{options['flag']} {value}: the resumed run has {old}, which can't be changed. "
                    "Omit the flag, or start a new run without --resume"
                )
            if options.get("typed") and key not in self.typed:
                raise UserError(
                    f"the config file sets {key} to {value}, but the resumed run has {old}. "
                    f"To change it, pass {options['flag']} {value}"
                )


class CommandParser(argparse.ArgumentParser):
    """An argument parser for our commands. A mistake raises `UserError` with one line instead of printing the usage."""

    def __init__(self, *, prog: str, description: str, **options: Any) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, **options)

    def add_checkpoint(self) -> None:
        """Add `checkpoint` and `checkpoint_dir`, the arguments of `open_trained_model`."""
        self.add_argument(
            "checkpoint",
            nargs="?",
            type=Path,
            help="a checkpoint, or a folder of checkpoints (default: the newest in --checkpoint-dir)",
        )
        self.add_argument(
            "--checkpoint-dir",
            type=Path,
            default=Path("checkpoints"),
            metavar="DIR",
            help="folder of checkpoints (default: checkpoints)",
        )

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        hint = nearest(unknown.group(1).split("=")[0], self._option_string_actions) if unknown else ""
        raise UserError(f"{message}{hint or ' (see --help)'}")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="train_slimpajama.py",
        description="Train a language model, one document per step, and record every document.",
        epilog="While it runs, open training_viz/training_latest.png. Ctrl-C saves and stops; --resume continues.",
        argument_default=argparse.SUPPRESS,
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
        "--config",
        metavar="FILE.json",
        help="read settings from a file; its keys are the field names of TrainingConfig",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN|PATH",
        help="continue the newest run of the folder, the run with this id, or from this checkpoint",
    )
    parser.add_argument(
        "--serve",
        nargs="?",
        const=0,
        type=whole_number(1),
        metavar="PORT",
        help="serve a live page for as long as the run lasts (default: the first free port from 8000)",
    )
    parser.add_argument(
        "--test", action="store_true", help="smoke run: 100 steps on Python's standard library, under a minute"
    )
    parser.add_argument("--version", action="version", version=f"train_slimpajama {VERSION}")
    return parser


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Parse a command line and the config file it names.

    Raises:
        UserError: one line that says what is wrong and what to pass instead.
    """
    for word in argv:
        flag = word.split("=")[0]
        if flag in _REMOVED_FLAGS:
            raise UserError(f"{flag} was removed: {_REMOVED_FLAGS[flag]}")
    typed = vars(_parser().parse_args(argv))
    test, resume, serve = typed.pop("test", False), typed.pop("resume", None), typed.pop("serve", None)
    if serve is not None and serve > 65_535:
        raise UserError(f"--serve {serve}: the highest port is 65535")
    config_path, out, gpu = typed.pop("config", None), typed.pop("out", None), typed.pop("gpu", None)
    if gpu is not None:
        if "device" in typed:
            raise UserError(f"--gpu {gpu} and --device {typed['device']} both select the device: pass only one")
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
        raise UserError("--resume and --pretrained-checkpoint both set the starting weights: pass only one")
    for key, value in typed.items():
        check_value(FIELDS[key], value)
    from_file = read_config_file(Path(config_path)) if config_path is not None else {}
    return Arguments(typed=typed, from_file=from_file, test=test, resume=resume, serve=serve)


def refuse_ranks(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `UserError` if a launcher started more than one process: each would train on the same documents."""
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        value = environment.get(name, "1")
        if value.isdigit() and int(value) > 1:
            raise UserError(
                f"{name}={value}: several ranks are not supported yet. Start one process: python train_slimpajama.py"
            )


def check_combinations(config: TrainingConfig) -> None:
    """Raise `UserError` for settings that exclude each other and for files that do not exist."""
    hub_only = {"dataset_config": None, "dataset_split": "train", "dataset_revision": None}
    for name, default in hub_only.items():
        if config.dataset in ("auto", "python-library") and getattr(config, name) != default:
            raise UserError(
                f"{FIELDS[name].metadata['flag']} {getattr(config, name)} applies to a Hub dataset: pass --dataset NAME"
            )
    if config.tokenizer is not None and config.pretrained_checkpoint is not None:
        raise UserError("--tokenizer and --pretrained-checkpoint both provide a tokenizer: pass only one")
    if config.tokenizer is not None and not Path(config.tokenizer).is_file():
        raise UserError(f"--tokenizer {config.tokenizer}: file not found")
    if config.pretrained_checkpoint is not None and not Path(config.pretrained_checkpoint).exists():
        raise UserError(f"--pretrained-checkpoint {config.pretrained_checkpoint}: file or folder not found")


def exit_code_of(command: Callable[[], None]) -> int:
    """Run a command and return its exit code; print a failure as one line on standard error."""
    try:
        command()
        print(end="", flush=True)  # here, so that a failure to write is one line too
    except RunError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader has ended (`| head`)
        _discard_output()
    except OSError as error:
        print(f"machine failure: {error}", file=sys.stderr)
        _discard_output()
        return MachineError.exit_code
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    return 0


def _discard_output() -> None:
    """Discard further output: Python flushes once more when it exits, which must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""The settings of a run, declared once: flags, help texts, config keys and the record all come from here."""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.errors import UserError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Qwen3-design decoder: `heads` query heads share `kv_heads` keys and values."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    """Width between the two halves of the SwiGLU block."""
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.width}"

    def parameters(self, vocab_size: int) -> int:
        """Number of weights; the embedding is counted once, because the output layer shares it."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads) + 2 * self.head_dim
        block = attention + 3 * self.width * self.hidden + 2 * self.width
        return vocab_size * self.width + self.layers * block + self.width


VERSION = "0.5.0"
"""The version of this project."""
MODEL_SIZES: Mapping[str, ModelShape] = types.MappingProxyType(
    {
        "tiny": ModelShape(layers=2, width=64, heads=4, kv_heads=2, head_dim=16, hidden=192),
        "small": ModelShape(layers=6, width=384, heads=6, kv_heads=3, head_dim=64, hidden=1152),
        "base": ModelShape(layers=12, width=768, heads=12, kv_heads=4, head_dim=64, hidden=3584),
        "large": ModelShape(layers=24, width=1024, heads=16, kv_heads=8, head_dim=64, hidden=4096),
    }
)


def size_of(shape: ModelShape) -> str | None:
    """Return the name of a shape in `MODEL_SIZES`; None for a pretrained model of another shape."""
    return next((name for name, known in MODEL_SIZES.items() if known == shape), None)


def _setting(default: Any, help: str, flag: str, **options: Any) -> Any:
    """Declare a field of `TrainingConfig` and its flag. `options` limit its value, see `check_value`."""
    return field(default=default, metadata={"help": help, "flag": flag, **options})


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a run. `fixed` fields define the run, so a resumed run can't change them."""

    num_steps: int = _setting(
        10000,
        "total number of documents to train on, including those before a resume; one step is one document",
        "--steps",
        minimum=1,
    )
    max_seq_length: int = _setting(
        256,
        "truncate longer documents to N tokens (N-1 predictions)",
        "--max-seq-length",
        minimum=2,
        maximum=32_768,
        fixed=True,
    )
    viz_interval: int = _setting(
        50, "draw a chart and update the JSON files every N documents", "--viz-interval", minimum=1
    )
    keep_charts: int = _setting(
        500, "keep at most N numbered charts, spread evenly over the run", "--keep-charts", minimum=2
    )
    keep_documents: int | None = _setting(
        200_000,
        "keep the tokens and token losses of the last N documents, of spikes, and of those furthest from the average",
        "--keep-documents",
        minimum=1,
        metavar="N|all",
        unbounded="all",
    )
    display_samples: int = _setting(
        50, "generate text at each step divisible by N, including step 0", "--display-samples", minimum=1
    )
    evaluation_interval: int | None = _setting(
        None,
        "evaluate on held-out documents every N documents and at the end; 0: never (default: every 500 in runs of "
        "1,000 or more, using at most 2 % of the time)",
        "--evaluation-interval",
        minimum=0,
    )
    probes: bool = _setting(
        True, "do not re-measure documents 1, 2, 4, 8 … steps after the model trained on them", "--no-probes"
    )
    checkpoint_interval: int = _setting(2000, "save a checkpoint every N documents", "--checkpoint-interval", minimum=1)
    dataset: str = _setting(
        "auto",
        "slimpajama, python-library (Python's standard library, no network), the name of a Hub dataset, a file, a "
        "folder or a glob; auto: slimpajama if a document arrives, otherwise python-library",
        "--dataset",
        metavar="NAME|PATH",
        fixed=True,
    )
    dataset_config: str | None = _setting(
        None, "configuration of a Hub dataset that has several", "--dataset-config", metavar="NAME", fixed=True
    )
    dataset_split: str = _setting("train", "split of a Hub dataset", "--dataset-split", metavar="NAME", fixed=True)
    dataset_revision: str | None = _setting(
        None, "commit, tag or branch of a Hub dataset", "--dataset-revision", metavar="REV", fixed=True
    )
    text_column: str = _setting(
        "text", "field or column that contains the text", "--text-column", metavar="NAME", fixed=True
    )
    repeat: bool = _setting(False, "start over when the documents run out", "--repeat")
    max_stall: float = _setting(
        30.0,
        "stop after waiting this long in total for a source that does not respond",
        "--max-stall",
        above=0.0,
        metavar="MINUTES",
    )
    tokenizer: str | None = _setting(
        None,
        "SentencePiece model (default: train one on the first 2,000 documents)",
        "--tokenizer",
        metavar="FILE",
        fixed=True,
    )
    vocab_size: int = _setting(
        8192,
        "vocabulary size of the tokenizer that is trained",
        "--vocab-size",
        minimum=300,
        maximum=262_144,
        fixed=True,
    )
    model_size: str | None = _setting(
        None,
        "size of the model (default: small, or that of --pretrained-checkpoint)",
        "--model-size",
        choices=tuple(MODEL_SIZES),
        fixed=True,
        undecided=None,
    )
    initial_learning_rate: float = _setting(
        0.001, "learning rate after the warm-up", "--learning-rate", above=0.0, maximum=10.0, metavar="RATE", typed=True
    )
    warmup_steps: int = _setting(1000, "steps of linear warm-up", "--warmup-steps", minimum=0, typed=True)
    schedule: str = _setting(
        "constant",
        "learning rate after the warm-up; cosine and linear decrease to --min-learning-rate at the end of the run",
        "--schedule",
        choices=("constant", "cosine", "linear"),
        typed=True,
    )
    min_learning_rate: float = _setting(
        0.0,
        "final learning rate of --schedule cosine and linear (default: 0)",
        "--min-learning-rate",
        minimum=0.0,
        metavar="RATE",
        typed=True,
    )
    cooldown_steps: int = _setting(
        0,
        "decrease the learning rate linearly to zero over the last N steps, also in a resumed run (default: none)",
        "--cooldown",
        minimum=0,
        typed=True,
    )
    seed: int = _setting(
        0, "seed of the initial weights and of sampling", "--seed", minimum=0, maximum=2**32 - 1, fixed=True
    )
    dtype: str = _setting(
        "auto",
        "dtype for computation (master weights are always fp32); auto: bf16 where the device supports it natively",
        "--dtype",
        choices=("auto", "fp32", "bf16"),
        typed=True,
        undecided="auto",
    )
    compile: bool | None = _setting(
        None,
        "compile the training step (default: if the run is long enough to finish sooner)",
        "--compile",
        typed=True,
        undecided=None,
    )
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps", "--device", metavar="DEVICE")
    pretrained_checkpoint: str | None = _setting(
        None,
        "start from the weights and the tokenizer of a checkpoint (of a folder: its newest), or of a Qwen3 in a "
        "transformers folder",
        "--pretrained-checkpoint",
        metavar="FILE|FOLDER",
        fixed=True,
    )
    spike: str = _setting(
        "clip",
        "what to do when a loss or gradient norm is far above the running median of documents of the same length; "
        "clip: limit the gradient norm to three times the median; skip: make no update; keep: treat it like any other",
        "--spike",
        choices=("clip", "skip", "keep"),
        typed=True,
    )
    deterministic: bool = _setting(
        False, "on a GPU, use slower kernels that give bit-identical results", "--deterministic", fixed=True
    )
    checkpoint: bool = _setting(True, "save no checkpoints", "--no-checkpoint")
    keep_checkpoints: int = _setting(
        3, "keep the newest N checkpoints and delete older ones", "--keep-checkpoints", minimum=1
    )
    keep_every: int | None = _setting(
        None, "of the older checkpoints, keep those after every N documents (default: none)", "--keep-every", minimum=1
    )
    checkpoint_dir: str = _setting("checkpoints", "folder for the checkpoints", "--checkpoint-dir", metavar="DIR")
    viz_dir: str = _setting(
        "training_viz", "folder for the record: store, charts, JSON files", "--viz-dir", metavar="DIR"
    )
    prompt: tuple[str, ...] = _setting(
        (),
        "also generate a continuation of TEXT at each step of --display-samples (repeatable)",
        "--prompt",
        metavar="TEXT",
    )

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, list):
                object.__setattr__(self, setting.name, tuple(value))
            check_value(setting, getattr(self, setting.name))
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Check here and not in `check_combinations`, because a flag given with --resume can break it too."""
        if self.min_learning_rate and self.schedule == "constant":
            raise UserError(
                f"--min-learning-rate {self.min_learning_rate} requires --schedule cosine or linear: "
                "pass one of them, or --min-learning-rate 0"
            )
        if self.min_learning_rate > self.initial_learning_rate:
            raise UserError(
                f"--min-learning-rate {self.min_learning_rate} must not be above "
                f"--learning-rate {self.initial_learning_rate}"
            )
        if self.cooldown_steps > self.num_steps:
            raise UserError(
                f"--cooldown {self.cooldown_steps} must not be longer than the run, --steps {self.num_steps}"
            )

    @property
    def shape(self) -> ModelShape:
        """The shape of a model that starts with new weights."""
        return MODEL_SIZES[self.model_size or "small"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field name, as a record stores them and a `--config` file may contain them."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


FIELDS: Mapping[str, "dataclasses.Field[Any]"] = types.MappingProxyType(
    {f.name: f for f in dataclasses.fields(TrainingConfig)}
)
TYPES: Mapping[str, Any] = types.MappingProxyType(typing.get_type_hints(TrainingConfig))


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """Return ` (did you mean …?)`, or an empty string if no known word is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def check_value(setting: "dataclasses.Field[Any]", value: Any) -> None:
    """Raise `UserError` unless `value` has the type of the field and is within its bounds."""
    options, name = setting.metadata, f"{setting.metadata['flag']} ({setting.name})"
    wanted = TYPES[setting.name]
    allowed = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    if value is None and types.NoneType in allowed:
        return
    if typing.get_origin(wanted) is tuple:
        fits = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        kind = "a list of strings"
    else:
        kinds = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
        kind = " or ".join(kinds[t] for t in allowed if t in kinds)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = (
            (isinstance(value, bool) and bool in allowed)
            or (isinstance(value, str) and str in allowed)
            or (is_number and (float in allowed or (int in allowed and isinstance(value, int))))
        )
    if not fits:
        kind += f", or null for {options['unbounded']}" if "unbounded" in options else ""
        raise UserError(f"{name} must be {kind}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value}")
    if "minimum" in options and value < options["minimum"]:
        raise UserError(f"{name} must be at least {options['minimum']}, not {value}")
    if "above" in options and value <= options["above"]:
        raise UserError(f"{name} must be above {options['above']:g}, not {value}")
    if "maximum" in options and value > options["maximum"]:
        raise UserError(f"{name} must be at most {options['maximum']}, not {value}")
    if "choices" in options and value not in options["choices"]:
        raise UserError(
            f"{name} must be one of {', '.join(options['choices'])}, not {value!r}{nearest(value, options['choices'])}"
        )
    if setting.name == "device" and not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise UserError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {value!r}")
    if isinstance(value, str) and not value.strip():
        raise UserError(f"{name} must not be empty")
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= character < "\udc80" for character in value)):
        raise UserError(f"{name} contains a character that is not allowed in a file name: {value!a}")
    if setting.name == "prompt":
        for text in value:
            if not text.strip():
                raise UserError("--prompt must not be empty")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError("--prompt is not valid UTF-8")

"""What a run is told: one declaration, from which the flags, their help, the config file's keys and the record come."""

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


MODEL_SIZES: Mapping[str, ModelShape] = types.MappingProxyType(
    {
        "tiny": ModelShape(layers=2, width=64, heads=4, kv_heads=2, head_dim=16, hidden=192),
        "small": ModelShape(layers=6, width=384, heads=6, kv_heads=3, head_dim=64, hidden=1152),
        "base": ModelShape(layers=12, width=768, heads=12, kv_heads=4, head_dim=64, hidden=3584),
        "large": ModelShape(layers=24, width=1024, heads=16, kv_heads=8, head_dim=64, hidden=4096),
    }
)


def size_of(shape: ModelShape) -> str | None:
    """The name in `MODEL_SIZES` of a shape; None for that of a pretrained model that is none of ours."""
    return next((name for name, known in MODEL_SIZES.items() if known == shape), None)


def _setting(default: Any, help: str, flag: str, **options: Any) -> Any:
    """A field of `TrainingConfig` together with its flag. `options` bound its value, see `check_value`."""
    return field(default=default, metadata={"help": help, "flag": flag, **options})


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run. `fixed` fields decide what the run *is*, so a resumed run can't change them."""

    num_steps: int = _setting(
        10000, "documents in all, also when resumed; one document is one step", "--steps", minimum=1
    )
    max_seq_length: int = _setting(
        256,
        "a longer document is cut to N tokens (N-1 predictions)",
        "--max-seq-length",
        minimum=2,
        maximum=32_768,
        fixed=True,
    )
    viz_interval: int = _setting(
        50, "a chart, and fresh JSON files, each time N more documents are done", "--viz-interval", minimum=1
    )
    keep_charts: int = _setting(
        500, "beyond N numbered pictures they thin out, evenly spread over the run", "--keep-charts", minimum=2
    )
    keep_documents: int | None = _setting(
        200_000,
        "tokens and losses stay of the last N documents, of spikes, and of those furthest from what was usual",
        "--keep-documents",
        minimum=1,
        metavar="N|all",
        unbounded="all",
    )
    display_samples: int = _setting(
        50, "let the model write at each step divisible by N, step 0 included", "--display-samples", minimum=1
    )
    evaluation_interval: int | None = _setting(
        None,
        "measure the loss on held-out documents each time N more documents are done, 0: never (default: each 500 in a "
        "run of 1,000 or more, within 2 % of its time)",
        "--evaluation-interval",
        minimum=0,
    )
    probes: bool = _setting(True, "measure no document again 1, 2, 4, 8 … steps after it was trained on", "--no-probes")
    checkpoint_interval: int = _setting(
        2000, "a checkpoint each time N more documents are done", "--checkpoint-interval", minimum=1
    )
    dataset: str = _setting(
        "auto",
        "slimpajama, python-library (embedded, no network), a Hub name, a file, folder or glob; "
        "auto: slimpajama if a document arrives, else python-library",
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
    text_column: str = _setting("text", "column that holds the text", "--text-column", metavar="NAME", fixed=True)
    repeat: bool = _setting(False, "begin again when the documents are used up", "--repeat")
    max_stall: float = _setting(
        30.0, "minutes to wait in all for a source that stopped answering", "--max-stall", above=0.0, metavar="MINUTES"
    )
    tokenizer: str | None = _setting(
        None,
        "SentencePiece model; without it one is trained on the first documents",
        "--tokenizer",
        metavar="FILE",
        fixed=True,
    )
    vocab_size: int = _setting(
        8192, "pieces of a tokenizer that is trained here", "--vocab-size", minimum=300, maximum=262_144, fixed=True
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
    warmup_steps: int = _setting(
        1000, "steps over which the learning rate rises to its full height", "--warmup-steps", minimum=0, typed=True
    )
    schedule: str = _setting(
        "constant",
        "the learning rate after the warm-up; cosine and linear go down to --min-learning-rate at the end of the run",
        "--schedule",
        choices=("constant", "cosine", "linear"),
        typed=True,
    )
    min_learning_rate: float = _setting(
        0.0,
        "what --schedule cosine and linear end at (default: 0)",
        "--min-learning-rate",
        minimum=0.0,
        metavar="RATE",
        typed=True,
    )
    cooldown_steps: int = _setting(
        0,
        "learning rate down linearly to zero over the last N steps, also of a resumed run (default: none)",
        "--cooldown",
        minimum=0,
        typed=True,
    )
    seed: int = _setting(
        0, "seed of the first weights and of what is sampled", "--seed", minimum=0, maximum=2**32 - 1, fixed=True
    )
    dtype: str = _setting(
        "auto",
        "of the weights that compute (fp32 master weights in any case); auto: bf16 where the device has it natively",
        "--dtype",
        choices=("auto", "fp32", "bf16"),
        typed=True,
        undecided="auto",
    )
    compile: bool | None = _setting(
        None,
        "compile the step (default: where the run is long enough to end sooner with it)",
        "--compile",
        typed=True,
        undecided=None,
    )
    device: str = _setting("auto", "auto, cpu, cuda, cuda:N or mps", "--device", metavar="DEVICE")
    pretrained_checkpoint: str | None = _setting(
        None,
        "start from the weights and the tokenizer of a checkpoint (a folder: its newest), or of a Qwen3 in a folder of "
        "transformers",
        "--pretrained-checkpoint",
        metavar="FILE|FOLDER",
        fixed=True,
    )
    spike: str = _setting(
        "clip",
        "what becomes of a gradient, or a loss, far above the running median of documents of its length; "
        "clip: held to three times the median; skip: no update; keep: as any other",
        "--spike",
        choices=("clip", "skip", "keep"),
        typed=True,
    )
    deterministic: bool = _setting(
        False, "slower kernels on a GPU that give the same last bit each time", "--deterministic", fixed=True
    )
    checkpoint: bool = _setting(True, "write no checkpoints", "--no-checkpoint")
    keep_checkpoints: int = _setting(
        3, "the newest N checkpoints stay, older ones are deleted", "--keep-checkpoints", minimum=1
    )
    keep_every: int | None = _setting(
        None, "of the older ones, keep those after each N documents (default: none)", "--keep-every", minimum=1
    )
    checkpoint_dir: str = _setting("checkpoints", "folder of the checkpoints", "--checkpoint-dir", metavar="DIR")
    viz_dir: str = _setting("training_viz", "folder of the record: store, charts, JSON", "--viz-dir", metavar="DIR")
    prompt: tuple[str, ...] = _setting(
        (), "also let the model go on from TEXT at each display step (repeatable)", "--prompt", metavar="TEXT"
    )

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, list):
                object.__setattr__(self, setting.name, tuple(value))
            check_value(setting, getattr(self, setting.name))
        self._check_schedule()

    def _check_schedule(self) -> None:
        """Here and not in `check_combinations`, because a flag typed with --resume can break it too."""
        if self.min_learning_rate and self.schedule == "constant":
            raise UserError(
                f"--min-learning-rate {self.min_learning_rate} is for --schedule cosine or linear: "
                "name one of them, or write --min-learning-rate 0"
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
        """Of a model that begins with new weights."""
        return MODEL_SIZES[self.model_size or "small"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name: what is stored with a run, and what a `--config` file may hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


FIELDS: Mapping[str, "dataclasses.Field[Any]"] = types.MappingProxyType(
    {f.name: f for f in dataclasses.fields(TrainingConfig)}
)
TYPES: Mapping[str, Any] = types.MappingProxyType(typing.get_type_hints(TrainingConfig))


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """` (did you mean …?)`, or nothing where no known word comes close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def check_value(setting: "dataclasses.Field[Any]", value: Any) -> None:
    """Raise `UserError` unless `value` has the field's type and lies within its bounds."""
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
        raise UserError(f"{name} holds a character that no file name can: {value!a}")
    if setting.name == "prompt":
        for text in value:
            if not text.strip():
                raise UserError("--prompt must not be empty")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError("--prompt is not valid UTF-8")

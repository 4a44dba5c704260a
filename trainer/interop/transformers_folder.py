"""Read a Qwen3 folder of Hugging Face's `transformers`, and make the `config.json` of one."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.base.checkpoint_file import STATE_HEADER
from trainer.config import ModelShape
from trainer.data.pretrained_tokenizer import is_byte_level
from trainer.errors import UserError
from trainer.model.language_model import shape_of

_SIZES = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden": "intermediate_size",
    "norm_epsilon": "rms_norm_eps",
}
"""Field of `ModelShape` → key of `config.json`."""

# Key of `config.json` → (the value of our model, the value that transformers uses if the key is missing).
_DESIGN: Mapping[str, tuple[Any, Any]] = {
    "model_type": ("qwen3", None),
    "hidden_act": ("silu", "silu"),
    "tie_word_embeddings": (True, False),
    "attention_bias": (False, False),
    "use_sliding_window": (False, False),
    "quantization_config": (None, None),
}
_DTYPES = ("F32", "BF16", "F16")
_OUTPUT_LAYER = "lm_head.weight"
_LONGEST_TOKENIZER = 50_000_000
_LONGEST_JSON = 10_000_000
"""Bytes. The largest existing models need 33 MB and 4 MB."""

CARRIED = {"max_position_embeddings": int, "eos_token_id": [int]}
"""Settings of the original folder that a checkpoint keeps under `pretrained`; training does not need them."""


def is_transformers_folder(folder: Path) -> bool:
    """Return whether the folder has a `config.json`."""
    return (folder / "config.json").is_file()


def model_config(shape: ModelShape, vocab_size: int) -> dict[str, Any]:
    """Return the keys of `config.json` that describe the model."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        **{key: wanted for key, (wanted, _) in _DESIGN.items() if wanted is not None},
        "vocab_size": vocab_size,
        **{theirs: getattr(shape, ours) for ours, theirs in _SIZES.items()},
        "rope_theta": shape.rope_theta,
        "attention_dropout": 0.0,
    }


def read_transformers_folder(folder: Path) -> dict[str, Any]:
    """Read a folder into a state like a checkpoint's: `model` in float32, `shape`, `vocab_size`, `tokenizer`.

    Only JSON and safetensors are read, so nothing in the folder can run code. Files outside the folder are read only
    through its own links (the Hub's cache consists of links).

    Raises:
        UserError: a file is missing or damaged, or the model has another design.
    """
    config = _read_json(folder / "config.json")
    shape = _shape(config, folder)
    files = _weight_files(folder)
    state = {**STATE_HEADER, "shape": shape, "vocab_size": config.get("vocab_size")}
    shape_of({**state, "model": _headers(files)}, str(folder))
    return {
        **state,
        "model": _weights(files, folder),
        "tokenizer": _tokenizer(folder),
        "pretrained": _carried(config, folder),
    }


def _shape(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of a `ModelShape`. Only the design is checked here, not the sizes."""
    for key, (wanted, usual) in _DESIGN.items():
        if (found := config.get(key, usual)) != wanted:
            there, needed = (json.dumps(value)[:80] for value in (found, wanted))
            raise UserError(f"{folder}: config.json has {key} {there}, but this trainer needs {needed}")
    # Before transformers 5, rope_theta was a separate key and rope_scaling was null.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta"), "rope_type": "default", **(rope if isinstance(rope, dict) else {})}
    if rope.keys() != {"rope_theta", "rope_type"} or rope["rope_type"] != "default":
        raise UserError(
            f"{folder}: config.json scales the rotary embedding ({rope!r:.80}), which this trainer does not support"
        )
    layers = config.get("layer_types") or []
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        raise UserError(f"{folder}: config.json has sliding-window layers, which this trainer does not support")
    missing = [theirs for theirs in ("vocab_size", *_SIZES.values()) if theirs not in config]
    if missing or rope["rope_theta"] is None:
        raise UserError(f"{folder}: config.json does not set {(*missing, 'rope_theta')[0]}")
    return {**{ours: config[theirs] for ours, theirs in _SIZES.items()}, "rope_theta": rope["rope_theta"]}


def _weight_files(folder: Path) -> list[Path]:
    """Return the paths of the folder's safetensors files, without reading them."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if not (folder / "model.safetensors").is_file() and index.is_file():
        shards = _read_json(index).get("weight_map")
        # A name with a path could be any file on this machine.
        if not isinstance(shards, dict) or not shards or not all(_is_shard(name) for name in shards.values()):
            raise UserError(f"{index} must name .safetensors files in its own folder")
        names = set(shards.values())
    for name in sorted(names):
        if not (folder / name).is_file():
            others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
            found = (
                f" ({others[0]} is a pickle file, which is never opened: save the weights as safetensors)"
                if others
                else ""
            )
            raise UserError(f"{folder} has a config.json but no {name}{found}")
    return [folder / name for name in sorted(names)]


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]{1,100}\.safetensors", name, re.ASCII) is not None


def _headers(files: list[Path]) -> dict[str, torch.Tensor]:
    """Return every weight by name, without its data. safetensors refuses files that are smaller than they claim."""
    found: dict[str, torch.Tensor] = {}
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise UserError(
                        f"{path}: {name!r} has dtype {part.get_dtype()}; only {', '.join(_DTYPES)} are supported"
                    )
                if name in found:
                    raise UserError(f"{path}: {name!r} is also in another file of the folder")
                found[name] = torch.empty(part.get_shape(), device="meta")
    return found


def _weights(files: list[Path], folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in files:
        with _opened(path) as file:
            found |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    output, embedding = found.pop(_OUTPUT_LAYER, None), found.get("model.embed_tokens.weight")
    if output is not None and (embedding is None or not torch.equal(output, embedding)):
        raise UserError(
            f"{folder}: {_OUTPUT_LAYER} differs from the embedding, but this trainer uses one weight for both"
        )
    return found


def _opened(path: Path) -> Any:
    import safetensors

    try:
        return safetensors.safe_open(path, framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} can't be read as safetensors: {error}") from None


def _tokenizer(folder: Path) -> bytes:
    """Return the bytes of a byte-level `tokenizer.json`, otherwise of the SentencePiece model of our exports."""
    fast, own = folder / "tokenizer.json", folder / "tokenizer.model"
    if fast.is_file() and is_byte_level(content := _read(fast, _LONGEST_TOKENIZER).lstrip()):
        return content
    if own.is_file():
        return _read(own, _LONGEST_TOKENIZER)
    raise UserError(
        f"{folder} has no usable tokenizer: neither a byte-level tokenizer.json nor a tokenizer.model "
        "(if it was saved from an export of this project, copy tokenizer.model from that export)"
    )


def _carried(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the settings listed in `CARRIED`."""
    generation = folder / "generation_config.json"
    eos = (_read_json(generation) if generation.is_file() else config).get("eos_token_id")
    longest = config.get("max_position_embeddings")
    ids = eos if isinstance(eos, list) else [eos]
    return {
        "max_position_embeddings": longest if type(longest) is int and longest > 0 else 0,
        "eos_token_id": [token for token in ids if type(token) is int and 0 <= token < config["vocab_size"]],
    }


def _read(path: Path, longest: int) -> bytes:
    try:
        if (size := path.stat().st_size) > longest:
            raise UserError(f"{path} is too large: {size:,} bytes, expected at most {longest:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path, _LONGEST_JSON))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object")
    return content

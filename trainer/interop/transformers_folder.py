"""A folder of Hugging Face's `transformers` with a Qwen3 in it: its `config.json` both ways, its weights read."""

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

# What our model is, and what transformers takes where the key is missing.
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
"""Bytes. Of the largest models there are: 33 MB and 4 MB."""

CARRIED = {"max_position_embeddings": int, "eos_token_id": [int]}
"""What a checkpoint keeps, under `pretrained`, of the folder that its run began with: training does not need it."""


def is_transformers_folder(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def model_config(shape: ModelShape, vocab_size: int) -> dict[str, Any]:
    """The keys of `config.json` that say what the model is."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        **{key: wanted for key, (wanted, _) in _DESIGN.items() if wanted is not None},
        "vocab_size": vocab_size,
        **{theirs: getattr(shape, ours) for ours, theirs in _SIZES.items()},
        "rope_theta": shape.rope_theta,
        "attention_dropout": 0.0,
    }


def read_transformers_folder(folder: Path) -> dict[str, Any]:
    """The state of such a folder, as a checkpoint has it: `model` in float32, `shape`, `vocab_size`, `tokenizer`.

    Only JSON and safetensors are read, so that nothing in the folder can run code, and no file outside it but for what
    its own links lead to (the Hub's cache is made of links).

    Raises:
        UserError: a file is missing or damaged, or it holds a model of another design.
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
    """The fields of a `ModelShape`, unchecked but for the design that they belong to."""
    for key, (wanted, usual) in _DESIGN.items():
        if (found := config.get(key, usual)) != wanted:
            there, needed = (json.dumps(value)[:80] for value in (found, wanted))
            raise UserError(f"{folder}: its config.json has {key} {there}, and this trainer needs {needed}")
    # Before transformers 5 rope_theta stood by itself, and rope_scaling was null.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta"), "rope_type": "default", **(rope if isinstance(rope, dict) else {})}
    if rope.keys() != {"rope_theta", "rope_type"} or rope["rope_type"] != "default":
        raise UserError(f"{folder}: its config.json scales the rotary embedding ({rope!r:.80}), which ours does not")
    layers = config.get("layer_types") or []
    if not isinstance(layers, list) or any(kind != "full_attention" for kind in layers):
        raise UserError(f"{folder}: its config.json has layers with a sliding window, and this trainer has none")
    missing = [theirs for theirs in ("vocab_size", *_SIZES.values()) if theirs not in config]
    if missing or rope["rope_theta"] is None:
        raise UserError(f"{folder}: its config.json does not say {(*missing, 'rope_theta')[0]}")
    return {**{ours: config[theirs] for ours, theirs in _SIZES.items()}, "rope_theta": rope["rope_theta"]}


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder, of which nothing is read yet."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if not (folder / "model.safetensors").is_file() and index.is_file():
        shards = _read_json(index).get("weight_map")
        # A name that is a path could be any file of this machine.
        if not isinstance(shards, dict) or not shards or not all(_is_shard(name) for name in shards.values()):
            raise UserError(f"{index} does not name the .safetensors files of its folder")
        names = set(shards.values())
    for name in sorted(names):
        if not (folder / name).is_file():
            others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
            found = f" ({others[0]} is a pickle, which is never opened here: save it as safetensors)" if others else ""
            raise UserError(f"{folder} has a config.json and no {name}{found}")
    return [folder / name for name in sorted(names)]


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w.-]{1,100}\.safetensors", name, re.ASCII) is not None


def _headers(files: list[Path]) -> dict[str, torch.Tensor]:
    """Every weight by name, without its numbers: the library refuses files that are smaller than they claim."""
    found: dict[str, torch.Tensor] = {}
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118  # no mapping
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise UserError(
                        f"{path}: {name!r} is kept as {part.get_dtype()}, and only {', '.join(_DTYPES)} are read"
                    )
                if name in found:
                    raise UserError(f"{path}: {name!r} is in another file of the folder too")
                found[name] = torch.empty(part.get_shape(), device="meta")
    return found


def _weights(files: list[Path], folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in files:
        with _opened(path) as file:
            found |= {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    output, embedding = found.pop(_OUTPUT_LAYER, None), found.get("model.embed_tokens.weight")
    if output is not None and (embedding is None or not torch.equal(output, embedding)):
        raise UserError(f"{folder}: its {_OUTPUT_LAYER} is not its embedding, and this trainer has one for both")
    return found


def _opened(path: Path) -> Any:
    import safetensors

    try:
        return safetensors.safe_open(path, framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} can't be read as safetensors: {error}") from None


def _tokenizer(folder: Path) -> bytes:
    """The bytes of a byte-level `tokenizer.json`, else those of the SentencePiece model that an export of ours has."""
    fast, own = folder / "tokenizer.json", folder / "tokenizer.model"
    if fast.is_file() and is_byte_level(content := _read(fast, _LONGEST_TOKENIZER).lstrip()):
        return content
    if own.is_file():
        return _read(own, _LONGEST_TOKENIZER)
    raise UserError(
        f"{folder} has no tokenizer to use: neither a byte-level tokenizer.json nor a tokenizer.model "
        "(transformers does not save that of an export of ours again: copy it from there)"
    )


def _carried(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """See `CARRIED`."""
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
            raise UserError(f"{path} is too large to be what its name says ({size:,} bytes)")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path, _LONGEST_JSON))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object")
    return content

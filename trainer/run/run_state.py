"""What a checkpoint of a run holds beside the weights, checked before it is used: a file may come from anywhere."""

import types
from collections.abc import Mapping
from typing import Any

from trainer.base.checkpoint_file import are_counts, is_plain

_CURSOR = {"epoch": int, "shard": int, "row": int}
_PLACE = [int, int, int]
_UPDATE = {"step": int, "cursor": _PLACE, "where": str}
_AVERAGE = [float, float]
_NAMES = types.MappingProxyType({str: int})
RUN_STATE: Mapping[str, Any] = types.MappingProxyType(
    {
        "average": types.MappingProxyType({str: is_plain}),
        "config": dict,
        "display": {"first_prompt": [int]},
        "health": {"last_update": (None, _UPDATE), "failures_in_a_row": int, "roll_backs": int},
        "kernels": {"torch": str, "device": str, "cpu": str, "threads": int},
        "optimizer": types.MappingProxyType({str: types.MappingProxyType({str: is_plain})}),
        "probes": {"documents": [{"step": int, "ids": [int]}]},
        "recipe": types.MappingProxyType({str: float}),
        "run_id": str,
        "samples": {"cursor": _CURSOR, "trained": int, "held_out": int, "skipped": _NAMES, "passed_by": [_PLACE]},
        "source": {"name": str, "revision": str, "note": str, "folder": str},
        "stability": {
            "history": types.MappingProxyType({int: is_plain}),
            "counts": types.MappingProxyType({int: int}),
        },
        "step": int,
        "tally": {
            "totals": [int, int, float, float],
            "averages": [_AVERAGE, _AVERAGE, _AVERAGE, _AVERAGE],
            "first": [float],
            "last": [float],
            "texts": [[float, int, [int]]],
            "token_counts": {"counts": are_counts, "sum": float},
        },
        "tokenizer": bytes,
    }
)
"""A type; a dict of what must be there; a mapping of one kind of key to one kind of value (a read-only one); a list of
one kind, or of so many; a tuple of several that will do; a function that says yes."""


def misfit(value: Any, kind: Any = RUN_STATE, name: str = "") -> str:
    """The name of the first part of a state that is missing or of another kind; nothing where all is well."""
    if isinstance(kind, tuple):
        return "" if any(not misfit(value, one, name) for one in kind) else name
    if kind is None:
        return "" if value is None else name
    if isinstance(kind, type):
        fits = isinstance(value, kind) and not (isinstance(value, int) and (isinstance(value, bool) or value < 0))
        return "" if fits else name
    if callable(kind):
        return "" if kind(value) else name
    if isinstance(kind, list):
        kinds = kind if len(kind) > 1 or not isinstance(value, list) else kind * len(value)
        fits = isinstance(value, list) and len(value) == len(kinds)
        parts = [(item, one, f"{name}[]") for item, one in zip(value, kinds, strict=True)] if fits else None
    elif not isinstance(value, dict):
        parts = None
    elif isinstance(next(iter(kind)), str):
        parts = [(value.get(key), one, f"{name}.{key}".lstrip(".")) for key, one in kind.items()]
    else:
        (key_kind, one), *_ = kind.items()
        parts = [(key, key_kind, f"{name}'s keys") for key in value]
        parts += [(item, one, f"{name}.{key}") for key, item in value.items()]
    if parts is None:
        return name or "everything"
    return next((found for part in parts if (found := misfit(*part))), "")

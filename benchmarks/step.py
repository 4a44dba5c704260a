"""The bare step on prepared ids: compared with the roofline, eager, in fp32, on documents of mixed lengths."""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import LENGTH, VOCABULARY, make_step, random_documents, time_steps
from benchmarks.timing import in_words, print_table, ratio, take_turns
from trainer.learning.flops import flops_per_token, peak_flops
from trainer.learning.optimizer import orthogonalize, turn_interval
from trainer.learning.step import TrainingStep

STEPS = 12
"""Steps per measurement."""
ADAMW_BYTES = 28
"""Per weight: read the bf16 gradient, read and write both moments and the master, write the bf16 weight."""


def main(size: str, rounds: int, *, steps: int = STEPS, compile_step: bool = True) -> None:
    documents = random_documents(steps)
    compiled, eager = make_step(size, compiled=compile_step), make_step(size)
    mixed = [ids[: random.Random(number).randint(10, LENGTH)] for number, ids in enumerate(random_documents(40))]
    for ids in [documents[0], *mixed]:
        compiled(ids, 1e-4)  # the first document of each length allocates its memory
        eager(ids, 1e-4)
    fp32 = make_step(size, dtype="fp32", compiled=compile_step)
    fp32(documents[0], 1e-4)
    times = take_turns(
        {
            "compiled": lambda: time_steps(compiled, documents),
            "eager": lambda: time_steps(eager, documents),
            "compiled, fp32": lambda: time_steps(fp32, documents),
            "its operations": lambda: 1000 * operations(compiled, LENGTH - 1) / _peak(compiled),
            "roofline": lambda: 1000 * roofline(compiled, LENGTH - 1),
            "our roofline": lambda: 1000 * _our_roofline(compiled, LENGTH - 1),
            "compiled, a token of 10 to 256": lambda: _per_token(compiled, mixed),
            "compiled, a token of 256": lambda: _per_token(compiled, documents),
        },
        rounds,
    )
    share = {
        name: f"{ratio(times, name, 'compiled'):.2f} of the step"
        for name in ("its operations", "roofline", "our roofline")
    }
    print_table(
        f"`{size}`, {LENGTH} tokens, vocabulary {VOCABULARY:,}",
        [
            ("what", "time", "ratio"),
            ("step, compiled", in_words(times["compiled"]), "1"),
            ("step, eager", in_words(times["eager"]), f"{ratio(times, 'eager', 'compiled'):.2f} × the compiled step"),
            ("step, compiled, fp32", in_words(times["compiled, fp32"]), ""),
            (
                "roofline: products at their peak, memory traffic of AdamW",
                in_words(times["roofline"]),
                share["roofline"],
            ),
            (
                "the same, plus the products of attention and of our update",
                in_words(times["our roofline"]),
                share["our roofline"],
            ),
            (
                "MFU: the products of model and attention at their peak",
                in_words(times["its operations"]),
                share["its operations"],
            ),
            (
                "documents of 10 to 256 tokens, per token",
                in_words(times["compiled, a token of 10 to 256"]),
                f"{ratio(times, 'compiled, a token of 256', 'compiled, a token of 10 to 256'):.2f} × the tokens/s of "
                f"{LENGTH}",
            ),
        ],
    )
    if compiled.device.type == "cpu":  # on a GPU, calls return before their work is done
        _profile(compiled, documents, rounds)


def operations(step: TrainingStep, predictions: int) -> float:
    """Return the operations for that many predictions: products of the model and of attention."""
    per_token, per_token_squared = flops_per_token(step.model.shape, VOCABULARY)
    return per_token * predictions + per_token_squared * predictions**2


def roofline(step: TrainingStep, predictions: int) -> float:
    """Return the seconds of a step with products at their measured peak and AdamW's memory traffic at the bandwidth."""
    shape = step.model.shape
    per_token, _ = flops_per_token(shape, VOCABULARY)
    return per_token * predictions / _peak(step) + ADAMW_BYTES * shape.parameters(VOCABULARY) / bandwidth(step.device)


def _our_roofline(step: TrainingStep, predictions: int) -> float:
    """Return the same plus the products of attention and, averaged over a round of Muon turns, of the update."""
    shape = step.model.shape
    per_token_squared = flops_per_token(shape, VOCABULARY)[1]
    dtype = next(step.model.parameters()).dtype
    with FlopCounterMode(display=False) as counter:
        for matrix in step.optimizer.matrices.values():
            orthogonalize(matrix.detach(), dtype)
    besides = per_token_squared * predictions**2 + counter.get_total_flops() / turn_interval(shape.width)
    return roofline(step, predictions) + besides / _peak(step)


def _peak(step: TrainingStep) -> float:
    """Return the operations per second that the products of this step reach, measured now."""
    dtype = next(step.model.parameters()).dtype
    return peak_flops(step.model.shape, VOCABULARY, step.lengths[-1], dtype=dtype, device=step.device)


def bandwidth(device: torch.device) -> float:
    """Return the bytes per second of reading and writing memory in place, the best of five."""
    values, best = torch.ones(50_000_000, device=device), float("inf")
    for _ in range(5):
        since = time.perf_counter()
        values.mul_(1.0001)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - since)
    return 8 * values.numel() / best


def _per_token(step: TrainingStep, documents: list[list[int]]) -> float:
    """Return the milliseconds per prediction over all documents."""
    since = time.perf_counter()
    for ids in documents:
        step(ids, 1e-4)
    return 1000 * (time.perf_counter() - since) / sum(len(ids) - 1 for ids in documents)


def _profile(step: TrainingStep, documents: list[list[int]], rounds: int) -> None:
    """Print where the time of a step goes, with clocks around its parts in the order in which they run."""
    seconds: dict[str, float] = defaultdict(float)

    def clocked(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            since = time.perf_counter()
            found = call(*given, **named)
            seconds[name] += time.perf_counter() - since
            return found

        return timed

    optimizer: Any = step.optimizer
    parts: list[tuple[str, Any, str]] = [
        ("forward", step.model, "hidden_from"),
        ("output layer and loss", step, "_judge_hidden"),
        ("forward, backward", step, "_gradients"),
        ("gradient norm", step, "_l2_norm"),
        ("spike detector", step._detector, "check"),
        ("update", step, "_update"),
        ("in the update: AdamW", optimizer, "_adamw"),
        ("in the update: momenta", optimizer, "_gather"),
        ("in the update: optimizer in all", optimizer, "step"),
        ("in the update: weight average", step._average, "follow"),
    ]
    for name, owner, attribute in parts:
        setattr(owner, attribute, clocked(name, getattr(owner, attribute)))
    whole = []
    for _ in range(rounds):
        for ids in documents:
            since = time.perf_counter()
            step(ids, 1e-4)
            whole.append(time.perf_counter() - since)
    count, total = len(whole), sum(whole)
    seconds["backward"] = seconds.pop("forward, backward") - seconds["forward"] - seconds["output layer and loss"]
    parts_in_order = ["forward", "output layer and loss", "backward", "gradient norm", "spike detector", "update"]
    seconds["in the update: orthogonalization"] = (
        seconds.pop("in the update: optimizer in all")
        - seconds["in the update: AdamW"]
        - seconds["in the update: momenta"]
    )
    rows = [(name, seconds[name]) for name in parts_in_order]
    rows[len(parts_in_order) :] = [
        (name, seconds[name]) for name in sorted(seconds) if name.startswith("in the update")
    ]
    rows.append(("numbers to Python, and the rest", total - sum(seconds[name] for name in parts_in_order)))
    print_table(
        f"Where the time of a step goes ({1000 * statistics.fmean(whole):.1f} ms)",
        [("part", "ms", "share"), *((name, f"{1000 * s / count:.2f}", f"{s / total:.1%}") for name, s in rows)],
    )

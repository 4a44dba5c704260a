"""The runs of `benchmarks/learning.py`: contenders, data and stored results."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import as_it_comes
from benchmarks.baselines import Documents, PlainStep, transformers_model, transformers_trainer, usual_start
from benchmarks.contenders import own_process
from trainer.base.device import choose_device, choose_dtype, keep_freed_memory
from trainer.config import MODEL_SIZES
from trainer.learning.optimizer import Recipe
from trainer.learning.schedule import warmup_then_constant
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel
from trainer.objectives.next_token import NextToken

LENGTH = 256
RATE = 1e-3
BASELINE_RATES = (1.5e-4, 3e-4, 6e-4, 1e-3)
GOAL = 5000
"""Number of documents after which contenders are compared."""
EVALUATION_INTERVAL = 250
"""Documents between two evaluations up to `GOAL`; ten times as many after it."""
STATE_INTERVAL = 500


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run."""

    contender: str
    """`ours`, `adamw` or `transformers`."""
    rate: float
    seed: int
    documents: int
    size: str = "small"
    warmup: int = 1000

    @property
    def name(self) -> str:
        return f"{self.contender}-{self.size}-{self.rate:.3g}-seed{self.seed}"


def plan(quick: bool) -> list[Run]:
    """Return all runs, the most important first."""
    documents = 1000 if quick else GOAL
    runs = [Run("ours", RATE, 0, documents), *(Run("adamw", rate, 0, documents) for rate in BASELINE_RATES)]
    if quick:
        return runs
    for seed in (1, 2):
        runs += [Run("ours", RATE, seed, GOAL), *(Run("adamw", rate, seed, GOAL) for rate in BASELINE_RATES)]
    for seed in (0, 1, 2):
        runs += [Run("ours", rate, seed, GOAL) for rate in (RATE / 3, RATE * 3)]
        runs += [Run("transformers", rate, seed, GOAL) for rate in BASELINE_RATES]
    runs += [Run("ours", RATE, seed, 20_000) for seed in (0, 1, 2)]
    runs += [Run("ours", rate, 0, GOAL, "tiny") for rate in (RATE / 3, RATE, RATE * 3)]
    runs += [Run("ours", rate, 0, 500, "base", warmup=100) for rate in (RATE / 3, RATE, RATE * 3)]
    return runs


@dataclasses.dataclass(frozen=True)
class Data:
    training: list[list[int]]
    """Ids of the training documents, in order."""
    held_out: list[list[int]]
    vocab_size: int

    @functools.cached_property
    def digest(self) -> str:
        """Hash of all ids in order; it differs between Python versions, because their libraries differ."""
        return hashlib.sha256(json.dumps([self.training, self.held_out]).encode()).hexdigest()[:12]


@functools.cache
def embedded_data() -> Data:
    """Return the documents of the embedded library as a run with default settings reads them."""
    from trainer.data import stdlib_corpus as python_library
    from trainer.data.document_filter import usable_texts, why_unusable
    from trainer.data.document_stream import open_documents
    from trainer.data.sample_stream import hash_text, is_held_out
    from trainer.data.sources import embedded_source
    from trainer.data.tokenizer import Tokenizer, collect_training_texts

    library = python_library.prepare()
    documents = open_documents(
        "python-library", embedded=lambda: embedded_source(library.shards, library.revision), say=print
    )
    documents = dataclasses.replace(documents, repeat=False)
    tokenizer = Tokenizer.train(collect_training_texts(usable_texts(documents)))
    training, held_out = [], []
    for document in documents:
        if not why_unusable(document):
            text = str(document.text)
            ids = tokenizer.encode_prefix(text, LENGTH)
            if len(ids) > 1:
                (held_out if is_held_out(hash_text(text)) else training).append(ids)
    return Data(training, held_out, tokenizer.vocab_size)


@torch.no_grad()
def held_out_nats(model: torch.nn.Module, held_out: Sequence[list[int]]) -> list[float]:
    """Return the nats of each held-out document (sum over its predictions), with our model or one of transformers."""
    device = next(model.parameters()).device
    objective, found = NextToken(), [0.0] * len(held_out)
    order = sorted(range(len(held_out)), key=lambda place: len(held_out[place]))
    for first in range(0, len(order), 8):
        places = order[first : first + 8]
        longest = len(held_out[places[-1]]) - 1
        pairs = [objective.inputs_and_targets(held_out[place], longest) for place in places]
        found_logits = model(torch.stack([inputs for inputs, _ in pairs]).to(device))
        logits = getattr(found_logits, "logits", found_logits).cpu()
        for place, row, (_, targets) in zip(places, logits, pairs, strict=True):
            found[place] = objective.judge(row, targets).token_losses.double().sum().item()
    return [round(nats, 3) for nats in found]


@dataclasses.dataclass(frozen=True)
class Results:
    """The folder that stores the results of runs on the same documents."""

    folder: Path
    data: Data

    def read(self, run: Run) -> dict[str, Any]:
        """Read the stored results of a run; empty ones if it used other documents or another recipe."""
        empty = _empty(run, self.data)
        try:
            kept: dict[str, Any] = json.loads((self.folder / f"{run.name}.json").read_text())
        except FileNotFoundError:
            return empty
        return kept if kept.get("made_with") == empty["made_with"] else empty

    def write(self, run: Run, kept: Mapping[str, Any]) -> None:
        path = self.folder / f"{run.name}.json"
        path.with_suffix(".new").write_text(json.dumps(kept, separators=(",", ":")))
        path.with_suffix(".new").replace(path)


def train(
    run: Run,
    results: Results,
    *,
    goal: int = GOAL,
    evaluation_interval: int = EVALUATION_INTERVAL,
    state_interval: int = STATE_INTERVAL,
) -> None:
    """Train a run, or resume it, and write its losses and evaluations to `NAME.json`."""
    data, device = results.data, choose_device("auto")
    keep_freed_memory()
    kept = _empty(run, data)
    if len(results.read(run)["losses"]) >= run.documents:
        return
    state_file = results.folder / f"{run.name}.state"
    if run.contender == "transformers":
        results.write(run, train_by_transformers(run, data))
        return
    model = LanguageModel(MODEL_SIZES[run.size], data.vocab_size, seed=run.seed)
    if run.contender == "adamw":
        usual_start(model, run.seed)
    kind = PlainStep if run.contender == "adamw" else TrainingStep
    step = kind(model.to(device), dtype=choose_dtype("auto", device), max_seq_length=LENGTH)
    done = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        before = json.loads(state["kept"])
        if before["made_with"] == kept["made_with"]:
            step.load_state_dict(state["step"])
            kept, done = before, state["done"]
    for count in range(done + 1, run.documents + 1):
        ids = data.training[(count - 1) % len(data.training)]
        result = step(ids, warmup_then_constant(count - 1, run.rate, run.warmup))
        kept["losses"].append(round(result.loss, 4) if result.finite else None)
        if count % (evaluation_interval * (1 if count <= goal else 10)) == 0 or count == run.documents:
            kept["held_out"][str(count)] = found = {}
            if run.contender == "ours":
                found["average"] = held_out_nats(step.averaged(), data.held_out)
            if run.contender != "ours" or count in (goal, run.documents):
                found["last"] = held_out_nats(model, data.held_out)
            print(run.name, count, {which: round(mean(nats, data), 4) for which, nats in found.items()}, flush=True)
        if count % state_interval == 0 or count == run.documents:
            unfinished = state_file.with_suffix(".new")
            torch.save({"step": step.state_dict(), "kept": json.dumps(kept), "done": count}, unfinished)
            unfinished.replace(state_file)
            results.write(run, kept)


def mean(nats: Sequence[float], data: Data) -> float:
    """Return the nats per token of the held-out documents."""
    return sum(nats) / sum(len(ids) - 1 for ids in data.held_out)


def train_by_transformers(run: Run, data: Data) -> dict[str, Any]:
    """Train with the `Trainer` of transformers: bf16, batches of one, its own AdamW, clipping and autocast."""
    import transformers

    model = transformers_model(MODEL_SIZES[run.size], data.vocab_size, run.seed)
    kept = _empty(run, data)

    class Watch(transformers.TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            if "loss" in logs:
                kept["losses"].append(round(logs["loss"], 4))

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step % EVALUATION_INTERVAL == 0:
                with torch.autocast(model.device.type, torch.bfloat16):
                    nats = held_out_nats(model, data.held_out)
                kept["held_out"][str(state.global_step)] = {"last": nats}
                print(run.name, state.global_step, round(mean(nats, data), 4), flush=True)

    transformers_trainer(
        model,
        Documents(data.training, run.documents),
        steps=run.documents,
        rate=run.rate,
        warmup=run.warmup,
        seed=run.seed,
        callbacks=[Watch()],
        logging_steps=1,
    ).train()
    return kept


def seconds_per_document(rounds: int = 5, documents: int = 60) -> dict[str, list[float]]:
    """Return seconds per document of ours and of transformers, in turns over the same documents, once per round.

    Each runs in its own process, not compiled.
    """
    data = embedded_data()
    clocks = {"ours": _seconds_of_ours, "transformers": _seconds_of_transformers}
    found: dict[str, list[float]] = {name: [] for name in clocks}
    with own_process() as ours, own_process(as_it_comes) as theirs:
        for number in range(rounds):
            part = data.training[number * documents :][:documents]
            for process, (name, clock) in zip((ours, theirs), clocks.items(), strict=True):
                found[name].append(process.submit(clock, part, data.vocab_size).result())
    return found


def _seconds_of_ours(documents: Sequence[list[int]], vocab_size: int) -> float:
    """Return the mean seconds per document of our step, after the first ten."""
    device = choose_device("auto")
    keep_freed_memory()
    model = LanguageModel(MODEL_SIZES["small"], vocab_size).to(device)
    step = TrainingStep(model, dtype=choose_dtype("auto", device), max_seq_length=LENGTH)
    for ids in documents[:10]:
        step(ids, 1e-6)
    since = time.monotonic()
    for ids in documents[10:]:
        step(ids, 1e-6)
    return (time.monotonic() - since) / len(documents[10:])


def _seconds_of_transformers(documents: Sequence[list[int]], vocab_size: int) -> float:
    """Return the same for the `Trainer` of transformers."""
    import transformers

    ends: list[float] = []

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            ends.append(time.monotonic())

    model, count = transformers_model(MODEL_SIZES["small"], vocab_size, 0), len(documents)
    transformers_trainer(
        model, Documents(documents, count), steps=count, rate=1e-6, warmup=0, seed=0, callbacks=[Clock()]
    ).train()
    return (ends[-1] - ends[9]) / (count - 10)


def _empty(run: Run, data: Data) -> dict[str, Any]:
    """Return the stored results of a run that has not started."""
    recipe = dataclasses.asdict(Recipe.for_width(MODEL_SIZES[run.size].width)) if run.contender == "ours" else {}
    dtype = str(choose_dtype("auto", choose_device("auto"))).removeprefix("torch.")
    return {"made_with": {"data": data.digest, "dtype": dtype, **recipe}, "losses": [], "held_out": {}}

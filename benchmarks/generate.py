"""A hundred tokens written by our cached decoding and by `generate` of transformers, on the same weights."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.baselines import transformers_model
from benchmarks.contenders import VOCABULARY, random_documents
from benchmarks.timing import in_words, print_table, ratio, take_turns
from trainer.config import MODEL_SIZES
from trainer.model import LanguageModel

TOKENS = 100


def main(size: str, rounds: int) -> None:
    prompt = random_documents(1)[0][:10]
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    contenders: dict[str, Callable[[], float]] = {}
    for name, dtype in dtypes.items():
        ours = LanguageModel(MODEL_SIZES[size], VOCABULARY).to(dtype)
        theirs = transformers_model(MODEL_SIZES[size], VOCABULARY, 0)
        theirs.load_state_dict(ours.state_dict(), strict=False)
        theirs = theirs.to(dtype).eval()
        contenders[f"ours, {name}"] = partial(_clock, ours.generate, prompt, len(prompt) + TOKENS, temperature=0)
        contenders[f"transformers, {name}"] = partial(
            _clock,
            theirs.generate,
            torch.tensor([prompt]),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            use_cache=True,
        )
    take_turns(contenders, 1)
    times = take_turns(contenders, rounds)
    rows = [("what", f"{TOKENS} tokens", "ours ÷ theirs")]
    for name in dtypes:
        quotient = f"{ratio(times, f'ours, {name}', f'transformers, {name}'):.2f}"
        rows += [
            (f"ours, {name}", in_words(times[f"ours, {name}"]), quotient),
            (f"`generate` of transformers, {name}", in_words(times[f"transformers, {name}"]), ""),
        ]
    print_table(f"`{size}`, a prompt of {len(prompt)} tokens", rows, device=torch.device("cpu"))


def _clock(write: Callable[..., Any], *given: Any, **named: Any) -> float:
    """Milliseconds of a call."""
    since = time.perf_counter()
    write(*given, **named)
    return 1000 * (time.perf_counter() - since)

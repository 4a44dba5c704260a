"""Time to generate 100 tokens with our cached decoder and with `generate` of transformers, on the same weights."""

import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

import torch

from benchmarks import as_it_comes
from benchmarks.baselines import transformers_model
from benchmarks.contenders import VOCABULARY, own_process, random_documents
from benchmarks.timing import in_words, print_table, ratio, take_turns
from trainer.config import MODEL_SIZES
from trainer.model.language_model import LanguageModel

TOKENS = 100
PROMPT = random_documents(1)[0][:10]


def main(size: str, rounds: int, *, tokens: int = TOKENS) -> None:
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    with own_process() as ours, own_process(as_it_comes) as theirs:
        contenders = {}
        for name, dtype in dtypes.items():
            contenders[f"ours, {name}"] = partial(_ask, ours, time_ours, size, dtype, tokens)
            contenders[f"transformers, {name}"] = partial(_ask, theirs, time_transformers, size, dtype, tokens)
        times = take_turns(contenders, rounds)
    rows = [("what", f"{tokens} tokens", "ours ÷ transformers")]
    for name in dtypes:
        quotient = f"{ratio(times, f'ours, {name}', f'transformers, {name}'):.2f}"
        rows += [
            (f"ours, {name}", in_words(times[f"ours, {name}"]), quotient),
            (f"`generate` of transformers, {name}", in_words(times[f"transformers, {name}"]), ""),
        ]
    print_table(f"`{size}`, a prompt of {len(PROMPT)} tokens", rows, device=torch.device("cpu"))


def _ask(process: Executor, clock: Callable[..., float], *arguments: object) -> float:
    return process.submit(clock, *arguments).result()


def time_ours(size: str, dtype: torch.dtype, tokens: int) -> float:
    """Return the milliseconds of our second call; the first one warms up."""
    model = LanguageModel(MODEL_SIZES[size], VOCABULARY).to(dtype)
    for _ in range(2):
        since = time.perf_counter()
        model.generate(PROMPT, len(PROMPT) + tokens, temperature=0)
    return 1000 * (time.perf_counter() - since)


def time_transformers(size: str, dtype: torch.dtype, tokens: int) -> float:
    """Return the milliseconds of the second call of `generate`."""
    model = transformers_model(MODEL_SIZES[size], VOCABULARY, 0)
    model.load_state_dict(LanguageModel(MODEL_SIZES[size], VOCABULARY).state_dict(), strict=False)
    model = model.to(dtype).eval()
    for _ in range(2):
        since = time.perf_counter()
        model.generate(
            torch.tensor([PROMPT]),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
        )
    return 1000 * (time.perf_counter() - since)

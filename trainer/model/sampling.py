"""Tokens out of any forward that remembers what it has read: temperature, top-k, its own random generator."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def sample_tokens(
    next_logits: Callable[[list[int]], Tensor],
    prompt_ids: Sequence[int],
    count: int,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Iterator[int]:
    """Yield `count` token ids that continue the prompt, one as soon as it is chosen.

    Chosen on the CPU with a generator of its own, so the same logits and seed give the same tokens on every device, and
    nobody else's random numbers are used up. The last token is not read by the model: nothing comes after it.

    Args:
        next_logits: reads ids behind all those it was given before; returns the (V,) logits of the token that follows.
        prompt_ids: at least one id.
        temperature: divides the logits; 0 takes the most likely token each time.
        top_k: choose among the k most likely tokens; None for all.
        seed: of the generator, any 64-bit integer.

    Raises:
        ValueError: empty prompt, negative temperature, or top_k below 1.
        FloatingPointError: the model's logits are NaN or infinite.
    """
    if not prompt_ids:
        raise ValueError("the prompt is empty: the model needs a token to go on from")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a number from 0 on, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    return _sample(next_logits, list(prompt_ids), count, temperature, top_k, torch.Generator().manual_seed(seed))


def _sample(
    next_logits: Callable[[list[int]], Tensor],
    unread: list[int],
    count: int,
    temperature: float,
    top_k: int | None,
    generator: torch.Generator,
) -> Iterator[int]:
    for _ in range(count):
        token = choose_token(next_logits(unread), temperature, top_k, generator)
        yield token
        unread = [token]


def choose_token(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    """Draw one token id from (V,) logits with a generator on the CPU; for the rest see `sample_tokens`."""
    logits = logits.detach().float().cpu()
    candidates = 1 if temperature == 0 else min(top_k or len(logits), len(logits))
    values, ids = logits.topk(candidates)  # descending; a NaN counts as the largest
    best = values[0].item()
    if best - best != 0:
        raise FloatingPointError(f"the model's logits are not finite ({best})")
    if candidates == 1:
        return int(ids[0])
    # The largest is taken off before dividing, so that a tiny temperature makes zeros of the others and not inf - inf.
    probabilities = ((values - best) / temperature).softmax(dim=0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])

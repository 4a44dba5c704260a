"""Generation: choose tokens from logits, and compute logits for one new token at a time with a key-value cache."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelShape
from trainer.model.transformer import (
    Attention,
    Decoder,
    Embedding,
    FeedForward,
    Layer,
    LayerCache,
    Matrix,
    RMSNorm,
    attend,
    rotary_tables,
)

Product = Callable[[Tensor], Tensor]
"""(1, inputs) → (1, outputs): a product with a fixed weight."""


def sample_tokens(
    next_logits: Callable[[list[int]], Tensor],
    prompt_ids: Sequence[int],
    count: int,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> Iterator[int]:
    """Yield `count` token ids that continue the prompt, each as soon as it is chosen.

    Tokens are drawn on the CPU with a private generator. The same logits and seed therefore give the same tokens on
    every device, and the global random state does not change. The model does not read the last token.

    Args:
        next_logits: appends ids to those it was given before; returns the (V,) logits of the token that follows.
        prompt_ids: at least one id.
        temperature: divides the logits; 0 takes the most likely token each time.
        top_k: choose among the k most likely tokens; None for all.
        seed: seed of the generator, any 64-bit integer.

    Raises:
        ValueError: empty prompt, negative temperature, or top_k below 1.
        FloatingPointError: the model's logits are NaN or infinite.
    """
    if not prompt_ids:
        raise ValueError("the prompt is empty: pass at least one token")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be finite and at least 0, not {temperature}")
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
    """Draw one token id from (V,) logits with a CPU generator; the other arguments are those of `sample_tokens`."""
    logits = logits.detach().float().cpu()
    candidates = 1 if temperature == 0 else min(top_k or len(logits), len(logits))
    values, ids = logits.topk(candidates)  # descending; a NaN counts as the largest
    best = values[0].item()
    if best - best != 0:
        raise FloatingPointError(f"the model's logits are not finite ({best})")
    if candidates == 1:
        return int(ids[0])
    # Subtract the largest before dividing: a tiny temperature then gives zeros and not inf - inf.
    probabilities = ((values - best) / temperature).softmax(dim=0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


class CachedDecoder:
    """A decoder that keeps the keys and values of the tokens it has read. The weights must not change meanwhile."""

    def __init__(self, decoder: Decoder, shape: ModelShape, capacity: int) -> None:
        """
        Args:
            capacity: number of tokens to allocate memory for; it grows when needed.
        """
        weight = decoder.embed_tokens.weight.detach()
        self._decoder = decoder
        self._shape = shape
        self._tables = rotary_tables(shape, capacity, weight.device)
        self._caches = [LayerCache(shape, capacity, weight) for _ in decoder.layers]
        self._length = 0
        self._is_plain = all(type(module) in PLAIN for module in decoder.modules())
        self._single_token: _SingleTokenDecoder | None = None

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Append `ids` to those read before; return the (V,) logits of the token that follows."""
        start, self._length = self._length, self._length + len(ids)
        if self._length > self._tables.shape[1]:
            self._tables = rotary_tables(self._shape, 2 * self._length, self._tables.device)
        tables = self._tables[:, start : self._length]
        embedded = self._decoder.embed_tokens(torch.tensor([ids], device=tables.device))
        if len(ids) > 1 or not self._is_plain:
            hidden = self._decoder(embedded, tables, start, self._caches)[0, -1]
            return F.linear(hidden, self._decoder.embed_tokens.weight)
        if self._single_token is None:
            self._single_token = _SingleTokenDecoder(self._decoder, self._shape)
        return self._single_token(embedded[0], tables, start, self._caches)[0]


PLAIN = {Decoder, nn.ModuleList, Layer, Attention, FeedForward, Matrix, Embedding, RMSNorm}
"""The modules that `_SingleTokenDecoder` reimplements. A model with any other module, such as LoRA, runs as it is."""


class _SingleTokenDecoder:
    """`Decoder.forward` for one token, in fewer torch calls: for a single row, a call costs as much as its arithmetic.

    The gains of queries and keys are folded into the rotary tables, and both are rotated in one operation. Keeps a
    second copy of the weights, in the layout that `product` uses.
    """

    def __init__(self, decoder: Decoder, shape: ModelShape) -> None:
        self._shape = shape
        layers: list[Layer] = [*decoder.layers]
        attention, feed_forward = [layer.self_attn for layer in layers], [layer.mlp for layer in layers]
        heads, kv_heads = shape.heads, shape.kv_heads
        self._gains = torch.stack(
            [
                torch.cat([a.q_norm.weight.expand(heads, -1), a.k_norm.weight.expand(kv_heads, -1)]).float()
                for a in attention
            ]
        )
        """(layers, heads + kv_heads, head_dim)."""
        self._opposite_gains = self._gains.roll(shape.head_dim // 2, dims=-1)
        """The gain of the dimension that each dimension rotates with."""
        self._first_gains = [layer.input_layernorm.weight for layer in layers]
        self._second_gains = [layer.post_attention_layernorm.weight for layer in layers]
        self._last_gain = decoder.norm.weight
        self._to_heads = [
            product(_joined_weight(a.joined, [a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])) for a in attention
        ]
        self._from_heads = [product(block.o_proj.weight) for block in attention]
        self._gate_up = [
            product(_joined_weight(block.joined, [block.gate_proj.weight, block.up_proj.weight]))
            for block in feed_forward
        ]
        self._down = [product(block.down_proj.weight) for block in feed_forward]
        self._output = product(decoder.embed_tokens.weight)

    def __call__(self, x: Tensor, tables: Tensor, start: int, caches: Sequence[LayerCache]) -> Tensor:
        """(1, width) → logits (1, V) at position `start`; `tables` is (2, 1, 1, head_dim/2)."""
        shape = self._shape
        rotated = shape.heads + shape.kv_heads
        cosine, sine = tables[:, 0]
        cosines = (self._gains * torch.cat([cosine, cosine], dim=-1)).unbind()
        sines = (self._opposite_gains * torch.cat([-sine, sine], dim=-1)).unbind()
        for number, cache in enumerate(caches):
            normal = self._normal(x, self._first_gains[number])
            heads = self._to_heads[number](normal).view(-1, shape.head_dim)
            unit = self._normal(heads[:rotated].float(), None)
            opposite = unit.roll(shape.head_dim // 2, dims=-1)
            queries_keys = torch.addcmul(unit * cosines[number], opposite, sines[number]).to(x.dtype)
            queries = queries_keys[: shape.heads].view(1, shape.heads, 1, shape.head_dim)
            keys, values = (
                part.view(1, shape.kv_heads, 1, shape.head_dim)
                for part in (queries_keys[shape.heads :], heads[rotated:])
            )
            mixed = attend(queries, *cache.append(start, keys, values))
            x = x + self._from_heads[number](mixed.reshape(1, -1))
            gate, up = self._gate_up[number](self._normal(x, self._second_gains[number])).chunk(2, dim=-1)
            x = x + self._down[number](F.silu(gate) * up)
        return self._output(self._normal(x, self._last_gain))

    def _normal(self, x: Tensor, gain: Tensor | None) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], gain, self._shape.norm_epsilon)


def _joined_weight(joined: Tensor | None, matrices: list[Tensor]) -> Tensor:
    return torch.cat(matrices) if joined is None else joined


def product(weight: Tensor) -> Product:
    """Return a function that maps rows x to x @ weight.T. The weight must not change afterwards.

    On a CPU it uses oneDNN with a copy in oneDNN's own layout, as `torch.compile` does for frozen weights. `F.linear`
    would reorder a bf16 weight for every row, and multiply an fp32 row by MKL, which takes twice as long.
    """
    return _onednn_product(weight) or (lambda x: F.linear(x, weight))


def _onednn_product(weight: Tensor) -> Product | None:
    """The same by oneDNN, or None where this torch, CPU or dtype does not support it.

    These operators are private to torch, so any of them may be missing or have other arguments in another version.
    """
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    try:
        operators: Any = torch.ops.mkldnn
        if weight.dtype == torch.bfloat16 and not operators._is_mkldnn_bf16_supported():
            return None
        multiply, packed = operators._linear_pointwise, operators._reorder_linear_weight(weight.detach(), 1)
        multiply(weight.new_zeros(1, weight.shape[1]), packed, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return None
    return lambda x: multiply(x, packed, None, "none", [], "")

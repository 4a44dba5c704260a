"""`CachedDecoder`: a decoder that keeps what it has read, and reads on one token at a time."""

from collections.abc import Callable, Sequence

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
PLAIN = {Decoder, nn.ModuleList, Layer, Attention, FeedForward, Matrix, Embedding, RMSNorm}
"""The modules that `_ByToken` says in other words."""


class CachedDecoder:
    """Keys and values of what was read, and rotary tables of its own length. The weights must stay as they are."""

    def __init__(self, decoder: Decoder, shape: ModelShape, capacity: int) -> None:
        """
        Args:
            capacity: tokens that there is memory for at the beginning; it grows.
        """
        weight = decoder.embed_tokens.weight.detach()
        self._decoder = decoder
        self._shape = shape
        self._tables = rotary_tables(shape, capacity, weight.device)
        self._caches = [LayerCache(shape, capacity, weight) for _ in decoder.layers]
        self._length = 0
        self._is_plain = all(type(module) in PLAIN for module in decoder.modules())
        self._by_token: _ByToken | None = None

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Logits (V,) of the token that follows `ids`, which stand behind all those read before."""
        start, self._length = self._length, self._length + len(ids)
        if self._length > self._tables.shape[1]:
            self._tables = rotary_tables(self._shape, 2 * self._length, self._tables.device)
        tables = self._tables[:, start : self._length]
        embedded = self._decoder.embed_tokens(torch.tensor([ids], device=tables.device))
        if len(ids) > 1 or not self._is_plain:
            hidden = self._decoder(embedded, tables, start, self._caches)[0, -1]
            return F.linear(hidden, self._decoder.embed_tokens.weight)
        if self._by_token is None:
            self._by_token = _ByToken(self._decoder, self._shape)
        return self._by_token(embedded[0], tables, start, self._caches)[0]


class _ByToken:
    """`Decoder.forward` for one token, in fewer calls of torch: for one row they take as long as the arithmetic.

    The gains of queries and keys are multiplied into the rotary tables, and both are turned as one. Needs the weights
    once more, as `product` keeps them.
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
        """Of the dimension that each one turns with."""
        self._first_gains = [layer.input_layernorm.weight for layer in layers]
        self._second_gains = [layer.post_attention_layernorm.weight for layer in layers]
        self._last_gain = decoder.norm.weight
        self._to_heads = [
            product(_whole(a.joined, [a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])) for a in attention
        ]
        self._from_heads = [product(block.o_proj.weight) for block in attention]
        self._gate_up = [
            product(_whole(block.joined, [block.gate_proj.weight, block.up_proj.weight])) for block in feed_forward
        ]
        self._down = [product(block.down_proj.weight) for block in feed_forward]
        self._output = product(decoder.embed_tokens.weight)

    def __call__(self, x: Tensor, tables: Tensor, start: int, caches: Sequence[LayerCache]) -> Tensor:
        """(1, width) → logits (1, V) behind `start` tokens; `tables` is (2, 1, 1, head_dim/2)."""
        shape = self._shape
        turning = shape.heads + shape.kv_heads
        cosine, sine = tables[:, 0]
        cosines = (self._gains * torch.cat([cosine, cosine], dim=-1)).unbind()
        sines = (self._opposite_gains * torch.cat([-sine, sine], dim=-1)).unbind()
        for number, cache in enumerate(caches):
            normal = self._normal(x, self._first_gains[number])
            heads = self._to_heads[number](normal).view(-1, shape.head_dim)
            unit = self._normal(heads[:turning].float(), None)
            opposite = unit.roll(shape.head_dim // 2, dims=-1)
            turned = torch.addcmul(unit * cosines[number], opposite, sines[number]).to(x.dtype)
            queries = turned[: shape.heads].view(1, shape.heads, 1, shape.head_dim)
            keys, values = (
                part.view(1, shape.kv_heads, 1, shape.head_dim) for part in (turned[shape.heads :], heads[turning:])
            )
            mixed = attend(queries, *cache.append(start, keys, values))
            x = x + self._from_heads[number](mixed.reshape(1, -1))
            gate, up = self._gate_up[number](self._normal(x, self._second_gains[number])).chunk(2, dim=-1)
            x = x + self._down[number](F.silu(gate) * up)
        return self._output(self._normal(x, self._last_gain))

    def _normal(self, x: Tensor, gain: Tensor | None) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], gain, self._shape.norm_epsilon)


def _whole(joined: Tensor | None, matrices: list[Tensor]) -> Tensor:
    return torch.cat(matrices) if joined is None else joined


def product(weight: Tensor) -> Product:
    """x → x @ weight.T for rows x, of a weight that stays as it is.

    On a CPU by oneDNN from a copy that is laid out for it (what `torch.compile` does to frozen weights): a row in bf16
    has the weight laid out anew else, and one in fp32 is made by MKL, which takes twice as long.
    """
    if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        operators = torch.ops.mkldnn
        if weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported()):
            packed = operators._reorder_linear_weight(weight.detach(), 1)
            return lambda x: operators._linear_pointwise(x, packed, None, "none", [], "")
    return lambda x: F.linear(x, weight)

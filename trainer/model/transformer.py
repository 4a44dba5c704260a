"""The blocks of a decoder-only transformer with the Qwen3 architecture (arXiv 2505.09388, section 2)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import ModelShape


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, with statistics in float32 (arXiv 1910.07467, equation 4)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)

    def in_fp32(self, x: Tensor) -> Tensor:
        """The same with a float32 result, for further steps in float32."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.epsilon)


def rotary_tables(shape: ModelShape, length: int, device: torch.device) -> Tensor:
    """Return cosines and sines of the rotary embedding (arXiv 2104.09864, equation 34) for positions 0 ... length-1.

    Shape (2, length, 1, head_dim/2), float32: dimension i rotates with i + head_dim/2.
    """
    frequencies = 1.0 / shape.rope_theta ** (torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).unsqueeze(2).to(device)


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Rotate (B, T, H, head_dim) float32 by the angles of its T positions: `tables` is (2, T, 1, head_dim/2).

    Uses halves instead of `roll`: compiled `roll` reads one number at a time, which costs 3 % of a step of `small`.
    """
    first, second = x.chunk(2, dim=-1)
    cosines, sines = tables
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


class RotaryTables(nn.Module):
    """The rotary tables of the training graph: on the model's device, and always float32."""

    tables: Tensor

    def __init__(self, shape: ModelShape, length: int) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("tables", rotary_tables(shape, length, torch.device("cpu")), persistent=False)

    def forward(self, length: int) -> Tensor:
        if length > self.tables.shape[1]:
            # Always more rows than requested: a slice of all rows has other strides than a shorter one, and a compiled
            # layer would need another graph for it.
            self._fill(2 * length + 1, self.tables.device)
        return self.tables[:, :length]

    def _fill(self, length: int, device: torch.device) -> None:
        # An inference tensor created during an evaluation would be rejected by the next training step.
        with torch.inference_mode(False):
            self.tables = rotary_tables(self.shape, length, device)

    def _apply(self, fn: Any, recurse: bool = True) -> "RotaryTables":
        # `.to(bfloat16)` would cast this buffer, and bf16 can't represent positions above 256. So `fn` is applied to an
        # empty tensor, and only the resulting device is used.
        self._fill(self.tables.shape[1], fn(self.tables.new_empty(0)).device)
        return self


class LayerCache:
    """Keys and values of one layer for the tokens read so far, (1, kv_heads, capacity, head_dim) each.

    The capacity doubles when it is full, because the length of a text may be unlimited.
    """

    def __init__(self, shape: ModelShape, capacity: int, weight: Tensor) -> None:
        self.keys = weight.new_empty(1, shape.kv_heads, capacity, shape.head_dim)
        self.values = torch.empty_like(self.keys)

    def append(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (1, kv_heads, T, head_dim) at positions start ... start+T-1; return everything up to there."""
        end = start + keys.shape[2]
        capacity = self.keys.shape[2]
        if end > capacity:
            padding = (0, 0, 0, max(end, 2 * capacity) - capacity)
            self.keys, self.values = F.pad(self.keys, padding), F.pad(self.values, padding)
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the last T of S tokens to all S (arXiv 1706.03762, equation 1).

    queries (B, heads, T, head_dim), keys and values (B, kv_heads, S, head_dim) → (B, heads, T, head_dim). Each
    heads/kv_heads neighbouring query heads share a key head (arXiv 2305.13245).
    """
    batch, heads, length, head_dim = queries.shape
    kv_heads, reach = keys.shape[1], keys.shape[2]
    if length == 1:  # no mask needed: the query heads of a group act as positions, which avoids copies
        grouped = queries.reshape(batch, kv_heads, -1, head_dim)
        # `reshape`, because a GPU's fp32 kernel returns another memory layout.
        return F.scaled_dot_product_attention(grouped, keys, values).reshape(batch, heads, 1, head_dim)
    if queries.device.type == "cpu" and length == reach <= 512:
        # With the CPU's flash attention, a step of `small` on 256 tokens takes 10 % longer in bf16, and 7 % in fp32 by
        # oneDNN. Written out, the (T, T) scores need memory, and bf16 rounds them, so this is not for long texts.
        group = heads // kv_heads
        future = queries.new_full((length, length), -torch.inf).triu(1).repeat(group, 1)
        scores = torch.baddbmm(
            future,
            queries.reshape(batch * kv_heads, group * length, head_dim),
            keys.reshape(batch * kv_heads, length, head_dim).transpose(1, 2),
            alpha=head_dim**-0.5,
        )
        mixed = scores.softmax(dim=-1) @ values.reshape(batch * kv_heads, length, head_dim)
        return mixed.view(batch, heads, length, head_dim)
    if length == reach:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    visible = torch.ones(length, reach, dtype=torch.bool, device=queries.device).tril(reach - length)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible, enable_gqa=True)


class Matrix(nn.Linear):
    """A linear layer without bias that does not draw initial weights: `LanguageModel.initialize` does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """An embedding that does not draw initial weights."""

    def reset_parameters(self) -> None:
        pass


def join(matrices: Sequence[Matrix]) -> Tensor:
    """Store the weights of all matrices in one tensor (rows of all, columns), for one product. Return the tensor."""
    whole = torch.cat([matrix.weight.detach() for matrix in matrices])
    for matrix, rows in zip(matrices, torch.split(whole, [matrix.out_features for matrix in matrices]), strict=True):
        matrix.weight.data = rows
    return whole


class Attention(nn.Module):
    """Causal grouped-query attention with normalized queries and keys."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = Matrix(shape.width, shape.heads * shape.head_dim)
        self.k_proj = Matrix(shape.width, shape.kv_heads * shape.head_dim)
        self.v_proj = Matrix(shape.width, shape.kv_heads * shape.head_dim)
        self.o_proj = Matrix(shape.heads * shape.head_dim, shape.width)
        self.joined: Tensor | None = None
        """The weights of the three above in one tensor, after `join_products`."""
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_epsilon)
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_epsilon)

    def forward(self, x: Tensor, tables: Tensor, start: int = 0, cache: LayerCache | None = None) -> Tensor:
        batch, length, _ = x.shape
        split = (batch, length, -1, self.shape.head_dim)
        queries, keys, values = (found.view(split) for found in self._project(x))
        queries = rotate(self.q_norm.in_fp32(queries), tables).to(x.dtype).transpose(1, 2)
        keys = rotate(self.k_norm.in_fp32(keys), tables).to(x.dtype).transpose(1, 2)
        values = values.transpose(1, 2)
        if cache is not None:
            keys, values = cache.append(start, keys, values)
        mixed = attend(queries, keys, values)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return output

    def _project(self, x: Tensor) -> Sequence[Tensor]:
        if self.joined is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        key_width = self.shape.kv_heads * self.shape.head_dim
        return torch.split(F.linear(x, self.joined), [self.o_proj.in_features, key_width, key_width], dim=-1)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202, equation 6)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate_proj = Matrix(shape.width, shape.hidden)
        self.up_proj = Matrix(shape.width, shape.hidden)
        self.down_proj = Matrix(shape.hidden, shape.width)
        self.joined: Tensor | None = None
        """The weights of gate and up in one tensor, after `join_products`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.joined is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = F.linear(x, self.joined).chunk(2, dim=-1)
        output: Tensor = self.down_proj(F.silu(gate) * up)
        return output


class Layer(nn.Module):
    """Attention, then feed-forward, each on a normalized input and added to the stream."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = RMSNorm(shape.width, shape.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(shape.width, shape.norm_epsilon)

    def forward(self, x: Tensor, tables: Tensor, start: int = 0, cache: LayerCache | None = None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tables, start, cache)
        output: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return output


class Decoder(nn.Module):
    """The embedding (also the output layer), the layers and the last norm.

    Attribute names are those of `Qwen3ForCausalLM`, so the weights have the same names.
    """

    def __init__(self, shape: ModelShape, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(vocab_size, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.norm_epsilon)

    def forward(
        self,
        x: Tensor,
        tables: Tensor,
        start: int = 0,
        caches: Sequence[LayerCache] | None = None,
        layers: Sequence[Callable[..., Tensor]] | None = None,
    ) -> Tensor:
        """(B, T, width) → (B, T, width), starting from the embedded tokens. `layers`: compiled layers, if any."""
        for index, layer in enumerate(layers or list(self.layers)):
            x = layer(x, tables, start, None if caches is None else caches[index])
        output: Tensor = self.norm(x)
        return output

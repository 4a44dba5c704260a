"""`LanguageModel`: ids to logits, a prompt to text, weights to and from disk."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.base.checkpoint_file import STATE_HEADER, read_state, write_state
from trainer.config import ModelShape
from trainer.errors import Diverged, UserError
from trainer.model.sampling import CachedDecoder, sample_tokens
from trainer.model.transformer import Decoder, RotaryTables, join


class LanguageModel(nn.Module):
    """A language model over `vocab_size` tokens, in float32 or bfloat16, on any device.

    Parameters carry the names and shapes of Hugging Face's `Qwen3ForCausalLM` with tied embeddings (the output layer is
    the embedding and is not stored twice), so weights are exchanged by `state_dict`.
    """

    def __init__(self, shape: ModelShape, vocab_size: int, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.vocab_size = vocab_size
        self.model = Decoder(shape, vocab_size)
        self.rotary = RotaryTables(shape, length=1025)
        self.initialize(seed)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    def initialize(self, seed: int) -> None:
        """Draw new weights: norms are ones, what a block adds to its input is zero, all else is normal(0, 0.02), in the
        order of `parameters()`.

        From one generator on the CPU, so the same seed gives the same weights on every device, whatever random numbers
        others drew before. The whole recipe is the loop below.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.fill_(1.0)
                elif name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.zero_()  # a block begins as nothing, and does not drown the token it stands on
                else:
                    parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))

    def join_products(self) -> list[tuple[Tensor, list[str]]]:
        """From now on what reads the same input is one product, of a tensor that holds the values of its parameters.

        To be asked for when the model has its dtype and its device: another `to` would part them again.

        Returns:
            Each such tensor, which is no parameter, and the names of those that its rows now are, from above.
        """
        found = []
        for number, layer in enumerate(self.model.layers):
            for block, names in (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj"))):
                owner = getattr(layer, block)
                owner.joined = join([getattr(owner, name) for name in names])
                found.append((owner.joined, [f"model.layers.{number}.{block}.{name}.weight" for name in names]))
        return found

    def hidden(self, ids: Tensor) -> Tensor:
        """(B, T) int64 → (B, T, width), what the output layer reads. No token has an effect on those left of it."""
        return self.hidden_from(self.embed(ids))

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) int64 → (B, T, width), the rows of the embedding."""
        embedded: Tensor = self.model.embed_tokens(ids)
        return embedded

    def hidden_from(self, embedded: Tensor, layers: Sequence[Callable[..., Tensor]] | None = None) -> Tensor:
        """(B, T, width) → (B, T, width): `hidden` from what `embed` gave. `layers`: the model's own, compiled."""
        output: Tensor = self.model(embedded, self.rotary(embedded.shape[1]), layers=layers)
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width) → (..., V) in the working dtype."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) int64 → logits (B, T, V) in the working dtype."""
        return self.logits(self.hidden(ids))

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_length: int,
        *,
        temperature: float = 0.8,
        top_k: int | None = 50,
        seed: int = 0,
    ) -> list[int]:
        """The prompt and its continuation, `max_length` ids in all (a longer prompt comes back as it is).

        Sampled with temperature 0.8 among the 50 most likely tokens, with a generator of its own: the same seed gives
        the same text. Temperature 0 takes the most likely token. Weights, gradients, training mode and the global
        random generators stay as they are.

        Raises:
            ValueError: empty prompt, or an id that is no token.
            FloatingPointError: the logits are not finite.
        """
        continuation = self.stream(prompt_ids, max_length, temperature=temperature, top_k=top_k, seed=seed)
        return [*prompt_ids, *continuation]

    def stream(
        self,
        prompt_ids: Sequence[int],
        max_length: int,
        *,
        temperature: float = 0.8,
        top_k: int | None = 50,
        seed: int = 0,
    ) -> Iterator[int]:
        """`generate`, one id of the continuation at a time. The weights must stay as they are meanwhile."""
        unknown = [token for token in prompt_ids if not 0 <= token < self.vocab_size]
        if unknown:
            raise ValueError(f"prompt id {unknown[0]} is no token: ids go from 0 to {self.vocab_size - 1}")
        decoder = CachedDecoder(self.model, self.shape, capacity=min(max(max_length, len(prompt_ids)), 1024))
        return sample_tokens(
            decoder.read,
            prompt_ids,
            max_length - len(prompt_ids),
            temperature=temperature,
            top_k=top_k,
            seed=seed,
        )

    def checkpoint_state(self) -> dict[str, Any]:
        """What `save_checkpoint` writes; a whole training checkpoint is this with more keys.

        `model` holds every parameter by name as float32 on the CPU (of a float32 model on the CPU: its own memory).
        """
        return {
            **STATE_HEADER,
            "shape": dataclasses.asdict(self.shape),
            "vocab_size": self.vocab_size,
            "model": {name: weight.detach().float().cpu() for name, weight in self.named_parameters()},
        }

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the weights, whole or not at all. Raises OSError when that fails; an earlier file is then untouched."""
        state = self.checkpoint_state()
        write_state(Path(path), state)

    def load_checkpoint(self, path: str | Path) -> None:
        """Take over the weights of a file by `save_checkpoint` or of a training checkpoint; dtype and device stay.

        Raises:
            UserError: no such file, not a checkpoint, damaged, or of another shape. The weights are then as before.
        """
        self.take_weights(read_state(path), str(path))

    @classmethod
    def from_checkpoint(cls, source: str | Path | Mapping[str, Any]) -> "LanguageModel":
        """The model of a checkpoint, float32 on the CPU. `source`: a file, or what was read from one.

        Raises:
            UserError: as `load_checkpoint`.
        """
        state, name = (source, "checkpoint") if isinstance(source, Mapping) else (read_state(source), str(source))
        model = cls(*shape_of(state, name))
        model.take_weights(state, name)
        return model

    def take_weights(self, state: Mapping[str, Any], name: str) -> None:
        """Take over the weights of a state that was read.

        Raises:
            UserError: they do not fit; both shapes are named.
            Diverged: they are not all finite.
        """
        theirs = {"vocab_size": state.get("vocab_size"), **(state.get("shape") or {})}
        ours = {"vocab_size": self.vocab_size, **dataclasses.asdict(self.shape)}
        differences = [
            f"{key} {theirs[key]}, here {ours[key]}" for key in ours if theirs.get(key, ours[key]) != ours[key]
        ]
        if differences:
            raise UserError(f"{name} holds another model: {'; '.join(differences)}")
        weights = weights_of(state)
        parameters = dict(self.named_parameters())
        wrong = sorted(weights.keys() ^ parameters.keys()) or [
            key for key, parameter in parameters.items() if weights[key].shape != parameter.shape
        ]
        if wrong:
            raise UserError(f"{name} holds another model: {len(wrong)} weights do not fit, the first is {wrong[0]}")
        for named in (weights, state["model"]):  # those too that only training goes on with
            for key in named:
                if not torch.isfinite(named[key]).all():
                    raise Diverged(f"{name} has diverged: {key} is not finite. Name an earlier checkpoint")
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(weights[key])


def weights_of(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights that a checkpoint's model computes with: their average where a run kept one."""
    weights: Mapping[str, Tensor] = state.get("average", state["model"])
    return weights


def shape_of(state: Mapping[str, Any], name: str) -> tuple[ModelShape, int]:
    """The shape and the vocabulary of the model whose weights a state holds, before any memory is taken for it.

    Raises:
        UserError: the state does not say, or what it says can't be.
    """
    try:
        shape, vocab_size = ModelShape(**state["shape"]), state["vocab_size"]
        *sizes, theta, epsilon = dataclasses.astuple(shape)
        if not all(type(size) is int and size > 0 for size in (*sizes, vocab_size)):
            raise TypeError("a size is no whole number above 0")
        if not all(type(value) in (int, float) and 0 < float(value) < math.inf for value in (theta, epsilon)):
            raise TypeError("rope_theta or norm_epsilon is no number above 0")
        if shape.heads % shape.kv_heads or shape.head_dim % 2:
            raise TypeError(f"{shape.kv_heads} heads of {shape.head_dim} can't be shared by {shape.heads}")
        # What the shape needs must be what the file holds, more or less.
        if shape.parameters(vocab_size) > 2 * sum(weight.numel() for weight in state["model"].values()):
            raise TypeError("its sizes do not fit its weights")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} does not say what shape its model has ({error})") from None
    return shape, vocab_size

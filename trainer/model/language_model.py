"""`LanguageModel`: computes logits, generates text, saves and loads weights."""

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

    Parameters have the names and shapes of Hugging Face's `Qwen3ForCausalLM` with tied embeddings (the output layer is
    the embedding and is stored once), so a `state_dict` fits both.
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
        """Draw new weights in the order of `parameters()`: norms 1, output projections 0, all others normal(0, 0.02).

        One private CPU generator draws all of them, so the same seed gives the same weights on every device, and the
        global random state does not matter.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.fill_(1.0)
                elif name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.zero_()  # each block starts as the identity, so it does not drown out its token
                else:
                    parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))

    def join_products(self) -> list[tuple[Tensor, list[str]]]:
        """Compute matrices that read the same input in one product, with one tensor that stores all of their weights.

        Call this once the model has its dtype and device: another `to` would separate them again.

        Returns:
            Each such tensor, which is not a parameter, and the names of the parameters that its rows are, in order.
        """
        joined = []
        for number, layer in enumerate(self.model.layers):
            for block, names in (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj"))):
                owner = getattr(layer, block)
                owner.joined = join([getattr(owner, name) for name in names])
                joined.append((owner.joined, [f"model.layers.{number}.{block}.{name}.weight" for name in names]))
        return joined

    def hidden(self, ids: Tensor) -> Tensor:
        """(B, T) int64 → (B, T, width), the input of the output layer. No token affects those to its left."""
        return self.hidden_from(self.embed(ids))

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) int64 → (B, T, width), the rows of the embedding."""
        embedded: Tensor = self.model.embed_tokens(ids)
        return embedded

    def hidden_from(self, embedded: Tensor, layers: Sequence[Callable[..., Tensor]] | None = None) -> Tensor:
        """(B, T, width) → (B, T, width): `hidden` from the result of `embed`. `layers`: compiled layers, if any."""
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
        """Return the prompt and its continuation, `max_length` ids in total (a longer prompt is returned unchanged).

        By default, tokens are sampled with temperature 0.8 from the 50 most likely ones. Temperature 0 takes the most
        likely token. The same seed gives the same text. Weights, gradients, training mode and the global random state
        do not change.

        Raises:
            ValueError: the prompt is empty, or an id is not a token.
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
        """Like `generate`, but yield the continuation one id at a time. The weights must not change meanwhile."""
        unknown = [token for token in prompt_ids if not 0 <= token < self.vocab_size]
        if unknown:
            raise ValueError(f"prompt id {unknown[0]} is not a token: ids are 0 to {self.vocab_size - 1}")
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
        """Return what `save_checkpoint` writes. A training checkpoint has the same keys and more.

        `model` has every parameter by name as float32 on the CPU (a float32 model on the CPU shares its memory).
        """
        return {
            **STATE_HEADER,
            "shape": dataclasses.asdict(self.shape),
            "vocab_size": self.vocab_size,
            "model": {name: weight.detach().float().cpu() for name, weight in self.named_parameters()},
        }

    def save_checkpoint(self, path: str | Path) -> None:
        """Write the weights atomically. Raises OSError on failure and then leaves an earlier file unchanged."""
        state = self.checkpoint_state()
        write_state(Path(path), state)

    def load_checkpoint(self, path: str | Path) -> None:
        """Load the weights of a file from `save_checkpoint` or of a training checkpoint; dtype and device stay.

        Raises:
            UserError: the file is missing, damaged, not a checkpoint, or of another shape. The weights do not change.
            Diverged: its weights are not finite.
        """
        self.copy_weights(read_state(path), str(path))

    @classmethod
    def from_checkpoint(cls, source: str | Path | Mapping[str, Any]) -> "LanguageModel":
        """Return the model of a checkpoint, float32 on the CPU. `source`: a file, or its state.

        Raises:
            UserError, Diverged: as `load_checkpoint`.
        """
        state, name = (source, "checkpoint") if isinstance(source, Mapping) else (read_state(source), str(source))
        model = cls(*shape_of(state, name))
        model.copy_weights(state, name)
        return model

    def copy_weights(self, state: Mapping[str, Any], name: str) -> None:
        """Copy the weights of a checkpoint's state. `name` is used in error messages.

        Raises:
            UserError: the weights do not fit; the message names both shapes.
            Diverged: some weights are not finite.
        """
        theirs = {"vocab_size": state.get("vocab_size"), **(state.get("shape") or {})}
        ours = {"vocab_size": self.vocab_size, **dataclasses.asdict(self.shape)}
        differences = [
            f"{key} is {theirs[key]}, not {ours[key]}" for key in ours if theirs.get(key, ours[key]) != ours[key]
        ]
        if differences:
            raise UserError(f"{name} is a checkpoint of another model: {'; '.join(differences)}")
        weights = weights_of(state)
        parameters = dict(self.named_parameters())
        wrong = sorted(weights.keys() ^ parameters.keys()) or [
            key for key, parameter in parameters.items() if weights[key].shape != parameter.shape
        ]
        if wrong:
            raise UserError(
                f"{name} is a checkpoint of another model: {len(wrong)} weights do not fit, the first is {wrong[0]}"
            )
        for named in (weights, state["model"]):  # also the raw weights, which only training uses
            for key in named:
                if not torch.isfinite(named[key]).all():
                    raise Diverged(f"{name} is from a diverged run: {key} is not finite. Use an earlier checkpoint")
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(weights[key])


def weights_of(state: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return the weights to evaluate and generate with: the average, if the checkpoint has one."""
    weights: Mapping[str, Tensor] = state.get("average", state["model"])
    return weights


def shape_of(state: Mapping[str, Any], name: str) -> tuple[ModelShape, int]:
    """Return shape and vocabulary size of a state's model, and check them before memory is allocated for it.

    Raises:
        UserError: they are missing or invalid.
    """
    try:
        shape, vocab_size = ModelShape(**state["shape"]), state["vocab_size"]
        *sizes, theta, epsilon = dataclasses.astuple(shape)
        if not all(type(size) is int and size > 0 for size in (*sizes, vocab_size)):
            raise TypeError("sizes must be whole numbers above 0")
        if not all(type(value) in (int, float) and 0 < float(value) < math.inf for value in (theta, epsilon)):
            raise TypeError("rope_theta and norm_epsilon must be numbers above 0")
        if shape.heads % shape.kv_heads:
            raise TypeError(f"{shape.heads} query heads can't share {shape.kv_heads} key heads")
        if shape.head_dim % 2:
            raise TypeError(f"head_dim must be even, not {shape.head_dim}")
        # The shape must need about as many weights as the file has.
        if shape.parameters(vocab_size) > 2 * sum(weight.numel() for weight in state["model"].values()):
            raise TypeError("the sizes do not match the weights")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} does not define a valid model shape ({error})") from None
    return shape, vocab_size

"""The alternatives to our update: a textbook AdamW in our own step, and the `Trainer` of transformers."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from trainer.config import ModelShape
from trainer.interop.transformers_folder import model_config
from trainer.learning.optimizer import Recipe
from trainer.learning.step import TrainingStep
from trainer.model.language_model import LanguageModel


class PlainAdamW:
    """Textbook AdamW, betas (0.9, 0.95) and weight decay 0.1 on matrices and embedding; replaces `MuonAdamW`."""

    recipe = Recipe(matrix_rate=0.0)  # unused, but the interface has it

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.steps = 0
        self._weights = dict(weights)
        self._adamw = torch.optim.AdamW(
            [
                {"params": [w for w in weights.values() if w.dim() > 1], "weight_decay": 0.1},
                {"params": [w for w in weights.values() if w.dim() == 1], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=(0.9, 0.95),
            fused=True,
        )

    def step(
        self,
        gradients: Sequence[torch.Tensor],
        learning_rate: float,
        *,
        found_inf: torch.Tensor,
        grad_scale: torch.Tensor,
    ) -> list[str]:
        self._adamw.grad_scale, self._adamw.found_inf = grad_scale, found_inf  # type: ignore[attr-defined]
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        for weight, gradient in zip(self._weights.values(), gradients, strict=True):
            weight.grad = torch.empty_like(weight).copy_(gradient)
        self._adamw.step()
        self._adamw.zero_grad()
        self.steps += 1
        return list(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {name: dict(self._adamw.state[weight]) for name, weight in self._weights.items()}

    def misfit(self, state: Mapping[str, Any]) -> str:
        return ""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, weight in self._weights.items():
            self._adamw.state[weight] = dict(state[name])
            self.steps = int(state[name]["step"])


class PlainStep(TrainingStep):
    """Our training step with the textbook AdamW; everything else is the same."""

    def _make_optimizer(self, recipe: Recipe) -> Any:
        return PlainAdamW(dict(zip(self._names, self._masters, strict=True)))


def usual_start(model: LanguageModel, seed: int) -> None:
    """Initialize every matrix from normal(0, 0.02)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.empty(weight.shape).normal_(0.0, 0.02, generator=generator))


def transformers_model(shape: ModelShape, vocab_size: int, seed: int) -> Any:
    """Return a new `Qwen3ForCausalLM` of that shape."""
    import transformers

    transformers.set_seed(seed)
    config = transformers.Qwen3Config(**model_config(shape, vocab_size))
    return transformers.Qwen3ForCausalLM(config)


class Documents(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """The documents in their order: the `Trainer` does not shuffle an iterable dataset."""

    def __init__(self, documents: Sequence[list[int]], count: int) -> None:
        self._documents, self._count = documents, count

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for place in range(self._count):
            ids = torch.tensor(self._documents[place % len(self._documents)])
            yield {"input_ids": ids, "labels": ids}


def transformers_trainer(
    model: Any,
    training: Documents,
    *,
    steps: int,
    rate: float,
    warmup: int,
    seed: int,
    callbacks: list[Any],
    logging_steps: int = 500,
    bf16: bool = True,
    compiled: bool = False,
) -> Any:
    """Return the `Trainer` of transformers with its defaults, except for what is compared."""
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=tempfile.gettempdir(),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=warmup,
        bf16=bf16,
        torch_compile=compiled,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_strategy="no",
        logging_steps=logging_steps,
        disable_tqdm=True,
        seed=seed,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=training, callbacks=callbacks)
    trainer.remove_callback(transformers.PrinterCallback)  # its log lines would mix with our output
    return trainer

"""Step → learning rate: pure functions. A scheduler holds settings and no state, so there is nothing of it to save."""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def warmup_then_constant(step: int, initial_learning_rate: float, warmup_steps: int) -> float:
    """Linear warm-up, then constant. Step 0 gets the rate of step 1, so that no step is wasted at rate zero.

    Args:
        step: 0-based index of the document trained on.
        initial_learning_rate: the rate after the warm-up.
        warmup_steps: length of the warm-up; 0 for none.
    """
    if step < warmup_steps:
        return initial_learning_rate * max(step, 1) / warmup_steps
    return initial_learning_rate


@dataclass(frozen=True)
class LRScheduler:
    """Linear warm-up, then constant; the last `cooldown_steps` go down linearly to zero.

    Warm-up, decay (of the classes below) and cooldown are factors, multiplied where they overlap. Decay and cooldown
    would end at step `num_steps`, the first that does not run: so the last that does is above zero.
    """

    initial_learning_rate: float
    warmup_steps: int
    num_steps: int
    cooldown_steps: int = 0

    def get_learning_rate(self, step: int) -> float:
        """The base rate of a step, above zero; from `num_steps` on, decay and cooldown stay as in the last step."""
        left = max(self.num_steps - step, 1)
        share = min(left / max(self.num_steps - self.warmup_steps, 1), 1.0)
        rate = warmup_then_constant(step, self._decayed(share), self.warmup_steps)
        return rate * left / self.cooldown_steps if left < self.cooldown_steps else rate

    get_lr = get_learning_rate
    """By the founding documents' name."""

    def _decayed(self, share: float) -> float:
        """The rate where `share` (0...1) of the steps behind the warm-up are left."""
        return self.initial_learning_rate


@dataclass(frozen=True)
class LinearLRScheduler(LRScheduler):
    """Linear warm-up, then a straight line down to `min_learning_rate`."""

    min_learning_rate: float = 0.0

    def _decayed(self, share: float) -> float:
        return self.min_learning_rate + (self.initial_learning_rate - self.min_learning_rate) * share


@dataclass(frozen=True)
class CosineLRScheduler(LRScheduler):
    """Linear warm-up, then half a cosine down to `min_learning_rate` (Loshchilov and Hutter 2017, section 3)."""

    min_learning_rate: float = 0.0

    def _decayed(self, share: float) -> float:
        # (1 + cos(π · done)) / 2, written so that it does not round to zero at the end of a very long run.
        height = math.sin(math.pi / 2 * share) ** 2
        return self.min_learning_rate + (self.initial_learning_rate - self.min_learning_rate) * height


SCHEDULERS: Mapping[str, type[LRScheduler]] = types.MappingProxyType(
    {"constant": LRScheduler, "cosine": CosineLRScheduler, "linear": LinearLRScheduler}
)


def make_scheduler(settings: Mapping[str, Any]) -> LRScheduler:
    """The scheduler of a run whose settings are these, by the field names of `TrainingConfig`; others are passed by."""
    kind = SCHEDULERS[settings["schedule"]]
    return kind(**{field.name: settings[field.name] for field in dataclasses.fields(kind)})

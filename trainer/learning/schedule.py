"""Learning rate schedules: pure functions of the step. A scheduler has no state, so checkpoints do not store one."""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def warmup_then_constant(step: int, initial_learning_rate: float, warmup_steps: int) -> float:
    """Linear warm-up, then constant. Step 0 has the rate of step 1, so no step runs at rate zero.

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
    """Linear warm-up, then constant; the rate decreases linearly to zero over the last `cooldown_steps`.

    Warm-up, decay (in the subclasses) and cooldown are factors that multiply where they overlap. Decay and cooldown
    reach their end at step `num_steps`, which does not run, so the last step has a rate above zero.
    """

    initial_learning_rate: float
    warmup_steps: int
    num_steps: int
    cooldown_steps: int = 0

    def get_learning_rate(self, step: int) -> float:
        """Return the base rate of a step, always above zero. From `num_steps` on, decay and cooldown stay constant."""
        left = max(self.num_steps - step, 1)
        share = min(left / max(self.num_steps - self.warmup_steps, 1), 1.0)
        rate = warmup_then_constant(step, self._decayed(share), self.warmup_steps)
        return rate * left / self.cooldown_steps if left < self.cooldown_steps else rate

    get_lr = get_learning_rate
    """The name in the founding documents."""

    def _decayed(self, share: float) -> float:
        """Return the rate when the share `share` (0...1) of the steps after the warm-up is left."""
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
        # (1 + cos(π · done)) / 2, in a form that does not round to zero at the end of a very long run.
        height = math.sin(math.pi / 2 * share) ** 2
        return self.min_learning_rate + (self.initial_learning_rate - self.min_learning_rate) * height


SCHEDULERS: Mapping[str, type[LRScheduler]] = types.MappingProxyType(
    {"constant": LRScheduler, "cosine": CosineLRScheduler, "linear": LinearLRScheduler}
)


def make_scheduler(settings: Mapping[str, Any]) -> LRScheduler:
    """Return the scheduler for settings named as in `TrainingConfig`; other settings are ignored."""
    kind = SCHEDULERS[settings["schedule"]]
    return kind(**{field.name: settings[field.name] for field in dataclasses.fields(kind)})

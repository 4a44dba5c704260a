"""Step → learning rate: pure functions."""


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

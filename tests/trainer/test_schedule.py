import pytest

from trainer.schedule import warmup_then_constant


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-6),
        (1, 1e-6),
        (2, 2e-6),
        (100, 1e-4),
        (500, 5e-4),
        (999, 9.99e-4),
        (1000, 1e-3),
        (1001, 1e-3),
        (10**6, 1e-3),
    ],
)
def test_the_contracts_table(step: int, rate: float) -> None:
    assert warmup_then_constant(step, 0.001, 1000) == pytest.approx(rate, rel=1e-12)


def test_no_step_runs_at_rate_zero() -> None:
    assert all(warmup_then_constant(step, 0.001, warmup) > 0 for warmup in (0, 1, 20) for step in range(30))

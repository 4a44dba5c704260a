import math

import pytest
import torch

from trainer.errors import UserError
from trainer.learning.spike_detector import LEAST_HISTORY, LOSS_SPIKE, InstabilityDetector, Verdict, describe_faults


def check(detector: InstabilityDetector, loss: float, norm: float, length: int = 64, finite: bool = True) -> Verdict:
    return detector.check(length, torch.tensor(finite), torch.tensor(loss), torch.tensor(norm))


def calm(detector: InstabilityDetector, norm: float, length: int = 64) -> InstabilityDetector:
    """Give the detector steps without a fault, with a median norm of 1.1 x `norm`, and return it."""
    for number in range(LEAST_HISTORY):
        verdict = check(detector, 4.0, norm * (1 + number % 3 / 10), length)
        assert not verdict.faults.any() and not verdict.found_inf
    return detector


def test_the_norm_is_limited_to_one_and_to_three_medians() -> None:
    """`grad_scale` divides the gradient: norm / min(1, 3 x median)."""
    for norm, expected in ((0.5, 1.0), (2.0, 2.0)):
        assert check(InstabilityDetector(), 4.0, norm).grad_scale == expected  # no history yet: plain clipping
    detector = calm(InstabilityDetector(), 0.1)
    verdict = check(detector, 4.0, 0.9)
    assert verdict.grad_scale.item() == pytest.approx(0.9 / (3 * 0.11))
    assert verdict.faults.tolist() == [0, 0, 0, 0, 1] and not verdict.found_inf
    assert check(detector, 4.0, 0.2).grad_scale == 1.0


@pytest.mark.parametrize(("spike", "skipped", "scale"), [("clip", 0, 9 / 0.33), ("skip", 1, 9), ("keep", 0, 9)])
def test_each_way_to_treat_a_spike(spike: str, skipped: int, scale: float) -> None:
    verdict = check(calm(InstabilityDetector(spike=spike), 0.1), 4.0, 9.0)
    assert verdict.found_inf == skipped and verdict.faults.tolist() == [0, 0, 0, 0, 1]
    assert skipped or verdict.grad_scale.item() == pytest.approx(scale)


def test_a_loss_far_above_its_median_is_a_spike() -> None:
    detector = calm(InstabilityDetector(spike="skip"), 0.1)
    assert check(detector, 4.0 + LOSS_SPIKE - 0.01, 0.1).faults.tolist() == [0] * 5
    verdict = check(detector, 4.0 + LOSS_SPIKE + 0.01, 0.1)
    assert verdict.faults.tolist() == [0, 0, 0, 1, 0] and verdict.found_inf == 1


def test_each_length_has_its_own_median() -> None:
    detector = calm(InstabilityDetector(), 0.1, length=256)
    calm(detector, 2.0, length=32)
    assert not check(detector, 4.0, 2.0, length=32).faults.any()
    assert check(detector, 4.0, 2.0, length=256).faults.any()


def test_the_median_adapts_to_a_permanent_change() -> None:
    detector = calm(calm(InstabilityDetector(window=32), 0.1), 0.1)
    spikes = [check(detector, 4.0, 0.9).faults.any().item() for _ in range(32)]
    assert spikes[0] and not spikes[-1] and sum(spikes) == 17  # half a window, and one (the lower median)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["logits", "loss", "gradient"])
def test_non_finite_values_stop_the_update_and_leave_no_trace(bad: float, place: str) -> None:
    detector, without = calm(InstabilityDetector(), 0.1), calm(InstabilityDetector(), 0.1)
    for _ in range(40):
        loss, norm = bad if place == "loss" else 4.0, bad if place == "gradient" else 0.1
        verdict = check(detector, loss, norm, finite=place != "logits")
        assert verdict.found_inf == 1
        assert verdict.faults.tolist() == [float(place == name) for name in ("logits", "loss", "gradient")] + [0, 0]
    assert torch.equal(check(detector, 4.0, 0.9).medians, check(without, 4.0, 0.9).medians)
    assert check(detector, 4.0, 0.9).faults.tolist() == [0, 0, 0, 0, 1]  # still detects spikes


def test_gradients_of_zero_do_not_limit_later_ones_to_zero() -> None:
    detector = InstabilityDetector()
    for _ in range(LEAST_HISTORY):
        assert check(detector, 0.0, 0.0).grad_scale == 1.0
    assert check(detector, 2.0, 0.5).grad_scale == 1.0


def test_a_loaded_history_continues_exactly() -> None:
    one, other = InstabilityDetector(window=20), InstabilityDetector(window=20)
    generator = torch.Generator().manual_seed(0)
    values = [(4 + x, abs(x) + 0.1) for x in torch.randn(100, generator=generator).tolist()]
    for number, (loss, norm) in enumerate(values):
        if number == 37:
            history = {length: rows.clone() for length, rows in one.state_dict()["history"].items()}
            other.load_state_dict({**one.state_dict(), "history": history}, torch.device("cpu"))
        ours = check(one, loss, norm)
        if number >= 37:
            theirs = check(other, loss, norm)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if not a.isnan().any())
    with pytest.raises(UserError, match="history"):
        InstabilityDetector(window=21).load_state_dict(one.state_dict(), torch.device("cpu"))


def test_faults_are_described_in_words() -> None:
    assert describe_faults([0, 0, 0, 0, 0], 1.0, 1.0, [1.0, 1.0]) == ""
    assert describe_faults([1, 1, 0, 0, 0], math.nan, 1.0, [1.0, 1.0]) == "logits not finite, loss not finite"
    described = describe_faults([0, 0, 0, 1, 1], 9.5, 12.345, [4.25, 0.5])
    assert all(number in described for number in ("9.50", "4.25", "12.3", "0.5"))

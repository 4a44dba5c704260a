import math

import pytest
import torch

from trainer.errors import UserError
from trainer.learning.spike_detector import LEAST_HISTORY, LOSS_SPIKE, InstabilityDetector, Verdict, words_of

YES = torch.tensor(True)


def judge(detector: InstabilityDetector, loss: float, norm: float, length: int = 64) -> Verdict:
    return detector.judge(length, YES, torch.tensor(loss), torch.tensor(norm))


def calm(detector: InstabilityDetector, norm: float, steps: int = LEAST_HISTORY, length: int = 64) -> None:
    for number in range(steps):
        verdict = judge(detector, 4.0, norm * (1 + number % 3 / 10), length)
        assert not verdict.faults.any() and not verdict.found_inf


def test_a_norm_is_held_to_one_and_to_three_medians() -> None:
    """`grad_scale` is what the gradient is divided by: norm / min(1, 3 x median)."""
    for norm, expected in ((0.5, 1.0), (2.0, 2.0)):
        assert judge(InstabilityDetector(), 4.0, norm).grad_scale == expected  # no history yet: plain clipping
    detector = InstabilityDetector()
    calm(detector, 0.1)
    verdict = judge(detector, 4.0, 0.9)
    assert verdict.grad_scale.item() == pytest.approx(0.9 / (3 * 0.11))
    assert verdict.faults.tolist() == [0, 0, 0, 0, 1] and not verdict.found_inf
    assert judge(detector, 4.0, 0.2).grad_scale == 1.0


@pytest.mark.parametrize(("spike", "skipped", "scale"), [("clip", 0, 9 / 0.33), ("skip", 1, 9), ("keep", 0, 9)])
def test_what_becomes_of_a_spike(spike: str, skipped: int, scale: float) -> None:
    detector = InstabilityDetector(spike=spike)
    calm(detector, 0.1)
    verdict = judge(detector, 4.0, 9.0)
    assert verdict.found_inf == skipped and verdict.faults.tolist() == [0, 0, 0, 0, 1]
    assert skipped or verdict.grad_scale.item() == pytest.approx(scale)


def test_a_loss_far_above_its_median_is_a_spike() -> None:
    detector = InstabilityDetector(spike="skip")
    calm(detector, 0.1)
    assert judge(detector, 4.0 + LOSS_SPIKE - 0.01, 0.1).faults.tolist() == [0] * 5
    verdict = judge(detector, 4.0 + LOSS_SPIKE + 0.01, 0.1)
    assert verdict.faults.tolist() == [0, 0, 0, 1, 0] and verdict.found_inf == 1


def test_each_length_has_its_own_median() -> None:
    detector = InstabilityDetector()
    calm(detector, 0.1, length=256)
    calm(detector, 2.0, length=32)
    assert not judge(detector, 4.0, 2.0, length=32).faults.any()
    assert judge(detector, 4.0, 2.0, length=256).faults.any()


def test_a_change_for_good_becomes_the_rule() -> None:
    detector = InstabilityDetector(window=32)
    calm(detector, 0.1, steps=40)
    spikes = [judge(detector, 4.0, 0.9).faults.any().item() for _ in range(32)]
    assert spikes[0] and not spikes[-1] and sum(spikes) == 17  # half a window, and one (the lower median)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["logits", "loss", "gradient"])
def test_what_is_not_finite_stops_the_update_and_leaves_no_trace(bad: float, place: str) -> None:
    detector, without = InstabilityDetector(), InstabilityDetector()
    calm(detector, 0.1)
    calm(without, 0.1)
    for _ in range(40):
        verdict = detector.judge(
            64,
            torch.tensor(place != "logits"),
            torch.tensor(bad if place == "loss" else 4.0),
            torch.tensor(bad if place == "gradient" else 0.1),
        )
        assert verdict.found_inf == 1
        assert verdict.faults.tolist() == [float(place == name) for name in ("logits", "loss", "gradient")] + [0, 0]
    assert torch.equal(judge(detector, 4.0, 0.9).medians, judge(without, 4.0, 0.9).medians)
    assert judge(detector, 4.0, 0.9).faults.tolist() == [0, 0, 0, 0, 1]  # still awake


def test_gradients_of_zero_hold_nobody_to_nothing() -> None:
    detector = InstabilityDetector()
    for _ in range(LEAST_HISTORY):
        assert judge(detector, 0.0, 0.0).grad_scale == 1.0
    assert judge(detector, 2.0, 0.5).grad_scale == 1.0


def test_a_loaded_history_goes_on_exactly() -> None:
    one, other = InstabilityDetector(window=20), InstabilityDetector(window=20)
    generator = torch.Generator().manual_seed(0)
    values = [(4 + x, abs(x) + 0.1) for x in torch.randn(100, generator=generator).tolist()]
    for number, (loss, norm) in enumerate(values):
        if number == 37:
            state = one.state_dict()
            other.load_state_dict(
                {"history": {k: v.clone() for k, v in state["history"].items()}, "counts": dict(state["counts"])},
                torch.device("cpu"),
            )
        mine = judge(one, loss, norm)
        if number >= 37:
            theirs = judge(other, loss, norm)
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True) if not a.isnan().any())
    with pytest.raises(UserError, match="history"):
        InstabilityDetector(window=21).load_state_dict(one.state_dict(), torch.device("cpu"))


def test_words() -> None:
    assert words_of([0, 0, 0, 0, 0], 1.0, 1.0, [1.0, 1.0]) == ""
    assert words_of([1, 1, 0, 0, 0], math.nan, 1.0, [1.0, 1.0]) == "logits not finite, loss not finite"
    assert words_of([0, 0, 0, 1, 1], 9.5, 12.345, [4.25, 0.5]) == (
        "loss 9.50 where the median is 4.25, gradient norm 12.3 where the median is 0.5"
    )

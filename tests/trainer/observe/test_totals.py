import math

import numpy as np
import pytest

from trainer.observe.totals import Tally, TokenCounts, usual_mean


def test_usual_mean_ignores_the_few_steps_that_were_held_up() -> None:
    assert usual_mean([46.0]) == 46.0  # there is nothing else
    assert usual_mean([46.0, 0.25]) == 0.25
    assert usual_mean([46.0, *[0.25] * 50, *[0.75] * 48, 60.0]) == pytest.approx((0.25 * 50 + 0.75 * 48) / 98)


def tally_of(losses: list[float], tally: Tally | None = None) -> Tally:
    tally = tally or Tally()
    for loss in losses:
        tally.add([1, 2, 3], 8, loss, 0.5, seconds=0.1, waited=0.02)
    return tally


def test_first_and_last_never_share_a_document() -> None:
    assert tally_of([4.0, 1.0]).first_and_last() == (4.0, 1.0, 1)
    assert tally_of([4.0] * 30 + [1.0] * 31).first_and_last() == pytest.approx((4.0, 1.0, 30))
    assert tally_of([4.0] * 150 + [2.0] * 150).first_and_last() == pytest.approx((4.0, 2.0, 100))


def test_bits_per_byte_and_speed() -> None:
    tally = tally_of([math.log(2)] * 4)  # one bit per token, two tokens, eight bytes
    assert tally.bits_per_byte() == (pytest.approx(2 / 8), 4)
    assert tally.tokens_per_second == pytest.approx(20.0)
    assert tally.speed() == (pytest.approx(20.0), pytest.approx(0.2))


def test_a_restored_tally_continues_exactly() -> None:
    losses = [float(number % 7) for number in range(250)]
    whole, first, second = tally_of(losses), tally_of(losses[:130]), Tally()
    second.load_state_dict(first.state_dict())
    tally_of(losses[130:], second)
    states = [tally.state_dict() for tally in (second, whole)]
    counts = [state["token_counts"].pop("counts").tolist() for state in states]
    assert states[0] == states[1] and counts[0] == counts[1] == [0, 250, 250, 250]
    assert second.unigram_entropy == whole.unigram_entropy == pytest.approx(math.log(3))


def test_the_entropy_is_that_of_all_tokens_so_far() -> None:
    """Compared with the definition, and over a restart in the middle: equal to the last bit."""
    random = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, 5001)
    frequencies /= frequencies.sum()
    counts, restarted, read = TokenCounts(), TokenCounts(), []
    for number, length in enumerate(random.integers(2, 257, 300)):
        read += random.choice(5000, length, p=frequencies).tolist()
        found = counts.add(read[-length:])
        assert restarted.add(read[-length:]) == found
        shares = np.unique(read, return_counts=True)[1] / len(read)
        assert found == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-9)
        if number == 150:
            state, restarted = restarted.state_dict(), TokenCounts()
            restarted.load_state_dict(state)
    assert TokenCounts().add([7, 7, 7]) == 0
    assert TokenCounts().add(list(range(100))) == pytest.approx(math.log(100))

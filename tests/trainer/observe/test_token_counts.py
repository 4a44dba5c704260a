import math

import numpy as np
import pytest

from trainer.observe.totals import TokenCounts


def test_the_entropy_is_that_of_all_tokens_so_far() -> None:
    random = np.random.default_rng(0)
    frequencies = 1 / np.arange(1, 5001)
    frequencies /= frequencies.sum()
    counts, read = TokenCounts(), []
    for length in random.integers(2, 257, 300):
        read += random.choice(5000, length, p=frequencies).tolist()
        found = counts.add(read[-length:])
        shares = np.unique(read, return_counts=True)[1] / len(read)
        assert found == pytest.approx(-(shares * np.log(shares)).sum(), abs=1e-9)


def test_one_token_again_and_again_tells_everything_and_equal_ones_nothing() -> None:
    assert TokenCounts().add([7, 7, 7]) == 0
    assert TokenCounts().add(list(range(100))) == pytest.approx(math.log(100))


def test_state_goes_on_to_the_last_bit() -> None:
    random = np.random.default_rng(1)
    whole, half = TokenCounts(), TokenCounts()
    for number in range(200):
        ids = random.integers(0, 10 + number, 64).tolist()
        expected, found = whole.add(ids), half.add(ids)
        if number == 99:
            state, half = half.state_dict(), TokenCounts()
            half.load_state_dict(state)
    assert found == expected

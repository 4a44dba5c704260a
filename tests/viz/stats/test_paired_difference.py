"""The statistics of a paired comparison: by simulation where they promise a rate."""

import math

import numpy as np
import pytest

from common.debiased_average import Floats
from viz.stats.averages import WINDOW
from viz.stats.paired_difference import FEWEST, FEWEST_BATCHES, by_source, estimate, match, running, t_quantile


def noise(random: np.random.Generator, kind: str, phi: float, pairs: int, count: int) -> Floats:
    """AR(1) of `pairs` runs of `count` documents, with mean zero: (pairs, count)."""
    shape = (pairs, count + 100)
    values: Floats = random.normal(0, 0.08, shape) if kind == "normal" else 0.05 * random.standard_t(3, shape)
    for step in range(1, shape[1]):
        values[:, step] += phi * values[:, step - 1]
    return values[:, 100:]


def losses_of(random: np.random.Generator, difference: Floats) -> list[tuple[Floats, Floats]]:
    """(sums, weights) of A and B that learn from the same documents, whose spread of 1 nat is shared."""
    count = len(difference)
    document = 3 + 5 * np.exp(-np.arange(count) / 300) + random.normal(0, 1.0, count)
    weights = np.ceil(np.minimum(random.lognormal(5.5, 1.0, count), 255))
    return [((document + difference) * weights, weights), (document * weights, weights)]


def count_false_alarms(kind: str, phi: float, pairs: int, independent: bool = False) -> int:
    random = np.random.default_rng(int(1000 * phi) + 1000)
    alarms = 0
    for difference in noise(random, kind, phi, pairs, 1000):
        documents = losses_of(random, difference)
        found = estimate(documents)
        half = found.half_width
        if independent:
            weights = documents[0][1]
            half = 1.96 * math.sqrt(float(np.square(weights * (difference - found.value)).sum())) / weights.sum()
        assert half is not None
        alarms += abs(found.value) > half
    return alarms


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("phi", [0.0, 0.5, 0.8])
def test_false_alarms_are_as_rare_as_promised(kind: str, phi: float) -> None:
    # Of 400 pairs 20 +- 4.4 at 5 %: more than 36 happens once in 2,000 times at 5 %, and at 6 % once in 60.
    assert 6 <= count_false_alarms(kind, phi, 400) <= 36


def test_control_treating_documents_as_independent_breaks_the_promise() -> None:
    assert 6 <= count_false_alarms("normal", 0.0, 400, independent=True) <= 36
    assert count_false_alarms("normal", 0.5, 200, independent=True) > 30
    assert count_false_alarms("normal", 0.8, 200, independent=True) > 70


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_a_planted_difference_is_found_with_its_size(phi: float) -> None:
    random = np.random.default_rng(1)
    found = [estimate(losses_of(random, 0.05 + each)) for each in noise(random, "normal", phi, 200, 1000)]
    halves = np.array([each.half_width for each in found], dtype=np.float64)
    values = np.array([each.value for each in found])
    assert (values > halves).mean() > 0.98  # B is better
    assert (np.abs(values - 0.05) <= halves).mean() > 0.9
    assert values.mean() == pytest.approx(0.05, abs=0.002)


def test_a_small_difference_is_found_by_pairs_but_not_by_two_averages() -> None:
    """Three standard errors: expected in nine of ten pairs of runs."""
    random, found, alone = np.random.default_rng(9), 0, 0
    for _ in range(200):
        pairs = losses_of(random, random.normal(0.0105, 0.08, 1000))
        difference = estimate(pairs)
        assert difference.half_width is not None
        found += difference.value > difference.half_width
        errors = [running(np.arange(1000), [one], WINDOW)[1] for one in pairs]
        alone += difference.value > 1.96 * math.hypot(*errors)
    assert found >= 150 and alone == 0


@pytest.mark.parametrize("change", ["slow", "warm-up"])
def test_a_difference_that_changes_during_the_run_does_not_widen_the_interval(change: str) -> None:
    steps = np.arange(5000)
    course = np.linspace(0.3, -0.3, 5000) if change == "slow" else -0.7 * np.exp(-(((steps - 250) / 120) ** 2))
    found = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        pairs = losses_of(random, course + random.normal(0, 0.08, 5000))
        truth = float((course * pairs[0][1]).sum() / pairs[0][1].sum())
        difference = estimate(pairs)
        assert difference.half_width is not None
        found.append((abs(difference.value - truth) <= difference.half_width, difference.half_width))
    covered, halves = np.array(found).T
    assert covered.mean() >= 0.85 and halves.mean() < 0.006  # of independent noise around a constant: 0.003


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.776), (9, 2.262), (29, 2.045), (10**6, 1.960)])
def test_students_quantile_equals_the_tables(degrees: float, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, rel=0.007)


def test_losses_are_pooled_by_counts_and_not_as_a_mean_of_means() -> None:
    # A is worse by 1 on documents of 1 token, better by 1 on those of 99.
    weights, difference = np.tile([1.0, 99.0], 50), np.tile([1.0, -1.0], 50)
    pairs = [(difference * weights, weights), (0 * weights, weights)]
    found = estimate(pairs)
    assert found.value == pytest.approx(-0.98) and found.half_width == pytest.approx(0, abs=1e-12)
    assert running(np.arange(100), pairs, 20)[0].average[-1] == pytest.approx(-0.98, abs=0.01)


def test_sources_are_compared_separately_the_most_frequent_first() -> None:
    random = np.random.default_rng(5)
    sources = random.permutation(np.array(["book"] * 300 + ["code"] * 600 + [""] * (FEWEST - 1), dtype=object))
    pairs = losses_of(random, np.where(sources == "code", 0.2, -0.1) + random.normal(0, 0.05, len(sources)))
    found = by_source(pairs, sources)
    assert [(each.name, each.documents) for each in found] == [("code", 600), ("book", 300), ("", FEWEST - 1)]
    assert [each.value for each in found] == pytest.approx([0.2, -0.1, -0.1], abs=0.05)
    assert found[2].half_width is None and found[1].half_width is not None and FEWEST >= 2 * FEWEST_BATCHES
    chosen = sources == "book"
    assert found[1] == estimate([(sums[chosen], weights[chosen]) for sums, weights in pairs], "book")


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_the_band_of_the_running_average_covers_the_truth(phi: float) -> None:
    random = np.random.default_rng(6)
    covered = []
    for difference in noise(random, "normal", phi, 60, 1000):
        curve, _ = running(np.arange(1000), losses_of(random, 0.05 + difference), WINDOW)
        assert np.isnan(curve.band[0]) and np.isfinite(curve.band[1:]).all()
        covered.append(np.abs(curve.average - 0.05)[20:] <= curve.band[20:])
    assert 0.9 < np.mean(covered) < 0.99


def test_the_error_of_one_run_excludes_what_it_learns() -> None:
    random, weights = np.random.default_rng(7), np.full(10_000, 100.0)
    values = 3 + 5 * np.exp(-np.arange(10_000) / 300) + random.normal(0, 1.0, 10_000)
    _, error = running(np.arange(10_000), [(values * weights, weights)], WINDOW)
    assert error == pytest.approx(1 / math.sqrt(10_000), rel=0.05)


def test_the_kth_occurrence_of_a_text_is_paired_with_the_kth() -> None:
    a, b = (np.array([*text.encode()], dtype=np.uint8).view("S1").astype("S32") for text in ("xaybaxa", "axaaqqb"))
    places_a, places_b = match(a, b)
    assert list(zip(places_a.tolist(), places_b.tolist(), strict=True)) == [(0, 1), (1, 0), (3, 6), (4, 2), (6, 3)]
    none = np.empty(0, dtype="S32")
    assert [len(places) for places in match(a, none)] == [0, 0] == [len(places) for places in match(none, none)]

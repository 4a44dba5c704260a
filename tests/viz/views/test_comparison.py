"""The paired comparison: by simulation where it promises a rate, by real stores where it reads them."""

import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viz.record.reader import StoreReader
from viz.record.schema import encode_array, rows_of
from viz.record.writer import StoreWriter
from viz.stats.paired_difference import FEWEST, FEWEST_BATCHES, by_source, estimate, match, running, t_quantile
from viz.views.comparison import WINDOW, compare

Documents = list[dict[str, Any]]


def noise(random: np.random.Generator, kind: str, phi: float, pairs: int, count: int) -> np.ndarray[Any, Any]:
    """AR(1) of `pairs` runs of `count` documents, with mean zero: (pairs, count)."""
    shape = (pairs, count + 100)
    drawn = {
        "normal": lambda: random.normal(0, 0.08, shape),
        "heavy": lambda: 0.05 * random.standard_t(3, shape),
    }[kind]()
    values = drawn.copy()
    for step in range(1, shape[1]):
        values[:, step] += phi * values[:, step - 1]
    return values[:, 100:]


def losses_of(
    random: np.random.Generator, difference: np.ndarray[Any, Any]
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """(sums, weights) of A and B that learn from the same documents, whose spread of 1 nat is shared."""
    count = len(difference)
    document = 3 + 5 * np.exp(-np.arange(count) / 300) + random.normal(0, 1.0, count)
    weights = np.ceil(np.minimum(random.lognormal(5.5, 1.0, count), 255))
    return [((document + difference) * weights, weights), (document * weights, weights)]


def false_alarms(kind: str, phi: float, count: int, pairs: int, independent: bool = False) -> int:
    random = np.random.default_rng(int(1000 * phi) + count)
    alarms = 0
    for difference in noise(random, kind, phi, pairs, count):
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
def test_no_difference_is_reported_as_rarely_as_promised(kind: str, phi: float) -> None:
    # Of 400 pairs 20 +- 4.4 at 5 %: more than 36 happens once in 2,000 times at 5 %, and at 6 % once in 60.
    assert 6 <= false_alarms(kind, phi, 1000, 400) <= 36


def test_documents_taken_as_independent_would_break_the_promise() -> None:
    assert 6 <= false_alarms("normal", 0.0, 1000, 400, independent=True) <= 36
    assert false_alarms("normal", 0.5, 1000, 200, independent=True) > 30
    assert false_alarms("normal", 0.8, 1000, 200, independent=True) > 70


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_a_planted_difference_is_found_as_large_as_it_is(phi: float) -> None:
    random = np.random.default_rng(1)
    found = [estimate(losses_of(random, 0.05 + each)) for each in noise(random, "normal", phi, 200, 1000)]
    halves = np.array([each.half_width for each in found], dtype=np.float64)
    values = np.array([each.value for each in found])
    assert (values > halves).mean() > 0.98  # they all say that B is better
    assert (np.abs(values - 0.05) <= halves).mean() > 0.9
    assert values.mean() == pytest.approx(0.05, abs=0.002)


def test_a_difference_of_three_of_its_errors_is_found_nine_times_in_ten_and_not_by_the_averages() -> None:
    random, found, alone = np.random.default_rng(9), 0, 0
    for _ in range(200):
        pairs = losses_of(random, random.normal(0.0105, 0.08, 1000))  # the error of their mean: 0.0032 by the weights
        difference = estimate(pairs)
        assert difference.half_width is not None
        found += difference.value > difference.half_width
        errors = [running(np.arange(1000), [one], WINDOW)[1] for one in pairs]
        alone += difference.value > 1.96 * math.hypot(*errors)
    assert found >= 150 and alone == 0


@pytest.mark.parametrize("change", ["slow", "warm-up"])
def test_what_two_runs_do_at_different_times_is_no_error(change: str) -> None:
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
    held, halves = np.array(found).T
    assert held.mean() >= 0.85
    assert halves.mean() < 0.006  # of independent noise around no change: 0.003


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.776), (9, 2.262), (29, 2.045), (10**6, 1.960)])
def test_students_quantile_is_that_of_the_tables(degrees: float, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, rel=0.007)


def test_pooled_by_counts_not_as_a_mean_of_means() -> None:
    # A is worse by 1 on documents of 1 token, better by 1 on those of 99.
    weights = np.tile([1.0, 99.0], 50)
    difference = np.tile([1.0, -1.0], 50)
    found = estimate([(difference * weights, weights), (0 * weights, weights)])
    assert found.value == pytest.approx(-0.98) and found.half_width == pytest.approx(0, abs=1e-12)
    (curve, _) = running(np.arange(100), [(difference * weights, weights), (0 * weights, weights)], 20)
    assert curve.average[-1] == pytest.approx(-0.98, abs=0.01)


def test_each_run_over_its_own_bytes() -> None:
    random = np.random.default_rng(3)
    bytes_a, bytes_b = random.integers(100, 1000, (2, 500)).astype(np.float64)
    found = estimate([(2.0 * bytes_a, bytes_a), (1.5 * bytes_b, bytes_b)])
    assert found.value == pytest.approx(0.5) and found.half_width == pytest.approx(0, abs=1e-9)


def test_fewer_than_twenty_documents_have_no_interval() -> None:
    random = np.random.default_rng(4)
    few, enough = (estimate(losses_of(random, random.normal(0, 0.1, n))) for n in (FEWEST - 1, FEWEST))
    assert few.half_width is None and enough.half_width is not None
    assert FEWEST >= 2 * FEWEST_BATCHES


def test_sources_are_told_apart_the_most_frequent_first() -> None:
    random = np.random.default_rng(5)
    sources = np.array(["book"] * 300 + ["code"] * 600 + [""] * 10, dtype=object)
    difference = np.where(sources == "code", 0.2, -0.1) + random.normal(0, 0.05, 910)
    order = random.permutation(910)
    pairs = losses_of(random, difference[order])
    found = by_source(pairs, sources[order])
    assert [(each.name, each.documents) for each in found] == [("code", 600), ("book", 300), ("", 10)]
    assert [each.value for each in found] == pytest.approx([0.2, -0.1, -0.1], abs=0.05)
    assert found[2].half_width is None
    chosen = sources[order] == "book"
    assert found[1] == estimate([(sums[chosen], weights[chosen]) for sums, weights in pairs], "book")


@pytest.mark.parametrize("phi", [0.0, 0.5])
def test_the_band_of_the_running_average_holds_the_truth(phi: float) -> None:
    random = np.random.default_rng(6)
    held = []
    for difference in noise(random, "normal", phi, 60, 1000):
        pairs = losses_of(random, 0.05 + difference)
        curve, _ = running(np.arange(1000), pairs, WINDOW)
        assert np.isnan(curve.band[0]) and np.isfinite(curve.band[1:]).all()
        held.append(np.abs(curve.average - 0.05)[20:] <= curve.band[20:])
    assert 0.9 < np.mean(held) < 0.99


def test_the_error_of_one_run_leaves_out_what_it_learns() -> None:
    random = np.random.default_rng(7)
    weights = np.full(10_000, 100.0)
    values = 3 + 5 * np.exp(-np.arange(10_000) / 300) + random.normal(0, 1.0, 10_000)
    _, error = running(np.arange(10_000), [(values * weights, weights)], WINDOW)
    assert error == pytest.approx(1 / math.sqrt(10_000), rel=0.05)


def test_the_kth_of_a_text_meets_the_kth() -> None:
    a, b = (np.array([*text.encode()], dtype=np.uint8).view("S1").astype("S32") for text in ("xaybaxa", "axaaqqb"))
    places_a, places_b = match(a, b)
    assert list(zip(places_a.tolist(), places_b.tolist(), strict=True)) == [(0, 1), (1, 0), (3, 6), (4, 2), (6, 3)]
    none = np.empty(0, dtype="S32")
    assert [len(places) for places in match(a, none)] == [0, 0] == [len(places) for places in match(none, none)]


def test_a_million_documents() -> None:
    random = np.random.default_rng(8)
    count = 1_000_000
    hashes = random.integers(0, 2**63, (count, 4)).view("S32").reshape(-1)
    shuffled = random.permutation(count)
    places_a, places_b = match(hashes, hashes[shuffled])
    assert (places_a == np.arange(count)).all() and (shuffled[places_b] == places_a).all()
    pairs = losses_of(random, random.normal(0.002, 0.1, count))
    found = estimate(pairs)
    assert found.half_width is not None and abs(found.value - 0.002) < 0.001 and 1e-4 < found.half_width < 1e-3
    assert np.isfinite(running(np.arange(count), pairs, count // 50)[0].average).all()


Write = Callable[..., StoreReader]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """`write(documents, **run)`: a store of these documents, opened to be read."""
    opened: list[StoreReader] = []

    def make(documents: Documents, **run: Any) -> StoreReader:
        path = tmp_path / f"{len(opened)}.db"
        writer = StoreWriter(path, {"source": "slimpajama", "tokenizer_hash": "t", **run})
        for step, document in enumerate(documents):
            writer.add_rows(rows_of({"step": step} | document))
        writer.close()
        opened.append(StoreReader(path))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def documents_of(count: int, better: float = 0.0, seed: int = 0, first: int = 0) -> Documents:
    """As a run reads them: text k has the same loss in each, but for `better` and a noise of 0.05."""
    random = np.random.default_rng(seed)
    losses = np.random.default_rng(99).normal(4, 1.0, first + count)[first:] - better + random.normal(0, 0.05, count)
    return [
        {
            "loss": float(loss),
            "tokens": 100,
            "bytes": 400,
            "source": ("web", "code", "book")[number % 3],
            "text_hash": number.to_bytes(32, "big"),
            "token_ids": [1, 2],
        }
        for number, loss in enumerate(losses, first)
    ]


def test_two_stores_from_end_to_end(write: Write) -> None:
    a, b = write(documents_of(300)), write(documents_of(300, better=0.05, seed=1))
    found = compare(a, b, ("slow", "fast"))
    assert found.overall.value == pytest.approx(0.05, abs=0.01)
    assert found.overall.documents == 300 == len(found.steps) == len(found.differences)
    assert found.later == estimate([(found_sums[150:], w[150:]) for found_sums, w in sums_of(a, b)], "second half")
    assert found.sentence().startswith("fast is better by 0.0")
    assert found.sentence().endswith(" nats per token over 300 shared documents")
    assert [source.name for source in found.sources] == ["web", "code", "book"]
    assert found.moved == 0 and found.left_out == () and found.totals == (300, 300)
    assert found.unpaired_half_width == pytest.approx(1.96 * math.sqrt(2 / 300), rel=0.15)
    narrower, second_half = found.notes()
    assert "times narrower than by the two averages alone (± 0.1" in narrower
    assert second_half.startswith("Second half alone: fast is better by 0.0")
    turned = compare(b, a, ("fast", "slow"))
    assert turned.sentence() == found.sentence()


def sums_of(*stores: StoreReader) -> Any:
    return [(store.columns()["loss"] * 100, store.columns()["tokens"]) for store in stores]


def test_no_difference_is_not_called_equal(write: Write) -> None:
    found = compare(write(documents_of(300)), write(documents_of(300, seed=1)), ("a-1", "b"))
    said = found.sentence()
    assert said.startswith("No difference found: a-1 − b = ") and " over 300 shared documents; one of up to 0.0" in said
    assert said.endswith("could hide")


def test_a_run_against_itself(write: Write) -> None:
    store = write(documents_of(50))
    found = compare(store, store)
    assert found.sentence() == "A and B have the same loss on each of 50 shared documents"
    assert found.overall.half_width == 0 and found.notes() == []


def test_the_settings_in_which_two_runs_differ_are_named(tmp_path: Path, metrics: Any) -> None:
    def store(name: str, **config: Any) -> StoreReader:
        writer = StoreWriter(tmp_path / name, {"config": {"schedule": "constant", "seed": 0, **config}})
        for step in range(3):
            writer.add_rows(rows_of(metrics(step, text_hash=bytes([step]) * 32)))
        writer.close()
        return StoreReader(tmp_path / name)

    shown = {"viz_dir": "a", "viz_interval": 1, "keep_charts": 3, "keep_documents": 5, "probes": True}
    one = store("1", num_steps=10, initial_learning_rate=0.1, **shown)
    other = store("2", num_steps=20, initial_learning_rate=0.2, **dict.fromkeys(shown, 7))
    assert compare(one, other).settings == (("initial_learning_rate", "0.1", "0.2"),)
    decay = [store(str(steps), num_steps=steps, schedule="cosine") for steps in (30, 40)]
    assert compare(*decay).settings == (("num_steps", "30", "40"),)  # there it decides the rate


def test_what_runs_have_in_common_is_said(tmp_path: Path, metrics: Any) -> None:
    def store(name: str, seed: int) -> StoreReader:
        writer = StoreWriter(tmp_path / name, {"run_id": name, "model": "tiny 0.6 M", "config": {"seed": seed}})
        for step in range(40):
            writer.add_rows(rows_of(metrics(step, text_hash=bytes([step % 5]) * 32)))
        writer.close()
        return StoreReader(tmp_path / name)

    first, second = store("r1", 0), store("r2", 1)
    found = compare(first, second)
    assert found.about == ("r1, tiny 0.6 M", "r2, tiny 0.6 M") and not found.same and found.texts == 5
    assert "They differ in their seed alone: this is what chance does" in found.notes()
    assert any(note.startswith("5 different texts, read again and again") for note in found.notes())
    assert compare(first, first).notes()[0] == "A and B are the same run"


def test_too_few_to_tell(write: Write) -> None:
    found = compare(write(documents_of(12, better=-0.5)), write(documents_of(12)))
    assert found.sentence().startswith("Too few to tell: A − B = +0.")
    assert found.sentence().endswith("nats per token over 12 shared documents")
    one = compare(write(documents_of(1)), write(documents_of(1, seed=1)))
    assert one.sentence().endswith("over 1 shared document")
    assert np.isnan(one.difference_curve.band).all()


def test_repeated_documents_in_another_order(write: Write) -> None:
    first, second = documents_of(30), documents_of(30, better=1.0)
    a = write([*first, *second])  # the second time each is known better
    b = write([*reversed(first), *second[:20]])
    found = compare(a, b)
    assert found.overall.documents == 50 and found.overall.value == pytest.approx(0)
    assert found.moved == pytest.approx(30 / 50)
    notes = " | ".join(found.notes())
    assert "30 documents read at different steps" in notes and "A has 60 documents, B has 50" in notes
    assert found.curves[1].steps.tolist() == sorted(found.curves[1].steps.tolist())
    shuffled = compare(a, write([*first[1:], first[0]]))
    assert shuffled.differences == pytest.approx(0)


def test_other_tokenizers_are_compared_in_bits_per_byte(write: Write) -> None:
    documents = documents_of(100)
    # Half as many tokens, each worth twice as much, in 20 % more bytes.
    other = [each | {"loss": 2.4 * each["loss"], "tokens": 50, "bytes": 480} for each in documents]
    other[3]["bytes"], other[5]["bytes"] = 0, None
    for run in ({"tokenizer_hash": "u"}, {"tokenizer_hash": None}):
        found = compare(write(documents), write(other, **run))
        assert found.unit == "bits per byte" and found.overall.value == pytest.approx(0, abs=1e-9)
        assert found.curves[0].average[0] == pytest.approx(documents[0]["loss"] * 100 / math.log(2) / 400)
        assert found.left_out == (("their number of bytes is unknown or 0", 2),)
        notes = " | ".join(found.notes())
        assert "bits per byte" in notes and "each run's bits are over its own bytes" in notes


def test_other_lengths_are_compared_on_the_tokens_that_both_predicted(write: Write) -> None:
    documents, longer = documents_of(60), documents_of(60)
    for number, (short, long) in enumerate(zip(documents, longer, strict=True)):
        if number % 2:
            first = np.full(100, short["loss"] - 0.5, dtype=np.float16)
            rest = np.full(100, 9.0, dtype=np.float16)
            long |= {"tokens": 200, "loss": 5.0, "token_losses": np.concatenate((first, rest))}
    del longer[7]["token_losses"]
    longer[9]["token_losses"] = np.full(200, np.nan)
    for turned in (False, True):
        stores = write(documents), write(longer)
        found = compare(*(reversed(stores) if turned else stores))
        assert found.unit == "nats per token" and found.other_lengths == 28
        assert found.overall.documents == 58 and sum(count for _, count in found.left_out) == 2
        assert found.overall.value == pytest.approx((-1 if turned else 1) * 0.5 * 28 / 58, abs=1e-3)
        notes = " | ".join(found.notes())
        assert "28 documents read to different lengths: compared on the tokens that both predicted" in notes
        assert "2 documents left out: the losses of their tokens are not kept" in notes


def test_what_is_not_finite_is_left_out_and_counted(write: Write) -> None:
    broken = documents_of(50)
    broken[3]["loss"], broken[4]["loss"], broken[5]["tokens"] = math.nan, math.inf, None
    broken[6]["tokens"] = 0
    found = compare(write(documents_of(50)), write(broken))
    assert found.overall.documents == 46 and np.isfinite(found.differences).all()
    reasons = ("their loss or number of tokens is not finite", 3), ("their number of tokens is unknown or 0", 1)
    assert found.left_out == reasons
    for document in broken:
        document["loss"] = math.nan
    with pytest.raises(ValueError, match=r"share no document that can be compared \(50 documents: their loss or"):
        compare(write(documents_of(50)), write(broken))


def test_nothing_shared_is_one_line_that_says_what_each_has(write: Write) -> None:
    a, b = write(documents_of(20)), write(documents_of(1, first=50), source=None)
    with pytest.raises(ValueError) as raised:
        compare(a, b, ("run $x$", "😀"))
    each = "run $x$ has 20 documents of slimpajama, 😀 has 1 document of unknown data"
    assert str(raised.value) == f"run $x$ and 😀 share no document: {each}"
    unhashed = [{**each, "text_hash": None} for each in documents_of(5)]
    with pytest.raises(ValueError, match="share no document"):
        compare(write(unhashed), write(unhashed))


def test_a_run_without_steps_is_named(write: Write) -> None:
    for stores in ((write(documents_of(3)), write([])), (write([]), write(documents_of(3)))):
        with pytest.raises(ValueError, match="has no steps yet"):
            compare(*stores)


def test_the_steps_of_other_ranks_are_others(write: Write) -> None:
    both = [row for each in documents_of(30) for row in (each, each | {"rank": 1, "loss": 100.0})]
    for number, row in enumerate(both):
        row["step"] = number // 2
    assert compare(write(both), write(documents_of(30))).differences == pytest.approx(0)


def test_a_store_of_an_older_version(write: Write, tmp_path: Path) -> None:
    store = write(documents_of(30))
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as old:
        old.executescript(
            "CREATE TABLE run (id INTEGER PRIMARY KEY, source TEXT, config TEXT);"
            "CREATE TABLE steps (step INTEGER, rank INTEGER, loss REAL, tokens INTEGER, bytes INTEGER);"
            "CREATE TABLE documents (step INTEGER, rank INTEGER, source TEXT, text_hash BLOB, token_losses BLOB);"
            "INSERT INTO run VALUES (1, 'old', '{}'); PRAGMA user_version = 1; PRAGMA application_id = 1397510218;"
        )
        for step, each in enumerate(documents_of(30)):
            old.execute("INSERT INTO steps VALUES (?, 0, ?, 100, 400)", (step, each["loss"]))
            blob = encode_array(np.zeros(3))
            old.execute("INSERT INTO documents VALUES (?, 0, 'web', ?, ?)", (step, each["text_hash"], blob))
    with StoreReader(path) as reader:
        found = compare(reader, store)
    assert found.unit == "bits per byte" and found.differences == pytest.approx(0)
    assert found.sentence().startswith("A and B have the same loss")


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (0.0413, 0.0062, "B is better by 0.0413 ± 0.0062 nats over 30 shared documents"),
        (-3.21, 1.04, "A is better by 3.2 ± 1.0 nats over 30 shared documents"),
        (412.0, 37.0, "B is better by 412 ± 37 nats over 30 shared documents"),
        (1e-9, 1e-12, "B is better by 0.000000 ± 0.000000 nats over 30 shared documents"),
        (-0.0021, 0.0062, "No difference found: A − B = −0.0021 ± 0.0062 nats over 30 shared documents; "
        "one of up to 0.0083 could hide"),
        (-1e-5, 0.0062, "No difference found: A − B = +0.0000 ± 0.0062 nats over 30 shared documents; "
        "one of up to 0.0062 could hide"),
    ],
)  # fmt: skip
def test_two_digits_of_the_half_width(write: Write, value: float, half: float, expected: str) -> None:
    found = compare(write(documents_of(30)), write(documents_of(30, seed=1)))
    overall = replace(found.overall, value=value, half_width=half)
    assert replace(found, overall=overall, unit="nats").sentence() == expected

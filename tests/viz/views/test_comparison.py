"""Comparisons of real stores."""

import math
import operator
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viz.record.reader import StoreReader
from viz.record.schema import encode_array, rows_of
from viz.record.writer import StoreWriter
from viz.stats.paired_difference import estimate
from viz.views.comparison import compare

Documents = list[dict[str, Any]]
Write = Callable[..., StoreReader]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """`write(documents, **run)`: a reader of a store of these documents."""
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
    """As a run reads them: text k has the same loss in each run, except for `better` and a noise of 0.05."""
    random = np.random.default_rng(seed)
    losses = np.random.default_rng(99).normal(4, 1.0, first + count)[first:] - better + random.normal(0, 0.05, count)
    common = {"tokens": 100, "bytes": 400, "token_ids": [1, 2]}
    return [
        {**common, "loss": float(loss), "source": ("web", "code", "book")[k % 3], "text_hash": k.to_bytes(32, "big")}
        for k, loss in enumerate(losses, first)
    ]


def test_two_stores_from_end_to_end(write: Write) -> None:
    a, b = write(documents_of(300)), write(documents_of(300, better=0.05, seed=1))
    found = compare(a, b, ("slow", "fast"))
    assert found.overall.value == pytest.approx(0.05, abs=0.01)
    assert found.overall.documents == 300 == len(found.steps) == len(found.differences)
    sums = [(store.columns()["loss"] * 100, store.columns()["tokens"]) for store in (a, b)]
    assert found.later == estimate([(total[150:], weights[150:]) for total, weights in sums], "second half")
    assert found.sentence().startswith("fast is better by 0.0") and "over 300 shared documents" in found.sentence()
    assert [source.name for source in found.sources] == ["web", "code", "book"]
    assert found.moved == 0 and found.left_out == () and found.totals == (300, 300)
    assert found.unpaired_half_width == pytest.approx(1.96 * math.sqrt(2 / 300), rel=0.15)
    narrower, second_half = found.notes()
    assert "times narrower" in narrower and "± 0.1" in narrower
    assert "fast is better by 0.0" in second_half
    assert compare(b, a, ("fast", "slow")).sentence() == found.sentence()


def test_a_run_compared_with_itself(write: Write) -> None:
    store = write(documents_of(50), run_id="r1")
    found = compare(store, store)
    assert found.sentence() == "A and B have the same loss on each of 50 shared documents"
    assert found.overall.half_width == 0 and found.same and len(found.notes()) == 1


def test_the_settings_that_differ_are_named(write: Write) -> None:
    def store(**config: Any) -> StoreReader:
        return write(documents_of(3), config={"schedule": "constant", "seed": 0, **config})

    shown = {"viz_dir": "a", "viz_interval": 1, "keep_charts": 3, "keep_documents": 5, "probes": True}
    one = store(num_steps=10, initial_learning_rate=0.1, **shown)
    other = store(num_steps=20, initial_learning_rate=0.2, **dict.fromkeys(shown, 7))
    assert compare(one, other).settings == (("initial_learning_rate", "0.1", "0.2"),)
    decay = [store(num_steps=steps, schedule="cosine") for steps in (30, 40)]
    assert compare(*decay).settings == (("num_steps", "30", "40"),)  # here it decides the learning rate


def test_repeated_texts_and_seeds_are_noted(write: Write) -> None:
    repeated = [each | {"text_hash": bytes([k % 5]) * 32} for k, each in enumerate(documents_of(40))]
    runs = [write(repeated, run_id=f"r{seed}", model="tiny 0.6 M", config={"seed": seed}) for seed in (0, 1)]
    found = compare(*runs)
    assert found.about == ("r0, tiny 0.6 M", "r1, tiny 0.6 M") and not found.same and found.texts == 5
    notes = " | ".join(found.notes())
    assert "seed" in notes and "5 different texts" in notes


def test_too_few_documents_have_no_interval(write: Write) -> None:
    sentence = compare(write(documents_of(12, better=-0.5)), write(documents_of(12))).sentence()
    assert "A − B = +0." in sentence and "±" not in sentence and sentence.endswith("over 12 shared documents")
    one = compare(write(documents_of(1)), write(documents_of(1, seed=1)))
    assert one.sentence().endswith("over 1 shared document") and np.isnan(one.difference_curve.band).all()


def test_repeated_documents_in_another_order(write: Write) -> None:
    first, second = documents_of(30), documents_of(30, better=1.0)
    a = write([*first, *second])  # the second time, the loss of each is lower
    found = compare(a, write([*reversed(first), *second[:20]]))
    assert found.overall.documents == 50 and found.overall.value == pytest.approx(0)
    assert found.moved == pytest.approx(30 / 50) and found.totals == (60, 50)
    notes = " | ".join(found.notes())
    assert "30 documents read at different steps" in notes and "A has 60 documents, B has 50" in notes
    assert found.curves[1].steps.tolist() == sorted(found.curves[1].steps.tolist())
    shuffled = compare(a, write([*first[1:], first[0]]))
    assert shuffled.differences == pytest.approx(0)


def test_runs_with_different_tokenizers_are_compared_in_bits_per_byte(write: Write) -> None:
    random = np.random.default_rng(3)

    def one_nat_per_byte(tokens: int) -> Documents:
        sizes = random.integers(100, 1000, 100).tolist()
        changed = ({"loss": size / tokens, "tokens": tokens, "bytes": size} for size in sizes)
        return [*map(operator.or_, documents_of(100), changed)]

    documents, other = one_nat_per_byte(100), one_nat_per_byte(50)
    other[3]["bytes"], other[5]["bytes"] = 0, None
    for run in ({"tokenizer_hash": "u"}, {"tokenizer_hash": None}):
        found = compare(write(documents), write(other, **run))
        assert found.unit == "bits per byte" and found.overall.value == pytest.approx(0, abs=1e-9)
        assert found.overall.half_width == pytest.approx(0, abs=1e-9)
        assert found.curves[0].average[0] == pytest.approx(1 / math.log(2))
        assert found.left_out == (("their number of bytes is unknown or 0", 2),)
        assert "bits per byte" in " | ".join(found.notes())


def test_documents_of_different_lengths_are_compared_on_the_tokens_that_both_predicted(write: Write) -> None:
    documents, longer = documents_of(60), documents_of(60)
    for short, long in [*zip(documents, longer, strict=True)][1::2]:
        losses = np.repeat([short["loss"] - 0.5, 9.0], 100).astype(np.float16)
        long |= {"tokens": 200, "loss": 5.0, "token_losses": losses}
    del longer[7]["token_losses"]
    longer[9]["token_losses"] = np.full(200, np.nan)
    for sign, order in ((1, slice(None)), (-1, slice(None, None, -1))):
        found = compare(*[write(documents), write(longer)][order])
        assert found.unit == "nats per token" and found.other_lengths == 28
        assert found.overall.documents == 58 and [count for _, count in found.left_out] == [2]
        assert found.overall.value == pytest.approx(sign * 0.5 * 28 / 58, abs=1e-3)
        notes = " | ".join(found.notes())
        assert "28 documents read to different lengths" in notes and "2 documents excluded" in notes


def test_non_finite_documents_are_excluded_and_counted(write: Write) -> None:
    broken = documents_of(50)
    broken[3]["loss"], broken[4]["loss"], broken[5]["tokens"] = math.nan, math.inf, None
    broken[6]["tokens"] = 0
    found = compare(write(documents_of(50)), write(broken))
    assert found.overall.documents == 46 and np.isfinite(found.differences).all()
    assert [count for _, count in found.left_out] == [3, 1]
    for document in broken:
        document["loss"] = math.nan
    with pytest.raises(ValueError, match=r"share no document that can be compared \(50 documents: "):
        compare(write(documents_of(50)), write(broken))


def test_runs_that_share_nothing_are_refused_with_what_each_has(write: Write) -> None:
    a, b = write(documents_of(20)), write(documents_of(1, first=50), source=None)
    with pytest.raises(ValueError) as raised:
        compare(a, b, ("run $x$", "😀"))
    each = "run $x$ has 20 documents of slimpajama, 😀 has 1 document of unknown data"
    assert str(raised.value) == f"run $x$ and 😀 share no document: {each}"
    unhashed = [{**each, "text_hash": None} for each in documents_of(5)]
    with pytest.raises(ValueError, match="share no document"):
        compare(write(unhashed), write(unhashed))
    for stores in ((a, write([])), (write([]), a)):
        with pytest.raises(ValueError, match="has no steps yet"):
            compare(*stores)


def test_only_rank_0_is_compared(write: Write) -> None:
    both = [row for each in documents_of(30) for row in (each, each | {"rank": 1, "loss": 100.0})]
    for number, row in enumerate(both):
        row["step"] = number // 2
    assert compare(write(both), write(documents_of(30))).differences == pytest.approx(0)


def test_a_store_of_an_older_version(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as old:
        old.executescript(
            "CREATE TABLE run (id INTEGER PRIMARY KEY, source TEXT, config TEXT);"
            "CREATE TABLE steps (step INTEGER, rank INTEGER, loss REAL, tokens INTEGER, bytes INTEGER);"
            "CREATE TABLE documents (step INTEGER, rank INTEGER, source TEXT, text_hash BLOB, token_losses BLOB);"
            "INSERT INTO run VALUES (1, 'old', '{}'); PRAGMA user_version = 1; PRAGMA application_id = 1397510218;"
        )
        blob = encode_array(np.zeros(3))
        for step, each in enumerate(documents_of(30)):
            old.execute("INSERT INTO steps VALUES (?, 0, ?, 100, 400)", (step, each["loss"]))
            old.execute("INSERT INTO documents VALUES (?, 0, 'web', ?, ?)", (step, each["text_hash"], blob))
    with StoreReader(path) as reader:
        found = compare(reader, write(documents_of(30)))
    assert found.unit == "bits per byte" and found.differences == pytest.approx(0)


@pytest.mark.parametrize(
    ("value", "half", "shown"),
    [
        (0.0413, 0.0062, "B is better by 0.0413 ± 0.0062"),
        (-3.21, 1.04, "A is better by 3.2 ± 1.0"),
        (412.0, 37.0, "B is better by 412 ± 37"),
        (1e-9, 1e-12, "B is better by 0.000000 ± 0.000000"),
        (-0.0021, 0.0062, "A − B = −0.0021 ± 0.0062"),
        (-1e-5, 0.0062, "A − B = +0.0000 ± 0.0062"),
    ],
)
def test_numbers_have_two_digits_of_the_half_width(write: Write, value: float, half: float, shown: str) -> None:
    found = compare(write(documents_of(30)), write(documents_of(30, seed=1)))
    sentence = replace(found, overall=replace(found.overall, value=value, half_width=half)).sentence()
    assert sentence.startswith("No difference found: ") is (abs(value) < half)
    assert shown in sentence and ("; a difference of up to 0.00" in sentence) is (abs(value) < half)

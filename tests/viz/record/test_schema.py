from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.viz.conftest import Metrics
from viz.record.schema import decode_array, encode_array, rows_of


@given(st.lists(st.integers(0, 2**40)))
def test_integers_are_stored_exactly(values: list[int]) -> None:
    assert decode_array(encode_array(np.array(values, dtype=np.int64))).tolist() == values


@pytest.mark.parametrize(("largest", "dtype"), [(0, "u1"), (255, "u1"), (256, "u2"), (65_535, "u2"), (65_536, "u4")])
def test_integers_use_the_smallest_dtype(largest: int, dtype: str) -> None:
    blob = encode_array([0, largest])
    assert blob[:2] == dtype.encode() and decode_array(blob).dtype == np.dtype("<" + dtype)


@given(st.lists(st.floats(6.2e-5, 60_000)))
def test_losses_are_off_by_at_most_half_a_thousandth(values: list[float]) -> None:
    np.testing.assert_allclose(decode_array(encode_array(np.array(values))), values, rtol=0.0005)


def test_non_finite_values_stay_non_finite() -> None:
    kept = decode_array(encode_array(np.array([np.nan, np.inf, 1e9, 1.5], dtype=np.float32)))
    np.testing.assert_array_equal(kept, [np.nan, np.inf, np.inf, 1.5])


def test_the_bytes_are_the_same_on_every_machine() -> None:
    assert encode_array(np.array([1, 258], dtype=">i4")) == encode_array(np.array([1, 258], dtype="<i8"))
    assert decode_array(encode_array([1, 258])).tobytes() == b"\x01\x00\x02\x01"


@pytest.mark.parametrize("values", [[-1], [[1, 2]], ["a"]])
def test_arrays_that_can_not_be_encoded_are_refused(values: list[Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        encode_array(values)


@pytest.mark.parametrize("blob", [b"", b"u2", b"xx\x00\x01", b"\xff\xfe123", encode_array([300])[:-3]])
def test_other_blobs_are_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="not an encoded array"):
        decode_array(blob)


def test_the_call_of_the_founding_documents() -> None:
    given = {"step": 0, "loss": 2.5, "accuracy": 0.1, "throughput": 35.2, "learning_rate": 1e-6}
    rows = dict(rows_of(given, "in text", "out text"))
    assert rows["steps"] == given | {"rank": 0}
    assert rows["text_samples"] == {"step": 0, "rank": 0, "accuracy": 0.1, "input": "in text", "output": "out text"}


def test_which_rows_a_call_creates(metrics: Metrics) -> None:
    def tables(given: dict[str, Any], *texts: str) -> list[str]:
        return [table for table, _ in rows_of(given, *texts)]

    assert tables(metrics(0)) == ["steps", "documents"]
    assert tables(metrics(0), "", "out") == ["steps", "documents", "text_samples"]
    assert tables({"step": 3, "prompt": ""}) == tables({"step": 3, "error": "no memory"}) == ["text_samples"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step": 0, "los": 1.0}, ["los", "known keys", "learning_rate"]),
        ({"loss": 1.0}, ["no step"]),
        ({"step": 0}, ["nothing to record"]),
        ({"step": 0.5, "loss": 1.0}, ["'step'"]),
        ({"step": 0, "loss": "high"}, ["'loss'", "high"]),
    ],
)
def test_a_call_that_can_not_be_recorded_is_refused_at_once(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"step|loss") as refused:
        rows_of(given)
    assert [word for word in words if word not in str(refused.value)] == []

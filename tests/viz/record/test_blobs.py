import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viz.record.schema import decode_array, encode_array


@given(st.lists(st.integers(0, 2**40)))
def test_integers_come_back_exactly(values: list[int]) -> None:
    assert decode_array(encode_array(np.array(values, dtype=np.int64))).tolist() == values


@pytest.mark.parametrize(("largest", "dtype"), [(0, "u1"), (255, "u1"), (256, "u2"), (65_535, "u2"), (65_536, "u4")])
def test_integers_take_the_smallest_dtype(largest: int, dtype: str) -> None:
    blob = encode_array([0, largest])
    assert blob[:2] == dtype.encode()
    assert decode_array(blob).dtype == np.dtype("<" + dtype)


@given(st.lists(st.floats(6.2e-5, 60_000)))
def test_losses_are_off_by_at_most_half_a_thousandth(values: list[float]) -> None:
    np.testing.assert_allclose(decode_array(encode_array(np.array(values))), values, rtol=0.0005)


def test_what_is_not_finite_stays_so() -> None:
    kept = decode_array(encode_array(np.array([np.nan, np.inf, 1e9, 1.5], dtype=np.float32)))
    np.testing.assert_array_equal(kept, [np.nan, np.inf, np.inf, 1.5])


def test_the_bytes_are_the_same_on_every_machine() -> None:
    assert encode_array(np.array([1, 258], dtype=">i4")) == encode_array(np.array([1, 258], dtype="<i8"))
    assert decode_array(encode_array([1, 258])).tobytes() == b"\x01\x00\x02\x01"


@pytest.mark.parametrize("values", [[-1], [[1, 2]], ["a"]])
def test_what_is_no_row_of_counts_is_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        encode_array(values)  # type: ignore[arg-type]


@pytest.mark.parametrize("blob", [b"", b"u2", b"xx\x00\x01", b"\xff\xfe123", encode_array([300])[:-3]])
def test_another_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="not an encoded array"):
        decode_array(blob)

"""Arrays as small blobs that describe themselves.

A blob is two ASCII characters that name the dtype (`u1 u2 u4 u8 f2`), then a zlib stream of the array's byte planes:
the lowest byte of every element, then the next byte of every element, on every machine. Planes, because the high bytes
of ids, losses and ranks repeat and the low ones do not. zlib, because every Python that opens the file in ten years
has it.

Precision: unsigned integers are exact. Floats become float16: 11 significant bits, so a loss is off by at most 0.05 %
(and by 3e-8 below 6e-5); more than 65504 becomes infinite; NaN stays NaN.
"""

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


def encode_array(values: npt.ArrayLike) -> bytes:
    """One-dimensional numbers as a blob: integers in the smallest unsigned dtype that holds them, floats as float16.

    Raises ValueError for negative integers, for more than one dimension, and for what is no number.
    """
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "uif":
        raise ValueError(f"expected one dimension of numbers, found shape {array.shape} of {array.dtype}")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # too large becomes infinite, as the module says
            array = array.astype("<f2")
    else:
        if array.size and array.min() < 0:
            raise ValueError(f"expected numbers from 0 up, found {array.min()}")
        array = array.astype(np.min_scalar_type(int(array.max(initial=0))).newbyteorder("<"))
    planes = np.ascontiguousarray(array).view(np.uint8).reshape(array.size, array.itemsize).T
    return f"{array.dtype.kind}{array.itemsize}".encode() + zlib.compress(planes.tobytes(), 9)


def decode_array(blob: bytes) -> npt.NDArray[Any]:
    """The array of `encode_array`: (N,) in the dtype it was kept in. Raises ValueError for any other blob."""
    try:
        dtype = np.dtype("<" + blob[:2].decode("ascii"))
        planes = np.frombuffer(zlib.decompress(blob[2:]), np.uint8).reshape(dtype.itemsize, -1)
    except (TypeError, ValueError, zlib.error) as error:
        raise ValueError(f"not an encoded array ({len(blob)} bytes that begin with {blob[:8]!r})") from error
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)

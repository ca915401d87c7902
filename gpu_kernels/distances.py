"""Cosine distances of many pairs of vectors at once.

Belongs here: vectors in, distances out. Does not: where vectors come from, which distance is acceptable.
"""

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from gpu_kernels import threads
from gpu_kernels.formulas.distances import cosine_distance

Vectors = NDArray[np.float32]

_PAIRS_A_PART = 256
_LANES = 8  # sums side by side, so that additions need not wait for one another; the same order on every machine


def paired_cosine_distances(
    a: Vectors,  # [N, D] of any length
    b: Vectors,  # [N, D]
) -> NDArray[np.float64]:
    """[N] 1 - cos(a[n], b[n]) in [0, 2]; exactly 0 for equal vectors, NaN where a vector has no direction.

    Sums are float64 in one fixed order: a distance depends on its two vectors alone, to the bit. Raises ValueError for
    arrays of unequal shape. Reference: `reference_cosine_distances`; equal to 1e-12 in tests.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"vectors of shapes {a.shape} and {b.shape}: two equal shapes [N, D] are needed")
    first, second = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    distances = np.empty(len(first), np.float64)
    parts = [slice(start, start + _PAIRS_A_PART) for start in range(0, len(first), _PAIRS_A_PART)]
    threads.each(lambda part: _distances(first[part], second[part], distances[part]), parts)
    return distances


@njit(cache=True, nogil=True, error_model="numpy")
def _distances(a, b, distances):  # type: ignore[no-untyped-def]
    pairs, size = a.shape
    dot, aa, bb = np.empty(_LANES), np.empty(_LANES), np.empty(_LANES)
    for n in range(pairs):
        dot[:], aa[:], bb[:] = 0.0, 0.0, 0.0
        for start in range(0, size, _LANES):
            for lane in range(min(_LANES, size - start)):
                x, y = np.float64(a[n, start + lane]), np.float64(b[n, start + lane])
                dot[lane] += x * y
                aa[lane] += x * x
                bb[lane] += y * y
        distances[n] = cosine_distance(dot.sum(), aa.sum(), bb.sum())


def reference_cosine_distances(a: Vectors, b: Vectors) -> NDArray[np.float64]:
    """The same as a loop over pairs, each sum exactly rounded."""

    def product(x: list[float], y: list[float]) -> float:
        return math.fsum(p * q for p, q in zip(x, y, strict=True))

    pairs = zip(a.astype(float).tolist(), b.astype(float).tolist(), strict=True)
    lengths = [(product(x, y), math.sqrt(product(x, x) * product(y, y))) for x, y in pairs]
    return np.array([1 - dot / length if length else math.nan for dot, length in lengths])

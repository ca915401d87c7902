"""Lanczos-3 halving of a picture: the weights, and how a sum of weighted bytes becomes a byte.

Belongs here: the arithmetic of Pillow's `Image.resize(LANCZOS)` for 8-bit pictures, bit for bit: weights in fixed point
of 22 bits, rounded to a byte after the rows and again after the columns (Pillow, src/libImaging/Resample.c).
Does not: loops over a picture.
"""

# Scalars are typed by Numba.
# mypy: disable-error-code="no-untyped-def"

import functools
import math

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.formulas import formula

TAPS = 12  # samples under the kernel, 3 output pixels to each side
REACH = 3  # output pixels at each end whose kernel hangs over the rim
BEFORE = 5  # samples before the first of the two that an output pixel covers
_BITS = 22
_ROUND = np.int32(1 << (_BITS - 1))


@functools.cache
def halving_weights(size: int) -> NDArray[np.int32]:
    """[size, TAPS] fixed-point weights of the samples 2 x - BEFORE... of output pixel x; 0 beyond the picture's rim."""
    weights = np.zeros((size, TAPS), np.int32)
    for x in range(size):
        taps = [tap for tap in range(TAPS) if 0 <= 2 * x - BEFORE + tap < 2 * size]
        raw = [_lanczos((tap - BEFORE - 0.5) * 0.5) for tap in taps]
        scale = 1.0 / sum(raw)
        for tap, weight in zip(taps, raw, strict=True):
            weight *= scale
            weights[x, tap] = int(math.copysign(0.5, weight) + weight * (1 << _BITS))
    return weights


def _lanczos(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x / 3)


@formula
def round_weighted(total):
    """A sum of weighted bytes to a byte."""
    return np.uint8(min(max((total + _ROUND) >> _BITS, 0), 255))

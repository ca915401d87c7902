"""Supersampled picture to final size, on the processor.

Belongs here: the loops of the separable halving. Does not: its arithmetic (`formulas.resolve`).
Slow twins: `reference.halve`, and Pillow bit for bit; tests/gpu_kernels/test_mesh_pictures.py compares.
"""

# A kernel's types are its Numba signature.
# mypy: disable-error-code="no-untyped-def"

from typing import Literal

import numpy as np
from numba import int32, int64, types, uint8
from numpy.typing import NDArray

from gpu_kernels.formulas import kernel
from gpu_kernels.formulas.resolve import BEFORE, REACH, TAPS, halving_weights, round_weighted


def _array(dtype: types.Type, dimensions: int, layout: Literal["C", "A"] = "C") -> types.Array:
    return types.Array(dtype, dimensions, layout)


@kernel(types.void(_array(uint8, 1), int64, int64, _array(int32, 1), _array(uint8, 1)))
def _halve_inside(line, first, last, weights, halved):
    """Output pixels first..last whose taps all lie on the line. On its own so that it vectorises."""
    for offset in range(np.uintp(last + 1 - first)):
        x = np.uintp(first) + np.uintp(offset)
        total = np.int32(0)
        for tap in range(np.uintp(TAPS)):
            sample = np.int32(line[np.uintp(2) * x + tap - np.uintp(BEFORE)])
            total = np.int32(total + np.int32(weights[tap] * sample))
        halved[x] = round_weighted(total)


@kernel(types.void(_array(uint8, 1), int64, int64, _array(int32, 2), _array(uint8, 1)))
def _halve_line(line, first, last, weights, halved):
    """Output pixels first..last of a line of samples."""
    size = halved.shape[0]
    inside_first, inside_last = max(first, REACH), min(last, size - 1 - REACH)
    if inside_first <= inside_last:
        _halve_inside(line, inside_first, inside_last, weights[inside_first], halved)
    for x in range(first, last + 1):
        if x < REACH or x >= size - REACH:
            total = int64(0)
            for tap in range(TAPS):
                place = 2 * x + tap - BEFORE
                if place >= 0 and place < line.shape[0]:
                    total += weights[x, tap] * line[place]
            halved[x] = round_weighted(total)


@kernel(types.void(_array(uint8, 3), int64, int64, int64, int64, _array(int32, 1), _array(uint8, 1)))
def _add_lines(rows, channel, start, first, last, weights, halved):
    """Output pixels first..last of a weighted sum of lines start.. of rows. On its own so that it vectorises."""
    base, plane = np.uintp(start), np.uintp(channel)
    for offset in range(np.uintp(last + 1 - first)):
        x = np.uintp(first) + np.uintp(offset)
        total = np.int32(0)
        for tap in range(np.uintp(TAPS)):
            total = np.int32(total + np.int32(weights[tap] * np.int32(rows[plane, base + tap, x])))
        halved[x] = round_weighted(total)


@kernel(
    types.void(
        _array(uint8, 3), _array(int64, 1), _array(int32, 2), _array(uint8, 3), _array(uint8, 1), _array(uint8, 3, "A")
    )
)
def halve(samples, box, weights, rows, line, picture):
    """Halve samples [3, 2 S, 2 S] into picture [S, S, 3] with Lanczos-3, first along rows, then along columns.

    box: left, top, right, bottom (inclusive) of the samples that may not be plain white; what lies further from it than
    the kernel reaches stays white and is not computed. weights: `halving_weights(S)`.
    rows: [3, 2 S + TAPS, S] and line: [S], both scratch.
    """
    size = picture.shape[0]
    picture[:] = np.uint8(255)
    if box[0] > box[2] or box[1] > box[3]:
        return
    left, right = max((box[0] - BEFORE) // 2, 0), min((box[2] + BEFORE) // 2, size - 1)
    top, bottom = max((box[1] - BEFORE) // 2, 0), min((box[3] + BEFORE) // 2, size - 1)
    for channel in range(3):
        # Row r of the samples is line r + BEFORE here: weights beyond the rim are 0, and so may be read there.
        for row in range(2 * top, 2 * bottom + TAPS):
            y = row - BEFORE
            if y < box[1] or y > box[3]:
                rows[channel, row, left : right + 1] = np.uint8(255)
            else:
                _halve_line(samples[channel, y], left, right, weights, rows[channel, row])
        for y in range(top, bottom + 1):
            _add_lines(rows, channel, 2 * y, left, right, weights[y], line)
            for x in range(left, right + 1):
                picture[y, x, channel] = line[x]


def resolve(samples: NDArray[np.uint8], box: NDArray[np.int64], picture: NDArray[np.uint8]) -> None:
    """`halve` with scratch memory of its own; picture may be strided (a part of a grid)."""
    size = len(picture)
    rows, line = np.empty((3, 2 * size + TAPS, size), np.uint8), np.empty(size, np.uint8)
    halve(samples, box, halving_weights(size), rows, line, picture)

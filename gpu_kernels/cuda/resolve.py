"""Supersampled pictures to final size, on the device.

Belongs here: the loops of the separable halving. Does not: its arithmetic (`formulas.resolve`).
Slow twin: `reference.halve`; the same bytes as `cpu.resolve`.
"""

# A kernel's types are those of its arguments.
# mypy: disable-error-code="no-untyped-def, call-arg, operator"

import numpy as np
from numba import cuda

from gpu_kernels.formulas.resolve import BEFORE, TAPS, round_weighted

BLOCK = 16  # output pixels a side that one block of threads halves
_WINDOW = 2 * BLOCK + TAPS - 2  # samples a side that they depend on
_THREADS = BLOCK * BLOCK


@cuda.jit
def halve(samples, weights, pictures):
    """Halve samples [V, 3, 2 S, 2 S] into pictures [V, S, S, 3] with Lanczos-3, first along rows, then along columns.

    weights: `halving_weights(S)`. Blocks of BLOCK x BLOCK threads, as many as cover a picture, V deep. Every sample is
    read from memory once by each block that needs it; the rows' bytes never leave the block.
    """
    window = cuda.shared.array((3, _WINDOW, _WINDOW), np.uint8)
    rows = cuda.shared.array((3, _WINDOW, BLOCK), np.uint8)
    view, size, across = cuda.blockIdx.z, pictures.shape[1], samples.shape[2]
    left, top = cuda.blockIdx.x * BLOCK, cuda.blockIdx.y * BLOCK
    thread = cuda.threadIdx.y * BLOCK + cuda.threadIdx.x
    for place in range(thread, 3 * _WINDOW * _WINDOW, _THREADS):
        channel, rest = place // (_WINDOW * _WINDOW), place % (_WINDOW * _WINDOW)
        row, column = rest // _WINDOW, rest % _WINDOW
        # Beyond the rim weights are 0: any byte will do.
        y = min(max(2 * top - BEFORE + row, 0), across - 1)
        x = min(max(2 * left - BEFORE + column, 0), across - 1)
        window[channel, row, column] = samples[view, channel, y, x]
    cuda.syncthreads()
    for place in range(thread, 3 * _WINDOW * BLOCK, _THREADS):
        channel, rest = place // (_WINDOW * BLOCK), place % (_WINDOW * BLOCK)
        row, column = rest // BLOCK, rest % BLOCK
        if left + column < size:
            total = np.int32(0)
            for tap in range(TAPS):
                sample = np.int32(window[channel, row, 2 * column + tap])
                total = np.int32(total + np.int32(weights[left + column, tap] * sample))
            rows[channel, row, column] = round_weighted(total)
    cuda.syncthreads()
    x, y = left + cuda.threadIdx.x, top + cuda.threadIdx.y
    if x < size and y < size:
        for channel in range(3):
            total = np.int32(0)
            for tap in range(TAPS):
                sample = np.int32(rows[channel, 2 * cuda.threadIdx.y + tap, cuda.threadIdx.x])
                total = np.int32(total + np.int32(weights[y, tap] * sample))
            pictures[view, y, x, channel] = round_weighted(total)

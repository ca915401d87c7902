"""Splat kernels for the device: project for all views at once, one sort for all of them, composite to bytes.

Belongs here: the pictures of one set of splats, as spec/rendering.md "Gaussian splats" defines them: order, memory,
launches. Does not: formulas (`formulas.splats`).
Slow twin: `reference_splats.draw`; tests/gpu_kernels/test_cuda.py compares the two, and both with `cpu.splats`.

A pair of a splat and a tile that it may be seen in is one 64-bit number (view, tile, depth) and the splat's index; pairs
are made in the order of indices and sorted stably, so that of two splats at one depth the first in the file is in front,
as on the processor, whatever the threads do.
"""

# A kernel's types are those of its arguments.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from gpu_kernels.camera import View
from gpu_kernels.cuda.launch import by_size, covering
from gpu_kernels.cuda.sort import running_total, sort_pairs, tile_ranges
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.formulas.splats import (
    EXTENT,
    FAR,
    LEAST_TRANSMITTANCE,
    NEAR,
    SH_C0,
    activate_opacity,
    activate_scale,
    covariance,
    cover,
    depth,
    project,
    sigmas,
)
from gpu_kernels.splats import Splats

TILE = 16  # pixels a side that one block of threads draws
MAX_WORK = 16_000_000  # pairs of a splat and a tile in one view, as `cpu.splats`

_RECORDS = 5_000_000  # projected splats held at once, 52 bytes each
_THREADS = 128
_BATCH = TILE * TILE  # splats that a block reads ahead, one a thread
_FIELDS = 9  # x, y, conic a, b, c, opacity, red, green, blue
_DEPTH_BITS, _TILE_BITS = 45, 18
_DEPTH_STEPS = (2.0**_DEPTH_BITS - 1.0) / (
    FAR - NEAR
)  # 3e-12 world units each: coarser than rounding, so equal depths stay equal
_HALF = np.float32(0.5)


@cuda.jit(device=True)
def _tiles(record, size):
    """First and last column, first and last row of tiles that may see a projected splat."""
    last = math.ceil(size / TILE) - 1.0
    x, y, width, height = record[0], record[1], record[6], record[7]
    return (
        int(min(max((x - width) / TILE, 0.0), last)),
        int(min(max((x + width) / TILE, 0.0), last)),
        int(min(max((y - height) / TILE, 0.0), last)),
        int(min(max((y + height) / TILE, 0.0), last)),
    )


@cuda.jit
def project_splats(
    positions,  # [N, 3]
    log_scales,  # [N, 3]
    rotations,  # [N, 4]
    opacities,  # [N]
    placing,  # [2] c, s: x' = (x - c) s
    views,  # [V, 17] as `View.packed`
    records,  # [V, N, 8] out: x, y, conic a, b, c, opacity, half width, half height
    depths,  # [V, N] out: along the view's axis, in _DEPTH_STEPS
    counts,  # [V, N] out: tiles that may see the splat
):
    """Activate, normalise and project every splat for every view. One thread a splat."""
    n = cuda.grid(1)
    if n >= positions.shape[0]:
        return
    middle, shrink = placing[0], placing[1]
    opacity = activate_opacity(np.float64(opacities[n]), shrink)
    reach = sigmas(opacity)
    x = (positions[n, 0] - middle) * shrink
    y = (positions[n, 1] - middle) * shrink
    z = (positions[n, 2] - middle) * shrink
    xx, xy, xz, yy, yz, zz = covariance(
        np.float64(rotations[n, 0]),
        np.float64(rotations[n, 1]),
        np.float64(rotations[n, 2]),
        np.float64(rotations[n, 3]),
        activate_scale(np.float64(log_scales[n, 0]), shrink),
        activate_scale(np.float64(log_scales[n, 1]), shrink),
        activate_scale(np.float64(log_scales[n, 2]), shrink),
    )
    for v in range(views.shape[0]):
        view = views[v]
        px, py, a, b, c, width, height = project(x, y, z, xx, xy, xz, yy, yz, zz, reach, view)
        counts[v, n] = 0
        if reach > 0.0 and width > 0.0:
            record = records[v, n]
            record[0] = px
            record[1] = py
            record[2] = a
            record[3] = b
            record[4] = c
            record[5] = opacity
            record[6] = width
            record[7] = height
            depths[v, n] = np.int64((depth(x, y, z, view) - NEAR) * _DEPTH_STEPS)
            left, right, top, bottom = _tiles(record, view[16])
            counts[v, n] = (right - left + 1) * (bottom - top + 1)


@cuda.jit
def list_tiles(records, depths, counts, ends, across, size, keys, splats):
    """Write every pair's key and splat where the running total ends [V, N] of counts puts them. One thread a splat, view."""
    n, v = cuda.grid(1), cuda.blockIdx.y
    if n >= counts.shape[1] or counts[v, n] == 0:
        return
    place = ends[v, n] - counts[v, n]
    left, right, top, bottom = _tiles(records[v, n], size)
    for row in range(top, bottom + 1):
        for column in range(left, right + 1):
            tile = (v * across + row) * across + column
            keys[place] = (np.int64(tile) << _DEPTH_BITS) | depths[v, n]
            splats[place] = n
            place += 1


@cuda.jit
def composite(records, colours, ranges, splats, pictures):
    """Draw pictures [V, S, S, 3], front to back over white. A block of TILE x TILE threads draws a tile, V deep."""
    batch = cuda.shared.array((_BATCH, _FIELDS), np.float32)
    view, size, across = cuda.blockIdx.z, pictures.shape[1], cuda.gridDim.x
    x, y = cuda.grid(2)
    thread = cuda.threadIdx.y * TILE + cuda.threadIdx.x
    tile = (view * across + cuda.blockIdx.y) * across + cuda.blockIdx.x
    px, py = np.float32(x) + _HALF, np.float32(y) + _HALF
    transmittance = np.float32(1)
    red = green = blue = np.float32(0)
    is_open = x < size and y < size
    first, end = ranges[tile, 0], ranges[tile, 1]
    for start in range(first, end, _BATCH):
        # Also keeps the batch until all threads have done with it.
        if cuda.syncthreads_count(1 if is_open else 0) == 0:
            break
        if start + thread < end:
            splat = splats[start + thread]
            for field in range(6):
                batch[thread, field] = records[view, splat, field]
            for channel in range(3):
                batch[thread, 6 + channel] = _HALF + SH_C0 * colours[splat, channel]
        cuda.syncthreads()
        for n in range(min(_BATCH, end - start)):
            if not is_open:
                break
            dx, dy = px - batch[n, 0], py - batch[n, 1]
            alpha = cover(dx, dy, batch[n, 2], batch[n, 3], batch[n, 4], batch[n, 5])
            if alpha > np.float32(0):
                after = transmittance * (np.float32(1) - alpha)
                if after <= LEAST_TRANSMITTANCE:
                    is_open = False
                else:
                    weight = alpha * transmittance
                    red += weight * batch[n, 6]
                    green += weight * batch[n, 7]
                    blue += weight * batch[n, 8]
                    transmittance = after
    if x < size and y < size:
        pictures[view, y, x, 0] = _to_byte(red + transmittance)
        pictures[view, y, x, 1] = _to_byte(green + transmittance)
        pictures[view, y, x, 2] = _to_byte(blue + transmittance)


@cuda.jit(device=True)
def _to_byte(light):
    return np.uint8(min(max(light, np.float32(0)), np.float32(1)) * np.float32(255))


def draw_splats(splats: Splats, views: Sequence[View], pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Draw view n of the normalised splats over the whole of pictures[n], [view.size, view.size, 3], strided or not.

    Raises UnreadableModel when the splats cover the picture too many times over.
    """
    axes = [splats.positions[:, axis] for axis in range(3)]
    extent = max(float(axis.max()) - float(axis.min()) for axis in axes)
    placing = np.array([splats.positions.mean(dtype=np.float64), EXTENT / extent])
    arrays = splats.positions, splats.log_scales, splats.rotations, splats.opacities, placing
    raw, colours = [cuda.to_device(array) for array in arrays], cuda.to_device(splats.colours)
    for size, some_views, some_pictures in by_size(views, pictures):
        across = covering(size, TILE)
        together = max(1, min(_RECORDS // len(splats.positions), (1 << _TILE_BITS) // across**2))
        for first in range(0, len(some_views), together):
            part = slice(first, first + together)
            packed = np.stack([view.packed() for view in some_views[part]])
            for picture, pixels in zip(some_pictures[part], _draw(raw, colours, packed, size), strict=True):
                picture[:] = pixels


def _draw(raw: Sequence[Any], colours: Any, packed: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """[V, size, size, 3] pictures of the views packed [V, 17]."""
    views, count, across = len(packed), len(colours), covering(size, TILE)
    records = cuda.device_array((views, count, 8), np.float32)
    depths, counts = cuda.device_array((views, count), np.int64), cuda.device_array((views, count), np.int32)
    blocks = covering(count, _THREADS)
    project_splats[blocks, _THREADS](*raw, cuda.to_device(packed), records, depths, counts)
    ends, lengths = running_total(counts)
    if lengths.max() > MAX_WORK:
        raise UnreadableModel("too much to draw: its splats cover the picture too many times over")
    pairs = int(lengths.sum())
    keys, splats = cuda.device_array(pairs, np.int64), cuda.device_array(pairs, np.int32)
    if pairs:
        list_tiles[(blocks, views), _THREADS](records, depths, counts, ends, across, float(size), keys, splats)
        keys, splats = sort_pairs(keys, splats)
    ranges = tile_ranges(keys, _DEPTH_BITS, views * across * across)
    pictures = cuda.device_array((views, size, size, 3), np.uint8)
    composite[(across, across, views), (TILE, TILE)](records, colours, ranges, splats, pictures)
    return pictures.copy_to_host()

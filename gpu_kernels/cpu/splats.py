"""Splat kernels: activate and project for all views at once, sort by depth, bin into tiles, composite.

Belongs here: the pictures of one set of splats, as spec/rendering.md "Gaussian splats" defines them.
Does not: decoding (`ply`, `spz`), views (`camera`), the formulas (`formulas.splats`).
Slow twin: `reference_splats.draw`; tests/gpu_kernels/test_splat_pictures.py compares the two.

Every array element and every pixel is written by exactly one unit of work, in an order that does not depend on the
number of threads: pictures are the same bits with any.
"""

# A kernel's types are its Numba signature.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numba import boolean, float32, float64, int64, njit, types, uint8, uint16, uint32
from numba.np.unsafe.ndarray import to_fixed_tuple
from numpy.typing import NDArray

from gpu_kernels import threads
from gpu_kernels.camera import View
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.formulas import kernel
from gpu_kernels.formulas.splats import (
    EXTENT,
    LEAST_TRANSMITTANCE,
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

Picture = NDArray[np.uint8]

TILE = 16  # pixels
# Pairs of a splat and a tile in one view: ten times those of a million honest splats; 64 MB and seconds for hostile ones.
MAX_WORK = 16_000_000

_RECORDS = 5_000_000  # projected splats held at once, 48 bytes each
_CHUNK = 16_384  # splats measured or projected by one unit of work
_BATCH = 32  # splats of a tile drawn between two looks at which of its rows are still open
_RUN = 8  # pixels drawn in one go: a vector of 256 bits
_DIGIT, _PASSES = 13, 3  # bits, radix sort of 39-bit depths
_X, _Y, _A, _B, _C, _OPACITY, _WIDTH, _HEIGHT, _RED, _GREEN, _BLUE = (np.uintp(field) for field in range(11))
_NONE = np.uint64(2**64 - 1)  # sort key of a culled splat


def _array(dtype: types.Type, dimensions: int, readonly: bool = True, layout: Literal["C", "A"] = "C") -> types.Array:
    return types.Array(dtype, dimensions, layout, readonly=readonly)


_F1, _F2, _F1_64, _F2_64 = _array(float32, 1), _array(float32, 2), _array(float64, 1), _array(float64, 2)


@kernel(types.void(_F2, _array(float64, 1, False)))
def measure(positions, extremes):
    """Least x, y, z, greatest x, y, z, and the sum of all coordinates of positions [N, 3], into extremes [7]."""
    for axis in range(3):
        least = greatest = positions[0, axis]
        total = 0.0
        for n in range(positions.shape[0]):
            value = positions[n, axis]
            least, greatest = min(least, value), max(greatest, value)
            total += value
        extremes[axis], extremes[3 + axis] = least, greatest
        extremes[6] += total


@kernel(
    types.void(
        _F2,
        _F2,
        _F2,
        _F1,
        _F1_64,
        _F2_64,
        int64,
        int64,
        _array(float32, 3, False),
        _array(float64, 2, False),
        _array(uint16, 3, False),
    )
)
def project_splats(
    positions,  # [N, 3]
    log_scales,  # [N, 3]
    rotations,  # [N, 4]
    opacities,  # [N]
    placing,  # [2] c, s: x' = (x - c) s
    views,  # [V, 17] as `View.packed`
    start,
    end,
    records,  # [V, N, 8] out: x, y, conic a, b, c, opacity, half width, half height
    depths,  # [V, N] out: along the view's axis; infinite when culled
    tiles,  # [V, N, 4] out: first and last column, first and last row of tiles that may see the splat
):
    """Activate, normalise and project splats start..end for every view."""
    middle, shrink = placing[0], placing[1]
    for n in range(start, end):
        opacity = activate_opacity(float64(opacities[n]), shrink)
        reach = sigmas(opacity)
        if not reach > 0.0:
            for v in range(views.shape[0]):
                depths[v, n] = np.inf
            continue
        x = (positions[n, 0] - middle) * shrink
        y = (positions[n, 1] - middle) * shrink
        z = (positions[n, 2] - middle) * shrink
        xx, xy, xz, yy, yz, zz = covariance(
            float64(rotations[n, 0]),
            float64(rotations[n, 1]),
            float64(rotations[n, 2]),
            float64(rotations[n, 3]),
            activate_scale(float64(log_scales[n, 0]), shrink),
            activate_scale(float64(log_scales[n, 1]), shrink),
            activate_scale(float64(log_scales[n, 2]), shrink),
        )
        for v in range(views.shape[0]):
            view = to_fixed_tuple(views[v], 17)
            px, py, a, b, c, width, height = project(x, y, z, xx, xy, xz, yy, yz, zz, reach, view)
            depths[v, n] = depth(x, y, z, view) if width > 0.0 else np.inf
            record = records[v, n]
            record[_X] = px
            record[_Y] = py
            record[_A] = a
            record[_B] = b
            record[_C] = c
            record[_OPACITY] = opacity
            record[_WIDTH] = width
            record[_HEIGHT] = height
            last = np.ceil(views[v, 16] / TILE) - 1.0
            tiles[v, n, 0] = np.uint16(min(max((px - width) / TILE, 0.0), last))
            tiles[v, n, 1] = np.uint16(min(max((px + width) / TILE, 0.0), last))
            tiles[v, n, 2] = np.uint16(min(max((py - height) / TILE, 0.0), last))
            tiles[v, n, 3] = np.uint16(min(max((py + height) / TILE, 0.0), last))


@kernel(types.Array(uint32, 1, "C")(_F1_64))
def sort_by_depth(depths):
    """Indices of the finite depths [N], ascending, ties by index: a radix sort of depths in steps of range / 2^39.

    A step is at least 1e-11, coarser than rounding: splats in one plane that faces the eye are equally deep.
    """
    near, far, count = np.inf, -np.inf, 0
    for n in range(depths.shape[0]):
        value = depths[n]
        if value < np.inf:
            near, far, count = min(near, value), max(far, value), count + 1
    keys, indices = np.empty(count, np.uint64), np.empty(count, np.uint32)
    other_keys, other_indices = np.empty(count, np.uint64), np.empty(count, np.uint32)
    steps = min((2.0 ** (_DIGIT * _PASSES) - 1.0) / (far - near), 1e11) if far > near else 0.0
    mask = np.uint64((1 << _DIGIT) - 1)
    counts = np.zeros((_PASSES, 1 << _DIGIT), np.uint32)
    place = 0
    for n in range(depths.shape[0]):
        value = depths[n]
        if value < np.inf:
            key = np.uint64((value - near) * steps)
            keys[place], indices[place] = key, n
            place += 1
            for digit in range(_PASSES):
                counts[digit, np.uintp((key >> np.uint64(_DIGIT * digit)) & mask)] += np.uint32(1)
    for digit in range(_PASSES):
        shift, row = np.uint64(_DIGIT * digit), counts[digit]
        total = np.uint32(0)
        for value in range(row.shape[0]):
            here = row[value]
            row[value] = total
            total += here
        for n in range(count):
            key = keys[n]
            bucket = np.uintp((key >> shift) & mask)
            to = np.uintp(row[bucket])
            row[bucket] += np.uint32(1)
            other_keys[to], other_indices[to] = key, indices[n]
        keys, other_keys = other_keys, keys
        indices, other_indices = other_indices, indices
    return indices


@kernel(int64(_array(uint16, 2), _F1_64, int64, _array(int64, 1, False)))
def count_tiles(tiles, depths, across, starts):
    """Where the list of each tile starts, into starts [across^2 + 1]; returns the length of all lists together.

    Above MAX_WORK it stops counting.
    """
    starts[:] = 0
    length = 0
    for n in range(depths.shape[0]):
        if depths[n] < np.inf:
            length += (int64(tiles[n, 3]) - tiles[n, 2] + 1) * (int64(tiles[n, 1]) - tiles[n, 0] + 1)
            if length > MAX_WORK:
                return length
            for row in range(tiles[n, 2], tiles[n, 3] + 1):
                for column in range(tiles[n, 0], tiles[n, 1] + 1):
                    starts[np.uintp(row * across + column + 1)] += 1
    for tile in range(across * across):
        starts[tile + 1] += starts[tile]
    return length


@kernel(types.void(_array(uint16, 2), _array(uint32, 1), int64, _array(int64, 1), _array(uint32, 1, False)))
def fill_tiles(tiles, order, across, starts, entries):
    """The splats of each tile, in order of depth, into entries; starts as `count_tiles` left them."""
    cursors = starts.copy()
    for n in range(order.shape[0]):
        splat = order[n]
        for row in range(tiles[splat, 2], tiles[splat, 3] + 1):
            for column in range(tiles[splat, 0], tiles[splat, 1] + 1):
                tile = np.uintp(row * across + column)
                entries[np.uintp(cursors[tile])] = splat
                cursors[tile] += 1


@njit(
    types.void(_array(float32, 3, False), types.uintp, types.uintp, *(float32,) * 9),
    error_model="numpy",
    nogil=True,
)
def _composite_run(state, row, start, dx, dy, a, b, c, opacity, red, green, blue):
    """One splat over a run of pixels in one row of a tile; dx, dy: from the splat's centre to the first of them.

    state: [rows, (transmittance, red, green, blue), TILE]. A negative transmittance marks a pixel that is closed.
    A function of its own, of numbers and one array, with unsigned indices: so LLVM makes it vectors.
    """
    for i in range(_RUN):
        x = start + np.uintp(i)
        before = state[row, np.uintp(0), x]
        alpha = cover(dx + float32(np.int32(i)), dy, a, b, c, opacity)
        after = before * (float32(1) - alpha)
        drawn = (after > LEAST_TRANSMITTANCE) & (alpha > float32(0))
        weight = alpha * before if drawn else float32(0)
        closed = (after <= LEAST_TRANSMITTANCE) & (before > float32(0)) & (alpha > float32(0))
        state[row, np.uintp(1), x] += weight * red
        state[row, np.uintp(2), x] += weight * green
        state[row, np.uintp(3), x] += weight * blue
        state[row, np.uintp(0), x] = after if drawn else (-before if closed else before)


@njit(boolean(_array(float32, 3), types.uintp), error_model="numpy", nogil=True)
def _has_open_pixels(state, row):
    count = np.int32(0)
    for i in range(TILE):
        count += np.int32(state[row, np.uintp(0), np.uintp(i)] > float32(0))
    return count > 0


@kernel(types.void(_F2, _F2, _array(int64, 1), _array(uint32, 1), int64, int64, _array(uint8, 3, False, "A")))
def composite(records, colours, starts, entries, across, tile_row, picture):
    """Draw one row of tiles of picture [S, S, 3], front to back over white."""
    size = picture.shape[0]
    state = np.empty((TILE, 4, TILE), np.float32)
    is_open = np.empty(TILE, np.bool_)
    batch = np.empty((_BATCH, 11), np.float32)
    above = tile_row * TILE
    rows, half = min(TILE, size - above), float32(0.5)
    for column in range(across):
        state[:, 0, :] = float32(1)
        state[:, 1:, :] = float32(0)
        is_open[:] = True
        beside = column * TILE
        first, end = starts[tile_row * across + column], starts[tile_row * across + column + 1]
        for start in range(first, end, _BATCH):
            # Reading ahead of drawing hides the memory's latency: the records of a tile lie anywhere.
            count = min(_BATCH, end - start)
            for n in range(count):
                splat = np.uintp(entries[np.uintp(start + n)])
                for field in range(8):
                    batch[np.uintp(n), np.uintp(field)] = records[splat, np.uintp(field)]
                for channel in range(3):
                    batch[np.uintp(n), np.uintp(8 + channel)] = half + SH_C0 * colours[splat, np.uintp(channel)]
            for n in range(count):
                splat = batch[np.uintp(n)]
                x, y = splat[_X] - float32(beside), splat[_Y] - float32(above)
                width, height = splat[_WIDTH], splat[_HEIGHT]
                left = int64(max(np.ceil(x - width - half), float32(0))) // _RUN
                right = int64(min(np.floor(x + width - half), float32(TILE - 1))) // _RUN
                top = int64(max(np.ceil(y - height - half), float32(0)))
                bottom = int64(min(np.floor(y + height - half), float32(rows - 1)))
                for row in range(top, bottom + 1):
                    if is_open[row]:
                        for run in range(left, right + 1):
                            _composite_run(
                                state,
                                np.uintp(row),
                                np.uintp(run * _RUN),
                                float32(run * _RUN) + half - x,
                                float32(row) + half - y,
                                splat[_A],
                                splat[_B],
                                splat[_C],
                                splat[_OPACITY],
                                splat[_RED],
                                splat[_GREEN],
                                splat[_BLUE],
                            )
            any_open = False
            for row in range(rows):
                is_open[row] = is_open[row] and _has_open_pixels(state, np.uintp(row))
                any_open |= is_open[row]
            if not any_open:
                break
        for row in range(rows):
            for i in range(min(TILE, size - beside)):
                white = abs(state[row, 0, i])
                for channel in range(3):
                    light = min(max(state[row, channel + 1, i] + white, float32(0)), float32(1))
                    picture[above + row, beside + i, channel] = np.uint8(light * float32(255))


def draw_splats(splats: Splats, views: Sequence[View], pictures: Sequence[Picture]) -> None:
    """Draw view n of the normalised splats over the whole of pictures[n], [view.size, view.size, 3], strided or not.

    Raises UnreadableModel when the splats cover the picture too many times over.
    """
    count = len(splats.positions)
    chunks = [slice(start, start + _CHUNK) for start in range(0, count, _CHUNK)]
    extremes = np.zeros((len(chunks), 7))
    threads.each(lambda n: measure(splats.positions[chunks[n]], extremes[n]), range(len(chunks)))
    extent = float((extremes[:, 3:6].max(axis=0) - extremes[:, 0:3].min(axis=0)).max())
    placing = np.array([extremes[:, 6].sum() / (3 * count), EXTENT / extent])
    together = max(1, _RECORDS // count)
    for first in range(0, len(views), together):
        _draw(splats, placing, views[first : first + together], pictures[first : first + together])


def _draw(splats: Splats, placing: NDArray[np.float64], views: Sequence[View], pictures: Sequence[Picture]) -> None:
    count = len(splats.positions)
    packed = np.stack([view.packed() for view in views])
    records = np.empty((len(views), count, 8), np.float32)
    depths = np.empty((len(views), count), np.float64)
    tiles = np.empty((len(views), count, 4), np.uint16)
    raw = (splats.positions, splats.log_scales, splats.rotations, splats.opacities)

    def project_chunk(start: int) -> None:
        project_splats(*raw, placing, packed, start, min(start + _CHUNK, count), records, depths, tiles)

    def bin_view(number: int) -> tuple[int, NDArray[np.int64], NDArray[np.uint32]]:
        across = -(-views[number].size // TILE)
        starts = np.empty(across * across + 1, np.int64)
        length = count_tiles(tiles[number], depths[number], across, starts)
        if length > MAX_WORK:
            raise UnreadableModel("too much to draw: its splats cover the picture too many times over")
        entries = np.empty(length, np.uint32)
        fill_tiles(tiles[number], sort_by_depth(depths[number]), across, starts, entries)
        return across, starts, entries

    threads.each(project_chunk, range(0, count, _CHUNK))
    bins = threads.each(bin_view, range(len(views)))

    def composite_row(strip: tuple[int, int]) -> None:
        number, row = strip
        across, starts, entries = bins[number]
        composite(records[number], splats.colours, starts, entries, across, row, pictures[number])

    threads.each(composite_row, [(number, row) for number, (across, _, _) in enumerate(bins) for row in range(across)])

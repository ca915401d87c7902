"""Mesh kernels for the device: project, find the nearest triangle of every sample, shade each sample once.

Belongs here: the pictures of one mesh, as spec/rendering.md "Meshes" defines them: order, memory, launches.
Does not: formulas (`formulas.mesh`), layout (`cpu.mesh.pack`), resolving (`cuda.resolve`).
Slow twin: `reference.draw_mesh`; tests/gpu_kernels/test_cuda.py compares the two, and both with `cpu.mesh`.

The nearest triangle is the greatest 64-bit number of (1 / depth, triangles left behind it in the list): whichever thread
comes first, the picture is the same, and of two at the same depth the first in the list is seen, as on the processor.
A mesh that is translucent anywhere is blended in the triangles' order: each tile's are listed in it, each sample walks
through its tile's list. Without a library that sorts on the device (`cuda.sort`) the processor draws such a mesh.
"""

# A kernel's types are those of its arguments.
# mypy: disable-error-code="no-untyped-def, call-arg, call-overload, operator, var-annotated"

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cuda
from numpy.typing import NDArray

from gpu_kernels.camera import View
from gpu_kernels.cuda.launch import by_size, covering
from gpu_kernels.cuda.resolve import BLOCK, halve
from gpu_kernels.cuda.sort import available, running_total, sort_pairs, tile_ranges
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.formulas.mesh import SUBPIXEL, Scene, edge, first_centre, last_centre, over, project, shade, to_byte
from gpu_kernels.formulas.resolve import halving_weights
from gpu_kernels.mesh import Mesh

SUPERSAMPLING = 2  # samples a pixel along each axis
# Samples that large triangles' boxes may hold in one view: far above honest meshes, seconds for hostile ones.
MAX_WORK = 4_000_000_000
MAX_PAIRS = 16_000_000  # of a translucent triangle and a tile in one view

_THREADS = 128
_WARP = 32
_SMALL = 64  # samples in a triangle's box up to which one thread draws it; larger ones get a block each
_BLOCKS = 4096  # at most, that share a view's large triangles
_LAST = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_TOO_MUCH = "too much to draw: its triangles cover the picture too many times over"


@cuda.jit
def project_vertices(positions, views, screen):
    """Places in samples and 1 / depth of positions [N, 3] in views [V, 17] into screen [V, N, 3]. One thread a vertex."""
    vertex = cuda.grid(1)
    if vertex >= positions.shape[0]:
        return
    x, y, z = positions[vertex, 0], positions[vertex, 1], positions[vertex, 2]
    for v in range(views.shape[0]):
        across, down, nearness = project(np.float64(x), np.float64(y), np.float64(z), views[v])
        screen[v, vertex, 0] = across
        screen[v, vertex, 1] = down
        screen[v, vertex, 2] = nearness


@cuda.jit
def clear(numbers):
    """Zeros into numbers [N]. One thread a number."""
    n = cuda.grid(1)
    if n < numbers.shape[0]:
        numbers[n] = 0


@cuda.jit(device=True)
def _set_up(triangle, screen, triangles, size):
    """What a triangle's samples share: box (left > right: not drawn), three edges as (dx, dy, start), plane of 1 / depth.

    An edge is `edge` less `least`: a sample lies inside where all three are at least 0.
    """
    a, b, c = triangles[triangle, 0], triangles[triangle, 1], triangles[triangle, 2]
    ax, ay = np.int64(screen[a, 0] * np.float32(SUBPIXEL)), np.int64(screen[a, 1] * np.float32(SUBPIXEL))
    bx, by = np.int64(screen[b, 0] * np.float32(SUBPIXEL)), np.int64(screen[b, 1] * np.float32(SUBPIXEL))
    cx, cy = np.int64(screen[c, 0] * np.float32(SUBPIXEL)), np.int64(screen[c, 1] * np.float32(SUBPIXEL))
    za, zb, zc = np.float64(screen[a, 2]), np.float64(screen[b, 2]), np.float64(screen[c, 2])
    left, right = max(first_centre(min(ax, bx, cx)), 0), min(last_centre(max(ax, bx, cx)), size - 1)
    top, bottom = max(first_centre(min(ay, by, cy)), 0), min(last_centre(max(ay, by, cy)), size - 1)
    # y points down: a face that is counter-clockwise to the eye has a negative area in pixels.
    area = (by - ay) * (cx - ax) - (bx - ax) * (cy - ay)
    if area <= 0 or top > bottom or za == 0.0 or zb == 0.0 or zc == 0.0:
        left = right + 1
    dx0, dy0, e0, least0 = edge(bx, by, cx, cy)
    dx1, dy1, e1, least1 = edge(cx, cy, ax, ay)
    dx2, dy2, e2, least2 = edge(ax, ay, bx, by)
    # 1 / depth is linear in the picture.
    scale = 1.0 / max(area, 1)
    plane_x = (dx0 * za + dx1 * zb + dx2 * zc) * scale
    plane_y = (dy0 * za + dy1 * zb + dy2 * zc) * scale
    plane = (e0 * za + e1 * zb + e2 * zc) * scale
    box, edges = (left, right, top, bottom), (dx0, dy0, e0 - least0, dx1, dy1, e1 - least1, dx2, dy2, e2 - least2)
    return box, edges, (plane_x, plane_y, plane)


@cuda.jit(device=True)
def _nearness(x, y, edges, plane):
    """1 / depth of a triangle at sample (x, y), above 0; 0 where it does not cover it."""
    dx0, dy0, e0, dx1, dy1, e1, dx2, dy2, e2 = edges
    if (e0 + x * dx0 + y * dy0) | (e1 + x * dx1 + y * dy1) | (e2 + x * dx2 + y * dy2) < 0:
        return np.float32(0)
    return max(np.float32(plane[2] + plane[0] * x + plane[1] * y), np.float32(0))


@cuda.jit(device=True)
def _draw_sample(x, y, view, triangle, edges, plane, nearest):
    """Put a triangle into nearest [V, S, S] at (x, y) where it covers that sample and nothing nearer is there."""
    nearness = _nearness(x, y, edges, plane)
    if nearness > np.float32(0):  # the bits of such are in the order of their values
        key = (np.uint64(nearness.view(np.uint32)) << _SHIFT) | (_LAST - np.uint64(triangle))
        if key > nearest[view, y, x]:
            cuda.atomic.max(nearest, (view, y, x), key)


@cuda.jit
def draw_small_triangles(screen, triangles, nearest, large, counts, work):
    """Draw triangles [T, 3] with small boxes into nearest [V, S, S], and list the others. One thread a triangle and view.

    screen: [V, N, 3]; large: [V, T] out, the first counts[v] of row v in any order; work: [V] samples in their boxes.
    """
    triangle, view = cuda.grid(1), cuda.blockIdx.y
    if triangle >= triangles.shape[0]:
        return
    box, edges, plane = _set_up(triangle, screen[view], triangles, nearest.shape[1])
    left, right, top, bottom = box
    if left > right:
        return
    samples = (right - left + 1) * (bottom - top + 1)
    if samples > _SMALL:
        large[view, cuda.atomic.add(counts, view, 1)] = triangle
        cuda.atomic.add(work, view, np.uint64(samples))
        return
    for y in range(top, bottom + 1):
        for x in range(left, right + 1):
            _draw_sample(x, y, view, triangle, edges, plane, nearest)


@cuda.jit
def draw_large_triangles(screen, triangles, nearest, large, counts):
    """Draw the triangles that `draw_small_triangles` listed. A block takes one at a time, a warp one of its rows."""
    view = cuda.blockIdx.y
    lane, row = cuda.threadIdx.x % _WARP, cuda.threadIdx.x // _WARP
    for number in range(cuda.blockIdx.x, counts[view], cuda.gridDim.x):
        triangle = large[view, number]
        box, edges, plane = _set_up(triangle, screen[view], triangles, nearest.shape[1])
        left, right, top, bottom = box
        for y in range(top + row, bottom + 1, _THREADS // _WARP):
            for x in range(left + lane, right + 1, _WARP):
                _draw_sample(x, y, view, triangle, edges, plane, nearest)


@cuda.jit
def shade_nearest(screen, views, nearest, samples, scene):
    """Shade the nearest [V, S, S] triangle of every sample into samples [V, 3, S, S]; white where there is none."""
    x, y = cuda.grid(2)
    view, size = cuda.blockIdx.z, nearest.shape[1]
    if x >= size or y >= size:
        return
    key = nearest[view, y, x]
    if key == np.uint64(0):
        for channel in range(3):
            samples[view, channel, y, x] = np.uint8(255)
        return
    px, py = np.float32(x) + np.float32(0.5), np.float32(y) + np.float32(0.5)
    red, green, blue, _ = shade(_LAST - (key & _LAST), px, py, screen[view], views[view], scene)
    samples[view, 0, y, x] = to_byte(red)
    samples[view, 1, y, x] = to_byte(green)
    samples[view, 2, y, x] = to_byte(blue)


@cuda.jit
def count_tiles(screen, triangles, size, counts):
    """Tiles that each triangle's box touches, into counts [V, T]. One thread a triangle and view."""
    triangle, view = cuda.grid(1), cuda.blockIdx.y
    if triangle >= triangles.shape[0]:
        return
    box, _, _ = _set_up(triangle, screen[view], triangles, size)
    left, right, top, bottom = box
    count = 0
    if left <= right:
        count = (right // BLOCK - left // BLOCK + 1) * (bottom // BLOCK - top // BLOCK + 1)
    counts[view, triangle] = count


@cuda.jit
def list_tiles(screen, triangles, size, across, counts, ends, keys, listed):
    """Write each pair's tile and triangle where the running total ends [V, T] of counts puts them. Threads as above."""
    triangle, view = cuda.grid(1), cuda.blockIdx.y
    if triangle >= triangles.shape[0] or counts[view, triangle] == 0:
        return
    box, _, _ = _set_up(triangle, screen[view], triangles, size)
    left, right, top, bottom = box
    place = ends[view, triangle] - counts[view, triangle]
    for row in range(top // BLOCK, bottom // BLOCK + 1):
        for column in range(left // BLOCK, right // BLOCK + 1):
            keys[place] = (view * across + row) * across + column
            listed[place] = triangle
            place += 1


@cuda.jit
def blend(screen, views, ranges, listed, samples, scene):
    """Draw samples [V, 3, S, S]: each tile's triangles in order, each over what is there where it is nearer than that.

    Blocks of BLOCK x BLOCK threads, one a tile, V deep.
    """
    x, y = cuda.grid(2)
    view, size, across = cuda.blockIdx.z, samples.shape[2], cuda.gridDim.x
    if x >= size or y >= size:
        return
    tile = (view * across + cuda.blockIdx.y) * across + cuda.blockIdx.x
    px, py = np.float32(x) + np.float32(0.5), np.float32(y) + np.float32(0.5)
    depth = np.float32(0)
    red = green = blue = np.uint8(255)
    for place in range(ranges[tile, 0], ranges[tile, 1]):
        triangle = listed[place]
        _, edges, plane = _set_up(triangle, screen[view], scene.triangles, size)
        nearness = _nearness(x, y, edges, plane)
        if nearness > depth:
            depth = nearness
            r, g, b, alpha = shade(triangle, px, py, screen[view], views[view], scene)
            red, green, blue = over(r, alpha, red), over(g, alpha, green), over(b, alpha, blue)
    samples[view, 0, y, x] = red
    samples[view, 1, y, x] = green
    samples[view, 2, y, x] = blue


def draw_mesh(mesh: Mesh, views: Sequence[View], pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Draw each view of a mesh over the whole of its picture, [view.size, view.size, 3], possibly strided.

    Raises UnreadableModel when the mesh covers its own pixels so often that it would take seconds.
    """
    from gpu_kernels.cpu import mesh as cpu

    scene = cpu.pack(mesh)
    blended = cpu.is_translucent(scene)
    if blended and not available():
        cpu.draw_mesh(mesh, views, pictures)
    else:
        draw_scene(scene, blended, views, pictures)


def draw_scene(scene: Scene, blended: bool, views: Sequence[View], pictures: Sequence[NDArray[np.uint8]]) -> None:
    """`draw_mesh` for a mesh that is laid out for kernels; blended: whether it is translucent anywhere."""
    on_device: Any = (cuda.to_device(part) if isinstance(part, np.ndarray) else part for part in scene)
    scene = Scene(*on_device)
    for size, some_views, some_pictures in by_size(views, pictures):
        packed = np.stack([view.packed() for view in some_views])
        packed[:, 15:] *= SUPERSAMPLING  # focal length and size
        for picture, pixels in zip(some_pictures, _draw(scene, blended, packed, size), strict=True):
            picture[:] = pixels


def _draw(scene: Scene, blended: bool, packed: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """[V, size, size, 3] pictures of the supersampled views packed [V, 17]."""
    count, sampled = len(packed), size * SUPERSAMPLING
    views = cuda.to_device(packed)
    screen = cuda.device_array((count, len(scene.positions), 3), np.float32)
    project_vertices[covering(len(scene.positions), _THREADS), _THREADS](scene.positions, views, screen)
    samples = cuda.device_array((count, 3, sampled, sampled), np.uint8)
    (_draw_blended if blended else _draw_nearest)(scene, views, screen, samples)
    pictures = cuda.device_array((count, size, size, 3), np.uint8)
    grid = covering(size, BLOCK), covering(size, BLOCK), count
    halve[grid, (BLOCK, BLOCK)](samples, cuda.to_device(halving_weights(size)), pictures)
    return pictures.copy_to_host()


def _draw_nearest(scene: Scene, views: Any, screen: Any, samples: Any) -> None:
    count, _, size, _ = samples.shape
    nearest = cuda.device_array((count, size, size), np.uint64)
    clear[covering(nearest.size, _THREADS), _THREADS](nearest.reshape(-1))
    large = cuda.device_array((count, len(scene.triangles)), np.int32)
    counts, work = cuda.to_device(np.zeros(count, np.int32)), cuda.to_device(np.zeros(count, np.uint64))
    grid = covering(len(scene.triangles), _THREADS), count
    draw_small_triangles[grid, _THREADS](screen, scene.triangles, nearest, large, counts, work)
    if work.copy_to_host().max() > MAX_WORK:
        raise UnreadableModel(_TOO_MUCH)
    if listed := int(counts.copy_to_host().max()):
        draw_large_triangles[(min(listed, _BLOCKS), count), _THREADS](screen, scene.triangles, nearest, large, counts)
    tiles = covering(size, BLOCK), covering(size, BLOCK), count
    shade_nearest[tiles, (BLOCK, BLOCK)](screen, views, nearest, samples, scene)


def _draw_blended(scene: Scene, views: Any, screen: Any, samples: Any) -> None:
    count, _, size, _ = samples.shape
    across, grid = covering(size, BLOCK), (covering(len(scene.triangles), _THREADS), count)
    counts = cuda.device_array((count, len(scene.triangles)), np.int32)
    count_tiles[grid, _THREADS](screen, scene.triangles, size, counts)
    ends, lengths = running_total(counts)
    if lengths.max() > MAX_PAIRS:
        raise UnreadableModel(_TOO_MUCH)
    pairs = int(lengths.sum())
    keys, listed = cuda.device_array(pairs, np.int64), cuda.device_array(pairs, np.int32)
    if pairs:
        list_tiles[grid, _THREADS](screen, scene.triangles, size, across, counts, ends, keys, listed)
        keys, listed = sort_pairs(keys, listed)
    ranges = tile_ranges(keys, 0, count * across * across)
    blend[(across, across, count), (BLOCK, BLOCK)](screen, views, ranges, listed, samples, scene)

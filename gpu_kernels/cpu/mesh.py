"""Mesh kernels: project, rasterise, shade.

Belongs here: the pictures of one mesh, as spec/rendering.md "Meshes" defines them: loops, order, memory.
Does not: decoding (`gltf`), views (`camera`), formulas (`formulas.mesh`), resolving to the final size (`cpu.resolve`).
Slow twin: `reference.draw_mesh`; tests/gpu_kernels/test_mesh_pictures.py compares the two.

Opaque meshes are drawn deferred: the nearest triangle of each pixel first, then one shading per pixel. Where any alpha
is below 1 the triangles are shaded and blended one after the other, as the spec orders. Each view is drawn by one
thread, so no pixel depends on how many there are.
All kernels have one explicit signature (contiguous arrays), so a fresh clone compiles each exactly once.
"""

# A kernel's types are its Numba signature.
# mypy: disable-error-code="no-untyped-def"

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import boolean, float32, float64, int64, types, uint8, uint32
from numpy.typing import NDArray

from gpu_kernels import threads
from gpu_kernels.camera import View
from gpu_kernels.cpu.resolve import resolve
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.formulas import formula, kernel
from gpu_kernels.formulas.mesh import (
    BASE,
    COLOURS,
    EMISSIVE,
    NORMAL,
    OCCLUSION,
    SUBPIXEL,
    SURFACE,
    TEXTURES,
    Packed,
    Scene,
    bump,
    corner_weights,
    edge,
    first_centre,
    interpolate,
    last_centre,
    light,
    mix,
    over,
    project,
    shade,
    texels,
    to_byte,
    to_linear,
    triangle_tangent,
    unit,
)
from gpu_kernels.mesh import Mesh, Texture

SUPERSAMPLING = 2  # samples a pixel along each axis
# Units of work (about a nanosecond each) that one view may cost: far above honest meshes, seconds for hostile ones.
MAX_WORK = 4_000_000_000

_SHADING_WORK = 100  # units of work for shading one fragment
_ROW_WORK = 8
_TRIANGLE_WORK = 8
_NARROW = 8  # pixels; up to here the ends of a row are found by stepping, beyond by division


def _array(dtype: types.Type, dimensions: int, readonly: bool = False) -> types.Array:
    return types.Array(dtype, dimensions, "C", readonly=readonly)


_POINTS, _VALUES, _TEXTURE = _array(float32, 2, True), _array(float32, 1, True), _array(uint32, 2, True)
_VIEW = _array(float64, 1)
_TRIANGLES = _array(uint32, 2, True)
_SCENE = types.NamedTuple(
    [_POINTS, _TRIANGLES, _POINTS, _POINTS, _POINTS, _VALUES, int64, *[_TEXTURE] * 5],
    Scene,
)


@kernel(types.void(_POINTS, _VIEW, _array(float32, 2)))
def project_vertices(positions, view, screen):
    """Pixel positions and 1 / depth of positions [V, 3] into screen [V, 3]."""
    for vertex in range(np.uintp(positions.shape[0])):
        x, y, z = positions[vertex, 0], positions[vertex, 1], positions[vertex, 2]
        across, down, nearness = project(float64(x), float64(y), float64(z), view)
        screen[vertex, 0] = across
        screen[vertex, 1] = down
        screen[vertex, 2] = nearness


@kernel(types.void(_POINTS, _array(float32, 2)))
def unit_normals(normals, units):
    """Normals [V, 3] at length 1 into units; the public renderer does so before it interpolates."""
    for vertex in range(np.uintp(normals.shape[0])):
        x, y, z = unit(float64(normals[vertex, 0]), float64(normals[vertex, 1]), float64(normals[vertex, 2]))
        units[vertex, 0] = x
        units[vertex, 1] = y
        units[vertex, 2] = z


@kernel(types.void(_POINTS, _TRIANGLES, _array(float32, 2)))
def vertex_normals(positions, triangles, normals):
    """Add up, into normals [V, 3], the unit normals of the faces around each vertex, weighted by the face's angle."""
    for triangle in range(triangles.shape[0]):
        for corner in range(3):
            a = np.intp(triangles[triangle, corner])
            b = np.intp(triangles[triangle, (corner + 1) % 3])
            c = np.intp(triangles[triangle, (corner + 2) % 3])
            ux = float64(positions[b, 0]) - positions[a, 0]
            uy = float64(positions[b, 1]) - positions[a, 1]
            uz = float64(positions[b, 2]) - positions[a, 2]
            vx = float64(positions[c, 0]) - positions[a, 0]
            vy = float64(positions[c, 1]) - positions[a, 1]
            vz = float64(positions[c, 2]) - positions[a, 2]
            nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
            area = np.sqrt(nx * nx + ny * ny + nz * nz)
            if area > 0.0:
                weight = np.arctan2(area, ux * vx + uy * vy + uz * vz) / area
                normals[a, 0] += float32(nx * weight)
                normals[a, 1] += float32(ny * weight)
                normals[a, 2] += float32(nz * weight)


@kernel(types.void(int64, int64, float32, float32, types.int32, _array(float32, 1), _array(types.int32, 1)))
def _fill_row(start, end, nearness, step, triangle, row_depth, row_nearest):
    """Put a triangle where it is nearer than what pixels start..end of a row hold. On its own so that it vectorises."""
    for offset in range(np.uintp(end + 1 - start)):
        x = np.uintp(start) + np.uintp(offset)
        value = nearness + step * float32(np.int32(offset))
        if value > row_depth[x]:
            row_depth[x] = value
            row_nearest[x] = triangle


@formula
def _inside_by_division(slope, value, start, end):
    """The part of pixels start..end where value + x slope >= 0. Below 2^53, so the quotient rounds the right way."""
    if slope > 0:
        return max(start, int64(np.ceil(-value / slope))), end
    if slope < 0:
        return start, min(end, int64(np.floor(-value / slope)))
    return start, end if value >= 0 else -1


@kernel(
    int64(
        _array(float32, 2),
        _VIEW,
        boolean,
        int64,
        _array(int64, 1),
        _array(float32, 2),
        _array(types.int32, 2),
        _array(uint8, 3),
        _SCENE,
    )
)
def draw_triangles(screen, view, blended, max_work, box, depth, nearest, samples, scene):
    """Rasterise front faces in index order; returns the units of work done, which stop soon after max_work.

    screen: [V, 3] as `project_vertices`; depth: [S, S] 1 / depth of what is nearest so far, 0 at infinity;
    nearest: [S, S] its triangle, -1 for none, written unless blended; samples: [3, S, S], written only if blended;
    box: left, top, right, bottom of all that is drawn, widened here.
    """
    size = int64(view[16])
    triangles = scene.triangles
    work = int64(0)
    for triangle in range(np.uintp(triangles.shape[0])):
        work += _TRIANGLE_WORK
        if work > max_work:
            return work
        a = np.uintp(triangles[triangle, 0])
        b = np.uintp(triangles[triangle, 1])
        c = np.uintp(triangles[triangle, 2])
        ax, ay = int64(screen[a, 0] * float32(SUBPIXEL)), int64(screen[a, 1] * float32(SUBPIXEL))
        bx, by = int64(screen[b, 0] * float32(SUBPIXEL)), int64(screen[b, 1] * float32(SUBPIXEL))
        cx, cy = int64(screen[c, 0] * float32(SUBPIXEL)), int64(screen[c, 1] * float32(SUBPIXEL))
        # y points down: a face that is counter-clockwise to the eye has a negative area in pixels.
        area = (by - ay) * (cx - ax) - (bx - ax) * (cy - ay)
        if area <= 0:
            continue
        za, zb, zc = float64(screen[a, 2]), float64(screen[b, 2]), float64(screen[c, 2])
        left, right = max(first_centre(min(ax, bx, cx)), 0), min(last_centre(max(ax, bx, cx)), size - 1)
        top, bottom = max(first_centre(min(ay, by, cy)), 0), min(last_centre(max(ay, by, cy)), size - 1)
        if left > right or top > bottom or za == 0.0 or zb == 0.0 or zc == 0.0:
            continue
        box[0], box[1] = min(box[0], left), min(box[1], top)
        box[2], box[3] = max(box[2], right), max(box[3], bottom)

        dx0, dy0, e0, least0 = edge(bx, by, cx, cy)
        dx1, dy1, e1, least1 = edge(cx, cy, ax, ay)
        dx2, dy2, e2, least2 = edge(ax, ay, bx, by)
        # 1 / depth is linear in the picture.
        scale = 1.0 / area
        plane_x = (dx0 * za + dx1 * zb + dx2 * zc) * scale
        plane_y = (dy0 * za + dy1 * zb + dy2 * zc) * scale
        plane = (e0 * za + e1 * zb + e2 * zc) * scale
        step = float32(plane_x)
        narrow = right - left < _NARROW
        for y in range(top, bottom + 1):
            v0, v1, v2 = e0 - least0 + y * dy0, e1 - least1 + y * dy1, e2 - least2 + y * dy2
            start, end = left, right
            if narrow:
                while start <= end and (v0 + start * dx0) | (v1 + start * dx1) | (v2 + start * dx2) < 0:
                    start += 1
                while end > start and (v0 + end * dx0) | (v1 + end * dx1) | (v2 + end * dx2) < 0:
                    end -= 1
            else:
                start, end = _inside_by_division(dx0, v0, start, end)
                start, end = _inside_by_division(dx1, v1, start, end)
                start, end = _inside_by_division(dx2, v2, start, end)
            work += _ROW_WORK
            if start > end:
                continue
            work += end - start
            nearness = float32(plane + plane_x * start + plane_y * y)
            if not blended:
                if narrow:
                    for x in range(start, end + 1):
                        value = nearness + step * float32(np.int32(x - start))
                        if value > depth[y, x]:
                            depth[y, x] = value
                            nearest[y, x] = np.int32(triangle)
                else:
                    _fill_row(start, end, nearness, step, np.int32(triangle), depth[y], nearest[y])
                continue
            for x in range(start, end + 1):
                value = nearness + step * float32(np.int32(x - start))
                if value > depth[y, x]:
                    depth[y, x] = value
                    work += _SHADING_WORK
                    red, green, blue, alpha = shade(
                        triangle, float32(x) + float32(0.5), float32(y) + float32(0.5), screen, view, scene
                    )
                    samples[0, y, x] = over(red, alpha, samples[0, y, x])
                    samples[1, y, x] = over(green, alpha, samples[1, y, x])
                    samples[2, y, x] = over(blue, alpha, samples[2, y, x])
            if work > max_work:
                return work
    return work


# Rows of the scratch memory that a run of pixels is shaded in.
_U, _V, _FX, _FY, _NX, _NY, _NZ, _VX, _VY, _VZ, _TX, _TY, _TZ, _TINT_R, _TINT_G, _TINT_B = range(16)
_R, _G, _B, _METALLIC, _ROUGH, _OCCLUDED, _GLOW_R, _GLOW_G, _GLOW_B, _RED, _GREEN, _BLUE, _ROWS = range(16, 29)
_RUN = 128  # pixels; all of the scratch memory stays in the first-level cache


@kernel(types.void(int64, int64, _array(int64, 2), _array(float32, 2), _VIEW, _array(float32, 2), _SCENE))
def _gather(count, y, run, screen, view, at, scene):
    """Interpolate what the corners of a run's triangles hold."""
    i0, i1, i2 = np.uintp(0), np.uintp(1), np.uintp(2)
    for i in range(np.uintp(count)):
        t = np.uintp(run[1, i])
        a, b, c = np.uintp(scene.triangles[t, i0]), np.uintp(scene.triangles[t, i1]), np.uintp(scene.triangles[t, i2])
        wa, wb, wc = corner_weights(screen, a, b, c, float32(run[0, i]) + float32(0.5), float32(y) + float32(0.5))
        at[_NX, i] = interpolate(scene.normals, a, b, c, wa, wb, wc, 0)
        at[_NY, i] = interpolate(scene.normals, a, b, c, wa, wb, wc, 1)
        at[_NZ, i] = interpolate(scene.normals, a, b, c, wa, wb, wc, 2)
        at[_VX, i] = float32(view[0]) - interpolate(scene.positions, a, b, c, wa, wb, wc, 0)
        at[_VY, i] = float32(view[1]) - interpolate(scene.positions, a, b, c, wa, wb, wc, 1)
        at[_VZ, i] = float32(view[2]) - interpolate(scene.positions, a, b, c, wa, wb, wc, 2)
        if scene.parts & TEXTURES:
            at[_U, i] = interpolate(scene.uv, a, b, c, wa, wb, wc, 0)
            at[_V, i] = interpolate(scene.uv, a, b, c, wa, wb, wc, 1)
            if scene.parts & NORMAL:
                at[_TX, i], at[_TY, i], at[_TZ, i] = triangle_tangent(scene, a, b, c)
        if scene.parts & COLOURS:
            at[_TINT_R, i] = interpolate(scene.colours, a, b, c, wa, wb, wc, 0)
            at[_TINT_G, i] = interpolate(scene.colours, a, b, c, wa, wb, wc, 1)
            at[_TINT_B, i] = interpolate(scene.colours, a, b, c, wa, wb, wc, 2)


@kernel(types.void(int64, types.int32, types.int32, _array(float32, 2), _array(types.int32, 2)))
def _place_texels(count, width, height, at, places):
    """Where the four texels around each pixel of a run lie in a texture. On its own so that it vectorises."""
    for i in range(np.uintp(count)):
        x0, x1, at[_FX, i] = texels(at[_U, i], width)
        y0, y1, at[_FY, i] = texels(at[_V, i], height)
        places[0, i] = np.int32(np.int32(y0 * width) + x0)
        places[1, i] = np.int32(np.int32(y0 * width) + x1)
        places[2, i] = np.int32(np.int32(y1 * width) + x0)
        places[3, i] = np.int32(np.int32(y1 * width) + x1)


@kernel(types.void(int64, int64, _array(float32, 2), _array(uint32, 2), _array(float32, 1)))
def _mix_texels(count, channel, at, fetched, values):
    """One channel of a run. On its own so that it vectorises."""
    for i in range(np.uintp(count)):
        values[i] = mix(fetched[0, i], fetched[1, i], fetched[2, i], fetched[3, i], at[_FX, i], at[_FY, i], channel)


@kernel(types.void(int64, _TEXTURE, _array(float32, 2), _array(types.int32, 2), _array(uint32, 2), int64))
def _sample_run(count, texture, at, places, fetched, channels):
    """`sample` for a run: RGBA, as many channels as asked for, into at[_RED...]. Reads of memory overlap."""
    width, texels_flat = texture.shape[1], texture.reshape(-1)
    _place_texels(count, np.int32(width), np.int32(texture.shape[0]), at, places)
    for corner in range(4):
        for i in range(np.uintp(count)):
            fetched[corner, i] = texels_flat[np.uintp(places[corner, i])]
    for channel in range(channels):
        _mix_texels(count, channel, at, fetched, at[_RED + channel])


@kernel(types.void(int64, boolean, _array(float32, 1), _array(float32, 1)))
def _multiply(count, encoded, values, product):
    """product *= values, which are decoded from sRGB first where they are encoded."""
    for i in range(np.uintp(count)):
        product[i] *= to_linear(values[i]) if encoded else values[i]


@kernel(types.void(int64, _array(float32, 2), _array(types.int32, 2), _array(uint32, 2), _SCENE))
def _look_up(count, at, places, fetched, scene):
    """The material of a run: factors times textures, one texture after the other."""
    factors, parts = scene.factors, scene.parts
    for i in range(np.uintp(count)):
        at[_R, i], at[_G, i], at[_B, i] = factors[0], factors[1], factors[2]
        at[_METALLIC, i], at[_ROUGH, i], at[_OCCLUDED, i] = factors[4], factors[5], float32(1)
        at[_GLOW_R, i], at[_GLOW_G, i], at[_GLOW_B, i] = factors[6], factors[7], factors[8]
    if parts & BASE:
        _sample_run(count, scene.base, at, places, fetched, 3)
        for channel in range(3):
            _multiply(count, True, at[_RED + channel], at[_R + channel])
    if parts & SURFACE:
        _sample_run(count, scene.surface, at, places, fetched, 3)
        _multiply(count, False, at[_GREEN], at[_ROUGH])
        _multiply(count, False, at[_BLUE], at[_METALLIC])
    if parts & OCCLUSION:
        _sample_run(count, scene.occlusion, at, places, fetched, 1)
        _multiply(count, False, at[_RED], at[_OCCLUDED])
    if parts & EMISSIVE:
        _sample_run(count, scene.emissive, at, places, fetched, 3)
        for channel in range(3):
            _multiply(count, True, at[_RED + channel], at[_GLOW_R + channel])
    if parts & NORMAL:  # last: its channels stay
        _sample_run(count, scene.normal, at, places, fetched, 3)


@kernel(types.void(int64, boolean, float32, float32, float32, _array(float32, 2)))
def _light_run(count, bumpy, lx, ly, lz, at):
    """Light a run; its linear colours replace its base colours. On its own so that it vectorises."""
    for i in range(np.uintp(count)):
        nx, ny, nz = unit(at[_NX, i], at[_NY, i], at[_NZ, i])
        if bumpy:
            nx, ny, nz = bump(nx, ny, nz, at[_TX, i], at[_TY, i], at[_TZ, i], at[_RED, i], at[_GREEN, i], at[_BLUE, i])
        vx, vy, vz = unit(at[_VX, i], at[_VY, i], at[_VZ, i])
        red, green, blue = light(
            nx,
            ny,
            nz,
            vx,
            vy,
            vz,
            lx,
            ly,
            lz,
            at[_R, i],
            at[_G, i],
            at[_B, i],
            at[_METALLIC, i],
            at[_ROUGH, i],
            at[_OCCLUDED, i],
            at[_GLOW_R, i],
            at[_GLOW_G, i],
            at[_GLOW_B, i],
        )
        at[_R, i] = red
        at[_G, i] = green
        at[_B, i] = blue


@kernel(
    types.void(
        _array(float32, 2),
        _VIEW,
        _array(int64, 1),
        _array(types.int32, 2),
        _array(uint8, 3),
        _array(int64, 2),
        _array(float32, 2),
        _array(types.int32, 2),
        _array(uint32, 2),
        _SCENE,
    )
)
def shade_nearest(screen, view, box, nearest, samples, run, at, places, fetched, scene):
    """Shade the nearest [S, S] triangle of every pixel in the box, where there is one, into samples [3, S, S].

    The same as `formulas.mesh.shade`, step by step over runs of pixels. run: [2, _RUN], at: [_ROWS, _RUN],
    places, fetched: [4, _RUN], scratch.
    """
    lx, ly, lz = float32(view[12]), float32(view[13]), float32(view[14])
    for y in range(box[1], box[3] + 1):
        x = box[0]
        while x <= box[2]:
            count = 0
            while x <= box[2] and count < _RUN:
                if nearest[y, x] >= 0:
                    run[0, count], run[1, count] = x, nearest[y, x]
                    count += 1
                x += 1
            _gather(count, y, run, screen, view, at, scene)
            _look_up(count, at, places, fetched, scene)
            _light_run(count, scene.parts & NORMAL != 0, lx, ly, lz, at)
            if scene.parts & COLOURS:
                for i in range(count):
                    at[_R, i] *= at[_TINT_R, i]
                    at[_G, i] *= at[_TINT_G, i]
                    at[_B, i] *= at[_TINT_B, i]
            for i in range(count):
                place = run[0, i]
                samples[0, y, place] = to_byte(at[_R, i])
                samples[1, y, place] = to_byte(at[_G, i])
                samples[2, y, place] = to_byte(at[_B, i])


def pack(mesh: Mesh) -> Scene:
    """A mesh laid out for kernels; its missing normals are computed."""
    normals = mesh.normals
    if normals is None:
        normals = np.zeros_like(mesh.positions)
        vertex_normals(mesh.positions, mesh.indices, normals)
    units = np.empty_like(normals)
    unit_normals(normals, units)
    material = mesh.material
    textures = {
        BASE: material.base_colour_texture,
        SURFACE: material.metallic_roughness_texture,
        NORMAL: material.normal_texture,
        OCCLUSION: material.occlusion_texture,
        EMISSIVE: material.emissive_texture,
    }
    if mesh.uv is None:
        textures = dict.fromkeys(textures)
    nothing = np.zeros((1, 1, 4), np.uint8)
    emitted = [factor * factor for factor in material.emissive]
    return Scene(
        _readonly(mesh.positions),
        _readonly(mesh.indices),
        _readonly(units),
        _readonly(mesh.uv if mesh.uv is not None else np.zeros((0, 2), np.float32)),
        _readonly(mesh.colours if mesh.colours is not None else np.zeros((0, 4), np.float32)),
        _readonly(np.array([*material.base_colour, material.metallic, material.roughness, *emitted], np.float32)),
        sum(part for part, texture in textures.items() if texture is not None)
        | (COLOURS if mesh.colours is not None else 0),
        *(_packed(nothing if texture is None else texture) for texture in textures.values()),
    )


def is_translucent(scene: Scene) -> bool:
    """Whether any alpha is below 1, so that triangles must be blended in their order."""
    return bool(
        scene.factors[3] < 1
        or (scene.parts & BASE and scene.base.min() >> 24 < 255)
        or (scene.parts & COLOURS and scene.colours[:, 3].min() < 1)
    )


def draw_mesh(mesh: Mesh, views: Sequence[View], pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Draw each view of a mesh over the whole of its picture, [view.size, view.size, 3], possibly strided.

    Raises UnreadableModel when the mesh covers its own pixels so often that it would take seconds.
    """
    scene = pack(mesh)
    blended = is_translucent(scene)

    def draw(number: int) -> None:
        view = supersampled(views[number], SUPERSAMPLING)
        samples, box = draw_samples(scene, view, blended)
        resolve(samples, box, pictures[number])

    threads.each(draw, range(len(views)))


def draw_samples(scene: Scene, view: View, blended: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """[3, size, size] picture of one view on white, one sample a pixel, and the box of what is drawn, as `halve`."""
    packed = view.packed()
    shape = (view.size, view.size)
    screen = np.empty_like(scene.positions)
    project_vertices(scene.positions, packed, screen)
    depth = np.zeros(shape, np.float32)
    nearest = np.full(shape if not blended else (0, 0), -1, np.int32)
    samples = np.full((3, *shape), 255, np.uint8)
    box = np.array([view.size, view.size, -1, -1])
    work = draw_triangles(screen, packed, blended, MAX_WORK, box, depth, nearest, samples, scene)
    if work > MAX_WORK:
        raise UnreadableModel("too much to draw: its triangles cover the picture too many times over")
    if not blended and box[0] <= box[2]:
        run, at = np.empty((2, _RUN), np.int64), np.empty((_ROWS, _RUN), np.float32)
        places, fetched = np.empty((4, _RUN), np.int32), np.empty((4, _RUN), np.uint32)
        shade_nearest(screen, packed, box, nearest, samples, run, at, places, fetched, scene)
    return samples, box


def supersampled(view: View, factor: int) -> View:
    """The same view with factor times as many pixels a side."""
    return dataclasses.replace(view, size=view.size * factor, focal=view.focal * factor)


def _readonly(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _packed(texture: Texture) -> Packed:
    """[H, W] of a texture [H, W, 4], without a copy where its memory allows; R is in the lowest byte."""
    whole = np.require(texture, np.uint8, ["C"])
    texels = whole.view(np.dtype("<u4")).reshape(whole.shape[:2])
    return _readonly(np.require(texels, np.uint32, ["C", "A"]))

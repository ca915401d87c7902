"""Formulas of a mesh's picture: projection, edges, texture look-up, light; for one vertex, triangle or pixel.

Belongs here: spec/rendering.md "Meshes" 2 to 9, and `Scene`, the form in which every kernel takes a mesh.
Does not: loops over triangles and pixels, blending order, resolving (`formulas.resolve`).
Slow twin: `reference`. Vertices are projected in float64 and snapped, edges are exact integers, shading is in float32.
"""

# Scalars are typed by Numba.
# mypy: disable-error-code="no-untyped-def"

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.camera import MESH_NEAR
from gpu_kernels.formulas import formula
from gpu_kernels.mesh import Floats

_SHIFT = 8
SUBPIXEL = 1 << _SHIFT  # positions are snapped to 1/256 pixel, edges are exact integers: no cracks, no double hits
GUARD = 32768.0  # pixels; a vertex further out is dropped with its triangles (the cube is nowhere near)
BASE, SURFACE, NORMAL, OCCLUSION, EMISSIVE, COLOURS = 1, 2, 4, 8, 16, 32  # bits of Scene.parts
TEXTURES = BASE | SURFACE | NORMAL | OCCLUSION | EMISSIVE

_HALF_PIXEL = SUBPIXEL // 2
_ZERO, _HALF, _ONE, _TWO, _FOUR, _SIX = (np.float32(n) for n in (0, 0.5, 1, 2, 4, 6))
_LEAST_COSINE, _LEAST_ROUGHNESS, _AMBIENT = np.float32(0.001), np.float32(0.04), np.float32(0.3)
_EIGHTH, _PI, _DIFFUSE, _F0 = np.float32(0.125), np.float32(np.pi), np.float32(0.96 / np.pi), np.float32(0.04)
_WHITE, _FULL = np.float32(255), np.float32(1 / 255)
_LEAST, _MOST = np.float32(1e-30), np.float32(1e30)  # squared lengths that can be divided by
_WHOLE = np.float32(1 << 23)  # a float32 beyond it has no fraction
_BYTE = np.uint32(255)
_GAMMA = np.float32(1 / 2.2)

# sRGB to linear at n / 4096, read with linear interpolation (error below 1e-7 of full scale).
_STEPS = np.float32(4096)
_encoded = np.arange(4098) / 4096
_LINEAR = np.where(_encoded <= 0.04045, _encoded / 12.92, ((_encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)
# Linear light at which the displayed byte becomes n: 255 c^(1/2.2) rounded. Found from a guess by sqrt(c).
_BYTE_STARTS = np.append(((np.arange(256) - 0.5).clip(0) / 255) ** 2.2, np.inf).astype(np.float32)
_BYTE_GUESS = np.floor(255 * (np.arange(1025) / 1024) ** (2 / 2.2) + 0.5).astype(np.uint8)
_GUESSES = np.float32(1024)


Packed = NDArray[np.uint32]


class Scene(NamedTuple):
    """A mesh as kernels take it: contiguous read-only arrays, empty or of one texel where the mesh has none."""

    positions: Floats  # [V, 3]
    triangles: NDArray[np.uint32]  # [T, 3]
    normals: Floats  # [V, 3], unit or zero
    uv: Floats  # [V, 2], or [0, 2]
    colours: Floats  # [V, 4], or [0, 4]
    factors: Floats  # [9] base colour RGBA, metallic, roughness, emissive RGB squared
    parts: int  # which textures and colours there are
    base: Packed  # [H, W] RGBA, R in the lowest byte; as all textures
    surface: Packed
    normal: Packed
    occlusion: Packed
    emissive: Packed


@formula
def project(x, y, z, view):
    """Pixel position (x, y down; a multiple of 1/256) and 1 / depth of a vertex; 0, 0, 0 if it cannot be drawn.

    view: [17] as `View.packed`.
    """
    focal, centre = view[15], view[16] * 0.5
    x -= view[0]
    y -= view[1]
    z -= view[2]
    depth = x * view[9] + y * view[10] + z * view[11]
    if not depth > MESH_NEAR:
        return _ZERO, _ZERO, _ZERO
    across = centre + focal * (x * view[3] + y * view[4] + z * view[5]) / depth
    down = centre - focal * (x * view[6] + y * view[7] + z * view[8]) / depth
    if not (abs(across) < GUARD and abs(down) < GUARD):
        return _ZERO, _ZERO, _ZERO
    return (
        np.float32(math.floor(across * SUBPIXEL + 0.5) / SUBPIXEL),
        np.float32(math.floor(down * SUBPIXEL + 0.5) / SUBPIXEL),
        np.float32(1.0 / depth),
    )


@formula
def edge(ax, ay, bx, by):
    """dx, dy, start, least of the edge from a to b, integers in 1/256 pixel.

    e(x, y) = x dx + y dy + start at the centre of pixel (x, y) is twice the area of (a, b, centre); the centre lies
    inside where e >= least. Top-left rule: on the edge itself only where the interior is to its right, or below.
    """
    across, down = by - ay, ax - bx
    start = (_HALF_PIXEL - ax) * across + (_HALF_PIXEL - ay) * down
    least = 0 if across > 0 or (across == 0 and down > 0) else 1
    return across * SUBPIXEL, down * SUBPIXEL, start, least


@formula
def first_centre(low):
    """The first pixel whose centre is not before a place in 1/256 pixel."""
    return (low + _HALF_PIXEL - 1) >> _SHIFT


@formula
def last_centre(high):
    """The last pixel whose centre is not behind a place in 1/256 pixel."""
    return (high - _HALF_PIXEL) >> _SHIFT


@formula
def barycentric(px, py, ax, ay, az, bx, by, bz, cx, cy, cz):
    """Perspective-correct weights of three corners (x, y in pixels, 1 / depth) at a place in pixels.

    Differences of snapped positions are exact.
    """
    ax, ay, bx, by, cx, cy = ax - px, ay - py, bx - px, by - py, cx - px, cy - py
    wa = (bx * cy - by * cx) * az
    wb = (cx * ay - cy * ax) * bz
    wc = (ax * by - ay * bx) * cz
    scale = _ONE / (wa + wb + wc)
    wa *= scale
    wb *= scale
    return wa, wb, _ONE - wa - wb


@formula
def unit(x, y, z):
    """The vector at length 1; zero stays zero."""
    squared = x * x + y * y + z * z
    scale = _ONE / math.sqrt(squared) if squared > _LEAST else _ZERO
    return x * scale, y * scale, z * scale


@formula
def to_linear(encoded):
    """sRGB in 0..1 to linear light, exact piecewise curve (rule 5)."""
    place = encoded * _STEPS
    step = np.uintp(place)
    start = _LINEAR[step]
    return start + (place - np.float32(step)) * (_LINEAR[step + np.uintp(1)] - start)


@formula
def display(light):
    """Linear light to what is displayed, both 0..1 (rule 7)."""
    return min(max(light, _ZERO), _ONE) ** _GAMMA


@formula
def to_byte(light):
    """Linear light to the displayed byte, 255 `display` rounded, by table; NaN and below 0 are black."""
    if not light > _ZERO:
        return np.uint8(0)
    if light >= _ONE:
        return np.uint8(255)
    byte = np.intp(_BYTE_GUESS[np.uintp(math.sqrt(light) * _GUESSES)])
    while light < _BYTE_STARTS[byte]:
        byte -= 1
    while light >= _BYTE_STARTS[byte + 1]:
        byte += 1
    return np.uint8(byte)


@formula
def _floor(x):
    """As an int32; |x| < 2^31. `math.floor` gives an int64, which does not vectorise everywhere."""
    whole = np.int32(x)
    return np.int32(whole - np.int32(1)) if np.float32(whole) > x else whole


@formula
def texels(coordinate, count):
    """The two texels, of count (int32), that a repeating coordinate lies between, and how far towards the second."""
    coordinate = coordinate if abs(coordinate) < _WHOLE else _ZERO  # no fraction is left, or not a number
    place = (coordinate - np.float32(_floor(coordinate))) * np.float32(count) - _HALF
    low = _floor(place)
    high = np.int32(low + np.int32(1))
    fraction = place - np.float32(low)
    return np.int32(low + count) if low < 0 else low, np.int32(high - count) if high >= count else high, fraction


@formula
def mix(t00, t01, t10, t11, fx, fy, channel):
    """A channel (0 to 3: RGBA) between four packed texels (upper two first), in 0..1 (rule 5)."""
    shift = np.uint32(8 * channel)
    w11 = fx * fy * _FULL
    w10 = fy * _FULL - w11
    w01 = fx * _FULL - w11
    w00 = _FULL - w01 - w10 - w11
    value = (
        w00 * np.float32(np.int32((t00 >> shift) & _BYTE))
        + w01 * np.float32(np.int32((t01 >> shift) & _BYTE))
        + w10 * np.float32(np.int32((t10 >> shift) & _BYTE))
        + w11 * np.float32(np.int32((t11 >> shift) & _BYTE))
    )
    return min(max(value, _ZERO), _ONE)


@formula
def sample(texture, u, v):
    """Bilinear look-up in a repeating packed texture [H, W]: RGBA in 0..1."""
    x0, x1, fx = texels(u, np.int32(texture.shape[1]))
    y0, y1, fy = texels(v, np.int32(texture.shape[0]))
    t00, t01, t10, t11 = texture[y0, x0], texture[y0, x1], texture[y1, x0], texture[y1, x1]
    return (
        mix(t00, t01, t10, t11, fx, fy, 0),
        mix(t00, t01, t10, t11, fx, fy, 1),
        mix(t00, t01, t10, t11, fx, fy, 2),
        mix(t00, t01, t10, t11, fx, fy, 3),
    )


@formula
def tangent(ux, uy, uz, vx, vy, vz, du1, dv1, du2, dv2):
    """dP/du of a triangle up to a positive factor, from two of its edges u, v, in space and in texture coordinates.

    It is constant over the triangle: screen derivatives give the same.
    """
    sign = _ONE if du1 * dv2 - du2 * dv1 > _ZERO else -_ONE
    return sign * (dv2 * ux - dv1 * vx), sign * (dv2 * uy - dv1 * vy), sign * (dv2 * uz - dv1 * vz)


@formula
def bump(nx, ny, nz, tx, ty, tz, red, green, blue):
    """The unit normal n that a normal map's texel turns to (rule 5); n itself where the tangent t is not defined."""
    along = tx * nx + ty * ny + tz * nz
    tx, ty, tz = tx - along * nx, ty - along * ny, tz - along * nz
    squared = tx * tx + ty * ty + tz * tz
    defined = squared > _LEAST and squared < _MOST
    tx, ty, tz = unit(tx, ty, tz)
    mx, my, mz = _TWO * red - _ONE, _TWO * green - _ONE, _TWO * blue - _ONE
    gx = mx * tx + my * (ny * tz - nz * ty) + mz * nx
    gy = mx * ty + my * (nz * tx - nx * tz) + mz * ny
    gz = mx * tz + my * (nx * ty - ny * tx) + mz * nz
    defined = defined and gx * gx + gy * gy + gz * gz > _LEAST
    gx, gy, gz = unit(gx, gy, gz)
    return (gx if defined else nx), (gy if defined else ny), (gz if defined else nz)


@formula
def _reflect(base, metallic, grazing, diffuse, specular, power, occlusion, glow):
    """One colour channel of `light`; grazing = (1 - v.h)^5."""
    f0 = _F0 * (_ONE - metallic) + base * metallic
    fresnel = f0 + (_ONE - f0) * grazing
    return (power * ((_ONE - fresnel) * diffuse * base + fresnel * specular) + _AMBIENT * base) * occlusion + glow


@formula
def light(nx, ny, nz, vx, vy, vz, lx, ly, lz, r, g, b, metallic, rough, occlusion, glow_r, glow_g, glow_b):
    """Linear RGB that leaves a surface of unit normal n and base colour r, g, b (rule 6).

    v, l: towards the eye and the light, unit.
    """
    hx, hy, hz = unit(lx + vx, ly + vy, lz + vz)
    nl = min(max(nx * lx + ny * ly + nz * lz, _LEAST_COSINE), _ONE)
    nv = min(max(abs(nx * vx + ny * vy + nz * vz), _LEAST_COSINE), _ONE)
    nh = min(max(nx * hx + ny * hy + nz * hz, _ZERO), _ONE)
    vh = min(max(vx * hx + vy * hy + vz * hz, _ZERO), _ONE)
    rough = min(max(rough, _LEAST_ROUGHNESS), _ONE)
    k = (rough + _ONE) * (rough + _ONE) * _EIGHTH
    shadowing = nv * nl / ((nv * (_ONE - k) + k) * (nl * (_ONE - k) + k))
    a2 = rough * rough * rough * rough
    spread = nh * nh * (a2 - _ONE) + _ONE
    specular = shadowing * a2 / (_PI * spread * spread * (_FOUR * nl * nv + _LEAST_COSINE))
    grazing = (_ONE - vh) * (_ONE - vh)
    grazing = grazing * grazing * (_ONE - vh)
    diffuse = _DIFFUSE * (_ONE - metallic)
    power = _SIX * nl
    return (
        _reflect(r, metallic, grazing, diffuse, specular, power, occlusion, glow_r),
        _reflect(g, metallic, grazing, diffuse, specular, power, occlusion, glow_g),
        _reflect(b, metallic, grazing, diffuse, specular, power, occlusion, glow_b),
    )


@formula
def interpolate(values, a, b, c, wa, wb, wc, column):
    column = np.uintp(column)
    return wa * values[a, column] + wb * values[b, column] + wc * values[c, column]


@formula
def corner_weights(screen, a, b, c, px, py):
    """`barycentric` of vertices a, b, c; screen: [V, 3] as `project` gives."""
    i0, i1, i2 = np.uintp(0), np.uintp(1), np.uintp(2)
    return barycentric(
        px,
        py,
        screen[a, i0],
        screen[a, i1],
        screen[a, i2],
        screen[b, i0],
        screen[b, i1],
        screen[b, i2],
        screen[c, i0],
        screen[c, i1],
        screen[c, i2],
    )


@formula
def triangle_tangent(scene, a, b, c):
    """`tangent` of the triangle with corners a, b, c."""
    points, uv, i0, i1, i2 = scene.positions, scene.uv, np.uintp(0), np.uintp(1), np.uintp(2)
    return tangent(
        points[b, i0] - points[a, i0],
        points[b, i1] - points[a, i1],
        points[b, i2] - points[a, i2],
        points[c, i0] - points[a, i0],
        points[c, i1] - points[a, i1],
        points[c, i2] - points[a, i2],
        uv[b, i0] - uv[a, i0],
        uv[b, i1] - uv[a, i1],
        uv[c, i0] - uv[a, i0],
        uv[c, i1] - uv[a, i1],
    )


@formula
def shade(triangle, px, py, screen, view, scene):
    """Light that leaves the surface towards the eye at a place (px, py) in pixels of a triangle: linear RGB, and alpha.

    screen: [V, 3] as `project` gives; view: [17] as `View.packed`; scene: `Scene`.
    """
    t, i0, i1, i2 = np.uintp(triangle), np.uintp(0), np.uintp(1), np.uintp(2)
    a, b, c = np.uintp(scene.triangles[t, i0]), np.uintp(scene.triangles[t, i1]), np.uintp(scene.triangles[t, i2])
    wa, wb, wc = corner_weights(screen, a, b, c, px, py)
    points = scene.positions
    nx, ny, nz = unit(
        interpolate(scene.normals, a, b, c, wa, wb, wc, 0),
        interpolate(scene.normals, a, b, c, wa, wb, wc, 1),
        interpolate(scene.normals, a, b, c, wa, wb, wc, 2),
    )
    factors, parts = scene.factors, scene.parts
    base_r, base_g, base_b, alpha = factors[0], factors[1], factors[2], factors[3]
    metallic, rough, occlusion = factors[4], factors[5], _ONE
    glow_r, glow_g, glow_b = factors[6], factors[7], factors[8]
    if parts & TEXTURES:
        uv = scene.uv
        u = interpolate(uv, a, b, c, wa, wb, wc, 0)
        v = interpolate(uv, a, b, c, wa, wb, wc, 1)
        if parts & BASE:
            red, green, blue, opacity = sample(scene.base, u, v)
            base_r *= to_linear(red)
            base_g *= to_linear(green)
            base_b *= to_linear(blue)
            alpha *= opacity
        if parts & SURFACE:
            _, green, blue, _ = sample(scene.surface, u, v)
            rough *= green
            metallic *= blue
        if parts & OCCLUSION:
            occlusion, _, _, _ = sample(scene.occlusion, u, v)
        if parts & EMISSIVE:
            red, green, blue, _ = sample(scene.emissive, u, v)
            glow_r *= to_linear(red)
            glow_g *= to_linear(green)
            glow_b *= to_linear(blue)
        if parts & NORMAL:
            red, green, blue, _ = sample(scene.normal, u, v)
            tx, ty, tz = triangle_tangent(scene, a, b, c)
            nx, ny, nz = bump(nx, ny, nz, tx, ty, tz, red, green, blue)
    vx, vy, vz = unit(
        np.float32(view[0]) - interpolate(points, a, b, c, wa, wb, wc, 0),
        np.float32(view[1]) - interpolate(points, a, b, c, wa, wb, wc, 1),
        np.float32(view[2]) - interpolate(points, a, b, c, wa, wb, wc, 2),
    )
    lx, ly, lz = np.float32(view[12]), np.float32(view[13]), np.float32(view[14])
    red, green, blue = light(
        nx, ny, nz, vx, vy, vz, lx, ly, lz, base_r, base_g, base_b, metallic, rough, occlusion, glow_r, glow_g, glow_b
    )
    if parts & COLOURS:
        red *= interpolate(scene.colours, a, b, c, wa, wb, wc, 0)
        green *= interpolate(scene.colours, a, b, c, wa, wb, wc, 1)
        blue *= interpolate(scene.colours, a, b, c, wa, wb, wc, 2)
        alpha *= interpolate(scene.colours, a, b, c, wa, wb, wc, 3)
    return red, green, blue, alpha


@formula
def over(light, alpha, below):
    """The byte of a colour channel after a fragment is drawn over the byte below (rule 8)."""
    alpha = min(max(alpha, _ZERO), _ONE)
    return np.uint8(alpha * display(light) * _WHITE + (_ONE - alpha) * np.float32(below) + _HALF)

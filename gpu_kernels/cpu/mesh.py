"""Mesh kernels: project, rasterise, shade.

Belongs here: the picture of one mesh in one view, as spec/rendering.md "Meshes" defines it.
Does not: decoding (`gltf`), views (`camera`), resolving to the final size (`preview`).
Slow twin: `reference.draw_mesh`; tests/gpu_kernels/test_mesh_pictures.py compares the two.

Opaque meshes are drawn deferred: the nearest triangle of each pixel first, then one shading per pixel. Where any alpha
is below 1 the triangles are shaded and blended one after the other, as the spec orders.
All kernels have one explicit signature (contiguous arrays), so a fresh clone compiles each exactly once.
"""

# A kernel's types are its Numba signature.
# mypy: disable-error-code="no-untyped-def, assignment"

from typing import Any

import numpy as np
from numba import boolean, float32, float64, int64, njit, types, uint32
from numpy.typing import NDArray

from gpu_kernels.camera import MESH_NEAR, View
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.mesh import Material, Mesh, Texture

# Units of work (about a nanosecond each) that one view may cost: far above honest meshes, seconds for hostile ones.
MAX_WORK = 4_000_000_000

_SUBPIXEL = 256  # positions are snapped to 1/256 pixel, edges are exact integers: no cracks, no double hits
_BASE, _SURFACE, _NORMAL, _OCCLUSION, _EMISSIVE, _COLOURS = 1, 2, 4, 8, 16, 32
_SHADING_WORK = 100  # units of work for shading one fragment
_ROW_WORK = 8
_TRIANGLE_WORK = 8


def _array(dtype: types.Type, dimensions: int, readonly: bool = True) -> types.Array:
    return types.Array(dtype, dimensions, "C", readonly=readonly)


_F1, _F2, _F1_64 = _array(float32, 1), _array(float32, 2), _array(float64, 1)
_TRIANGLES, _TEXTURE = _array(uint32, 2), _array(types.uint8, 3)
# No fast math: reciprocal approximations and fused operations differ between processors, and with them the bytes.
# No reference counting ("_nrt"): nothing is allocated in here, and the atomic counts cost more than the shading.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False, "_nrt": False}
_INLINED = {**_OPTIONS, "forceinline": True}

# sRGB to linear at n / 4096, read with linear interpolation (error below 1e-7 of full scale).
_STEPS = 4096
_encoded = np.arange(_STEPS + 2) / _STEPS
_LINEAR = np.where(_encoded <= 0.04045, _encoded / 12.92, ((_encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)
# Linear light at which the displayed byte becomes n: 255 c^(1/2.2) rounded. Found from a guess by sqrt(c).
_BYTE_STARTS = np.append(((np.arange(256) - 0.5).clip(0) / 255) ** 2.2, np.inf).astype(np.float32)
_BYTE_GUESS = np.floor(255 * (np.arange(1025) / 1024) ** (2 / 2.2) + 0.5).astype(np.uint8)


@njit([types.void(_F2, _F1_64, _array(float32, 2, readonly=False))], **_OPTIONS)
def project(positions, view, screen):
    """Perspective projection of positions [V, 3] to screen [V, 3]: x, y in pixels (y down), 1 / depth.

    x and y are snapped to 1/256 pixel. 1 / depth = 0 marks a vertex nearer than the near plane.
    view: [17] as `View.packed`.
    """
    focal, centre = view[15], view[16] * 0.5
    for vertex in range(positions.shape[0]):
        x = positions[vertex, 0] - view[0]
        y = positions[vertex, 1] - view[1]
        z = positions[vertex, 2] - view[2]
        depth = x * view[9] + y * view[10] + z * view[11]
        if depth > MESH_NEAR:
            across = centre + focal * (x * view[3] + y * view[4] + z * view[5]) / depth
            down = centre - focal * (x * view[6] + y * view[7] + z * view[8]) / depth
            screen[vertex, 0] = np.floor(across * _SUBPIXEL + 0.5) / _SUBPIXEL
            screen[vertex, 1] = np.floor(down * _SUBPIXEL + 0.5) / _SUBPIXEL
            screen[vertex, 2] = 1.0 / depth
        else:
            screen[vertex, 0] = screen[vertex, 1] = screen[vertex, 2] = 0.0


@njit([types.void(_F2, _TRIANGLES, _array(float32, 2, readonly=False))], **_OPTIONS)
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


@njit(float32(float32), **_INLINED)
def _to_linear(encoded):
    """sRGB in 0..1 to linear light, exact piecewise curve."""
    place = encoded * float32(_STEPS)
    step = np.intp(place)
    start = _LINEAR[step]
    return start + (place - float32(step)) * (_LINEAR[step + 1] - start)


@njit(types.uint8(float32), **_INLINED)
def _to_byte(light):
    """Linear light to the displayed byte, 255 light^(1/2.2) rounded; NaN and below 0 are black."""
    if not light > float32(0):
        return np.uint8(0)
    if light >= float32(1):
        return np.uint8(255)
    byte = np.intp(_BYTE_GUESS[np.intp(np.sqrt(light) * float32(1024))])
    while light < _BYTE_STARTS[byte]:
        byte -= 1
    while light >= _BYTE_STARTS[byte + 1]:
        byte += 1
    return np.uint8(byte)


@njit(types.UniTuple(float32, 4)(_TEXTURE, float32, float32), **_INLINED)
def _sample(texture, u, v):
    """Bilinear, repeating look-up at (u, v): RGBA in 0..1. Coordinates too large for a fraction read texel 0."""
    height, width = texture.shape[0], texture.shape[1]
    x = (u - np.floor(u)) * float32(width) - float32(0.5)
    y = (v - np.floor(v)) * float32(height) - float32(0.5)
    if not (x >= float32(-0.5) and x <= float32(width)):
        x = float32(0)
    if not (y >= float32(-0.5) and y <= float32(height)):
        y = float32(0)
    x0, y0 = np.intp(np.floor(x)), np.intp(np.floor(y))
    fx, fy = x - float32(x0), y - float32(y0)
    x0 = width - 1 if x0 < 0 else (0 if x0 >= width else x0)
    y0 = height - 1 if y0 < 0 else (0 if y0 >= height else y0)
    x1 = 0 if x0 + 1 == width else x0 + 1
    y1 = 0 if y0 + 1 == height else y0 + 1
    w11 = fx * fy * float32(1 / 255)
    w10 = fy * float32(1 / 255) - w11
    w01 = fx * float32(1 / 255) - w11
    w00 = float32(1 / 255) - w01 - w10 - w11
    ux0, ux1, uy0, uy1 = np.uintp(x0), np.uintp(x1), np.uintp(y0), np.uintp(y1)
    zero, one, two, three = np.uintp(0), np.uintp(1), np.uintp(2), np.uintp(3)
    red = (
        w00 * float32(texture[uy0, ux0, zero])
        + w01 * float32(texture[uy0, ux1, zero])
        + w10 * float32(texture[uy1, ux0, zero])
        + w11 * float32(texture[uy1, ux1, zero])
    )
    green = (
        w00 * float32(texture[uy0, ux0, one])
        + w01 * float32(texture[uy0, ux1, one])
        + w10 * float32(texture[uy1, ux0, one])
        + w11 * float32(texture[uy1, ux1, one])
    )
    blue = (
        w00 * float32(texture[uy0, ux0, two])
        + w01 * float32(texture[uy0, ux1, two])
        + w10 * float32(texture[uy1, ux0, two])
        + w11 * float32(texture[uy1, ux1, two])
    )
    alpha = (
        w00 * float32(texture[uy0, ux0, three])
        + w01 * float32(texture[uy0, ux1, three])
        + w10 * float32(texture[uy1, ux0, three])
        + w11 * float32(texture[uy1, ux1, three])
    )
    limit, nothing = float32(1), float32(0)
    return (
        min(max(red, nothing), limit),
        min(max(green, nothing), limit),
        min(max(blue, nothing), limit),
        min(max(alpha, nothing), limit),
    )


_SCENE = (
    _F2,  # positions [V, 3]
    _TRIANGLES,  # [T, 3]
    _F2,  # normals [V, 3]
    _F2,  # uv [V, 2], or [0, 2]
    _F2,  # colours [V, 4], or [0, 4]
    _F1,  # factors [9], as `Scene` packs them
    int64,  # parts: which textures and colours there are
    _TEXTURE,  # base colour
    _TEXTURE,  # metallic and roughness
    _TEXTURE,  # normal
    _TEXTURE,  # occlusion
    _TEXTURE,  # emissive
)


@njit(types.UniTuple(float32, 4)(int64, float32, float32, _F2, _F1_64, *_SCENE), **_INLINED)
def _shade(
    triangle,
    px,
    py,
    screen,
    view,
    positions,
    triangles,
    normals,
    uv,
    colours,
    factors,
    parts,
    base_texture,
    surface_texture,
    normal_texture,
    occlusion_texture,
    emissive_texture,
):
    """Light that leaves the surface towards the eye at pixel position (px, py) of a triangle: linear RGB, and alpha."""
    one, tiny = float32(1), float32(0.001)
    t = np.uintp(triangle)
    zero, first, second = np.uintp(0), np.uintp(1), np.uintp(2)
    a, b, c = np.uintp(triangles[t, zero]), np.uintp(triangles[t, first]), np.uintp(triangles[t, second])

    # Perspective-correct barycentric coordinates; differences of snapped positions are exact.
    ax, ay = screen[a, zero] - px, screen[a, first] - py
    bx, by = screen[b, zero] - px, screen[b, first] - py
    cx, cy = screen[c, zero] - px, screen[c, first] - py
    wa = (bx * cy - by * cx) * screen[a, second]
    wb = (cx * ay - cy * ax) * screen[b, second]
    wc = (ax * by - ay * bx) * screen[c, second]
    scale = one / (wa + wb + wc)
    wa *= scale
    wb *= scale
    wc = one - wa - wb

    x = wa * positions[a, zero] + wb * positions[b, zero] + wc * positions[c, zero]
    y = wa * positions[a, first] + wb * positions[b, first] + wc * positions[c, first]
    z = wa * positions[a, second] + wb * positions[b, second] + wc * positions[c, second]
    nx = wa * normals[a, zero] + wb * normals[b, zero] + wc * normals[c, zero]
    ny = wa * normals[a, first] + wb * normals[b, first] + wc * normals[c, first]
    nz = wa * normals[a, second] + wb * normals[b, second] + wc * normals[c, second]
    squared = nx * nx + ny * ny + nz * nz
    scale = one / np.sqrt(squared) if squared > float32(1e-30) else float32(0)
    nx *= scale
    ny *= scale
    nz *= scale

    base_r, base_g, base_b, alpha = factors[0], factors[1], factors[2], factors[3]
    metallic, rough = factors[4], factors[5]
    glow_r, glow_g, glow_b = factors[6], factors[7], factors[8]
    occlusion = one
    if parts & (_BASE | _SURFACE | _NORMAL | _OCCLUSION | _EMISSIVE):
        ua, va = uv[a, zero], uv[a, first]
        ub, vb = uv[b, zero], uv[b, first]
        uc, vc = uv[c, zero], uv[c, first]
        u = wa * ua + wb * ub + wc * uc
        v = wa * va + wb * vb + wc * vc
        if parts & _BASE:
            red, green, blue, opacity = _sample(base_texture, u, v)
            base_r *= _to_linear(red)
            base_g *= _to_linear(green)
            base_b *= _to_linear(blue)
            alpha *= opacity
        if parts & _SURFACE:
            red, green, blue, opacity = _sample(surface_texture, u, v)
            rough *= green
            metallic *= blue
        if parts & _OCCLUSION:
            red, green, blue, opacity = _sample(occlusion_texture, u, v)
            occlusion = red
        if parts & _EMISSIVE:
            red, green, blue, opacity = _sample(emissive_texture, u, v)
            glow_r *= _to_linear(red)
            glow_g *= _to_linear(green)
            glow_b *= _to_linear(blue)
        if parts & _NORMAL:
            # T = dP/du, constant over the triangle (the screen derivatives of the spec give the same).
            du1, dv1, du2, dv2 = ub - ua, vb - va, uc - ua, vc - va
            sign = one if du1 * dv2 - du2 * dv1 > float32(0) else -one
            tx = sign * (
                dv2 * (positions[b, zero] - positions[a, zero]) - dv1 * (positions[c, zero] - positions[a, zero])
            )
            ty = sign * (
                dv2 * (positions[b, first] - positions[a, first]) - dv1 * (positions[c, first] - positions[a, first])
            )
            tz = sign * (
                dv2 * (positions[b, second] - positions[a, second])
                - dv1 * (positions[c, second] - positions[a, second])
            )
            along = tx * nx + ty * ny + tz * nz
            tx -= along * nx
            ty -= along * ny
            tz -= along * nz
            squared = tx * tx + ty * ty + tz * tz
            if squared > float32(1e-30) and squared < float32(1e30):
                scale = one / np.sqrt(squared)
                tx *= scale
                ty *= scale
                tz *= scale
                red, green, blue, opacity = _sample(normal_texture, u, v)
                mx, my, mz = float32(2) * red - one, float32(2) * green - one, float32(2) * blue - one
                bx, by, bz = ny * tz - nz * ty, nz * tx - nx * tz, nx * ty - ny * tx
                gx = mx * tx + my * bx + mz * nx
                gy = mx * ty + my * by + mz * ny
                gz = mx * tz + my * bz + mz * nz
                squared = gx * gx + gy * gy + gz * gz
                if squared > float32(1e-30):
                    scale = one / np.sqrt(squared)
                    nx, ny, nz = gx * scale, gy * scale, gz * scale

    # Light and eye; spec "Meshes", rule 6.
    vx, vy, vz = float32(view[0]) - x, float32(view[1]) - y, float32(view[2]) - z
    scale = one / np.sqrt(vx * vx + vy * vy + vz * vz)
    vx *= scale
    vy *= scale
    vz *= scale
    lx, ly, lz = float32(view[12]), float32(view[13]), float32(view[14])
    hx, hy, hz = lx + vx, ly + vy, lz + vz
    scale = one / np.sqrt(hx * hx + hy * hy + hz * hz)
    nl = min(max(nx * lx + ny * ly + nz * lz, tiny), one)
    nv = min(max(abs(nx * vx + ny * vy + nz * vz), tiny), one)
    nh = min(max((nx * hx + ny * hy + nz * hz) * scale, float32(0)), one)
    vh = min(max((vx * hx + vy * hy + vz * hz) * scale, float32(0)), one)
    rough = min(max(rough, float32(0.04)), one)
    k = (rough + one) * (rough + one) * float32(0.125)
    shadowing = nv * nl / ((nv * (one - k) + k) * (nl * (one - k) + k))
    a2 = rough * rough * rough * rough
    spread = nh * nh * (a2 - one) + one
    specular = shadowing * a2 / (float32(np.pi) * spread * spread * (float32(4) * nl * nv + tiny))
    grazing = one - vh
    fresnel = grazing * grazing
    fresnel = fresnel * fresnel * grazing
    power = float32(6) * nl
    dielectric = float32(0.04) * (one - metallic)
    diffuse = float32(0.96 / np.pi) * (one - metallic)

    f0 = dielectric + base_r * metallic
    f = f0 + (one - f0) * fresnel
    red = (power * ((one - f) * diffuse * base_r + f * specular) + float32(0.3) * base_r) * occlusion + glow_r
    f0 = dielectric + base_g * metallic
    f = f0 + (one - f0) * fresnel
    green = (power * ((one - f) * diffuse * base_g + f * specular) + float32(0.3) * base_g) * occlusion + glow_g
    f0 = dielectric + base_b * metallic
    f = f0 + (one - f0) * fresnel
    blue = (power * ((one - f) * diffuse * base_b + f * specular) + float32(0.3) * base_b) * occlusion + glow_b
    if parts & _COLOURS:
        three = np.uintp(3)
        red *= wa * colours[a, zero] + wb * colours[b, zero] + wc * colours[c, zero]
        green *= wa * colours[a, first] + wb * colours[b, first] + wc * colours[c, first]
        blue *= wa * colours[a, second] + wb * colours[b, second] + wc * colours[c, second]
        alpha *= wa * colours[a, three] + wb * colours[b, three] + wc * colours[c, three]
    return red, green, blue, alpha


@njit(
    [types.void(int64, int64, float32, float32, types.int32, _array(float32, 1, False), _array(types.int32, 1, False))],
    **_OPTIONS,
)
def _fill_row(start, end, nearness, step, triangle, row_depth, row_nearest):
    """Put a triangle where it is nearer than what pixels start..end of a row hold. On its own so that it vectorises."""
    for offset in range(np.uintp(end - start)):
        x = np.uintp(start) + np.uintp(offset)
        value = nearness + step * float32(np.int32(offset))
        if value > row_depth[x]:
            row_depth[x] = value
            row_nearest[x] = triangle


@njit(
    int64(
        _F2,
        _F1_64,
        boolean,
        int64,
        _array(float32, 2, False),
        _array(types.int32, 2, False),
        _array(types.uint8, 3, False),
        *_SCENE,
    ),
    **_OPTIONS,
)
def draw_triangles(
    screen,
    view,
    blended,
    max_work,
    depth,
    nearest,
    picture,
    positions,
    triangles,
    normals,
    uv,
    colours,
    factors,
    parts,
    base_texture,
    surface_texture,
    normal_texture,
    occlusion_texture,
    emissive_texture,
):
    """Rasterise front faces in index order; returns the units of work done, which stop soon after max_work.

    screen: [V, 3] as `project`; depth: [S, S] 1 / depth of what is nearest so far, 0 at infinity;
    nearest: [S, S] its triangle, -1 for none, written unless blended; picture: [S, S, 3], written only if blended.
    Pixel centres are at +0.5; a pixel on a shared edge belongs to one of the two triangles (top-left rule).
    """
    size = int64(view[16])
    half = _SUBPIXEL // 2
    work = int64(0)
    for triangle in range(triangles.shape[0]):
        work += _TRIANGLE_WORK
        a = np.uintp(triangles[triangle, 0])
        b = np.uintp(triangles[triangle, 1])
        c = np.uintp(triangles[triangle, 2])
        za, zb, zc = float64(screen[a, 2]), float64(screen[b, 2]), float64(screen[c, 2])
        if za == 0.0 or zb == 0.0 or zc == 0.0:
            continue
        ax, ay = int64(screen[a, 0] * float32(_SUBPIXEL)), int64(screen[a, 1] * float32(_SUBPIXEL))
        bx, by = int64(screen[b, 0] * float32(_SUBPIXEL)), int64(screen[b, 1] * float32(_SUBPIXEL))
        cx, cy = int64(screen[c, 0] * float32(_SUBPIXEL)), int64(screen[c, 1] * float32(_SUBPIXEL))
        # y points down: a face that is counter-clockwise to the eye has a negative area here.
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0:
            continue
        left = max((min(ax, bx, cx) - half + _SUBPIXEL - 1) // _SUBPIXEL, 0)
        right = min((max(ax, bx, cx) - half) // _SUBPIXEL, size - 1)
        top = max((min(ay, by, cy) - half + _SUBPIXEL - 1) // _SUBPIXEL, 0)
        bottom = min((max(ay, by, cy) - half) // _SUBPIXEL, size - 1)
        if left > right or top > bottom:
            continue

        # Edge functions, >= 0 inside: e(x, y) = x dx + y dy + e0 over whole pixels, exact.
        dx0, dy0 = (cy - by) * _SUBPIXEL, (bx - cx) * _SUBPIXEL
        dx1, dy1 = (ay - cy) * _SUBPIXEL, (cx - ax) * _SUBPIXEL
        dx2, dy2 = (by - ay) * _SUBPIXEL, (ax - bx) * _SUBPIXEL
        e0 = (half - bx) * (cy - by) - (half - by) * (cx - bx)
        e1 = (half - cx) * (ay - cy) - (half - cy) * (ax - cx)
        e2 = (half - ax) * (by - ay) - (half - ay) * (bx - ax)
        area = -area
        plane_x = (dx0 * za + dx1 * zb + dx2 * zc) / area
        plane_y = (dy0 * za + dy1 * zb + dy2 * zc) / area
        plane = (e0 * za + e1 * zb + e2 * zc) / area
        # Top-left rule: a pixel centre exactly on an edge counts only where the interior lies to its right, or below.
        if not (dx0 > 0 or (dx0 == 0 and dy0 > 0)):
            e0 -= 1
        if not (dx1 > 0 or (dx1 == 0 and dy1 > 0)):
            e1 -= 1
        if not (dx2 > 0 or (dx2 == 0 and dy2 > 0)):
            e2 -= 1

        for y in range(top, bottom + 1):
            start, end = left, right
            for edge in range(3):
                if edge == 0:
                    slope, value = dx0, e0 + y * dy0
                elif edge == 1:
                    slope, value = dx1, e1 + y * dy1
                else:
                    slope, value = dx2, e2 + y * dy2
                # Integers below 2^53: the float quotient falls on the right side of every integer.
                if slope > 0:
                    start = max(start, int64(np.ceil(-value / slope)))
                elif slope < 0:
                    end = min(end, int64(np.floor(-value / slope)))
                elif value < 0:
                    end = -1
            work += _ROW_WORK
            if start > end:
                continue
            work += end - start
            nearness, step = float32(plane + plane_x * start + plane_y * y), float32(plane_x)
            if not blended:
                _fill_row(start, end + 1, nearness, step, np.int32(triangle), depth[y], nearest[y])
                continue
            for x in range(start, end + 1):
                value = nearness + step * float32(np.int32(x - start))
                if value > depth[y, x]:
                    depth[y, x] = value
                    work += _SHADING_WORK
                    red, green, blue, alpha = _shade(
                        triangle,
                        float32(x) + float32(0.5),
                        float32(y) + float32(0.5),
                        screen,
                        view,
                        positions,
                        triangles,
                        normals,
                        uv,
                        colours,
                        factors,
                        parts,
                        base_texture,
                        surface_texture,
                        normal_texture,
                        occlusion_texture,
                        emissive_texture,
                    )
                    alpha = min(max(alpha, float32(0)), float32(1))
                    for channel in range(3):
                        light = red if channel == 0 else (green if channel == 1 else blue)
                        light = min(max(light, float32(0)), float32(1)) ** float32(1 / 2.2)
                        below = float32(picture[y, x, channel])
                        picture[y, x, channel] = np.uint8(
                            alpha * light * float32(255) + (float32(1) - alpha) * below + float32(0.5)
                        )
            if work > max_work:
                return work
    return work


@njit(
    types.void(_F2, _F1_64, _array(types.int32, 2), _array(types.uint8, 3, False), *_SCENE),
    **_OPTIONS,
)
def shade_nearest(
    screen,
    view,
    nearest,
    picture,
    positions,
    triangles,
    normals,
    uv,
    colours,
    factors,
    parts,
    base_texture,
    surface_texture,
    normal_texture,
    occlusion_texture,
    emissive_texture,
):
    """Shade the nearest [S, S] triangle of every pixel, where there is one, into picture [S, S, 3]."""
    for y in range(nearest.shape[0]):
        for x in range(nearest.shape[1]):
            triangle = nearest[y, x]
            if triangle >= 0:
                red, green, blue, _ = _shade(
                    int64(triangle),
                    float32(x) + float32(0.5),
                    float32(y) + float32(0.5),
                    screen,
                    view,
                    positions,
                    triangles,
                    normals,
                    uv,
                    colours,
                    factors,
                    parts,
                    base_texture,
                    surface_texture,
                    normal_texture,
                    occlusion_texture,
                    emissive_texture,
                )
                picture[y, x, 0] = _to_byte(red)
                picture[y, x, 1] = _to_byte(green)
                picture[y, x, 2] = _to_byte(blue)


class MeshScene:
    """A mesh laid out for the kernels, and the buffers to draw its views in; one thread at a time."""

    def __init__(self, mesh: Mesh) -> None:
        material = mesh.material
        normals = mesh.normals
        if normals is None:
            normals = np.zeros_like(mesh.positions)
            vertex_normals(mesh.positions, mesh.indices, normals)
        self.positions = mesh.positions
        textures = [
            material.base_colour_texture,
            material.metallic_roughness_texture,
            material.normal_texture,
            material.occlusion_texture,
            material.emissive_texture,
        ]
        if mesh.uv is None:
            textures = [None] * len(textures)
        parts = sum(flag for flag, texture in zip((1, 2, 4, 8, 16), textures, strict=True) if texture is not None)
        if mesh.colours is not None:
            parts |= _COLOURS
        nothing: Texture = np.zeros((1, 1, 4), np.uint8)
        factors = [
            *material.base_colour,
            material.metallic,
            material.roughness,
            *(factor * factor for factor in material.emissive),
        ]
        self.blended = _is_translucent(material, mesh, textures[0])
        self.scene = (
            mesh.positions,
            mesh.indices,
            normals,
            mesh.uv if mesh.uv is not None else np.zeros((0, 2), np.float32),
            mesh.colours if mesh.colours is not None else np.zeros((0, 4), np.float32),
            np.array(factors, np.float32),
            parts,
            *(nothing if texture is None else texture for texture in textures),
        )
        self.screen = np.empty_like(mesh.positions)

    def draw(self, view: View) -> NDArray[np.uint8]:
        """[size, size, 3] picture of one view on white, one sample a pixel.

        Raises UnreadableModel when the mesh covers its own pixels so often that it would take seconds.
        """
        packed = view.packed()
        shape = (view.size, view.size)
        project(self.positions, packed, self.screen)
        depth = np.zeros(shape, np.float32)
        nearest = np.full(shape, -1, np.int32)
        picture = np.full((*shape, 3), 255, np.uint8)
        work = draw_triangles(self.screen, packed, self.blended, MAX_WORK, depth, nearest, picture, *self.scene)
        if work > MAX_WORK:
            raise UnreadableModel("too much to draw: its triangles cover the picture too many times over")
        if not self.blended:
            shade_nearest(self.screen, packed, nearest, picture, *self.scene)
        return picture


def _is_translucent(material: Material, mesh: Mesh, base_texture: Texture | None) -> bool:
    return bool(
        material.base_colour[3] < 1
        or (base_texture is not None and base_texture[..., 3].min() < 255)
        or (mesh.colours is not None and mesh.colours[:, 3].min() < 1)
    )

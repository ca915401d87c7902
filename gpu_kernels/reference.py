"""The slow twin of the kernels: the same definitions, read straight from the spec, in float64 and in few lines.

Belongs here: what tests compare fast kernels with. It shares no code with them: a pixel is a ray, not a raster.
Does not: speed, limits, files.
Rules: spec/rendering.md "Meshes (GLB)"; rule numbers in the comments are of that list.
"""

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.camera import View
from gpu_kernels.mesh import Mesh, Texture

Vector = NDArray[np.float64]


def draw_mesh(mesh: Mesh, view: View) -> NDArray[np.uint8]:
    """[size, size, 3] picture of a mesh on white, one ray a pixel centre. For tiny pictures and few triangles."""
    picture = np.full((view.size, view.size, 3), 255, np.uint8)
    corners = mesh.positions.astype(np.float64)[mesh.indices]  # [T, 3 corners, 3]
    normals = vertex_normals(mesh) if mesh.normals is None else mesh.normals.astype(np.float64)
    normals = np.stack([unit(normal) for normal in normals])
    for y, x in np.ndindex(view.size, view.size):
        across, down = (np.array([x, y]) + 0.5 - view.size / 2) / view.focal
        ray = view.forward + across * view.right - down * view.up
        depth, weights = intersect(view.eye, ray, corners)
        nearest = np.inf
        for triangle in np.flatnonzero(depth < np.inf):  # rule 8: in index order, each over what is there
            if depth[triangle] < nearest:
                nearest = depth[triangle]
                colour, alpha = shade(mesh, normals, int(triangle), weights[triangle], view)
                picture[y, x] = np.floor(255 * alpha * colour + (1 - alpha) * picture[y, x] + 0.5)
    return picture


def intersect(eye: Vector, ray: Vector, corners: Vector) -> tuple[Vector, Vector]:
    """Depth [T] (inf: no front face there) and barycentric weights [T, 3] of a ray. Möller and Trumbore 1997."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    across = np.cross(ray, c - a)
    facing = ((b - a) * across).sum(axis=1)  # > 0: counter-clockwise to the eye (rule 4)
    scale = 1 / np.where(facing > 1e-15, facing, 1.0)
    wb = ((eye - a) * across).sum(axis=1) * scale
    along = np.cross(eye - a, b - a)
    wc = (along * ray).sum(axis=1) * scale
    depth = (along * (c - a)).sum(axis=1) * scale
    hit = (facing > 1e-15) & (wb >= 0) & (wc >= 0) & (wb + wc <= 1) & (depth > 0)
    return np.where(hit, depth, np.inf), np.stack([1 - wb - wc, wb, wc], axis=1)


def vertex_normals(mesh: Mesh) -> Vector:
    """[V, 3] sum of the unit normals of the faces around each vertex, weighted by the face's angle there."""
    normals = np.zeros((len(mesh.positions), 3))
    for face in mesh.indices:
        for a, b, c in (face, np.roll(face, -1), np.roll(face, -2)):
            u, v = (mesh.positions[other].astype(np.float64) - mesh.positions[a] for other in (b, c))
            normal = np.cross(u, v)
            if np.linalg.norm(normal) > 0:
                angle = np.arctan2(np.linalg.norm(normal), u @ v)
                normals[a] += angle * normal / np.linalg.norm(normal)
    return normals


def sample(texture: Texture, uv: Vector) -> Vector:
    """[4] RGBA in 0..1 at uv: bilinear, repeated without end (rule 5)."""
    height, width, _ = texture.shape
    x, y = uv * (width, height) - 0.5
    column, row = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(4)
    for i, j in np.ndindex(2, 2):
        share = abs(1 - j - (x - column)) * abs(1 - i - (y - row))
        total += share * texture[(row + i) % height, (column + j) % width]
    return total / 255


def to_linear(encoded: Vector) -> Vector:
    """sRGB to linear light, exact piecewise curve."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def halve(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[S, S, 3] of a picture [2 S, 2 S, 3] by Lanczos-3, first along rows, then along columns; each gives bytes (rule 2)."""
    size = len(picture)
    apart = (np.arange(size) + 0.5 - (2 * np.arange(size // 2)[:, None] + 1)) / 2  # in output pixels
    weights = np.where(abs(apart) < 3, np.sinc(apart) * np.sinc(apart / 3), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.floor((weights @ picture).clip(0, 255) + 0.5)  # [2 S, S, 3]
    return np.floor(np.tensordot(weights, rows, 1).clip(0, 255) + 0.5).astype(np.uint8)


def unit(vector: Vector) -> Vector:
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


def shade(mesh: Mesh, normals: Vector, triangle: int, weights: Vector, view: View) -> tuple[Vector, float]:
    """Displayed colour [3] in 0..1 and alpha where barycentric weights [3] meet a triangle (rules 3 to 9)."""
    material, face = mesh.material, mesh.indices[triangle]
    point, n = weights @ mesh.positions[face], unit(weights @ normals[face])
    base, alpha = np.array(material.base_colour[:3]), material.base_colour[3]
    metallic, rough, occlusion = material.metallic, material.roughness, 1.0
    glow = np.array(material.emissive) ** 2
    if mesh.uv is not None:
        corners = mesh.uv[face].astype(np.float64)
        uv = weights @ corners
        if material.base_colour_texture is not None:
            texel = sample(material.base_colour_texture, uv)
            base, alpha = base * to_linear(texel[:3]), alpha * texel[3]
        if material.metallic_roughness_texture is not None:
            texel = sample(material.metallic_roughness_texture, uv)
            rough, metallic = rough * texel[1], metallic * texel[2]
        if material.occlusion_texture is not None:
            occlusion = sample(material.occlusion_texture, uv)[0]
        if material.emissive_texture is not None:
            glow = glow * to_linear(sample(material.emissive_texture, uv)[:3])
        if material.normal_texture is not None:
            edges_uv, edges = corners[1:] - corners[0], mesh.positions[face[1:]] - mesh.positions[face[0]]
            tangent = np.linalg.solve(edges_uv, edges)[0]  # dP/du
            tangent = unit(tangent - n * (n @ tangent))
            texel = 2 * sample(material.normal_texture, uv)[:3] - 1
            n = unit(texel @ np.stack([tangent, np.cross(n, tangent), n]))
    v, light = unit(view.eye - point), view.light
    h = unit(light + v)
    rho = np.clip(rough, 0.04, 1)
    nl, nv = np.clip(n @ light, 0.001, 1), np.clip(abs(n @ v), 0.001, 1)
    nh, vh = np.clip(n @ h, 0, 1), np.clip(v @ h, 0, 1)
    f0, diffuse = 0.04 * (1 - metallic) + base * metallic, 0.96 * base * (1 - metallic)
    fresnel = f0 + (1 - f0) * (1 - vh) ** 5
    k, a = (rho + 1) ** 2 / 8, rho**2
    shadowing = nv / (nv * (1 - k) + k) * nl / (nl * (1 - k) + k)
    spread = a**2 / (np.pi * (nh**2 * (a**2 - 1) + 1) ** 2)
    colour = 6 * nl * ((1 - fresnel) * diffuse / np.pi + fresnel * shadowing * spread / (4 * nl * nv + 0.001))
    colour = (colour + 0.3 * base) * occlusion + glow
    if mesh.colours is not None:
        tint = weights @ mesh.colours[face]
        colour, alpha = colour * tint[:3], alpha * tint[3]
    return np.clip(colour, 0, 1) ** (1 / 2.2), float(np.clip(alpha, 0, 1))

"""Small GLB files that between them use every material feature: what renderers are compared on.

    python benchmarks/peers/material_meshes.py FOLDER

Belongs here: shapes, textures and materials, made from seeds; equal bytes on every run.
Does not: drawing them. Each lies within [-0.6, 0.6] and has one primitive, as a preview demands.
"""

import io
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gpu_kernels import write_glb

Array = NDArray[Any]


class Shape(NamedTuple):
    positions: Array  # [V, 3]
    indices: Array  # [T, 3]
    normals: Array  # [V, 3] unit
    uv: Array  # [V, 2]


# --- shapes ---


def sheet(point: Callable[[Array, Array], Array], columns: int, rows: int) -> Shape:
    """A surface point(u, v) -> [..., 3] over the unit square, columns x rows quads; front where dP/du x dP/dv points."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1), indexing="ij")
    step = 1e-4
    normals = np.cross(point(u + step, v) - point(u - step, v), point(u, v + step) - point(u, v - step))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    i, j = (part.ravel() for part in np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"))
    a = i * (rows + 1) + j
    b, c, d = a + rows + 1, a + rows + 2, a + 1
    corners = np.stack([a, b, c, a, c, d], axis=1).reshape(-1, 3)
    return Shape(point(u, v).reshape(-1, 3), corners, normals.reshape(-1, 3), np.stack([u, v], axis=-1).reshape(-1, 2))


def ball(u: Array, v: Array) -> Array:
    """A sphere with soft bumps, poles cut off (there a tangent has no direction)."""
    azimuth, polar = 2 * np.pi * u, np.pi * (0.97 - 0.94 * v)
    radius = 0.5 + 0.04 * np.sin(4 * azimuth) * np.sin(polar) ** 2
    return np.stack(
        [
            radius * np.sin(polar) * np.sin(azimuth),
            radius * np.cos(polar),
            radius * np.sin(polar) * np.cos(azimuth),
        ],
        axis=-1,
    )


def torus(u: Array, v: Array) -> Array:
    around, across = 2 * np.pi * u, 2 * np.pi * v
    radius = 0.38 + 0.16 * np.cos(across)
    return np.stack([radius * np.sin(around), 0.16 * np.sin(across), radius * np.cos(around)], axis=-1)


BALL = sheet(ball, 96, 48)
TORUS = sheet(torus, 96, 40)


def apart(shape: Shape) -> Shape:
    """The same triangles with corners of their own and the faces' normals."""
    corners = shape.positions[shape.indices]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return Shape(
        corners.reshape(-1, 3),
        np.arange(corners.size // 3).reshape(-1, 3),
        np.repeat(normals, 3, axis=0),
        shape.uv[shape.indices].reshape(-1, 2),
    )


def box() -> Shape:
    corners, faces = [], []
    for axis in range(3):
        for sign in (-1, 1):
            side = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])[::sign]
            face = np.insert(0.36 * side, axis, 0.36 * sign, axis=1) if axis != 1 else None
            if face is None:
                face = np.insert(0.36 * side[::-1], 1, 0.36 * sign, axis=1)
            faces += [
                [len(corners), len(corners) + 1, len(corners) + 2],
                [len(corners), len(corners) + 2, len(corners) + 3],
            ]
            corners += face.tolist()
    positions, indices = np.array(corners), np.array(faces)
    uv = np.tile([[0, 1], [1, 1], [1, 0], [0, 0]], (6, 1))
    return Shape(positions, indices, np.zeros_like(positions), uv)


def hair() -> Shape:
    """Thousands of triangles thinner than a pixel, from the centre outwards in all directions."""
    random = np.random.default_rng(3)
    count = 3000
    direction = random.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    side = np.cross(direction, random.normal(size=(count, 3)))
    side *= 0.003 / np.linalg.norm(side, axis=1, keepdims=True)
    tip = direction * random.uniform(0.35, 0.58, (count, 1))
    positions = np.stack([0.1 * direction - side, 0.1 * direction + side, tip], axis=1).reshape(-1, 3)
    normals = np.repeat(direction, 3, axis=0)
    return Shape(positions, np.arange(3 * count).reshape(-1, 3), normals, np.zeros((3 * count, 2)))


# --- textures ---


def clouds(seed: int, size: int = 128, channels: int = 3, low: float = 0, high: float = 255) -> Array:
    """[size, size, channels] bytes: noise of a few octaves that repeats at the edges."""
    random = np.random.default_rng(seed)
    frequency = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None] ** 2
    spectrum = np.fft.rfft2(random.normal(size=(channels, size, size)))
    values = np.fft.irfft2(spectrum * np.exp(-frequency * 150) / (1e-3 + frequency) ** 0.3, (size, size))
    values = (values - values.min()) / np.ptp(values)
    return np.moveaxis(low + values * (high - low), 0, -1).round().astype(np.uint8)


def bumps(size: int = 128) -> Array:
    """[size, size, 3] tangent-space normals of clouds."""
    height = clouds(9, size, 1)[..., 0] / 255.0
    slope_y, slope_x = (np.roll(height, -1, axis) - np.roll(height, 1, axis) for axis in (0, 1))
    normals = np.stack([-6 * slope_x, 6 * slope_y, np.ones_like(height)], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return (normals * 127.5 + 127.5).round().astype(np.uint8)


def encoded(pixels: Array | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


COLOUR = encoded(clouds(1))
SEE_THROUGH = encoded(np.concatenate([clouds(1), clouds(2, channels=1)], axis=-1))
SURFACE = encoded(clouds(4, low=40))
OCCLUSION = encoded(clouds(5, low=60))
GLOW = encoded(clouds(6))
BUMPS = encoded(bumps())


# --- files ---


def edited(glb: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with its JSON changed."""
    size = struct.unpack_from("<I", glb, 12)[0]
    document = json.loads(glb[20 : 20 + size])
    change(document)
    text = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 4)
    rest = glb[20 + size :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def file(shape: Shape, *, scale_uv: float = 2.6, normals: bool = True, **looks: Any) -> bytes:
    return write_glb(
        shape.positions, shape.indices, shape.normals if normals else None, scale_uv * shape.uv - 0.7, **looks
    )


def bare(shape: Shape, **looks: Any) -> bytes:
    return write_glb(shape.positions, shape.indices, shape.normals, base_colour=None, **looks)


def rgb_only(document: dict[str, Any]) -> None:
    accessor = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]]
    accessor["type"] = "VEC3"
    document["bufferViews"][accessor["bufferView"]]["byteStride"] = 16


def moved(document: dict[str, Any]) -> None:
    document["nodes"][0] |= {"translation": [0.4, 9, 0], "scale": [2, 2, 2], "rotation": [0, 0.6, 0, 0.8]}


def without_factors(document: dict[str, Any]) -> None:
    for key in ("metallicFactor", "roughnessFactor", "baseColorFactor"):
        del document["materials"][0]["pbrMetallicRoughness"][key]


def rainbow(shape: Shape, alpha: float) -> Array:
    """[V, 4] vertex colours, multiples of 1/255 as exporters write them."""
    colours = np.round(255 * (0.5 + shape.positions / 1.2)) / 255
    return np.concatenate([colours, np.full((len(colours), 1), alpha)], axis=1)


def with_holes(shape: Shape) -> Shape:
    keep = np.random.default_rng(5).random(len(shape.indices) // 2) < 0.6
    return shape._replace(indices=shape.indices[np.repeat(keep, 2)])


def make_meshes() -> dict[str, bytes]:
    """GLB bytes by name."""
    everything = {
        "images": {
            "metallicRoughnessTexture": SURFACE,
            "normalTexture": BUMPS,
            "occlusionTexture": OCCLUSION,
            "emissiveTexture": GLOW,
        },
        "material": {"emissiveFactor": [0.5, 0.3, 0.6]},
        "base_colour": (0.9, 0.8, 0.7, 1.0),
        "metallic": 0.9,
        "roughness": 0.8,
    }
    palette = Image.fromarray(clouds(7)).quantize(32)
    scattered = TORUS._replace(
        normals=TORUS.normals * np.random.default_rng(2).uniform(0.2, 5, (len(TORUS.normals), 1))
    )
    return {
        "rough": file(BALL, base_colour=(0.8, 0.3, 0.2, 1), metallic=0.0, roughness=0.9),
        "smooth metal": file(BALL, base_colour=(0.9, 0.7, 0.3, 1), metallic=1.0, roughness=0.25),
        "missing factors": edited(file(TORUS, base_colour_png=COLOUR), without_factors),
        "quantised factors": file(TORUS, base_colour=(0.1234, 0.0567, 0.3019, 1), metallic=0.37, roughness=0.61),
        "base colour texture": file(BALL, base_colour_png=COLOUR, roughness=0.7),
        "base colour texture and factor": file(
            TORUS, base_colour=(0.7, 0.9, 0.35, 1), base_colour_png=COLOUR, roughness=0.5
        ),
        "metallic-roughness texture": file(
            BALL, base_colour=(0.8, 0.6, 0.5, 1), metallic=1.0, images={"metallicRoughnessTexture": SURFACE}
        ),
        "normal map": file(
            BALL, base_colour=(0.5, 0.5, 0.6, 1), metallic=0.3, roughness=0.5, images={"normalTexture": BUMPS}
        ),
        "normal map, mirrored": file(
            TORUS, scale_uv=-3.0, base_colour=(0.6, 0.5, 0.5, 1), roughness=0.6, images={"normalTexture": BUMPS}
        ),
        "occlusion": file(TORUS, base_colour=(0.7, 0.7, 0.7, 1), images={"occlusionTexture": OCCLUSION}),
        "emissive factor": file(BALL, base_colour=(0.1, 0.1, 0.1, 1), material={"emissiveFactor": [0.6, 0.2, 0.9]}),
        "emissive texture": file(
            TORUS,
            base_colour=(0.05, 0.05, 0.05, 1),
            images={"emissiveTexture": GLOW},
            material={"emissiveFactor": [1.0, 0.8, 0.5]},
        ),
        "everything": file(BALL, base_colour_png=COLOUR, **everything),
        "everything, translucent": file(TORUS, base_colour_png=SEE_THROUGH, **everything),
        "vertex colours": edited(bare(BALL, colours=rainbow(BALL, 1.0)), rgb_only),
        "vertex colours with alpha": bare(TORUS, colours=rainbow(TORUS, 0.6)),
        "vertex colours beside a material": file(BALL, colours=rainbow(BALL, 1.0), base_colour=(0.4, 0.6, 0.4, 1)),
        "nothing but geometry": bare(TORUS),
        "no normals": file(BALL, normals=False, base_colour=(0.5, 0.6, 0.7, 1), roughness=0.4),
        "no normals, sharp edges": file(box(), normals=False, base_colour_png=COLOUR, roughness=0.5),
        "flat normals": file(apart(sheet(ball, 14, 8)), base_colour=(0.7, 0.5, 0.4, 1), metallic=0.5, roughness=0.4),
        "normals of any length": file(scattered, base_colour=(0.5, 0.6, 0.7, 1), roughness=0.5),
        "translucent factor": file(TORUS, base_colour=(0.2, 0.5, 0.9, 0.4), material={"alphaMode": "BLEND"}),
        "translucent texture": file(BALL, base_colour_png=SEE_THROUGH, material={"alphaMode": "BLEND"}),
        "translucent texture, OPAQUE": file(BALL, base_colour_png=SEE_THROUGH, material={"alphaMode": "OPAQUE"}),
        "translucent texture, MASK": file(
            BALL, base_colour_png=SEE_THROUGH, material={"alphaMode": "MASK", "alphaCutoff": 0.6}
        ),
        "double sided": file(with_holes(BALL), base_colour=(0.9, 0.5, 0.1, 1), material={"doubleSided": True}),
        "back faces through holes": file(with_holes(TORUS), base_colour_png=COLOUR),
        "thin triangles": file(hair(), base_colour=(0.3, 0.2, 0.1, 1), roughness=0.6),
        "many triangles": file(sheet(ball, 600, 300), base_colour=(0.4, 0.7, 0.5, 1), metallic=0.4, roughness=0.4),
        "JPEG texture": file(TORUS, base_colour_png=encoded(clouds(8), "JPEG", quality=90)),
        "WebP texture": webp(),
        "palette texture": file(TORUS, base_colour_png=encoded(palette)),
        "grey texture": file(BALL, base_colour_png=encoded(clouds(8, channels=1)[..., 0])),
        "fine texture": file(BALL, scale_uv=9.0, base_colour_png=encoded(clouds(11, size=512)), roughness=0.8),
        "moved node": edited(file(TORUS, base_colour=(0.6, 0.2, 0.6, 1)), moved),
    }  # fmt: skip


def webp() -> bytes:
    def declare(document: dict[str, Any]) -> None:
        document["images"][0]["mimeType"] = "image/webp"
        document["textures"][0] = {"extensions": {"EXT_texture_webp": {"source": 0}}}
        document["extensionsUsed"] = document["extensionsRequired"] = ["EXT_texture_webp"]

    return edited(file(BALL, base_colour_png=encoded(clouds(8), "WEBP", lossless=True)), declare)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in make_meshes().items():
            (folder / f"{name.replace(' ', '_')}.glb").write_bytes(data)

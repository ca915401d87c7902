"""Procedural objects: what a prompt shows, and how well a miner of given skill rebuilds it.

Belongs here: recipes from (seed, index), their patterns, and the errors of an imitation. An error's direction belongs
to (object, round seed), its size to 1 - skill: equal skill gives nearly equal quality, more skill looks better.
Does not: who has which skill (`cast`), rebuilding a real picture (`reliefs`).
"""

import io
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gen404_dagster.simulation.chance import generator
from gen404_dagster.simulation.shapes import SHAPES, Solid, build

Array = NDArray[np.float64]

PATTERNS = ("checker", "stripes", "rings", "dots", "wood", "gradient", "bricks", "speckle")
SEGMENTS = 26  # around a solid, at full skill
TILE = 96  # pixels of one part's square in the texture atlas
REACH = 0.46  # an object fills the cube so far
LIMIT = 0.495  # no imitation leaves this cube


@dataclass(frozen=True)
class Part:
    shape: str
    position: tuple[float, float, float]
    scale: tuple[float, float, float]
    rotation: tuple[float, float, float]  # degrees around X, Y, Z, in this order
    pattern: str
    frequency: float
    slant: float  # 0..1, turns and shifts the pattern
    colours: tuple[tuple[float, ...], ...]  # two, sRGB in 0..1


@dataclass(frozen=True)
class Recipe:
    """An object, already fitted into the cube."""

    parts: tuple[Part, ...]
    metallic: float
    roughness: float


@dataclass(frozen=True)
class Shaped:
    """Arrays and atlas of one finished object."""

    positions: Array  # [V, 3]
    normals: Array  # [V, 3]
    uv: Array  # [V, 2]
    triangles: NDArray[np.int64]  # [T, 3]
    texture: NDArray[np.uint8]  # [H, W, 3] sRGB
    metallic: float
    roughness: float

    def glb(self) -> bytes:
        from gpu_kernels import write_glb

        return write_glb(
            self.positions,
            self.triangles,
            normals=self.normals,
            uv=self.uv,
            metallic=self.metallic,
            roughness=self.roughness,
            base_colour_png=jpeg(self.texture),
        )


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """[H, W, 3] sRGB as a JPEG: a fifth of the PNG's size, so that rounds stay small."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture, "RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# --- recipes ---


@lru_cache(maxsize=256)
def recipe(seed: int, index: int) -> Recipe:
    """The object number `index` of a simulation."""
    rng = generator("object", seed, index)
    # The hue walks by the golden angle: neighbours in the pool never share a colour.
    hue = (0.13 + 0.61803398875 * index + 0.05 * rng.random()) % 1.0
    layout = LAYOUTS[index % len(LAYOUTS)]
    sketch = [
        replace(part, **_skin(rng, hue, number)) for number, part in enumerate(layout(rng, 2 + int(rng.integers(0, 4))))
    ]
    metallic = float(rng.choice([0.0, 0.0, 0.1, 0.35, 0.6]))
    return Recipe(_fitted(sketch), metallic, float(rng.uniform(0.35, 0.95)))


def _skin(rng: np.random.Generator, hue: float, number: int) -> dict[str, Any]:
    """Pattern and colours of a part. The first part carries the object's hue, the others harmonise or contrast."""
    shift = (0.0, 0.5, 0.33, 0.08, 0.66)[number % 5]
    base = (hue + shift) % 1.0
    bright = float(rng.uniform(0.65, 0.98))
    first = _rgb(base, float(rng.uniform(0.45, 0.95)), bright)
    if rng.random() < 0.5:
        second = _rgb((base + float(rng.uniform(0.3, 0.6))) % 1.0, float(rng.uniform(0.3, 0.9)), 0.9)
    else:
        second = _rgb(base, float(rng.uniform(0.1, 0.5)), float(rng.choice([0.18, 0.98])))
    return {
        "pattern": str(rng.choice(PATTERNS)),
        "frequency": float(rng.uniform(2.0, 6.0)),
        "slant": float(rng.random()),
        "colours": (first, second),
    }


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    import colorsys

    return colorsys.hsv_to_rgb(hue, saturation, value)


def _part(shape: str, position: tuple[float, float, float], scale: tuple[float, float, float], *turns: float) -> Part:
    rotation = (turns[0], turns[1], turns[2]) if turns else (0.0, 0.0, 0.0)
    return Part(shape, position, scale, rotation, "gradient", 1.0, 0.0, ((1, 1, 1), (1, 1, 1)))


def _tower(rng: np.random.Generator, count: int) -> list[Part]:
    """Parts on top of each other."""
    parts, top = [], 0.0
    for _ in range(count):
        height, width = float(rng.uniform(0.35, 0.9)), float(rng.uniform(0.4, 1.1))
        depth = width * float(rng.uniform(0.8, 1.2))
        parts.append(_part(_pick(rng), (0.0, top + height / 2, 0.0), (width, height, depth), 0, rng.uniform(0, 90), 0))
        top += height * 0.97
    return parts


def _body(rng: np.random.Generator, count: int) -> list[Part]:
    """A body with smaller parts around it."""
    parts = [_part(_pick(rng), (0, 0, 0), tuple(rng.uniform(0.8, 1.3, 3)), 0, rng.uniform(0, 90), 0)]
    start = float(rng.uniform(0, 2 * math.pi))
    for number in range(count - 1):
        angle = start + 2 * math.pi * number / (count - 1)
        where = (0.62 * math.sin(angle), float(rng.uniform(-0.35, 0.55)), 0.62 * math.cos(angle))
        size = float(rng.uniform(0.35, 0.6))
        tilt = float(rng.uniform(-40, 40))
        parts.append(_part(_pick(rng), where, (size, size * float(rng.uniform(0.8, 1.8)), size), tilt, 0, tilt / 2))
    return parts


def _table(rng: np.random.Generator, count: int) -> list[Part]:
    """A wide plate, a foot below it, things on it."""
    width = float(rng.uniform(1.1, 1.5))
    plate = str(rng.choice(["box", "cylinder", "prism"]))
    foot = str(rng.choice(["cylinder", "cone", "vase", "box"]))
    parts = [
        _part(plate, (0, 0, 0), (width, 0.14, width * float(rng.uniform(0.6, 1.0)))),
        _part(foot, (0, -0.47, 0), (0.45, 0.82, 0.45)),
    ]
    for number in range(count - 1):
        size = float(rng.uniform(0.3, 0.5))
        angle = 2.4 * number + float(rng.uniform(0, 1))
        where = (0.3 * math.sin(angle), 0.07 + size / 2, 0.25 * math.cos(angle))
        parts.append(_part(_pick(rng), where, (size, size, size), 0, rng.uniform(0, 90), 0))
    return parts[:5]


def _row(rng: np.random.Generator, count: int) -> list[Part]:
    """Parts side by side, seen across."""
    parts, right = [], 0.0
    for _ in range(count):
        width, height = float(rng.uniform(0.4, 0.8)), float(rng.uniform(0.4, 1.2))
        tilt = float(rng.uniform(-25, 25))
        parts.append(_part(_pick(rng), (right + width / 2, height / 2, 0.0), (width, height, width), tilt, 20, 0))
        right += width * 0.92
    return parts


def _hoop(rng: np.random.Generator, count: int) -> list[Part]:
    """A standing ring with something in it."""
    parts = [_part("torus", (0, 0, 0), (1.3, float(rng.uniform(1.0, 2.2)), 1.3), 90, 20, 0)]
    parts.append(_part(_pick(rng), (0, -0.05, 0), (0.55, float(rng.uniform(0.5, 0.9)), 0.55), 0, rng.uniform(0, 90), 0))
    if count > 2:
        parts.append(_part(str(rng.choice(["box", "cylinder", "cone"])), (0, -0.75, 0), (0.8, 0.25, 0.6), 0, 24, 0))
    if count > 3:
        parts.append(_part(_pick(rng), (0, 0.75, 0), (0.3, 0.35, 0.3)))
    return parts


LAYOUTS = (_tower, _body, _table, _row, _hoop)


def _pick(rng: np.random.Generator) -> str:
    return str(rng.choice(SHAPES))


def _fitted(parts: list[Part]) -> tuple[Part, ...]:
    """The parts moved and scaled together so that the object fills the cube."""
    corners = np.concatenate([_placed(part, build(part.shape, 12))[0] for part in parts])
    low, high = corners.min(axis=0), corners.max(axis=0)
    factor = 2 * REACH / float((high - low).max())
    middle = (low + high) / 2
    return tuple(
        replace(
            part,
            position=tuple((np.array(part.position) - middle) * factor),
            scale=tuple(np.array(part.scale) * factor),
        )
        for part in parts
    )


# --- building ---


def imitation(
    seed: int, index: int, skill: float, round_seed: int | None = None, noise: tuple[object, ...] | None = None
) -> Shaped:
    """Object `index` as a miner of this skill rebuilds it in a round; `noise` names a tiny variation.

    Skill 1 without noise is the object itself.
    """
    original = recipe(seed, index)
    lack = 1.0 - min(max(skill, 0.0), 1.0)
    errors = generator("errors", seed, index, round_seed)
    wobble = None if noise is None else generator("noise", *noise)
    pieces, tiles = [], []
    for number, part in enumerate(original.parts):
        part, left = _mistaken(part, lack, errors)
        contrast, resolution = 1.0 - 0.75 * lack, max(4, round(TILE * (1 - lack) ** 1.5))
        if wobble is not None:
            part = _wobbled(part, wobble)
        segments = max(5, round(SEGMENTS * (1 - 0.85 * lack)))
        solid = build(part.shape, segments)
        positions, normals = _placed(part, solid)
        bumps = errors.uniform(-1, 1, (3, 3)), errors.uniform(0, 2 * np.pi, 3)
        positions = positions + 0.09 * lack * _bumps(positions, *bumps)
        # A part that a poor miner forgets (never the first) shrinks as skill falls: quality stays a smooth function.
        centre = np.array(part.position)
        positions = centre + (positions - centre) * (left if number else 1.0)
        pieces.append((positions, normals, solid.uv, solid.triangles))
        tiles.append(_tile(part, resolution, contrast))
    return _joined(pieces, tiles, original, lack)


def _mistaken(part: Part, lack: float, errors: np.random.Generator) -> tuple[Part, float]:
    """The part as rebuilt without full skill, and how much of its size is left (1 unless it is forgotten)."""
    away = _direction(errors) * errors.uniform(0.6, 1.0)
    stretch = _direction(errors) * errors.uniform(0.7, 1.0)
    turn = _direction(errors) * errors.uniform(0.6, 1.0)
    forgets_at = errors.uniform(0.35, 1.3)
    wrong = errors.uniform(0.1, 0.95, (2, 3))
    mixed = 0.75 * lack
    colours = tuple(
        tuple((1 - mixed) * np.array(colour) + mixed * other) for colour, other in zip(part.colours, wrong, strict=True)
    )
    left = min(1.0, max(0.12, (forgets_at - lack) / 0.2)) if forgets_at < 1 else 1.0
    return (
        replace(
            part,
            position=tuple(np.array(part.position) + 0.20 * lack * away),
            scale=tuple(np.array(part.scale) * np.exp(0.9 * lack * stretch)),
            rotation=tuple(np.array(part.rotation) + 70.0 * lack * turn),
            frequency=part.frequency * (1 + 0.8 * lack),
            slant=part.slant + 0.5 * lack,
            colours=colours,
        ),
        left,
    )


def _wobbled(part: Part, noise: np.random.Generator) -> Part:
    """A variation that nobody sees and no two runs share."""
    tint = noise.uniform(-0.008, 0.008, (2, 3))
    return replace(
        part,
        position=tuple(np.array(part.position) + 0.0015 * noise.uniform(-1, 1, 3)),
        scale=tuple(np.array(part.scale) * (1 + 0.004 * noise.uniform(-1, 1, 3))),
        colours=tuple(tuple(np.clip(np.array(c) + t, 0, 1)) for c, t in zip(part.colours, tint, strict=True)),
    )


def _direction(rng: np.random.Generator) -> Array:
    vector = rng.uniform(-1, 1, 3)
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def _bumps(positions: Array, waves: Array, phases: Array) -> Array:
    """Smooth displacement of a surface. positions: [V, 3] -> [V, 3]."""
    return np.sin(positions @ (9.0 * waves).T + phases)


def _placed(part: Part, solid: Solid) -> tuple[Array, Array]:
    """Positions and unit normals of a part in the object's space."""
    scale, turned = np.array(part.scale), _turned(part.rotation)
    normals = solid.normals / np.maximum(scale, 1e-4)
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return (solid.positions * scale) @ turned.T + np.array(part.position), normals @ turned.T


def _turned(rotation: tuple[float, float, float]) -> Array:
    x, y, z = np.radians(rotation)
    around_x = np.array([[1, 0, 0], [0, math.cos(x), -math.sin(x)], [0, math.sin(x), math.cos(x)]])
    around_y = np.array([[math.cos(y), 0, math.sin(y)], [0, 1, 0], [-math.sin(y), 0, math.cos(y)]])
    around_z = np.array([[math.cos(z), -math.sin(z), 0], [math.sin(z), math.cos(z), 0], [0, 0, 1]])
    return np.asarray(around_z @ around_y @ around_x)


def _joined(
    pieces: list[tuple[Array, Array, Array, NDArray[np.int64]]],
    tiles: list[NDArray[np.uint8]],
    original: Recipe,
    lack: float,
) -> Shaped:
    """One mesh with one atlas: the tile of part n is the n-th of a grid of 3 columns."""
    columns, rows = min(3, len(tiles)), math.ceil(len(tiles) / 3)
    atlas = np.zeros((rows * TILE, columns * TILE, 3), np.uint8)
    positions, normals, uv, triangles = [], [], [], []
    first = 0
    margin = 1.5 / TILE  # keeps bilinear sampling inside the tile
    for number, ((points, outward, where, corners), tile) in enumerate(zip(pieces, tiles, strict=True)):
        row, column = divmod(number, 3)
        atlas[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = tile
        positions.append(points)
        normals.append(outward)
        inside = margin + (1 - 2 * margin) * where
        uv.append((inside + np.array([column, row])) / np.array([columns, rows]))
        triangles.append(corners + first)
        first += len(points)
    everything = np.concatenate(positions)
    everything = everything * min(1.0, LIMIT / float(np.abs(everything).max()))
    return Shaped(
        positions=everything,
        normals=np.concatenate(normals),
        uv=np.concatenate(uv),
        triangles=np.concatenate(triangles),
        texture=atlas,
        metallic=original.metallic * (1 - lack) + 0.2 * lack,
        roughness=original.roughness * (1 - lack) + 0.9 * lack,
    )


# --- patterns ---


def _tile(part: Part, resolution: int, contrast: float) -> NDArray[np.uint8]:
    """[TILE, TILE, 3] sRGB: the part's pattern drawn at a resolution and enlarged, its contrast reduced."""
    places = (np.arange(resolution) + 0.5) / resolution
    u, v = np.meshgrid(places, places)
    share = _pattern(part, u, v)
    share = 0.5 + (share - 0.5) * contrast
    first, second = (np.array(colour) for colour in part.colours)
    small = np.clip(255 * (first + (second - first) * share[..., None]), 0, 255).astype(np.uint8)
    nearest = (np.arange(TILE) * resolution) // TILE
    return small[nearest][:, nearest]


def _pattern(part: Part, u: Array, v: Array) -> Array:
    """Share of the second colour at (u, v), in [0, 1]. Horizontal frequencies are whole: the seam does not show."""
    f, slant = part.frequency, part.slant
    around = 2 * max(1, round(f))
    match part.pattern:
        case "checker":
            return (np.floor(u * around) + np.floor(v * around + slant)) % 2
        case "stripes":
            return (np.floor(u * around + v * round(2 * slant) * 2) % 2).astype(float)
        case "rings":
            return (np.floor(v * 2 * f + slant) % 2).astype(float)
        case "dots":
            x, y = (u * around) % 1 - 0.5, (v * around + slant) % 1 - 0.5
            return (np.hypot(x, y) < 0.32).astype(float)
        case "wood":
            bent = v * f + 0.25 * np.sin(2 * np.pi * u + 6 * slant) + 0.1 * np.sin(2 * np.pi * (3 * u + 2 * v))
            return 0.5 + 0.35 * np.sin(2 * np.pi * bent * 1.5) + 0.15 * np.sin(2 * np.pi * (bent * 7 + u))
        case "gradient":
            return np.clip(v * 1.1 - 0.05 + 0.1 * np.sin(2 * np.pi * (u + slant)), 0, 1)
        case "bricks":
            row = np.floor(v * 2 * f)
            x, y = (u * around / 2 + 0.5 * (row % 2)) % 1, (v * 2 * f) % 1
            return ((x < 0.06) | (y < 0.12)).astype(float)
        case _:  # speckle
            grain = np.sin(2 * np.pi * (around * u + slant)) * np.sin(2 * np.pi * 1.7 * f * v)
            return (grain + 0.5 * np.sin(2 * np.pi * (3 * u + 5.3 * v)) > 0.25).astype(float)

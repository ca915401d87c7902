"""A real picture as a 3D object: what the world's miners return for prompts that they have no recipe for.

Belongs here: decoding a picture within bounds, cutting the object out of a light background, a relief that faces the
prompt's view, and its errors by skill. Does not: procedural objects (`objects`).
"""

import hashlib
import io

import numpy as np
from numpy.typing import NDArray

from gen404_dagster.errors import MinerFault
from gen404_dagster.simulation.chance import generator
from gen404_dagster.simulation.objects import LIMIT, Array, Shaped

MAX_PICTURE_BYTES = 32 * 1024**2
MAX_PICTURE_PIXELS = 40_000_000
SIDE = 256  # pixels of the texture
MIN_SIDE = 8  # pixels
CELLS = 28  # of the relief along one side
AZIMUTH, ELEVATION = 24.0, 15.0  # degrees: where the relief faces


def decode_picture(data: bytes, side: int = SIDE) -> NDArray[np.uint8]:
    """[H, W, 3] RGB on white, at most `side` pixels long. Raises MinerFault for what is no picture, or too large."""
    from PIL import Image

    if len(data) > MAX_PICTURE_BYTES:
        raise MinerFault(f"picture of {len(data)} bytes, at most {MAX_PICTURE_BYTES} are read")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise MinerFault(f"picture of {picture.width} x {picture.height} pixels is too large")
            picture.draft("RGB", (side, side))
            coloured = picture.convert("RGBA")
        coloured.thumbnail((side, side), Image.Resampling.LANCZOS)
        flat = Image.new("RGBA", coloured.size, "white")
        flat.alpha_composite(coloured)
        return np.asarray(flat.convert("RGB"))
    except MinerFault:
        raise
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        raise MinerFault(f"not a picture that can be decoded: {type(error).__name__}") from error


def relief(
    data: bytes, skill: float, simulation_seed: int, round_seed: int, noise: tuple[object, ...] | None = None
) -> Shaped:
    """The picture's object as a miner of this skill rebuilds it. Raises MinerFault when `data` is no picture."""
    from PIL import Image, ImageFilter

    lack = 1.0 - min(max(skill, 0.0), 1.0)
    digest = hashlib.sha256(data).hexdigest()
    texture, mask = _cut_out_once(data, digest)
    errors = generator("relief", simulation_seed, digest, round_seed)
    wobble = generator("quiet", 0) if noise is None else generator("noise", *noise)
    quiet = 0.0 if noise is None else 1.0

    tint = errors.uniform(0, 255, 3)
    warp, phases = errors.uniform(-1, 1, (3, 3)), errors.uniform(0, 2 * np.pi, 3)
    painted = Image.fromarray(texture, "RGB").filter(ImageFilter.GaussianBlur(9.0 * lack))
    coloured = np.asarray(painted, float) * (1 - 0.6 * lack) + 0.6 * lack * tint
    coloured = coloured + quiet * wobble.uniform(-1.5, 1.5, 3)

    height, width = mask.shape
    cells = max(6, round(CELLS * (1 - 0.7 * lack)))
    step = max(height, width) / cells
    rows, columns = max(2, round(height / step)), max(2, round(width / step))
    positions, normals, uv, triangles = _surface(mask, rows, columns, 0.16 * (1 - 0.5 * lack))
    positions = positions * 0.8 / max(height, width)
    positions = positions + 0.16 * lack * np.sin(positions @ (8.0 * warp).T + phases)
    positions = positions * (1 + quiet * 0.004 * wobble.uniform(-1, 1, 3))
    turned = _facing()
    positions = positions @ turned.T
    positions = positions * min(1.0, LIMIT / float(np.abs(positions).max()))
    return Shaped(
        positions=positions,
        normals=normals @ turned.T,
        uv=uv,
        triangles=triangles,
        texture=np.clip(coloured, 0, 255).astype(np.uint8),
        metallic=0.0,
        roughness=0.9,
    )


_CUT_OUTS: dict[str, tuple[NDArray[np.uint8], Array]] = {}
MAX_CUT_OUTS = 48


def _cut_out_once(data: bytes, digest: str) -> tuple[NDArray[np.uint8], Array]:
    """`_cut_out`, remembered without the picture's bytes: a pool of large pictures must not stay in memory."""
    found = _CUT_OUTS.get(digest)
    if found is None:
        found = _cut_out(data)
        if len(_CUT_OUTS) >= MAX_CUT_OUTS:
            _CUT_OUTS.clear()
        _CUT_OUTS[digest] = found
    return found


def _cut_out(data: bytes) -> tuple[NDArray[np.uint8], Array]:
    """Texture [H, W, 3] and how much each pixel belongs to the object [H, W], cropped to the object.

    A near-white border is background; a picture without one is kept whole.
    """
    from PIL import Image, ImageFilter

    picture = decode_picture(data)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    mask = np.ones(picture.shape[:2])
    if (border.min(axis=1) > 232).mean() > 0.8:
        solid = Image.fromarray((picture.min(axis=2) < 240).astype(np.uint8) * 255, "L")
        # Closing: white parts inside an object are the object's.
        closed = solid.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.MinFilter(9))
        cut = np.asarray(closed, float) / 255
        if cut.mean() > 0.005:
            mask = cut
    used_rows, used_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom = int(used_rows[0]), int(used_rows[-1]) + 1
    left, right = int(used_columns[0]), int(used_columns[-1]) + 1
    texture, mask = picture[top:bottom, left:right], mask[top:bottom, left:right]
    # A sliver is thickened: a surface needs some pixels both ways.
    thicker = [max(1, -(-MIN_SIDE // side)) for side in (bottom - top, right - left)]
    texture = texture.repeat(thicker[0], axis=0).repeat(thicker[1], axis=1)
    return np.ascontiguousarray(texture), mask.repeat(thicker[0], axis=0).repeat(thicker[1], axis=1)


def _surface(mask: Array, rows: int, columns: int, depth: float) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """A closed cushion over the mask, in pixels around the origin, +Z to the front: two sheets that meet at its rim."""
    from PIL import Image, ImageFilter

    height, width = mask.shape
    y, x = np.linspace(0, height - 1, rows + 1), np.linspace(0, width - 1, columns + 1)
    inside = mask[np.round(y).astype(int)][:, np.round(x).astype(int)] > 0.5
    cells = inside[:-1, :-1] | inside[1:, :-1] | inside[:-1, 1:] | inside[1:, 1:]
    if not cells.any():
        cells[:] = True
    padded = Image.new("L", (width + 2, height + 2))
    padded.paste(Image.fromarray((mask * 255).astype(np.uint8), "L"), (1, 1))
    radius = max(height, width) * 0.06
    soft = np.asarray(padded.filter(ImageFilter.GaussianBlur(radius)), float)[1:-1, 1:-1] / 255
    lift = np.clip(soft[np.round(y).astype(int)][:, np.round(x).astype(int)] - 0.2, 0.02, None)
    lift = lift * depth * max(height, width)
    grid_x, grid_y = np.meshgrid(x - (width - 1) / 2, (height - 1) / 2 - y)
    slope_y, slope_x = np.gradient(lift, y, x)
    slope_y = -slope_y
    u, v = np.meshgrid((x + 0.5) / width, (y + 0.5) / height)
    row, column = np.nonzero(cells)
    corner = row * (columns + 1) + column
    below = corner + columns + 1
    front = np.concatenate(
        [np.stack([corner, below, below + 1], axis=1), np.stack([corner, below + 1, corner + 1], axis=1)]
    )
    count = grid_x.size
    sheets, outward = [], []
    for side in (1.0, -1.0):
        sheets.append(np.stack([grid_x, grid_y, side * lift], axis=2).reshape(-1, 3))
        # Half the slope: the picture brings its own shading.
        normal = np.stack([-0.5 * slope_x, -0.5 * slope_y, np.full_like(lift, side)], axis=2).reshape(-1, 3)
        outward.append(normal / np.linalg.norm(normal, axis=1, keepdims=True))
    # The rim: a strip between the sheets along every edge that only one cell has.
    edges = np.concatenate([front[:, [0, 1]], front[:, [1, 2]], front[:, [2, 0]]])
    keys = edges[:, 0] * count + edges[:, 1]
    rim = edges[~np.isin(keys, edges[:, 1] * count + edges[:, 0])]
    a, b = rim[:, 0], rim[:, 1]
    strip = np.concatenate([np.stack([a, a + count, b + count], axis=1), np.stack([a, b + count, b], axis=1)])
    triangles = np.concatenate([front, front[:, ::-1] + count, strip])
    where = np.stack([u, v], axis=2).reshape(-1, 2)
    positions, normals, uv = np.concatenate(sheets), np.concatenate(outward), np.concatenate([where, where])
    used, triangles = np.unique(triangles, return_inverse=True)
    return positions[used], normals[used], uv[used], triangles.reshape(-1, 3)


def _facing() -> Array:
    """Turns +Z towards the prompt's view."""
    a, e = np.radians(AZIMUTH), np.radians(ELEVATION)
    down = np.array([[1, 0, 0], [0, np.cos(e), np.sin(e)], [0, -np.sin(e), np.cos(e)]])
    around = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    return np.asarray(around @ down)

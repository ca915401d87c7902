"""Pictures as arrays: decoding within bounds, the views of a preview, the object in front of its background.

Belongs here: what embedder and judge both need to look at a picture. Does not: making pictures (`resources.renderer`),
what is concluded from them (`resources.embedder`, `resources.judge`).
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gen404_dagster.errors import Gen404Error

RGB = NDArray[np.uint8]  # [H, W, 3]
Array = NDArray[np.float32]

MAX_PICTURE_BYTES = 64 * 1024**2
MAX_PICTURE_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP")


class UnreadablePicture(Gen404Error, ValueError):
    """Bytes that are no picture, or one too large to look at. The message names the fault."""


def decode(data: bytes) -> RGB:
    """[H, W, 3] RGB of a PNG, JPEG or WebP; what is transparent is white. Raises UnreadablePicture."""
    from PIL import Image

    if len(data) > MAX_PICTURE_BYTES:
        raise UnreadablePicture(f"picture of {len(data)} bytes: at most {MAX_PICTURE_BYTES} are read")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise UnreadablePicture(
                    f"picture of {picture.width} x {picture.height} pixels: at most {MAX_PICTURE_PIXELS} are read"
                )
            if picture.mode == "RGB" and "transparency" not in picture.info:
                return np.asarray(picture)
            coloured = picture.convert("RGBA")
        flat = Image.new("RGBA", coloured.size, "white")
        flat.alpha_composite(coloured)
        return np.asarray(flat.convert("RGB"))
    except UnreadablePicture:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        raise UnreadablePicture(f"not a picture that can be decoded: {type(error).__name__}") from error


def resized(picture: RGB, width: int, height: int) -> RGB:
    """[height, width, 3], bicubic and antialiased."""
    from PIL import Image

    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def views(picture: RGB) -> list[RGB]:
    """The four views of a preview grid, left to right and top to bottom; any other picture is one view.

    A grid is square, of odd size and has a black cross of 5 in 1041 pixels through its middle.
    """
    size = len(picture)
    gap = round(size * 5 / 1041)
    if picture.shape[1] != size or gap < 1 or (size - gap) % 2:
        return [picture]
    side = (size - gap) // 2
    second = side + gap
    if picture[side:second].any() or picture[:, side:second].any():
        return [picture]
    return [picture[top : top + side, left : left + side] for top in (0, second) for left in (0, second)]


# --- the object and its background ---

MASK_SIDE = 128  # pixels: objects are found at this size
MAX_CUT_SIDE = 1536  # pixels: larger pictures are shrunk before they are cut
MIN_CONTRAST = 4.0  # Lab units between background and object, on a clean background
MOST_PIECES = 64
LEAST_SHARE, MOST_SHARE = 0.0008, 0.92  # of the picture that an object covers, else it is not told from its background


@dataclass(frozen=True)
class Cutout:
    """An object cropped to its bounding box plus a margin, square, on white.

    `share` is the part of the picture that it covers: 0 when nothing is visible, 1 when the background could not be
    told from the object (then the whole picture is the object).
    """

    picture: RGB  # [S, S, 3]
    mask: Array  # [S, S] 0..1
    share: float

    @property
    def empty(self) -> bool:
        return self.share == 0.0


def cut_out(picture: RGB, side: int, margin: float = 0.06) -> Cutout:
    """The object of a picture at `side` x `side` pixels.

    The background is what the border of the picture continues into: plain white, or a studio's gradient.
    """
    height, width = picture.shape[:2]
    if max(height, width) > MAX_CUT_SIDE:
        shrink = MAX_CUT_SIDE / max(height, width)
        picture = resized(picture, max(1, round(width * shrink)), max(1, round(height * shrink)))
        height, width = picture.shape[:2]
    scale = MASK_SIDE / max(height, width)
    small = resized(picture, max(8, round(width * scale)), max(8, round(height * scale)))
    found = _foreground(small)
    share = float(found.mean())
    if share < LEAST_SHARE and small.std(axis=(0, 1)).max() < 12.0:
        white = np.full((side, side, 3), 255, np.uint8)
        return Cutout(white, np.zeros((side, side), np.float32), 0.0)
    if not LEAST_SHARE <= share <= MOST_SHARE:
        found, share = np.ones_like(found), 1.0
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    to_rows, to_columns = height / found.shape[0], width / found.shape[1]
    top, bottom = rows[0] * to_rows, (rows[-1] + 1) * to_rows
    left, right = columns[0] * to_columns, (columns[-1] + 1) * to_columns
    reach = max(bottom - top, right - left) * (0.5 + (margin if share < 1.0 else 0.0))
    box = (
        (left + right) / 2 - reach,
        (top + bottom) / 2 - reach,
        (left + right) / 2 + reach,
        (top + bottom) / 2 + reach,
    )
    colours = _window(picture.astype(np.float32), box, side, 255.0)
    mask = np.clip(_window(found.astype(np.float32)[..., None], _scaled(box, to_columns, to_rows), side, 0.0), 0, 1)
    on_white = colours * mask + 255.0 * (1 - mask)
    return Cutout(np.clip(on_white + 0.5, 0, 255).astype(np.uint8), mask[..., 0], share)


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def _scaled(box: Box, x: float, y: float) -> Box:
    return box[0] / x, box[1] / y, box[2] / x, box[3] / y


def _window(picture: Array, box: Box, side: int, outside: float) -> Array:
    """[side, side, C]: the part of a picture within a box, which may reach over its edge."""
    from PIL import Image

    height, width, channels = picture.shape
    left, top = max(box[0], 0.0), max(box[1], 0.0)
    right, bottom = min(box[2], float(width)), min(box[3], float(height))
    per_pixel = (box[2] - box[0]) / side
    x0, x1 = _pixels((left - box[0]) / per_pixel, (right - box[0]) / per_pixel, side)
    y0, y1 = _pixels((top - box[1]) / per_pixel, (bottom - box[1]) / per_pixel, side)
    out = np.full((side, side, channels), outside, np.float32)
    for channel in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(picture[..., channel]))
        part = plane.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, (left, top, right, bottom))
        out[y0:y1, x0:x1, channel] = np.asarray(part)
    return out


def _pixels(start: float, end: float, side: int) -> tuple[int, int]:
    """Whole pixels from start to end, at least one, all within the side."""
    first = min(round(start), side - 1)
    return first, min(max(first + 1, round(end)), side)


def _foreground(picture: RGB) -> NDArray[np.bool_]:
    """[H, W] what differs from the background, which is interpolated from the picture's border (a Coons patch)."""
    from PIL import Image, ImageFilter

    colours = lab(picture)
    height, width = colours.shape[:2]
    rim = max(1, min(height, width) // 64)
    top, bottom = _smooth(colours[:rim].mean(axis=0)), _smooth(colours[-rim:].mean(axis=0))
    left, right = _smooth(colours[:, :rim].mean(axis=1)), _smooth(colours[:, -rim:].mean(axis=1))
    y, x = (
        np.linspace(0, 1, height, dtype=np.float32)[:, None, None],
        np.linspace(0, 1, width, dtype=np.float32)[:, None],
    )
    ends = (1 - y) * ((1 - x) * top[0] + x * top[-1]) + y * ((1 - x) * bottom[0] + x * bottom[-1])
    background = (1 - y) * top + y * bottom + (1 - x) * left[:, None] + x * right[:, None] - ends
    contrast = np.linalg.norm(colours - background, axis=2)
    rims = np.concatenate(
        [contrast[:rim].ravel(), contrast[-rim:].ravel(), contrast[:, :rim].ravel(), contrast[:, -rim:].ravel()]
    )
    unrest = float(np.std(np.concatenate([top, bottom, left, right]), axis=0).max())
    clean = unrest < 1.0 and float(rims.max()) < MIN_CONTRAST
    threshold = MIN_CONTRAST if clean else max(3 * MIN_CONTRAST, 0.8 * _otsu(contrast))
    found = contrast > threshold
    if clean:
        return found
    calm = Image.fromarray(found.astype(np.uint8) * 255).filter(ImageFilter.MedianFilter(5))
    return _solid(np.asarray(calm) > 127)


def _solid(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The large pieces of a mask, their holes filled: in a photograph a hole is more often a pale part than nothing."""
    from PIL import Image, ImageDraw

    plan = Image.fromarray(
        np.pad(found.astype(np.uint8), 1)
    ).copy()  # a copy: the fill does not write to an array's memory
    ImageDraw.floodfill(plan, (0, 0), 255)
    filled = np.asarray(plan)[1:-1, 1:-1] != 255
    plan = Image.fromarray(filled.astype(np.uint8)).copy()
    for label in range(2, 2 + MOST_PIECES):
        rest = np.argwhere(np.asarray(plan) == 1)
        if not len(rest):
            break
        ImageDraw.floodfill(plan, (int(rest[0][1]), int(rest[0][0])), label)
    labels = np.asarray(plan)
    sizes = np.bincount(labels.ravel(), minlength=2)
    sizes[:2] = 0
    return np.isin(labels, np.flatnonzero(sizes >= max(1, 0.1 * sizes.max())))


def _smooth(line: Array, width: int = 9) -> Array:
    """[N, 3] a running median along a border: an object that touches it does not become background."""
    half = width // 2
    padded = np.pad(line, ((half, half), (0, 0)), mode="edge")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=0), axis=-1), np.float32)


def _otsu(values: Array) -> float:
    """The value that parts two groups best."""
    counts, edges = np.histogram(values, bins=64)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(edges[int(np.nanargmax(np.where(np.isfinite(between), between, -1.0))) + 1])


_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    np.float32,
) / np.array([[0.95047], [1.0], [1.08883]], np.float32)


def lab(picture: RGB) -> Array:
    """[H, W, 3] sRGB -> CIE L*a*b* (D65): distances are about what an eye sees, 2.3 is just noticeable."""
    encoded = picture.astype(np.float32) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ _TO_XYZ.T
    bent = np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)
    x, y, z = bent[..., 0], bent[..., 1], bent[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)

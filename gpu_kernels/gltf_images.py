"""Encoded images of a GLB file to RGBA textures.

Belongs here: PNG, JPEG and WebP, and the limits on their size. An image is opened first, which reads its header only, and
decoded later, on any thread.
Does not: which image a material uses (`gltf`), colour spaces and filtering (the kernels).
A texture holds what Pillow decodes, because the public renderer shows that. OpenCV is a sixth faster on PNG and, on the
plain kind that it is given here, equal in every bit; its JPEG decoder is not used: it accepts damage that Pillow refuses.
"""

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpu_kernels.errors import UnreadableModel
from gpu_kernels.mesh import Texture

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_TEXTURE_PIXELS = 64 << 20  # over all images of a file
MAX_TEXTURE_SIDE = 16384

_KTX2_MAGIC = b"\xabKTX 20\xbb\r\n\x1a\n"
_DEFLATE_RATIO = 1032  # no deflate stream grows by more
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 1 << 16
# The pixels, and what leaves them as they are in both decoders.
_PLAIN_CHUNKS = (b"IDAT", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tEXt", b"tIME")


@dataclass(frozen=True)
class EncodedImage:
    """An image whose header was read and whose size was found acceptable."""

    name: str  # for errors
    data: memoryview
    picture: "Image"

    @property
    def pixels(self) -> int:
        width, height = self.picture.size
        return width * height


def open_image(data: memoryview, name: str, pixels_left: int) -> EncodedImage:
    """Read the header of an image. Raises UnreadableModel for another format, or more than `pixels_left` pixels."""
    from PIL import Image

    if bytes(data[:12]) == _KTX2_MAGIC:
        raise UnreadableModel(f"{name} is KTX2, only PNG, JPEG and WebP are supported")
    try:
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableModel(f"{name} is too large") from None
    except Exception as error:  # a decoder fed with a stranger's bytes raises whatever it likes
        raise UnreadableModel(f"{name} cannot be decoded: {type(error).__name__}") from None
    width, height = picture.size
    if max(width, height) > MAX_TEXTURE_SIDE or width * height > pixels_left:
        raise UnreadableModel(f"{name} of {width} x {height} is too large")
    # Pillow would fill the rows that are missing, however many, at the price of a whole image.
    if picture.format == "PNG" and len(data) > 25:
        bits = data[24] * _PNG_CHANNELS.get(data[25], 1)
        if width * height * bits > 8 * _DEFLATE_RATIO * len(data):
            raise UnreadableModel(f"{name} cannot be decoded: {len(data)} bytes cannot hold {width} x {height} pixels")
    return EncodedImage(name, data, picture)


def decode_image(image: EncodedImage) -> Texture:
    """[H, W, 4] pixels; of an animation the first frame. Raises UnreadableModel for a damaged image."""
    try:
        texture = _decode_plain_png(image.data) if _is_plain_png(image.data) else None
        return _decode(image.picture) if texture is None else texture
    except Exception as error:  # as above
        raise UnreadableModel(f"{image.name} cannot be decoded: {type(error).__name__}") from None


def _decode(picture: "Image") -> Texture:
    with picture:
        if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip rather than scale
            grey = (np.asarray(picture, np.int32) >> 8).clip(0, 255).astype(np.uint8)
            return np.ascontiguousarray(np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1))
        return np.ascontiguousarray(np.asarray(picture.convert("RGBA"), np.uint8))


def _is_plain_png(data: memoryview) -> bool:
    """Whether this is an 8-bit RGB or RGBA PNG, not interlaced, without palette, colour key, animation or profile.

    Every chunk lies within the file: OpenCV allocates what a chunk declares before it looks for the bytes.
    """
    if bytes(data[:16]) != _PNG_MAGIC + b"\0\0\0\rIHDR" or len(data) < 33:
        return False
    if (data[24], data[28]) != (8, 0) or data[25] not in (2, 6):
        return False
    at = 33
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            return False
        size, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + size
        if kind == b"IEND":
            return at <= len(data)
        if kind not in _PLAIN_CHUNKS:
            return False
    return False


def _decode_plain_png(data: memoryview) -> Texture | None:
    """[H, W, 4] pixels; None for a damaged file, of which Pillow then says what is wrong."""
    import cv2

    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        return None
    to_rgba = cv2.COLOR_BGR2RGBA if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return np.asarray(cv2.cvtColor(pixels, to_rgba), np.uint8)

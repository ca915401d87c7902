"""Encoded images of a GLB file to RGBA textures.

Belongs here: PNG, JPEG and WebP, and the limits on their size. An image is opened first, which reads its header only, and
decoded later, on any thread.
Does not: which image a material uses (`gltf`), colour spaces and filtering (the kernels).
A texture holds what Pillow decodes, because the public renderer shows that, but for a colour key (tRNS) of grey and RGB,
which that does not look at; `png` does the same in half the time for the plain kind of PNG.
"""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpu_kernels.errors import UnreadableModel
from gpu_kernels.mesh import Texture
from gpu_kernels.png import decode_plain_png

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_TEXTURE_PIXELS = 64 << 20  # over all images of a file
MAX_TEXTURE_SIDE = 16384

_KTX2_MAGIC = b"\xabKTX 20\xbb\r\n\x1a\n"
_DEFLATE_RATIO = 1032  # no deflate stream grows by more
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


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
        texture = decode_plain_png(image.data) if image.picture.format == "PNG" else None
        return _decode(image.picture) if texture is None else texture
    except Exception as error:  # as above
        raise UnreadableModel(f"{image.name} cannot be decoded: {type(error).__name__}") from None


def _decode(picture: "Image") -> Texture:
    with picture:
        if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip rather than scale
            grey = (np.asarray(picture, np.int32) >> 8).clip(0, 255).astype(np.uint8)
            return np.ascontiguousarray(np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1))
        if picture.mode != "P":
            picture.info.pop("transparency", None)  # one colour said to be clear: the public renderer draws it
        return np.ascontiguousarray(np.asarray(picture.convert("RGBA"), np.uint8))

"""Plain PNG pictures to pixels, several times faster than general decoders: what textures of large files are.

Belongs here: the container and the filters of the one kind that exporters write: 8-bit RGB or RGBA, not interlaced.
Does not: any other kind, and damage, which is for Pillow to judge (`gltf_images`).
Inflating is ISA-L's; undoing the filters is a kernel. Source: PNG specification (W3C), third edition, chapter 9.
"""

import struct

import numpy as np
from isal import isal_zlib
from numba import int32, types, uint8, uint32

from gpu_kernels.formulas import formula, kernel
from gpu_kernels.mesh import Texture

MAGIC = b"\x89PNG\r\n\x1a\n"

_MAX_CHUNKS = 1 << 16
# The pixels, and what leaves them as they are: no palette, colour key, animation or profile.
_PLAIN_CHUNKS = (b"IDAT", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tEXt", b"tIME", b"IEND")
_HEADER = struct.Struct(">8sI4sIIBBBBBI")


def decode_plain_png(data: memoryview) -> Texture | None:
    """[H, W, 4] pixels, as Pillow's RGBA; None for any other kind of PNG, and for one with the least damage.

    The caller has bounded width and height.
    """
    if len(data) < _HEADER.size:
        return None
    magic, size, kind, width, height, bits, colours, _, _, interlaced, crc = _HEADER.unpack_from(data)
    if magic != MAGIC or (size, kind) != (13, b"IHDR") or crc != isal_zlib.crc32(data[12:29]):
        return None
    if bits != 8 or colours not in (2, 6) or interlaced or not width or not height:
        return None
    stream = _stream(data)
    channels = 3 if colours == 2 else 4
    expected = height * (1 + width * channels)
    if stream is None:
        return None
    inflater = isal_zlib.decompressobj()
    try:
        filtered = inflater.decompress(stream, expected + 1)
    except isal_zlib.error:  # type: ignore[misc]
        return None
    if len(filtered) != expected or not inflater.eof or inflater.unused_data:
        return None
    texture = np.empty((height, width), np.uint32)
    rows = np.frombuffer(filtered, np.uint8).reshape(height, -1)
    return texture.view(np.uint8).reshape(height, width, 4) if undo_filters(rows, texture) else None


def _stream(data: memoryview) -> bytes | memoryview | None:
    """The compressed pixels; None where a chunk is of another kind, damaged or not all there."""
    parts: list[memoryview] = []
    at = _HEADER.size
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(data):
            return None
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        if end + 4 > len(data) or kind not in _PLAIN_CHUNKS:
            return None
        if struct.unpack_from(">I", data, end)[0] != isal_zlib.crc32(data[at + 4 : end]):
            return None
        if kind == b"IDAT":
            parts.append(data[at + 8 : end])
        elif kind == b"IEND":
            return parts[0] if len(parts) == 1 else b"".join(parts)
        at = end + 4
    return None


@formula
def _paeth(left, up, corner):  # type: ignore[no-untyped-def]
    """Whichever of three neighbours is nearest to left + up - corner."""
    by_left, by_up, by_corner = abs(up - corner), abs(left - corner), abs(left + up - corner - corner)
    guess = up if by_up <= by_corner else corner
    return left if by_left <= min(by_up, by_corner) else guess


@kernel(types.boolean(types.Array(uint8, 2, "C", readonly=True), types.Array(uint32, 2, "C")))
def undo_filters(rows, texture):  # type: ignore[no-untyped-def]
    """Filtered rows [H, 1 + W channels] to texture [H, W], RGBA with R in the lowest byte; False: unknown filter.

    The channels of a pixel are undone side by side: along a row each value waits for the one before it.
    """
    height, width = texture.shape
    channels = np.uintp((rows.shape[1] - 1) // width)
    opaque = channels == 3
    nothing = np.zeros(width, np.uint32)
    low = int32(255)
    for y in range(height):
        row, into = rows[y], texture[y]
        above = texture[y - 1] if y > 0 else nothing
        kind = row[0]
        if kind > 4:
            return False
        r, g, b, a = int32(0), int32(0), int32(0), int32(0)
        corner = np.uint32(0)
        for x in range(np.uintp(width)):
            at = np.uintp(1) + x * channels
            up = above[x]
            if kind == 0:
                r, g, b, a = int32(0), int32(0), int32(0), int32(0)
            elif kind == 2:
                r, g, b, a = int32(up & 255), int32((up >> 8) & 255), int32((up >> 16) & 255), int32(up >> 24)
            elif kind == 3:
                r = (r + int32(up & 255)) >> 1
                g = (g + int32((up >> 8) & 255)) >> 1
                b = (b + int32((up >> 16) & 255)) >> 1
                a = (a + int32(up >> 24)) >> 1
            elif kind == 4:
                r = _paeth(r, int32(up & 255), int32(corner & 255))
                g = _paeth(g, int32((up >> 8) & 255), int32((corner >> 8) & 255))
                b = _paeth(b, int32((up >> 16) & 255), int32((corner >> 16) & 255))
                a = _paeth(a, int32(up >> 24), int32(corner >> 24))
                corner = up
            r = (r + int32(row[at])) & low
            g = (g + int32(row[at + np.uintp(1)])) & low
            b = (b + int32(row[at + np.uintp(2)])) & low
            a = low if opaque else (a + int32(row[at + np.uintp(3)])) & low
            into[x] = np.uint32(r | (g << 8) | (b << 16)) | (np.uint32(a) << 24)
    return True

"""Plain PNG pictures: the pixels that Pillow gives, or nothing."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gpu_kernels.png import MAGIC, decode_plain_png

FILTERS = {
    "none": cv2.IMWRITE_PNG_FILTER_NONE,
    "sub": cv2.IMWRITE_PNG_FILTER_SUB,
    "up": cv2.IMWRITE_PNG_FILTER_UP,
    "average": cv2.IMWRITE_PNG_FILTER_AVG,
    "paeth": cv2.IMWRITE_PNG_FILTER_PAETH,
}


def pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGBA"))


def picture(height: int, width: int, channels: int) -> np.ndarray:
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)
    return np.where(noise % 3 == 0, np.uint8(255), noise)


def encoded(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def assembled(pixels: np.ndarray, filtered: bytes | None = None, *more: bytes) -> bytes:
    """A PNG from parts: its rows unfiltered, or as given."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels) if filtered is None else filtered
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2 if channels == 3 else 6, 0, 0, 0))
    return MAGIC + head + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (33, 57)])
def test_every_filter_is_undone(name: str, channels: int, size: tuple[int, int]) -> None:
    pixels = picture(*size, channels)
    _, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_FILTER, FILTERS[name]])
    decoded = decode_plain_png(memoryview(data.tobytes()))
    assert decoded is not None
    np.testing.assert_array_equal(decoded, pillow(data.tobytes()))


def test_rows_of_different_filters_and_many_chunks_are_read() -> None:
    """Pillow chooses a filter for each row and writes 64 KiB a chunk."""
    data = encoded(np.cumsum(picture(300, 200, 3), axis=0, dtype=np.uint8))
    assert data.count(b"IDAT") > 1
    np.testing.assert_array_equal(decode_plain_png(memoryview(data)), pillow(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encoded(picture(8, 8, 3))[:-1],
        encoded(picture(8, 8, 3)[..., 0]),
        encoded(picture(8, 8, 3).astype(np.uint16)[..., 0] * 257),
        encoded(picture(8, 8, 3), transparency=(1, 2, 3)),
        encoded(picture(8, 8, 3), icc_profile=b"profile"),
        assembled(picture(8, 8, 3), b"\5" * 25 * 8),
        assembled(picture(8, 8, 3), b"\0" * (25 * 8 - 1)),
        assembled(picture(8, 8, 3), b"\0" * (25 * 8 + 1)),
        assembled(picture(8, 8, 3), None, chunk(b"acTL", bytes(8))),
        assembled(picture(8, 8, 3), None, struct.pack(">I4s", 2**31, b"tEXt")),
    ],
    ids=["empty", "truncated", "grey", "16-bit", "key", "profile", "filter", "few", "many", "animated", "endless"],
)
def test_any_other_kind_is_left_to_pillow(data: bytes) -> None:
    assert decode_plain_png(memoryview(data)) is None


PLAIN = [encoded(picture(12, 20, 3)), encoded(picture(7, 5, 4)), assembled(picture(9, 9, 3), None, chunk(b"tIME", b""))]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_changed_picture_is_left_to_pillow_or_shown_as_pillow_shows_it(data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(PLAIN)))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    decoded = decode_plain_png(memoryview(bytes(changed)))
    if decoded is not None:
        np.testing.assert_array_equal(decoded, pillow(bytes(changed)))

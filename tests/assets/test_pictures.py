"""Pictures of the Dagster UI."""

import base64
import io
import re

from PIL import Image

from gen404_dagster.assets.pictures import gallery


def test_a_damaged_preview_is_an_empty_tile() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (518, 518), "blue").save(buffer, "PNG")
    whole = buffer.getvalue()
    shown = gallery([("whole", whole), ("cut", whole[: len(whole) // 2]), ("page", b"<html>"), ("none", None)])
    found = re.search(r"base64,([^)]+)\)", str(shown.md_str))
    assert found is not None
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as sheet:
        middles = [sheet.getpixel((192 * tile + 96, 40)) for tile in range(4)]
    assert isinstance(middles[0], tuple)
    assert middles[0][2] > 200 > 100 > middles[0][0]
    assert all(isinstance(pixel, tuple) and min(pixel) > 240 for pixel in middles[1:])

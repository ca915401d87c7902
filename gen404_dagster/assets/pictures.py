"""Pictures for the Dagster UI: galleries of previews and the match matrix as a heat map, as markdown data URIs."""

import base64
import io
from collections.abc import Mapping, Sequence

import dagster as dg
from PIL import Image, ImageDraw, ImageFont

from gen404_dagster.competition.models import Hotkey, Margins
from gen404_dagster.resources.pictures import RGB, UnreadablePicture, decode

_TILE = 192
_COLUMNS = 6
_MOST_TILES = 24


def gallery(pictures: Sequence[tuple[str, bytes | None]]) -> dg.MarkdownMetadataValue:
    """A contact sheet of labelled pictures, at most 24 of them; None and what is no picture are empty tiles."""
    shown = pictures[:_MOST_TILES]
    columns = min(_COLUMNS, max(1, len(shown)))
    rows = (len(shown) + columns - 1) // columns
    sheet = Image.new("RGB", (columns * _TILE, max(1, rows) * (_TILE + 16)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for position, (label, data) in enumerate(shown):
        x, y = position % columns * _TILE, position // columns * (_TILE + 16)
        picture = _decoded(data)
        if picture is None:
            draw.rectangle((x + 4, y + 4, x + _TILE - 4, y + _TILE - 4), outline="#b0413e", width=2)
            draw.text((x + 12, y + _TILE // 2 - 6), "no preview", fill="#b0413e", font=font)
        else:
            small = Image.fromarray(picture).resize((_TILE - 4, _TILE - 4), Image.Resampling.LANCZOS)
            sheet.paste(small, (x + 2, y + 2))
        draw.text((x + 4, y + _TILE), label[:28], fill="#444444", font=font)
    more = f"\n\n{len(pictures) - len(shown)} more are not shown." if len(pictures) > len(shown) else ""
    return dg.MetadataValue.md(as_markdown(sheet, "previews", "JPEG") + more)


def _decoded(data: bytes | None) -> RGB | None:
    try:
        return None if data is None else decode(data)
    except UnreadablePicture:  # damaged in the store: the page says so
        return None


def heat_map(order: Sequence[Hotkey], margins: Margins, names: Mapping[Hotkey, str]) -> dg.MarkdownMetadataValue:
    """Defenders (rows) against challengers (columns): green where the challenger won, red where the defender held."""
    cell, head = 64, 110
    left = [h for h in order if any(pair[0] == h for pair in margins)]
    right = [h for h in order if any(pair[1] == h for pair in margins)]
    sheet = Image.new("RGB", (head + cell * len(right) + 8, head + cell * len(left) + 8), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, hotkey in enumerate(right):
        label = Image.new("RGB", (head - 8, 16), "white")
        ImageDraw.Draw(label).text((0, 1), names.get(hotkey, hotkey[:10]), fill="#222222", font=font)
        sheet.paste(label.rotate(90, expand=True), (head + column * cell + cell // 2 - 8, 4))
    for row, defender in enumerate(left):
        y = head + row * cell
        draw.text((4, y + cell // 2 - 7), names.get(defender, defender[:10]), fill="#222222", font=font)
        for column, challenger in enumerate(right):
            x = head + column * cell
            margin = margins.get((defender, challenger))
            box = (x + 1, y + 1, x + cell - 1, y + cell - 1)
            draw.rectangle(box, fill="#eeeeee" if margin is None else _colour(margin))
            if margin is not None:
                draw.text((x + 9, y + cell // 2 - 7), f"{margin:+.3f}"[:7], fill="#111111", font=font)
    return dg.MetadataValue.md(as_markdown(sheet, "match matrix", "PNG"))


def _colour(margin: float) -> str:
    strength = min(1.0, abs(margin)) ** 0.5
    towards = (76, 175, 80) if margin > 0 else (229, 115, 115)
    return "#{:02x}{:02x}{:02x}".format(*(round(255 + (part - 255) * strength) for part in towards))


def as_markdown(picture: Image.Image, alt: str, form: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=82)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"![{alt}](data:image/{form.lower()};base64,{data})"

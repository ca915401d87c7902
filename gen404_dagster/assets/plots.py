"""Plots for the Dagster UI, drawn with PIL as markdown data URIs: bars, and a grid of coloured cells."""

from collections.abc import Mapping, Sequence

import dagster as dg
from PIL import Image, ImageDraw, ImageFont

from gen404_dagster.assets.pictures import as_markdown

_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#edc948")
_INK, _PALE = "#333333", "#dddddd"
_MOST_COLUMNS, _MOST_ROWS = 60, 60


def bars(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> dg.MarkdownMetadataValue:
    """Groups of bars from zero, one group a label and one colour a series; at most 60 groups."""
    labels = labels[:_MOST_COLUMNS]
    top, left, height, bar = 48, 64, 240, max(6, min(28, 900 // max(1, len(labels) * len(series))))
    group = bar * len(series) + 12
    sheet = Image.new("RGB", (left + max(320, group * len(labels)) + 16, top + height + 40), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((8, 6), title, fill=_INK, font=ImageFont.load_default(14))
    highest = max((value for values in series.values() for value in values), default=0) or 1
    for quarter in range(5):
        y = top + height - round(height * quarter / 4)
        draw.line((left, y, sheet.width - 12, y), fill=_PALE)
        draw.text((6, y - 7), f"{highest * quarter / 4:.4g}", fill=_INK, font=font)
    for place, (name, values) in enumerate(series.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        x = left + 110 * place
        draw.rectangle((x, 28, x + 10, 38), fill=colour)
        draw.text((x + 14, 26), name[:14], fill=_INK, font=font)
        for column, value in enumerate(values[:_MOST_COLUMNS]):
            x = left + 6 + column * group + place * bar
            y = top + height - round(height * max(0.0, value) / highest)
            draw.rectangle((x, y, x + bar - 2, top + height), fill=colour)
    skip = max(1, -(-52 // group))
    for column, label in enumerate(labels):
        if column % skip == 0:
            draw.text((left + 6 + column * group, top + height + 6), label[:14], fill=_INK, font=font)
    return dg.MetadataValue.md(as_markdown(sheet, title, "PNG"))


def grid(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], str],
    colours: Mapping[str, str],
) -> dg.MarkdownMetadataValue:
    """One coloured cell for each (row, column) that has a word; the colours are explained above. At most 60 rows."""
    shown, top, left, width, height = rows[:_MOST_ROWS], 64, 96, 48, 16
    sheet = Image.new("RGB", (left + max(420, width * len(columns)) + 8, top + height * len(shown) + 28), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    draw.text((8, 6), title, fill=_INK, font=ImageFont.load_default(14))
    for place, (word, colour) in enumerate(colours.items()):
        draw.rectangle((left + 84 * place, 28, left + 84 * place + 10, 38), fill=colour)
        draw.text((left + 84 * place + 14, 26), word, fill=_INK, font=font)
    for column, name in enumerate(columns):
        draw.text((left + column * width + 4, 46), name, fill=_INK, font=font)
        for row, who in enumerate(shown):
            x, y = left + column * width, top + row * height
            colour = colours.get(cells.get((who, name), ""), "#f4f4f4")
            draw.rectangle((x + 1, y + 1, x + width - 2, y + height - 2), fill=colour)
    for row, who in enumerate(shown):
        draw.text((6, top + row * height + 1), who[:10], fill=_INK, font=font)
    if len(rows) > len(shown):
        draw.text((6, sheet.height - 20), f"{len(rows) - len(shown)} more are in the file", fill=_INK, font=font)
    return dg.MetadataValue.md(as_markdown(sheet, title, "PNG"))

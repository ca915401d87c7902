"""`gen404 distance`: how far pictures are apart under the configured embedder, and what an audit would say.

Belongs here: pairs of files, progress, the table. Does not: measuring (`resources.embedder`), the rule
(`competition.audits`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.embedder import Distance, Embedder, make_embedder
from gen404_dagster.resources.pictures import UnreadablePicture
from gen404_dagster.settings import Settings

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PAIRS_AT_ONCE = 16


class Compared(NamedTuple):
    """Two pictures of one name: their distance, or why there is none."""

    name: str
    distance: Distance | None
    fault: str = ""


def compare_pictures(settings: Settings, first: Path, second: Path, as_json: bool) -> bool:
    """Print one distance. Raises OperatorError for a file that is no picture."""
    embedder = make_embedder(settings)
    try:
        found = embedder.distance(first.read_bytes(), second.read_bytes())
    except UnreadablePicture as error:
        raise OperatorError(f"{first}, {second}: {error}") from error
    limit = _limit(embedder, settings)
    if as_json:
        print(json.dumps({"distance": found.value, "accepted": found <= limit, **_whose(limit)}))
    else:
        print(f"{found.value:.6f}  {_verdict(found, limit)}  {found.model}")
    return True


def compare_folders(settings: Settings, first: Path, second: Path, as_json: bool) -> bool:
    """Print the distances of all pairs, the largest first. False when a picture could not be read."""
    ours, theirs = _pictures(first), _pictures(second)
    pairs = [(name, ours[name], theirs[name]) for name in sorted(ours.keys() & theirs.keys())]
    alone = sorted(ours.keys() ^ theirs.keys())
    if not pairs:
        raise OperatorError(f"{first} and {second} have no pictures of the same name: nothing to compare")
    embedder, errors = make_embedder(settings), Console(stderr=True)
    steps = [pairs[start : start + PAIRS_AT_ONCE] for start in range(0, len(pairs), PAIRS_AT_ONCE)]
    shown = track(steps, "Comparing", console=errors, disable=len(steps) == 1, transient=True)
    found = [compared for step in shown for compared in _compared(embedder, step)]
    found.sort(key=lambda each: -each.distance.value if each.distance else -3.0)
    limit = _limit(embedder, settings)
    if as_json:
        rows = [_as_row(each, limit) for each in found]
        print(json.dumps({"pairs": rows, "unpaired": alone, **_whose(limit)}, indent=2))
    else:
        _show(found, alone, limit)
    return all(each.distance is not None for each in found)


def _limit(embedder: Embedder, settings: Settings) -> Distance:
    return Distance(settings.limits.acceptable_distance, embedder.model)


def _whose(limit: Distance) -> dict[str, object]:
    return {"limit": limit.value, "model": limit.model.name, "revision": limit.model.revision}


def _verdict(distance: Distance, limit: Distance) -> str:
    return "accepted" if distance <= limit else f"too far, over {limit.value:g}"


def _pictures(folder: Path) -> dict[str, Path]:
    """Pictures of a folder by name without extension."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if path.stem in found:
                raise OperatorError(f"{folder} has {found[path.stem].name} and {path.name}: one picture a name, please")
            found[path.stem] = path
    return found


def _compared(embedder: Embedder, pairs: list[tuple[str, Path, Path]]) -> Iterator[Compared]:
    """All at once; when one cannot be read, one by one to know which."""
    try:
        read = [(first.read_bytes(), second.read_bytes()) for _, first, second in pairs]
        distances = embedder.distances(read)
    except (UnreadablePicture, OSError) as error:
        if len(pairs) == 1:
            yield Compared(pairs[0][0], None, str(error))
            return
        for pair in pairs:
            yield from _compared(embedder, [pair])
        return
    for (name, _, _), distance in zip(pairs, distances, strict=True):
        yield Compared(name, distance)


def _as_row(each: Compared, limit: Distance) -> dict[str, object]:
    if each.distance is None:
        return {"name": each.name, "distance": None, "accepted": None, "fault": each.fault}
    return {"name": each.name, "distance": each.distance.value, "accepted": each.distance <= limit}


def _show(found: list[Compared], alone: list[str], limit: Distance) -> None:
    title = f"{len(found)} pairs under {limit.model}, accepted up to {limit.value:g}"
    table = Table("name", "distance", "verdict", title=title, title_justify="left")
    for each in found:
        if each.distance is None:
            table.add_row(escape(each.name), "-", f"[red]{escape(each.fault)}[/]")
        else:
            style = "green" if each.distance <= limit else "red"
            table.add_row(
                escape(each.name), f"{each.distance.value:.6f}", f"[{style}]{_verdict(each.distance, limit)}[/]"
            )
    Console().print(table)
    if alone:
        print(f"without a partner: {', '.join(alone)}")

"""`gen404 render`: the previews of many files, as a round makes them.

Belongs here: which files, where each picture goes, progress. Does not: rendering (`resources.renderer`).
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from gen404_dagster.errors import MinerFault, OperatorError
from gen404_dagster.resources.renderer import Renderer
from gen404_dagster.resources.workers import Workers
from gen404_dagster.settings import Settings
from gen404_dagster.simulation.parameters import write_atomic

SUFFIXES = (".glb", ".ply", ".spz")


@dataclass(frozen=True)
class Picture:
    """A file and its preview: to be made, made, left as it was (no `seconds`), or `refused` with the reason."""

    file: Path
    output: Path
    seconds: float | None = None
    backend: str | None = None
    refused: str | None = None

    def as_json(self) -> dict[str, Any]:
        output = None if self.refused is not None else str(self.output)
        return {**asdict(self), "file": str(self.file), "output": output}


def plan(files: Sequence[Path], output: Path | None) -> list[Picture]:
    """Every file, those of folders included, and where its picture goes; two never share a place.

    output: a PNG for one file, else a folder, which keeps the folders below an argument; None: beside each file. Files
    that differ only in their ending keep it in their picture's name. Raises OperatorError where that is not enough.
    """
    found: dict[Path, Path] = {}  # a file to its path below the output folder
    for file in files:
        if file.is_dir():
            inside = sorted(path for path in file.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if not inside:
                raise OperatorError(f"{file} holds no file that ends in {', '.join(SUFFIXES)}")
            found |= {path: path.relative_to(file) for path in inside}
        else:
            found[file] = Path(file.name)
    if output is not None and output.suffix and not output.is_dir():
        if output.suffix.lower() in SUFFIXES:  # what `-o *.glb` makes of a folder's first model
            raise OperatorError(f"-o {output} is the name of a model, not of a picture")
        if len(found) > 1 or any(file.is_dir() for file in files):
            raise OperatorError(f"-o {output} is a file, but there may be several models: name a folder")
        return [Picture(next(iter(found)), output)]
    bare = {file: (output / path if output else file).with_suffix(".png") for file, path in found.items()}
    shared = Counter(bare.values())
    places = {
        file: place if shared[place] == 1 else place.with_name(f"{file.name}.png") for file, place in bare.items()
    }
    for place, count in Counter(places.values()).items():
        if count > 1:
            same = [str(file) for file, other in places.items() if other == place]
            raise OperatorError(f"{' and '.join(same)} would both become {place}: render them into two folders")
    return [Picture(file, place) for file, place in places.items()]


def render_files(
    pictures: Sequence[Picture],
    settings: Settings,
    backend: str | None,
    jobs: int | None,
    skip_existing: bool,
    quiet: bool,
) -> list[Picture]:
    """Make the pictures, in any order; returns them in theirs. Prints each path when it is made, unless quiet.

    Raises OperatorError or Unavailable when none can be made, or one cannot be written.
    """
    due = [picture for picture in pictures if not (skip_existing and _up_to_date(picture))]
    count = min(jobs or len(os.sched_getaffinity(0)), len(due))
    done = {picture.file: picture for picture in pictures}
    if not due:
        return list(pictures)
    limits = settings.limits
    with (
        Workers(
            backend or settings.render_backend, count, limits.render_memory_bytes, limits.render_seconds
        ) as workers,
        _progress(len(due)) as progress,
        ThreadPoolExecutor(count) as pool,
    ):
        bar = progress.add_task("Rendering", total=len(due))
        futures = [pool.submit(_render, picture, Renderer(workers), limits.max_file_bytes) for picture in due]
        try:
            for future in as_completed(futures):
                picture = future.result()
                done[picture.file] = picture
                progress.advance(bar)
                if picture.refused is None and not quiet:
                    print(picture.output)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.close()
            raise
    return list(done.values())


def _render(picture: Picture, renderer: Renderer, max_bytes: int) -> Picture:
    try:
        if picture.file.stat().st_size > max_bytes:
            return replace(picture, refused=f"larger than {max_bytes / 1024**2:.1f} MiB")
        model = picture.file.read_bytes()
    except OSError as error:
        return replace(picture, refused=f"cannot be read: {error.strerror}")
    try:
        drawn = renderer.draw(model)
    except MinerFault as fault:
        return replace(picture, refused=str(fault))
    try:
        picture.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(picture.output, drawn.png)
    except OSError as error:
        raise OperatorError(f"{picture.output} cannot be written: {error.strerror}") from error
    return replace(picture, seconds=round(sum(drawn.seconds.values()), 4), backend=drawn.backend)


def _up_to_date(picture: Picture) -> bool:
    return picture.output.exists() and picture.output.stat().st_mtime >= picture.file.stat().st_mtime


def _progress(total: int) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=total == 1 or not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),  # elsewhere the paths go where the caller sent them
    )


class _Rate(ProgressColumn):
    """Files a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} a second" if task.speed else "", style="progress.data.speed")

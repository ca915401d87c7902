"""The pool of prompt pictures of an embedded world: drawn once, then read.

Belongs here: drawing procedural objects or taking real pictures, and the catalogue that says which is which.
Does not: what objects look like (`objects`), rebuilding them (`objects`, `reliefs`).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gen404_dagster.errors import MinerFault, OperatorError
from gen404_dagster.simulation.objects import imitation
from gen404_dagster.simulation.parameters import Workdir, WorldParameters, write_atomic
from gen404_dagster.simulation.reliefs import AZIMUTH, ELEVATION, MAX_PICTURE_BYTES, decode_picture

PICTURE_SIZE = 512
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PICTURES = 4096


@dataclass(frozen=True)
class Pool:
    """Stems in the order of the pool; `objects` has the number of the object that a drawn picture shows."""

    stems: tuple[str, ...]
    objects: dict[str, int]


def read_pool(workdir: Workdir) -> Pool | None:
    """The pool as it was made, or None when its making did not end."""
    try:
        catalogue = json.loads((workdir.prompts / "catalogue.json").read_text())
    except FileNotFoundError:
        return None
    return Pool(tuple(catalogue["stems"]), catalogue["objects"])


def make_pool(workdir: Workdir, parameters: WorldParameters) -> Pool:
    """Draw, or take over, every picture and write the catalogue last. Reads what is there already."""
    made = read_pool(workdir)
    if made:
        return made
    workdir.prompts.mkdir(parents=True, exist_ok=True)
    stems: dict[str, int | None] = {}
    for number, picture in _pictures(parameters):
        stem = hashlib.sha256(picture).hexdigest()
        if stem not in stems:
            write_atomic(workdir.prompts / f"{stem}.png", picture)
            stems[stem] = number
    pool = Pool(tuple(stems), {stem: number for stem, number in stems.items() if number is not None})
    write_atomic(workdir.prompts / "catalogue.json", json.dumps({"stems": pool.stems, "objects": pool.objects}))
    return pool


def _pictures(parameters: WorldParameters) -> Iterator[tuple[int | None, bytes]]:
    """(number of the object, PNG) for every prompt; real pictures have no number."""
    if parameters.prompts_from is None:
        for number in range(parameters.pool_size):
            yield number, draw_object(parameters.seed, number)
        return
    for path in real_pictures(Path(parameters.prompts_from)):
        yield None, _as_png(path)


def draw_object(seed: int, index: int) -> bytes:
    """PNG of an object as prompts show it."""
    from gpu_kernels import encode_png, load_glb, render_view

    mesh = load_glb(imitation(seed, index, skill=1.0).glb())
    return encode_png(render_view(mesh, AZIMUTH, ELEVATION, PICTURE_SIZE))


def real_pictures(folder: Path) -> list[Path]:
    """Pictures of a folder in name order. Raises OperatorError when there are none."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise OperatorError(f"--prompts-from {folder}: {error.strerror}") from error
    if not found:
        raise OperatorError(f"--prompts-from {folder}: holds no .png or .jpg picture")
    if len(found) > MAX_PICTURES:
        raise OperatorError(f"--prompts-from {folder}: holds {len(found)} pictures, at most {MAX_PICTURES} are taken")
    return found


def _as_png(path: Path) -> bytes:
    """The file itself when it is a PNG, else its picture as one."""
    from gpu_kernels import encode_png

    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise OperatorError(f"--prompts-from: {path} has {path.stat().st_size} bytes, at most {MAX_PICTURE_BYTES}")
    data = path.read_bytes()
    try:
        picture = decode_picture(data, side=1024)
    except MinerFault as error:
        raise OperatorError(f"--prompts-from: {path}: {error}") from error
    return data if data.startswith(b"\x89PNG") else encode_png(picture)

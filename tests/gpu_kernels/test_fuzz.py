"""Mutated GLB, PLY and SPZ files through real workers: always a picture or a named reason, within the limits.

Mutations are of bytes, and of what a format's fields say, so that many get past the container. `make test` sends 300
files, `make test-slow` 5,000.
"""

import gzip
import hashlib
import json
import re
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gen404_dagster.errors import MinerFault
from gen404_dagster.resources.workers import Workers
from gpu_kernels import Splats, load_model, write_glb
from gpu_kernels.ply import write_ply
from gpu_kernels.spz import write_spz
from tests.gpu_kernels.conftest import make_noise, make_png, make_sphere

MEMORY = 1024**3
SECONDS = 20.0
# Reasons that a container or a header is refused with: what mutates no deeper is cheap to find.
HEADER = re.compile(
    r"not an? |GLB version|truncated|malformed (glTF|header)|\d+ bytes of JSON|the header|no vertex element|format |element "
    r"|property |SPZ version|broken compressed|the compressed stream|spherical harmonics of|positions with|uses SPZ|no splats"
)
BROKEN = re.compile("crashed|confused|took longer|of memory|could not be rendered")
NUMBERS = (-1, 0, 1, 2, 3, 4, 7, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 1e-45, 0.5, 1e38)
WORDS = (struct.pack("<f", float("nan")), struct.pack("<f", float("inf")), b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80")

Mutation = Callable[[bytes, st.DataObject], bytes]


def some_splats(count: int) -> Splats:
    dice = np.random.default_rng(count)
    values = [dice.normal(size=(count, width)).astype(np.float32) for width in (3, 3, 4, 3)]
    return Splats(values[0], values[1] - 3, values[2], dice.normal(size=count).astype(np.float32), values[3])


def made_here() -> dict[str, bytes]:
    """One small file of every kind: name to bytes."""
    sphere, splats = make_sphere(rings=6), some_splats(40)
    texture = make_png(make_noise(5, channels=4))
    shape = (sphere.positions, sphere.indices, sphere.normals, sphere.uv)
    return {
        "plain.glb": write_glb(sphere.positions, sphere.indices),
        "coloured.glb": write_glb(
            sphere.positions,
            sphere.indices,
            colours=np.abs(np.repeat(sphere.positions, 2, axis=1)[:, :4]) * 2,
            base_colour=None,
        ),
        "textured.glb": write_glb(*shape, base_colour_png=texture),
        "translucent.glb": write_glb(*shape, base_colour=(1.0, 0.5, 0.2, 0.4)),
        "binary.ply": write_ply(splats),
        "text.ply": write_ply(splats, ascii=True),
        **{
            f"{container}{version}.spz": write_spz(splats, version, container)  # type: ignore[arg-type]
            for container in ("zstd", "gzip")
            for version in (2, 3)
        },
    }


def samples() -> dict[str, bytes]:
    """Real files of ../shared, where it is: the small GLB whole, of the splats the first ones."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "samples"
    found = {path.name: path.read_bytes() for path in folder.glob("glb/*.glb") if path.stat().st_size < 50_000}
    for path in sorted(folder.glob("splat/*.ply")) + sorted(folder.glob("splat/*.spz")):
        whole = load_model(path.read_bytes())
        assert isinstance(whole, Splats)
        few = Splats(**{name: np.ascontiguousarray(array[::500]) for name, array in vars(whole).items()})
        container = "gzip" if "gzip" in path.name else "zstd"
        found[path.name] = write_ply(few) if path.suffix == ".ply" else write_spz(few, 2, container)  # type: ignore[arg-type]
    return found


def flip(data: bytes, draw: st.DataObject) -> bytes:
    """A few bytes changed anywhere."""
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        changed[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    return bytes(changed)


def flip_late(data: bytes, draw: st.DataObject) -> bytes:
    """Four bytes in the last three quarters, where the numbers lie, replaced by an awkward value."""
    at = draw.draw(st.integers(len(data) // 4, max(len(data) // 4, len(data) - 4)))
    return data[:at] + draw.draw(st.sampled_from(WORDS)) + data[at + 4 :]


def truncate(data: bytes, draw: st.DataObject) -> bytes:
    return data[: draw.draw(st.integers(0, len(data)))]


def splice(data: bytes, draw: st.DataObject) -> bytes:
    """A part moved, doubled or cut out."""
    start, end, to = (draw.draw(st.integers(0, len(data))) for _ in range(3))
    part = data[min(start, end) : max(start, end)]
    rest = data if draw.draw(st.booleans()) else data[: min(start, end)] + data[max(start, end) :]
    return rest[:to] + part + rest[to:]


def change_json(data: bytes, draw: st.DataObject) -> bytes:
    """One value of a GLB's JSON replaced by an awkward one, or a part left out, or doubled; lengths are made right."""
    size = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + size])
    for _ in range(draw.draw(st.integers(1, 2))):
        holder, key = draw.draw(st.sampled_from(places(document)))
        how = draw.draw(st.sampled_from(["number", "number", "number", "drop", "double", "word"]))
        if how == "number":
            holder[key] = draw.draw(st.sampled_from(NUMBERS))
        elif how == "word":
            holder[key] = draw.draw(st.sampled_from(["", "VEC2", "VEC4", "MAT4", "SCALAR", [], {}, None, True]))
        elif how == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(holder[key])
        if not places(document):
            break
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + size :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def places(part: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) of a JSON document but its version."""
    keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
    return [place for key in keys if key != "asset" for place in ((part, key), *places(part[key]))]


def change_binary(data: bytes, draw: st.DataObject) -> bytes:
    """Numbers of a GLB's binary chunk replaced."""
    start = 28 + struct.unpack_from("<I", data, 12)[0]
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = start + 4 * draw.draw(st.integers(0, (len(data) - start) // 4 - 1))
        changed[at : at + 4] = draw.draw(st.sampled_from(WORDS) | st.binary(min_size=4, max_size=4))
    return bytes(changed)


def change_header(data: bytes, draw: st.DataObject) -> bytes:
    """A PLY's count, or one of its header's words, replaced; a line left out or doubled."""
    head, end, body = data.partition(b"end_header\n")
    lines = head.splitlines(keepends=True)
    at = draw.draw(st.integers(1, len(lines) - 1))
    how = draw.draw(st.sampled_from(["count", "count", "type", "drop", "double"]))
    if how == "count":
        number = draw.draw(st.sampled_from(NUMBERS) | st.integers(1, 60))
        lines = [re.sub(rb"vertex \d+", b"vertex " + str(number).encode(), line) for line in lines]
    elif how == "type":
        name = draw.draw(st.sampled_from([b"double", b"uchar", b"short", b"int", b"list uchar int"]))
        lines[at] = lines[at].replace(b"float", name)
    elif how == "drop":
        del lines[at]
    else:
        lines.insert(at, lines[at])
    return b"".join(lines) + end + body


def change_payload(data: bytes, draw: st.DataObject) -> bytes:
    """An SPZ opened, mutated and closed again: a header field, numbers, its end; as either kind of stream."""
    import zstandard

    zstd = data.startswith(b"\x28\xb5\x2f\xfd")
    plain = bytearray(zstandard.ZstdDecompressor().decompressobj().decompress(data) if zstd else gzip.decompress(data))
    how = draw.draw(st.sampled_from(["field", "count", "numbers", "numbers", "end"]))
    if how == "field":
        plain[draw.draw(st.integers(4, 15))] = draw.draw(st.integers(0, 255))
    elif how == "count":
        struct.pack_into("<I", plain, 8, draw.draw(st.integers(0, 60) | st.just(5_000_000) | st.just(2**32 - 1)))
    elif how == "numbers":
        for _ in range(draw.draw(st.integers(1, 8))):
            plain[draw.draw(st.integers(16, len(plain) - 1))] = draw.draw(st.integers(0, 255))
    else:
        plain = plain[: draw.draw(st.integers(0, len(plain)))] + bytes(draw.draw(st.sampled_from([0, 1, 1 << 20])))
    if draw.draw(st.booleans()):
        return zstandard.ZstdCompressor(level=1).compress(bytes(plain))
    return gzip.compress(bytes(plain), 1)


ANYWHERE: tuple[Mutation, ...] = (flip, flip_late, truncate, splice)
OF_A_FORMAT: dict[str, tuple[Mutation, ...]] = {
    "glb": (change_json, change_json, change_binary),
    "ply": (change_header, flip_late),
    "spz": (change_payload, change_payload),
}


def mutants(count: int) -> list[bytes]:
    """So many mutated files, the same each time."""
    seeds = made_here() | samples()
    found: list[bytes] = []

    @settings(max_examples=count, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
    @given(st.data())
    def mutate(draw: st.DataObject) -> None:
        name = draw.draw(st.sampled_from(sorted(seeds)))
        chosen = draw.draw(st.sampled_from(OF_A_FORMAT[name.rpartition(".")[2]] * 2 + ANYWHERE))
        data = chosen(seeds[name], draw)
        if draw.draw(st.integers(0, 4)) == 0:
            data = draw.draw(st.sampled_from(ANYWHERE))(data, draw) if len(data) > 8 else data
        found.append(data)

    mutate()
    return found[:count]


@pytest.fixture
def pool() -> Iterator[Workers]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Workers("cpu", count=2, memory_bytes=MEMORY, seconds=SECONDS) as workers:
        yield workers
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert not left, "workers are left behind"


def check(pool: Workers, count: int) -> None:
    files = mutants(count)
    assert len(files) >= 0.95 * count
    for model in made_here().values():
        pool.render(model)  # both kinds, in each worker: what is compiled now is not compiled in a file's time

    def outcome(model: bytes) -> tuple[str, int]:
        try:
            return "", pool.render(model).peak_memory
        except MinerFault as fault:
            return str(fault), 0

    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(outcome, files))
    broken = [(model, reason) for model, (reason, _) in zip(files, outcomes, strict=True) if BROKEN.search(reason)]
    assert not broken, "\n".join(f"{saved(model)}: {reason}" for model, reason in broken[:10])
    assert all(reason.isprintable() and len(reason) <= 300 for reason, _ in outcomes)
    tally = Counter("picture" if not reason else "header" if HEADER.match(reason) else "deep" for reason, _ in outcomes)
    peak = max(peak for _, peak in outcomes)
    print(f"{len(files)} files: {dict(tally)}, peak memory of a worker {peak / 1024**2:.0f} MiB")
    assert tally["picture"] + tally["deep"] >= 0.2 * len(files)
    assert tally["picture"] >= 0.05 * len(files)
    assert peak < MEMORY


def saved(model: bytes) -> Path:
    path = Path(tempfile.gettempdir()) / f"fuzz-{hashlib.sha256(model).hexdigest()[:12]}"
    path.write_bytes(model)
    return path


def test_a_mutated_file_gives_a_picture_or_a_named_reason(pool: Workers) -> None:
    check(pool, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_mutated_files_give_a_picture_or_a_named_reason(pool: Workers) -> None:
    check(pool, 5000)

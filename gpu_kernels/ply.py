"""PLY files of Gaussian splats: bytes to `Splats` and back.

Belongs here: the header, the layout of the body, and every reason to refuse a file. The bytes come from a stranger: what
the header declares is compared with the bytes that are there before anything is allocated.
Does not: activations and normalisation (the kernels), other containers (`spz`).
Source: G. Turk, "The PLY Polygon File Format" (1994); property names of the 3D Gaussian splatting reference code.
"""

import io
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_kernels import threads
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.splats import MAX_SPLATS, Floats, Splats

MAX_HEADER_BYTES = 64 << 10

_TYPES = {
    **dict.fromkeys(("char", "int8"), "<i1"),
    **dict.fromkeys(("uchar", "uint8"), "<u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}
# Array of `Splats` to the properties that fill its columns, in the order in which they are written.
_COLUMNS = {
    "positions": ("x", "y", "z"),
    "colours": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacities": ("opacity",),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "rotations": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
_NAMES = [name for names in _COLUMNS.values() for name in names]
_BLOCK = 4096  # rows gathered at a time: their bytes stay in the cache while each column is picked out of them


@dataclass
class _Element:
    name: str
    count: int
    properties: dict[str, str] = field(default_factory=dict)  # name to numpy type, in file order
    lists: bool = False

    @property
    def record(self) -> np.dtype[Any]:
        return np.dtype(list(self.properties.items()))


def load_ply(data: bytes | bytearray | memoryview) -> Splats:
    """Decode a binary little-endian or ascii PLY of splats; properties may stand in any order and have any scalar type.

    Higher spherical harmonics (f_rest_*), normals and unknown properties are skipped, as are elements after the vertices.

    Raises UnreadableModel, and nothing else, for a file that is refused.
    """
    view = memoryview(data).cast("B")
    encoding, elements, start = _read_header(view)
    place = next((place for place, element in enumerate(elements) if element.name == "vertex"), None)
    if place is None:
        raise UnreadableModel("no vertex element")
    vertex, before, last = elements[place], elements[:place], place == len(elements) - 1
    _check_vertex(vertex)
    for element in before:
        if element.lists:
            raise UnreadableModel(f"element {element.name[:40]} before the vertices has a list property")
    body = view[start:]
    read = _read_ascii if encoding == "ascii" else _read_binary
    return Splats(**read(body, vertex, before, last))


def write_ply(splats: Splats, ascii: bool = False) -> bytes:
    """A PLY with the 14 properties that a preview needs, float32; equal splats give equal bytes."""
    count = len(splats.positions)
    table = np.concatenate([getattr(splats, name).reshape(count, -1) for name in _COLUMNS], axis=1)
    lines = [
        "ply",
        f"format {'ascii' if ascii else 'binary_little_endian'} 1.0",
        f"element vertex {count}",
        *(f"property float {name}" for name in _NAMES),
        "end_header\n",
    ]
    # str of a float32 is the shortest text that reads back as the same value.
    body = "".join(" ".join(map(str, row)) + "\n" for row in table).encode() if ascii else table.astype("<f4").tobytes()
    return "\n".join(lines).encode() + body


def _read_header(data: memoryview) -> tuple[str, list[_Element], int]:
    """Encoding, elements in file order, and where the body starts."""
    head = bytes(data[:MAX_HEADER_BYTES])
    if head[:4] not in (b"ply\n", b"ply\r"):
        raise UnreadableModel("not a PLY file")
    encoding, elements, at = "", list[_Element](), 0
    while True:
        end = head.find(b"\n", at)
        if end < 0:
            if len(data) > MAX_HEADER_BYTES:
                raise UnreadableModel(f"the header is longer than {MAX_HEADER_BYTES} bytes")
            raise UnreadableModel("truncated: the header has no end")
        line = head[at:end].decode("ascii", "replace")
        words, at = line.split(), end + 1
        match words:
            case ["end_header"]:
                break
            case ["format", encoding, "1.0"]:
                if encoding not in ("ascii", "binary_little_endian"):
                    raise UnreadableModel(f"format {encoding[:40]}, only binary_little_endian and ascii are supported")
            case ["element", name, count] if count.isdecimal() and len(count) <= 18:
                if any(element.name == name for element in elements):
                    raise UnreadableModel(f"element {name[:40]} is declared twice")
                elements.append(_Element(name, int(count)))
            case ["property", "list", length, kind, _] if elements and {length, kind} <= _TYPES.keys():
                elements[-1].lists = True
            case ["property", kind, name] if elements and kind in _TYPES:
                if name in elements[-1].properties:
                    raise UnreadableModel(f"property {name[:40]} is declared twice")
                elements[-1].properties[name] = _TYPES[kind]
            case [] | ["ply" | "comment" | "obj_info", *_]:
                pass
            case _:
                raise UnreadableModel(f"malformed header line {line[:60]!r}")
    if not encoding:
        raise UnreadableModel("the header names no format")
    return encoding, elements, at


def _check_vertex(vertex: _Element) -> None:
    if "packed_position" in vertex.properties:
        raise UnreadableModel("compressed PLY (packed_position), only plain properties are supported")
    if missing := [name for name in _NAMES if name not in vertex.properties]:
        raise UnreadableModel(f"not a splat PLY: no {', '.join(missing)}")
    if vertex.lists:
        raise UnreadableModel("element vertex has a list property")
    if not vertex.count:
        raise UnreadableModel("no splats")
    if vertex.count > MAX_SPLATS:
        raise UnreadableModel(f"{vertex.count} splats, at most {MAX_SPLATS} are allowed")


def _read_binary(body: memoryview, vertex: _Element, before: list[_Element], last: bool) -> dict[str, Floats]:
    record = vertex.record
    start = sum(element.count * element.record.itemsize for element in before)
    held, declared = len(body) - start, vertex.count * record.itemsize
    if held < declared or (last and held > declared):
        raise UnreadableModel(
            f"declares {vertex.count} splats of {record.itemsize} bytes, holds {max(held, 0)} of {declared} bytes"
        )
    return _gather(np.frombuffer(body, record, vertex.count, start))


def _read_ascii(body: memoryview, vertex: _Element, before: list[_Element], last: bool) -> dict[str, Floats]:
    # A value is at least a digit and what divides it from the next, a line at least its end.
    skipped, width = sum(element.count for element in before), len(vertex.properties)
    if skipped + vertex.count * width * 2 > len(body) + 1:
        raise UnreadableModel(f"declares {vertex.count} splats, {len(body)} bytes of text cannot hold them")
    text = io.TextIOWrapper(io.BytesIO(body), "ascii", "replace")
    lines = (line for line in text if not line.isspace())
    first = list(itertools.islice(lines, skipped, skipped + 1))
    if not first:  # numpy would warn
        raise UnreadableModel(f"declares {vertex.count} splats, holds none")
    rows = itertools.chain(first, itertools.islice(lines, vertex.count - 1))
    places = list(vertex.properties)
    try:
        table = np.loadtxt(rows, np.float32, comments=None, usecols=[places.index(name) for name in _NAMES], ndmin=2)
    except ValueError as error:
        raise UnreadableModel(f"malformed splat: {error}") from None
    if len(table) < vertex.count:
        raise UnreadableModel(f"declares {vertex.count} splats, holds {len(table)}")
    if last and next(lines, None) is not None:
        raise UnreadableModel(f"declares {vertex.count} splats, holds more")
    return _gather(table.view([(name, np.float32) for name in _NAMES])[:, 0])


def _gather(rows: NDArray[Any]) -> dict[str, Floats]:
    """The arrays of `Splats`, each filled once from structured rows."""
    arrays: dict[str, Floats] = {
        name: np.empty((len(rows), len(columns)), np.float32) for name, columns in _COLUMNS.items()
    }

    def fill(start: int) -> None:
        block = rows[start : start + _BLOCK]
        with np.errstate(over="ignore", invalid="ignore"):  # too large a double becomes infinite, which is refused
            for name, columns in _COLUMNS.items():
                part = arrays[name][start : start + _BLOCK]
                for column, source in enumerate(columns):
                    part[:, column] = block[source]

    threads.each(fill, range(0, len(rows), _BLOCK))
    arrays["opacities"] = arrays["opacities"].reshape(-1)
    return arrays

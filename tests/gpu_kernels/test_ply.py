"""What is read from a PLY of splats, what is refused and why, and that nothing else can come of a stranger's bytes."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_kernels.errors import UnreadableModel
from gpu_kernels.ply import load_ply, write_ply
from gpu_kernels.splats import Splats
from tests.gpu_kernels.splat_files import assert_same, make_splats

NAMES = [
    "x",
    "y",
    "z",
    "f_dc_0",
    "f_dc_1",
    "f_dc_2",
    "opacity",
    "scale_0",
    "scale_1",
    "scale_2",
    "rot_0",
    "rot_1",
    "rot_2",
    "rot_3",
]
FORMAT = "binary_little_endian"
SPLATS = make_splats(3)
BINARY, ASCII = write_ply(SPLATS), write_ply(SPLATS, ascii=True)


def header(count: int, properties: Sequence[str], encoding: str = FORMAT, end: str = "\n", before: str = "") -> bytes:
    """A header whose properties are "type name"."""
    lines = ["ply", f"format {encoding} 1.0", "comment made by a test", *filter(None, before.split("\n"))]
    lines += [f"element vertex {count}", *(f"property {words}" for words in properties), "end_header"]
    return "".join(line + end for line in lines).encode()


FLOATS = [f"float {name}" for name in NAMES]


def columns(splats: Splats) -> dict[str, np.ndarray]:
    arrays = (splats.positions, splats.colours, splats.opacities[:, None], splats.log_scales, splats.rotations)
    return dict(zip(NAMES, np.concatenate(arrays, axis=1).T, strict=True))


# --- what is read ---


@settings(max_examples=30)
@given(count=st.integers(2, 40), seed=st.integers(0, 1000), ascii=st.booleans())
def test_what_is_written_is_read_back_exactly(count: int, seed: int, ascii: bool) -> None:
    splats = make_splats(count, seed)
    data = write_ply(splats, ascii=ascii)
    assert_same(load_ply(data), splats)
    assert write_ply(load_ply(data), ascii=ascii) == data


@given(order=st.permutations([*NAMES, "nx", "f_rest_0", "f_rest_44", "segment"]), data=st.data())
def test_properties_of_any_order_and_type_are_read(order: list[str], data: st.DataObject) -> None:
    kinds = {"float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8"}
    extras = {**kinds, "uchar": "u1", "int8": "i1", "ushort": "<u2", "int": "<i4"}
    chosen = [data.draw(st.sampled_from(sorted(kinds if name in NAMES else extras))) for name in order]
    table = np.zeros(len(SPLATS.positions), [(name, extras[kind]) for name, kind in zip(order, chosen, strict=True)])
    for name, values in columns(SPLATS).items():
        table[name] = values
    properties = [f"{kind} {name}" for name, kind in zip(order, chosen, strict=True)]
    assert_same(load_ply(header(len(table), properties) + table.tobytes()), SPLATS)
    rows = "".join(" ".join(str(value) for value in row) + "\n" for row in table.tolist())
    assert_same(load_ply(header(len(table), properties, "ascii") + rows.encode()), SPLATS)


def test_integer_properties_are_numbers_too() -> None:
    table = np.zeros(2, [(name, "u1" if name in ("x", "opacity") else "<f4") for name in NAMES])
    table["x"], table["opacity"], table["rot_0"] = (0, 200), (3, 4), 1
    splats = load_ply(
        header(2, [f"{'uchar' if n in ('x', 'opacity') else 'float'} {n}" for n in NAMES]) + table.tobytes()
    )
    np.testing.assert_array_equal(splats.positions[:, 0], [0, 200])
    np.testing.assert_array_equal(splats.opacities, [3, 4])


def test_other_elements_around_the_vertices_are_skipped() -> None:
    body = BINARY.partition(b"end_header\n")[2]
    before = "element chunk 2\nproperty float low\nproperty uchar high"
    assert_same(load_ply(header(3, FLOATS, before=before) + b"\xff" * 10 + body), SPLATS)
    after = header(3, FLOATS).replace(
        b"end_header", b"element face 1\nproperty list uchar int vertex_indices\nend_header"
    )
    assert_same(load_ply(after + body + b"\3" + b"\0" * 12), SPLATS)
    text = ASCII.partition(b"end_header\n")[2]
    assert_same(load_ply(header(3, FLOATS, "ascii", before=before) + b"1.5 2\n7 8\n" + text), SPLATS)
    assert_same(load_ply(after.replace(FORMAT.encode(), b"ascii") + text + b"3 0 1 2\n"), SPLATS)


@pytest.mark.parametrize("data", [BINARY, ASCII], ids=["binary", "ascii"])
def test_headers_with_carriage_returns_are_read(data: bytes) -> None:
    head, mark, body = data.partition(b"end_header\n")
    assert_same(load_ply((head + mark).replace(b"\n", b"\r\n") + body), SPLATS)
    if data is ASCII:
        assert_same(load_ply(data.replace(b"\n", b"\r\n")), SPLATS)


def test_any_buffer_is_read() -> None:
    assert_same(load_ply(bytearray(BINARY)), SPLATS)
    assert_same(load_ply(memoryview(b"x" + BINARY)[1:]), SPLATS)


def test_a_large_text_file_is_read_in_seconds() -> None:
    splats = make_splats(200_000)
    data = write_ply(splats, ascii=True)
    started = time.process_time()
    assert_same(load_ply(data), splats)
    assert time.process_time() - started < 5


@pytest.mark.shared
@pytest.mark.parametrize(("name", "count"), [("hamburger", 52_709), ("monkey", 36_039)])
def test_samples_are_read(name: str, count: int, shared: Path) -> None:
    data = (shared / "samples" / "splat" / f"{name}.ply").read_bytes()
    splats = load_ply(data)
    assert len(splats.positions) == count
    assert np.abs(splats.positions).max() < 0.6
    np.testing.assert_allclose(np.linalg.norm(splats.rotations, axis=1), 1, atol=1e-5)
    assert write_ply(splats).partition(b"end_header\n")[2] == data.partition(b"end_header\n")[2]


# --- what is refused, and why ---

BODY = BINARY.partition(b"end_header\n")[2]
TEXT = ASCII.partition(b"end_header\n")[2]
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a PLY"),
    "other": (b"plyx", "not a PLY"),
    "big endian": (BINARY.replace(b"little", b"big"), "format binary_big_endian, only"),
    "no format": (b"ply\nelement vertex 3\n", "truncated: the header"),
    "format missing": (BINARY.replace(b"format binary_little_endian 1.0\n", b""), "names no format"),
    "version": (BINARY.replace(b" 1.0", b" 2.0"), "malformed header line 'format binary_little_endian 2.0'"),
    "no end": (BINARY.replace(b"end_header", b"comment   "), "malformed header|truncated: the header"),
    "long header": (b"ply\n" + b"comment " + b"x" * 70_000 + b"\n" + BINARY, "header is longer than 65536"),
    "no vertices": (BINARY.replace(b"vertex", b"point_"), "no vertex element"),
    "zero": (header(0, FLOATS), "no splats"),
    "negative": (header(-1, FLOATS) + BODY, "malformed header line 'element vertex -1'"),
    "compressed": (
        header(3, ["uint packed_position", "uint packed_scale"]) + BODY,
        r"compressed PLY \(packed_position",
    ),
    "mesh": (header(3, ["float x", "float y", "float z"]) + BODY, "not a splat PLY: no f_dc_0, .*, rot_3"),
    "one missing": (header(3, FLOATS[:-1]) + BODY, "not a splat PLY: no rot_3$"),
    "twice": (header(3, [*FLOATS, "float x"]) + BODY, "property x is declared twice"),
    "element twice": (header(3, FLOATS, before="element vertex 3") + BODY, "element vertex is declared twice"),
    "type": (header(3, ["half x", *FLOATS[1:]]) + BODY, "malformed header line 'property half x'"),
    "list": (header(3, [*FLOATS, "list uchar int n"]) + BODY, "element vertex has a list"),
    "list before": (
        header(3, FLOATS, before="element face 1\nproperty list uchar int n") + BODY,
        "element face before the vertices has a list",
    ),
    "too few bytes": (header(4, FLOATS) + BODY, "declares 4 splats of 56 bytes, holds 168 of 224 bytes"),
    "too many bytes": (header(2, FLOATS) + BODY, "declares 2 splats of 56 bytes, holds 168 of 112 bytes"),
    "lies": (header(4_999_999, FLOATS) + BODY, "declares 4999999 splats"),
    "millions": (header(5_000_001, FLOATS) + BODY, "5000001 splats, at most 5000000"),
    "huge element before": (
        header(3, FLOATS, before=f"element a {10**18 - 1}\nproperty double a") + BODY,
        "declares 3 splats of 56 bytes, holds 0 of 168",
    ),
    "text too few": (header(4, FLOATS, "ascii") + TEXT, "declares 4 splats, holds 3"),
    "text too many": (header(2, FLOATS, "ascii") + TEXT, "declares 2 splats, holds more"),
    "text lies": (header(4_999_999, FLOATS, "ascii") + TEXT, "bytes of text cannot hold them"),
    "text huge before": (
        header(3, FLOATS, "ascii", before="".join(f"element a{n} {10**18 - 1}\n" for n in range(20))) + TEXT,
        "bytes of text cannot hold them",
    ),
    "text blank": (header(1, FLOATS, "ascii") + b" \n" * 99, "declares 1 splats, holds none"),
    "text short line": (header(3, FLOATS, "ascii") + TEXT.rpartition(b" ")[0] + b"\n", "malformed splat"),
    "text words": (header(1, FLOATS, "ascii") + b"1 2 three" + b" 0" * 11 + b"\n", "malformed splat.*three"),
    "text hex": (header(1, FLOATS, "ascii") + b"0x10" + b" 0" * 13 + b"\n", "malformed splat.*0x10"),
    "text nan": (header(2, FLOATS, "ascii") + (b"nan" + b" 0" * 13 + b"\n") * 2, "positions are not all finite"),
    "text overflow": (header(2, FLOATS, "ascii") + (b"1e999" + b" 0" * 13 + b"\n") * 2, "positions are not all"),
    "one centre": (header(2, FLOATS) + BODY[:56] * 2, "all splats have the same centre"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_names_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableModel, match=reason) as refusal:
        load_ply(data)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_numbers_that_are_not_finite_are_refused(name: str, value: float) -> None:
    table = np.zeros(3, [(column, "<f8") for column in NAMES])
    for column, values in columns(SPLATS).items():
        table[column] = values
    table[name][1] = value
    data = header(3, [f"double {column}" for column in NAMES]) + table.tobytes()
    if name == "opacity" and not np.isnan(value):
        assert load_ply(data).opacities[1] == np.inf  # stands for exactly opaque
    else:
        with pytest.raises(UnreadableModel, match="are not all finite numbers"):
            load_ply(data)


@pytest.mark.parametrize(
    ("scale", "offset", "reason"),
    [
        (1e-35, 0, "extend over 1e-35, outside"),
        (3e38, 0, "outside"),
        (1, 1e7, "away from the origin"),
    ],
)
def test_centres_that_cannot_be_scaled_to_a_preview_are_refused(scale: float, offset: float, reason: str) -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]) * scale
    table = np.zeros((3, 14), "<f4")
    table[:, :3] = corners - (corners.mean() if scale > 1 else 0) + offset
    table[:, 10] = 1
    with pytest.raises(UnreadableModel, match=reason):
        load_ply(header(3, FLOATS) + table.tobytes())


# --- anything at all ---


@settings(max_examples=300)
@given(
    seed=st.sampled_from([BINARY, ASCII]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4),
)
def test_any_changed_bytes_are_read_or_refused(seed: bytes, edits: list[tuple[float, bytes, int]]) -> None:
    data = seed
    for place, new, removed in edits:
        at = int(place * len(data))
        data = data[:at] + new + data[at + removed :]
    refusal = ""
    try:
        assert load_ply(data).positions.shape[1] == 3
    except UnreadableModel as error:
        refusal = str(error)
    assert "\n" not in refusal


@given(lines=st.lists(st.text(st.characters(max_codepoint=255), max_size=30), max_size=6))
def test_any_header_is_read_or_refused(lines: list[str]) -> None:
    with pytest.raises(UnreadableModel):
        load_ply(b"ply\n" + "\n".join(lines).encode("latin1") + b"\nend_header\n")

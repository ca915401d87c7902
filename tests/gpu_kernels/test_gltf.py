"""What is read from a GLB, what is refused and why, and that nothing else can come of a stranger's bytes."""

import base64
import contextlib
import io
import json
import resource
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import gpu_kernels
from gpu_kernels import gltf, gltf_images, threads
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.gltf import load_glb, write_glb
from gpu_kernels.mesh import COLOURED_VERTICES, NO_MATERIAL, check_cube

CORNERS = [[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.5, 0.5, 0.0], [-0.5, 0.5, 0.0]]
SQUARE = [[0, 1, 2], [0, 2, 3]]
UV = [[0, 1], [1, 1], [1, 0], [0, 0]]
Document = dict[str, Any]


def pack(document: Document | bytes, binary: bytes = b"") -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(binary), 0x4E4942) + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def unpack(data: bytes) -> tuple[Document, bytes]:
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def change(data: bytes, edit: Callable[[Document], Any], extra: bytes = b"") -> bytes:
    """The same file with its JSON edited in place, and bytes added to its buffer."""
    document, binary = unpack(data)
    edit(document)
    document["buffers"][0]["byteLength"] += len(extra)
    return pack(document, binary + extra)


def picture(
    kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (4, 4), colour: Any = (200, 100, 50)
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return buffer.getvalue()


def palette_picture() -> bytes:
    """A PNG whose only colour is transparent."""
    image = Image.new("P", (4, 4))
    image.putpalette([9, 8, 7])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, with right checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)


def deep_picture() -> bytes:
    """A PNG of 16 bits a channel."""
    rows = (b"\0" + bytes.fromhex("12ff 34ff 56ff") * 4) * 4
    return png(png_header(4, 4, depth=16), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def animated_picture(kind: str) -> bytes:
    """The first of its frames is what counts; WebP is lossy but for black and white."""
    first = (10, 20, 30) if kind == "PNG" else (255, 255, 255)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), first).save(
        buffer, kind, save_all=True, append_images=[Image.new("RGB", (4, 4), (0, 0, 0))], duration=100
    )
    return buffer.getvalue()


@pytest.fixture(scope="module")
def plain() -> bytes:
    return write_glb(CORNERS, SQUARE)


@pytest.fixture(scope="module")
def textured() -> bytes:
    return write_glb(
        CORNERS, SQUARE, normals=[[0, 0, 1]] * 4, uv=UV, base_colour_png=picture(), images={"normalTexture": picture()}
    )


# --- what is read ---


def test_what_is_written_is_read_back() -> None:
    colours = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    data = write_glb(CORNERS, SQUARE, normals=[[0, 0, 1]] * 4, uv=UV, colours=colours, base_colour=None)
    mesh = load_glb(data)
    np.testing.assert_array_equal(mesh.positions, np.array(CORNERS, np.float32))
    np.testing.assert_array_equal(mesh.indices, np.array(SQUARE, np.uint32))
    assert mesh.normals is not None
    np.testing.assert_array_equal(mesh.normals, np.array([[0, 0, 1]] * 4, np.float32))
    assert mesh.uv is not None
    np.testing.assert_array_equal(mesh.uv, np.array(UV, np.float32))
    assert mesh.colours is not None
    np.testing.assert_array_equal(mesh.colours, colours)
    assert mesh.material == COLOURED_VERTICES


def test_equal_models_are_written_as_equal_bytes(textured: bytes) -> None:
    again = write_glb(
        CORNERS, SQUARE, normals=[[0, 0, 1]] * 4, uv=UV, base_colour_png=picture(), images={"normalTexture": picture()}
    )
    assert again == textured


def test_large_arrays_are_views_of_the_file(plain: bytes) -> None:
    mesh = load_glb(plain)
    assert np.shares_memory(mesh.positions, np.frombuffer(plain, np.uint8))
    assert np.shares_memory(mesh.indices, np.frombuffer(plain, np.uint8))


def test_a_file_that_is_not_aligned_in_memory_is_read_too(plain: bytes) -> None:
    shifted = memoryview(b"x" + plain)[1:]
    np.testing.assert_array_equal(load_glb(shifted).positions, load_glb(plain).positions)


def test_base_colour_is_quantised_to_bytes_and_missing_factors_are_one() -> None:
    data = change(
        write_glb(CORNERS, SQUARE, base_colour=(0.501, 0.25, 2.0, -1.0)),
        lambda d: [d["materials"][0]["pbrMetallicRoughness"].pop(key) for key in ("metallicFactor", "roughnessFactor")],
    )
    material = load_glb(data).material
    assert material.base_colour == (128 / 255, 64 / 255, 1.0, 0.0)
    assert (material.metallic, material.roughness) == (1.0, 1.0)


def test_colours_count_only_without_a_material() -> None:
    colours = [[1, 0, 0, 1]] * 4
    assert load_glb(write_glb(CORNERS, SQUARE, colours=colours)).colours is None
    assert load_glb(write_glb(CORNERS, SQUARE, base_colour=None)).material == NO_MATERIAL


@pytest.mark.parametrize(("component", "dtype"), [(5121, np.uint8), (5123, np.uint16), (5125, np.uint32)])
def test_indices_of_every_width_are_read(component: int, dtype: type, plain: bytes) -> None:
    narrow = np.array([0, 1, 2, 0, 2, 3], dtype).tobytes()

    def edit(document: Document) -> None:
        start = document["buffers"][0]["byteLength"]
        document["bufferViews"].append({"buffer": 0, "byteOffset": start, "byteLength": len(narrow)})
        accessor = {"bufferView": len(document["bufferViews"]) - 1, "componentType": component, "count": 6}
        document["accessors"][1] = {**accessor, "type": "SCALAR"}

    np.testing.assert_array_equal(load_glb(change(plain, edit, narrow)).indices, np.array(SQUARE))


def test_without_indices_the_vertices_are_the_triangles() -> None:
    data = change(write_glb(CORNERS[:3], [[0, 1, 2]]), lambda d: d["meshes"][0]["primitives"][0].pop("indices"))
    np.testing.assert_array_equal(load_glb(data).indices, [[0, 1, 2]])


@pytest.mark.parametrize(("component", "dtype", "limit"), [(5121, np.uint8, 255), (5123, np.uint16, 65535)])
def test_normalised_integers_are_scaled(component: int, dtype: type, limit: int) -> None:
    values = np.array([[0, limit], [limit, limit], [limit, 0], [0, 0]], dtype)
    block = values.tobytes()

    def edit(document: Document) -> None:
        start = document["buffers"][0]["byteLength"]
        document["bufferViews"].append({"buffer": 0, "byteOffset": start, "byteLength": len(block)})
        number = document["meshes"][0]["primitives"][0]["attributes"]["TEXCOORD_0"]
        document["accessors"][number] |= {
            "bufferView": len(document["bufferViews"]) - 1,
            "componentType": component,
            "normalized": True,
        }

    uv = load_glb(change(write_glb(CORNERS, SQUARE, uv=UV), edit, block)).uv
    np.testing.assert_array_equal(uv, np.array(UV, np.float32))


def test_interleaved_vertices_are_read() -> None:
    together = np.concatenate([np.array(CORNERS), np.array([[0, 0, 1]] * 4)], axis=1).astype(np.float32).tobytes()

    def edit(document: Document) -> None:
        start = document["buffers"][0]["byteLength"]
        view = {"buffer": 0, "byteOffset": start, "byteLength": len(together), "byteStride": 24}
        document["bufferViews"].append(view)
        for number, offset in ((0, 0), (1, 12)):
            document["accessors"][number] |= {"bufferView": len(document["bufferViews"]) - 1, "byteOffset": offset}

    mesh = load_glb(change(write_glb(CORNERS, SQUARE, normals=[[1, 0, 0]] * 4), edit, together))
    np.testing.assert_array_equal(mesh.positions, np.array(CORNERS, np.float32))
    assert mesh.normals is not None
    np.testing.assert_array_equal(mesh.normals, np.array([[0, 0, 1]] * 4, np.float32))


@pytest.mark.parametrize("on_zeros", [False, True])
def test_sparse_accessors_change_single_values(on_zeros: bool, plain: bytes) -> None:
    block = struct.pack("<HH3f", 2, 0, 0.1, 0.2, 0.3)

    def edit(document: Document) -> None:
        start = document["buffers"][0]["byteLength"]
        document["bufferViews"] += [
            {"buffer": 0, "byteOffset": start, "byteLength": 2},
            {"buffer": 0, "byteOffset": start + 4, "byteLength": 12},
        ]
        last = len(document["bufferViews"]) - 1
        indices = {"bufferView": last - 1, "componentType": 5123}
        document["accessors"][0]["sparse"] = {"count": 1, "indices": indices, "values": {"bufferView": last}}
        if on_zeros:
            document["accessors"][0].pop("bufferView")

    expected = np.zeros((4, 3), np.float32) if on_zeros else np.array(CORNERS, np.float32)
    expected[2] = (0.1, 0.2, 0.3)
    np.testing.assert_array_equal(load_glb(change(plain, edit, block)).positions, expected)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (picture(), (200, 100, 50, 255)),
        (picture("JPEG", colour=(128, 128, 128)), (128, 128, 128, 255)),
        (picture("WEBP", mode="RGBA", colour=(0, 0, 0, 255)), (0, 0, 0, 255)),
        (picture(mode="RGBA", colour=(1, 2, 3, 4)), (1, 2, 3, 4)),
        (picture(mode="L", colour=77), (77, 77, 77, 255)),
        (picture(mode="I;16", colour=0x8040), (128, 128, 128, 255)),
        (picture(mode="LA", colour=(77, 5)), (77, 77, 77, 5)),
        (picture(mode="1", colour=1), (255, 255, 255, 255)),
        (picture("JPEG", mode="L", colour=128), (128, 128, 128, 255)),
        (picture("JPEG", mode="CMYK", colour=(0, 255, 255, 0)), (255, 0, 0, 255)),
        (palette_picture(), (9, 8, 7, 0)),
        (deep_picture(), (0x12, 0x34, 0x56, 255)),
        (animated_picture("PNG"), (10, 20, 30, 255)),
        (animated_picture("WEBP"), (255, 255, 255, 255)),
    ],
    ids=[
        "PNG",
        "JPEG",
        "WebP",
        "with alpha",
        "grey",
        "16-bit grey",
        "grey with alpha",
        "one bit",
        "grey JPEG",
        "CMYK JPEG",
        "palette",
        "16-bit",
        "animated PNG",
        "animated WebP",
    ],
)
def test_textures_are_decoded_to_rgba(encoded: bytes, expected: tuple[int, ...]) -> None:
    texture = load_glb(write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=encoded)).material.base_colour_texture
    assert texture is not None
    assert texture.shape == (4, 4, 4)
    assert tuple(texture[0, 0].tolist()) == expected


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "1", "I;16"]),
    level=st.integers(0, 9),
    seed=st.integers(0, 100),
)
def test_a_png_texture_is_in_every_bit_what_pillow_decodes(
    size: tuple[int, int], mode: str, level: int, seed: int
) -> None:
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 4)).astype(np.uint8))
    image = noise.convert("L").convert("I").convert("I;16") if mode == "I;16" else noise.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level, dpi=(300, 300), gamma=0.3)
    texture = load_glb(
        write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=buffer.getvalue())
    ).material.base_colour_texture
    if mode == "I;16":
        expected = np.dstack([np.asarray(image, np.int32) >> 8] * 3 + [np.full(size, 255)])
    else:
        expected = np.asarray(Image.open(buffer).convert("RGBA"))
    np.testing.assert_array_equal(texture, expected)


@pytest.mark.parametrize("chunk", [(b"sBIT", b"\5\6\5"), (b"bKGD", bytes(6)), (b"tEXt", b"Software\0x")])
def test_a_png_with_further_chunks_is_what_pillow_decodes(chunk: tuple[bytes, bytes]) -> None:
    rows = (b"\0" + bytes(range(12))) * 4
    data = png(png_header(4, 4), chunk, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    texture = load_glb(write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=data)).material.base_colour_texture
    np.testing.assert_array_equal(texture, np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")))


@pytest.mark.parametrize(("colour", "key"), [(2, bytes(6)), (0, bytes(2))], ids=["RGB", "grey"])
def test_a_colour_that_a_png_calls_clear_is_drawn(colour: int, key: bytes) -> None:
    """As the public renderer draws it; only a palette's clear colours, and alpha, let something show through."""
    rows = (b"\0" + bytes(12 if colour == 2 else 4)) * 4
    data = png(png_header(4, 4, colour=colour), (b"tRNS", key), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    texture = load_glb(write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=data)).material.base_colour_texture
    assert texture is not None
    assert (texture == (0, 0, 0, 255)).all()


def test_rows_that_a_png_lacks_are_what_pillow_makes_of_them() -> None:
    data = png(png_header(64, 64), (b"IDAT", zlib.compress(b"\0" + b"\7" * 192)), (b"IEND", b""))
    texture = load_glb(write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=data)).material.base_colour_texture
    np.testing.assert_array_equal(texture, np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")))


def test_textures_are_decoded_on_the_threads_and_the_same_with_one(
    monkeypatch: pytest.MonkeyPatch, textured: bytes
) -> None:
    seen: set[str] = set()

    def observed(image: gltf_images.EncodedImage) -> NDArray[np.uint8]:
        seen.add(threading.current_thread().name.partition("_")[0])
        return gltf_images.decode_image(image)

    monkeypatch.setattr(gltf, "decode_image", observed)
    many = load_glb(textured).material
    before = threads.count()
    threads.configure(1)
    try:
        one = load_glb(textured).material
    finally:
        threads.configure(before)
    assert seen == {"gpu"}
    for slot in ("base_colour_texture", "normal_texture"):
        np.testing.assert_array_equal(getattr(many, slot), getattr(one, slot))


def test_webp_textures_are_found_through_their_extension(textured: bytes) -> None:
    webp = picture("WEBP", colour=(255, 255, 255))

    def edit(document: Document) -> None:
        start = document["buffers"][0]["byteLength"]
        document["extensionsRequired"] = ["EXT_texture_webp"]
        document["bufferViews"].append({"buffer": 0, "byteOffset": start, "byteLength": len(webp)})
        document["images"].append({"bufferView": len(document["bufferViews"]) - 1, "mimeType": "image/webp"})
        document["textures"][0] = {"extensions": {"EXT_texture_webp": {"source": len(document["images"]) - 1}}}

    texture = load_glb(change(textured, edit, webp)).material.base_colour_texture
    assert texture is not None
    assert (texture == 255).all()


def test_colours_of_three_components_are_opaque_and_all_are_held_in_bytes() -> None:
    colours = [[0.01, 0.5, 2.0, 0.0]] * 4

    def edit(document: Document) -> None:
        number = document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
        view = document["bufferViews"][document["accessors"][number]["bufferView"]]
        document["accessors"][number]["type"] = "VEC3"
        view["byteStride"] = 16

    mesh = load_glb(change(write_glb(CORNERS, SQUARE, colours=colours, base_colour=None), edit))
    np.testing.assert_array_equal(mesh.colours, np.array([[3, 128, 255, 255]] * 4, np.float32) / np.float32(255))


@pytest.mark.shared
def test_a_sample_is_read_without_copies(shared: Path) -> None:
    data = (shared / "samples" / "glb" / "dense_torus_vcolor.glb").read_bytes()
    mesh = load_glb(data)
    assert len(mesh.indices) == 134_400
    whole = np.frombuffer(data, np.uint8)
    assert np.shares_memory(mesh.positions, whole)
    assert np.shares_memory(mesh.indices, whole)
    box = load_glb((shared / "samples" / "glb" / "box_textured.glb").read_bytes())
    assert box.material.base_colour_texture is not None
    assert box.material.base_colour_texture.shape == (256, 256, 4)


def test_images_may_be_data_uris_and_are_decoded_once(textured: bytes) -> None:
    def edit(document: Document) -> None:
        document["images"] = [{"uri": "data:image/png;base64," + base64.b64encode(picture()).decode()}]
        document["textures"] = [{"source": 0}, {"extensions": {"EXT_texture_webp": {"source": 0}}}]

    material = load_glb(change(textured, edit)).material
    assert material.normal_texture is not None
    assert material.base_colour_texture is material.normal_texture


def test_textures_without_coordinates_are_ignored() -> None:
    assert load_glb(write_glb(CORNERS, SQUARE, base_colour_png=picture())).material.base_colour_texture is None


def test_normals_that_are_not_numbers_become_zero() -> None:
    mesh = load_glb(write_glb(CORNERS, SQUARE, normals=[[float("nan"), float("inf"), 1]] * 4))
    assert mesh.normals is not None
    np.testing.assert_array_equal(mesh.normals, np.array([[0, 0, 1]] * 4, np.float32))


# --- what is refused, and why ---


def edit_primitive(**keys: Any) -> Callable[[Document], Any]:
    return lambda d: d["meshes"][0]["primitives"][0].update(keys)


def edit_accessor(number: int, **keys: Any) -> Callable[[Document], Any]:
    return lambda d: d["accessors"][number].update(keys)


REFUSED_EDITS: list[tuple[str, Callable[[Document], Any]]] = [
    ("0 primitives, exactly one", lambda d: d.pop("meshes")),
    ("2 primitives, exactly one", lambda d: d["meshes"][0].update(primitives=d["meshes"][0]["primitives"] * 2)),
    ("2 primitives, exactly one", lambda d: d.update(meshes=d["meshes"] * 2)),
    ("uses KHR_draco_mesh_compression", lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"])),
    ("uses KHR_draco_mesh_compression", edit_primitive(extensions={"KHR_draco_mesh_compression": {}})),
    ("uses KHR_mesh_quantization", lambda d: d.update(extensionsRequired=["KHR_mesh_quantization"])),
    *(
        (f"uses {name}", lambda d, name=name: d["bufferViews"][0].update(extensions={name: {}}))
        for name in ("EXT_meshopt_compression", "KHR_meshopt_compression")
    ),
    *(
        (f"uses {name}", lambda d, name=name: d.update(extensionsRequired=["EXT_texture_webp", name]))
        for name in ("EXT_meshopt_compression", "KHR_meshopt_compression", "KHR_texture_basisu", "MPEG_media")
    ),
    ("uses KHR_texture_basisu", lambda d: d.update(textures=[{"extensions": {"KHR_texture_basisu": {"source": 0}}}])),
    (
        "uses KHR_materials_pbrSpecularGlossiness",
        lambda d: d["materials"][0].update(extensions={"KHR_materials_pbrSpecularGlossiness": {}}),
    ),
    ("draws a triangle strip", edit_primitive(mode=5)),
    ("draws mode 99", edit_primitive(mode=99)),
    ("no POSITION", edit_primitive(attributes={})),
    ("material 7 does not exist", edit_primitive(material=7)),
    ("accessor 9 does not exist", edit_primitive(indices=9)),
    ("texture 4 does not exist", lambda d: d["materials"][0].update(normalTexture={"index": 4})),
    ("accessor 0 reads past its buffer", edit_accessor(0, byteOffset=4)),
    ("accessor 0 reads past its buffer", edit_accessor(0, byteOffset=1 << 40)),
    ("vertices, at most", edit_accessor(0, count=1 << 40)),
    ("NORMAL has 3 values for 4 vertices", edit_accessor(1, count=3)),
    ("triangles, at most", edit_accessor(3, count=3 << 30)),
    ("5 triangle corners", edit_accessor(3, count=5)),
    ("no triangles", edit_accessor(3, count=0)),
    ("POSITION is quantised", edit_accessor(0, componentType=5122, normalized=True)),
    ("POSITION has type VEC2", edit_accessor(0, type="VEC2")),
    ("indices are not unsigned", edit_accessor(3, componentType=5126)),
    ("has no data", lambda d: d["accessors"][0].pop("bufferView")),
    ("overlaps itself", lambda d: d["bufferViews"][0].update(byteStride=4)),
    ("buffer view 0 reads past its buffer", lambda d: d["bufferViews"][0].update(byteLength=1 << 30)),
    ("buffer 0 lies outside the file", lambda d: d["buffers"][0].update(uri="mesh.bin")),
    ("image 0 lies outside the file", lambda d: d["images"].__setitem__(0, {"uri": "https://example.com/a.png"})),
    ("image 0 is not base64", lambda d: d["images"].__setitem__(0, {"uri": "data:image/png;base64,!"})),
    ("image 0 cannot be decoded", lambda d: d["images"].__setitem__(0, {"bufferView": 0})),
    ("malformed glTF: accessors.0.count", edit_accessor(0, count=-1)),
    ("malformed glTF: meshes", lambda d: d.update(meshes={})),
    ("malformed glTF", lambda d: d["materials"][0]["pbrMetallicRoughness"].update(baseColorFactor=[1, 1])),
    ("malformed glTF", lambda d: d["materials"][0]["pbrMetallicRoughness"].update(metallicFactor=float("nan"))),
]


@pytest.mark.parametrize(("reason", "edit"), REFUSED_EDITS, ids=[reason for reason, _ in REFUSED_EDITS])
def test_a_refusal_names_its_reason(reason: str, edit: Callable[[Document], Any], textured: bytes) -> None:
    with pytest.raises(UnreadableModel) as refusal:
        load_glb(change(textured, edit))
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a GLB file"),
        (b"glTF", "not a GLB file"),
        (b"ply\nformat ascii 1.0\n" * 9, "not a GLB file"),
        (struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0x4E4F534A), "version 1"),
        (struct.pack("<4sIIII", b"glTF", 2, 4_000_000_000, 0, 0x4E4F534A), "truncated"),
        (struct.pack("<4sIIII", b"glTF", 2, 20, 4_000_000_000, 0x4E4F534A), "truncated"),
        (struct.pack("<4sIIII", b"glTF", 2, 20, 0, 0x4E4942), "first chunk is not JSON"),
        (pack(b"[" * 100_000), "malformed glTF"),
        (pack(b'{"a":' * 100_000), "malformed glTF"),
        (pack(b'{"meshes": 1' + b"0" * 10_000 + b"}"), "malformed glTF"),
        (pack(b"\xff\xfe"), "malformed glTF"),
        (pack(b'{"meshes":[{"primitives":[' + b"{}," * 1_000_000 + b"{}]}]}"), "malformed glTF"),
        (pack(b" " * (9 << 20)), "bytes of JSON, at most"),
    ],
)
def test_what_is_no_glb_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableModel, match=reason):
        load_glb(data)


@pytest.mark.parametrize(
    ("corner", "reason"),
    [
        ([0.93, 0, 0], r"x reaches 0\.93, outside \[-0\.6, 0\.6\]"),
        ([0, -7, 0], "y reaches -7"),
        ([0, 0, float("nan")], "not all finite"),
        ([0, 0, float("inf")], "not all finite"),
    ],
)
def test_coordinates_outside_the_cube_are_refused(corner: list[float], reason: str) -> None:
    with pytest.raises(UnreadableModel, match=reason):
        gpu_kernels.render_preview(write_glb([*CORNERS[:3], corner], SQUARE))


def test_the_faces_of_the_cube_are_inside(plain: bytes) -> None:
    mesh = load_glb(write_glb([[-0.6, 0.6, 0.6], [0.6, -0.6, 0], [0, 0, -0.6]], [[0, 1, 2]]))
    check_cube(mesh)


def test_an_index_past_the_vertices_is_refused() -> None:
    with pytest.raises(UnreadableModel, match="index 4 points past the 4 vertices"):
        load_glb(write_glb(CORNERS, [[0, 1, 4]]))


def test_a_giant_texture_is_refused_before_it_is_decoded() -> None:
    """12000 x 12000 pixels compress to 17 kB."""
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")
    data = write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=buffer.getvalue())
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableModel, match=r"image 0 .*is too large"):
            load_glb(data)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_texture_in_another_format_is_refused() -> None:
    with pytest.raises(UnreadableModel, match="image 0 cannot be decoded"):
        load_glb(write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=picture("BMP")))
    with pytest.raises(UnreadableModel, match="KTX2"):
        load_glb(write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=b"\xabKTX 20\xbb\r\n\x1a\n" + b"\0" * 80))


HOSTILE_IMAGES: dict[str, tuple[bytes, str]] = {
    "declares 60000 x 60000": (
        png(png_header(60_000, 60_000), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")),
        "image 0 (of 60000 x 60000 )?is too large",
    ),
    "wide": (
        png(png_header(20_000, 1), (b"IDAT", zlib.compress(bytes(60_001))), (b"IEND", b"")),
        "image 0 of 20000 x 1 is too large",
    ),
    "hollow": (
        png(png_header(16_384, 4096), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")),
        "image 0 cannot be decoded: 69 bytes cannot hold 16384 x 4096 pixels",
    ),
    "cut": (picture(size=(64, 64))[:-30], "image 0 cannot be decoded"),
    "cut JPEG": (picture("JPEG", size=(64, 64))[:-30], "image 0 cannot be decoded"),
    "cut WebP": (picture("WEBP", size=(64, 64))[:-30], "image 0 cannot be decoded"),
    "wrong checksum": (
        picture().replace(b"IDAT", b"IDAT\0", 1)[: len(picture())],
        "image 0 cannot be decoded",
    ),
    "text bomb": (
        png(png_header(4, 4), *[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))] * 3, (b"IEND", b"")),
        "image 0 cannot be decoded",
    ),
    "profile bomb": (
        png(png_header(4, 4), (b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26))), (b"IEND", b"")),
        "image 0 cannot be decoded",
    ),
}


@pytest.mark.parametrize(("image", "reason"), HOSTILE_IMAGES.values(), ids=HOSTILE_IMAGES.keys())
def test_hostile_images_are_refused_in_little_memory(image: bytes, reason: str) -> None:
    data = write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=image)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableModel, match=reason):
            load_glb(data)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_chunk_that_declares_gigabytes_costs_none() -> None:
    """Pillow reads the pixels that are there; a decoder that believes the chunk's length takes 4 GB and seconds."""
    image = picture().replace(b"\0\0\0\x14IDAT", b"\xff\0\0\x14IDAT")
    assert image != picture()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    texture = load_glb(write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=image)).material.base_colour_texture
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    np.testing.assert_array_equal(texture, np.full((4, 4, 4), (200, 100, 50, 255)))


def test_all_images_of_a_file_together_are_limited() -> None:
    """Each of the two could be decoded; nothing is, because both would be too much."""
    large = picture(mode="1", size=(6000, 6000), colour=0)
    data = write_glb(CORNERS, SQUARE, uv=UV, base_colour_png=large, images={"normalTexture": large})
    with pytest.raises(UnreadableModel, match="image 1 of 6000 x 6000 is too large"):
        load_glb(data)


def test_many_vertices_from_few_bytes_are_refused(plain: bytes) -> None:
    def edit(document: Document) -> None:
        sparse = {"count": 0, "indices": {"bufferView": 0, "componentType": 5121}, "values": {"bufferView": 0}}
        document["accessors"][0].update(count=9_000_000, sparse=sparse)
        document["accessors"][0].pop("bufferView")

    with pytest.raises(UnreadableModel, match="declares 9000000 values without data"):
        load_glb(change(plain, edit))


# --- anything at all ---

SEED = write_glb(
    CORNERS,
    SQUARE,
    normals=[[0, 0, 1]] * 4,
    uv=UV,
    base_colour=(0.5, 0.5, 0.5, 0.9),
    base_colour_png=picture(),
    material={"emissiveFactor": [1, 1, 1]},
    images={"normalTexture": picture(), "emissiveTexture": picture("JPEG")},
)
NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 7, 255, 65536, 1 << 31, 1 << 32, 1 << 63, 10**30, 0.5, 1e308])
ODDITIES = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.text(max_size=4),
    st.builds(list),
    st.builds(dict),
    st.builds(lambda: [0, 0, 0]),
)


def read_or_refuse(data: bytes) -> None:
    """Render the file, small, or be refused: the only two ways out."""
    refusal = "the picture"
    try:
        gpu_kernels.render_view(load_glb(data), 24, 15, 8)
    except UnreadableModel as error:
        refusal = str(error)
    assert refusal
    assert "\n" not in refusal


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON value."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path] * bool(path) + [deep for key, child in children for deep in places(child, (*path, key))]


PLACES = places(unpack(SEED)[0])
FUZZ = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(edits=st.lists(st.tuples(st.sampled_from(PLACES), ODDITIES), min_size=1, max_size=3))
def test_any_value_anywhere_in_the_json_is_read_or_refused(edits: list[tuple[tuple[Any, ...], Any]]) -> None:
    document, binary = unpack(SEED)
    for path, value in edits:
        node: Any = document
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier edit took the place away
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
    read_or_refuse(pack(document, binary))


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_changed_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SEED)
    for at, value in changes:
        data[at] = value
    read_or_refuse(bytes(data))


@FUZZ
@given(changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(min_size=4, max_size=4)), min_size=1, max_size=4))
def test_any_changed_geometry_is_read_or_refused(changes: list[tuple[int, bytes]]) -> None:
    """The four bytes of whole floats and indices, where a random byte would mostly be refused."""
    document, binary = unpack(SEED)
    block = bytearray(binary)
    geometry = document["bufferViews"][3]["byteOffset"] + document["bufferViews"][3]["byteLength"]
    for at, value in changes:
        place = 4 * (at % (geometry // 4))
        block[place : place + 4] = value
    read_or_refuse(pack(document, bytes(block)))


@FUZZ
@given(length=st.integers(0, len(SEED)), tail=st.binary(max_size=16))
def test_any_truncation_is_read_or_refused(length: int, tail: bytes) -> None:
    read_or_refuse(SEED[:length] + tail)


@FUZZ
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for head in (
        b"",
        struct.pack("<4sII", b"glTF", 2, 12 + len(data)),
        struct.pack("<4sIIII", b"glTF", 2, 20 + len(data), len(data), 0x4E4F534A),
    ):
        with pytest.raises(UnreadableModel):
            load_glb(head + data)

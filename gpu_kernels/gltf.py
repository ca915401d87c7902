"""GLB files: bytes to a `Mesh`, and a `Mesh`'s arrays to bytes.

Belongs here: the container, accessors, textures, and every reason to refuse a file. The bytes come from a stranger:
each count, offset and size is checked here before anything is read or allocated.
Does not: the cube that a preview must fit in (`mesh.check_cube`), pixels.
Source: glTF 2.0 specification (Khronos); what is honoured of it is spec/rendering.md "Meshes".
"""

import base64
import binascii
import io
import json
import struct
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpu_kernels.errors import UnreadableModel
from gpu_kernels.mesh import (
    COLOURED_VERTICES,
    MAX_TRIANGLES,
    MAX_VERTICES,
    NO_MATERIAL,
    Floats,
    Material,
    Mesh,
    Texture,
)

MAX_JSON_BYTES = 8 << 20
MAX_IMPLIED_VALUES = 1_000_000  # of a sparse accessor that stands on zeros, not on bytes of the file
MAX_TEXTURE_PIXELS = 64 << 20  # over all images of a file
MAX_TEXTURE_SIDE = 16384

_JSON_CHUNK, _BIN_CHUNK = 0x4E4F534A, 0x004E4942
_COMPONENTS: dict[int, type[np.generic]] = {
    5120: np.int8,
    5121: np.uint8,
    5122: np.int16,
    5123: np.uint16,
    5125: np.uint32,
    5126: np.float32,
}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MODES = ("points", "lines", "a line loop", "a line strip", "triangles", "a triangle strip", "a triangle fan")
# A required extension that only touches looks may be ignored, as the public renderer does; any other changes the bytes.
_HARMLESS = (
    "KHR_materials_",
    "KHR_texture_transform",
    "KHR_lights_punctual",
    "KHR_node_visibility",
    "EXT_texture_webp",
)
_IMAGE_EXTENSIONS = ("KHR_texture_basisu", "MSFT_texture_dds")


# --- the JSON part: only what is read; everything else in it is ignored ---

Count = Annotated[int, Field(ge=0, le=1 << 40)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Item = TypeVar("Item")
Many = Annotated[list[Item], Field(max_length=100_000, fail_fast=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    extensions: dict[str, Any] = {}


class _Buffer(_Part):
    byteLength: Count
    uri: str | None = None


class _BufferView(_Part):
    buffer: Count
    byteOffset: Count = 0
    byteLength: Count
    byteStride: Count | None = None


class _SparseIndices(_Part):
    bufferView: Count
    byteOffset: Count = 0
    componentType: int


class _SparseValues(_Part):
    bufferView: Count
    byteOffset: Count = 0


class _Sparse(_Part):
    count: Count
    indices: _SparseIndices
    values: _SparseValues


class _Accessor(_Part):
    bufferView: Count | None = None
    byteOffset: Count = 0
    componentType: int
    count: Count
    type: str
    normalized: bool = False
    sparse: _Sparse | None = None


class _Primitive(_Part):
    attributes: dict[str, Count]
    indices: Count | None = None
    material: Count | None = None
    mode: int = 4


class _Mesh(_Part):
    primitives: Many[_Primitive] = []


class _Image(_Part):
    uri: str | None = None
    bufferView: Count | None = None


class _Texture(_Part):
    source: Count | None = None


class _TextureInfo(_Part):
    index: Count


class _MetallicRoughness(_Part):
    baseColorFactor: tuple[Number, Number, Number, Number] = (1.0, 1.0, 1.0, 1.0)
    metallicFactor: Number = 1.0
    roughnessFactor: Number = 1.0
    baseColorTexture: _TextureInfo | None = None
    metallicRoughnessTexture: _TextureInfo | None = None


class _Material(_Part):
    pbrMetallicRoughness: _MetallicRoughness = _MetallicRoughness()
    normalTexture: _TextureInfo | None = None
    occlusionTexture: _TextureInfo | None = None
    emissiveTexture: _TextureInfo | None = None
    emissiveFactor: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)


class _Document(_Part):
    extensionsRequired: Many[str] = []
    buffers: Many[_Buffer] = []
    bufferViews: Many[_BufferView] = []
    accessors: Many[_Accessor] = []
    meshes: Many[_Mesh] = []
    materials: Many[_Material] = []
    textures: Many[_Texture] = []
    images: Many[_Image] = []


# --- reading ---


def load_glb(data: bytes | bytearray | memoryview) -> Mesh:
    """Decode a GLB that holds exactly one triangle primitive. Arrays are views of `data` where its layout allows.

    Node transforms, samplers, TANGENT and texture coordinates beyond the first set are ignored. Normals that are not
    finite become zero, which is lit as facing away. Colours count only where the primitive has no material.

    Raises UnreadableModel, and nothing else, for a file that is refused.
    """
    document, binary = _split(memoryview(data).cast("B"))
    return _Reader(document, binary).mesh()


def _split(data: memoryview) -> tuple[_Document, memoryview]:
    """The parsed JSON chunk and the binary chunk (empty where there is none)."""
    if len(data) < 20 or bytes(data[:4]) != b"glTF":
        raise UnreadableModel("not a GLB file")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise UnreadableModel(f"GLB version {version}, only 2 is supported")
    if length > len(data):
        raise UnreadableModel(f"truncated: {len(data)} of {length} bytes")
    chunks: dict[int, memoryview] = {}
    at = 12
    while at + 8 <= length and len(chunks) < 2:
        size, kind = struct.unpack_from("<II", data, at)
        if at + 8 + size > length:
            raise UnreadableModel(f"truncated: a chunk of {size} bytes at {at} ends past the file")
        if not chunks and kind != _JSON_CHUNK:
            raise UnreadableModel("not a GLB file: the first chunk is not JSON")
        if kind in (_JSON_CHUNK, _BIN_CHUNK):
            chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    if _JSON_CHUNK not in chunks:
        raise UnreadableModel("not a GLB file: no JSON chunk")
    if len(chunks[_JSON_CHUNK]) > MAX_JSON_BYTES:
        raise UnreadableModel(f"{len(chunks[_JSON_CHUNK])} bytes of JSON, at most {MAX_JSON_BYTES} are allowed")
    try:
        document = _Document.model_validate_json(bytes(chunks[_JSON_CHUNK]).rstrip(b" \0"))
    except ValidationError as error:
        if error.error_count() > 1000:  # listing them would take longer than reading did
            raise UnreadableModel(f"malformed glTF: {error.error_count()} errors") from None
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "JSON"
        raise UnreadableModel(f"malformed glTF: {where}: {first['msg']}") from None
    return document, chunks.get(_BIN_CHUNK, memoryview(b""))


class _Reader:
    """One file being read: the document, its binary chunk, and the images decoded so far."""

    def __init__(self, document: _Document, binary: memoryview) -> None:
        self.document = document
        self.binary = binary
        self.images: dict[int, Texture] = {}
        self.pixels = 0

    def mesh(self) -> Mesh:
        for name in self.document.extensionsRequired:
            if not name.startswith(_HARMLESS):
                raise UnreadableModel(f"uses {name}")
        primitives = [primitive for mesh in self.document.meshes for primitive in mesh.primitives]
        if len(primitives) != 1:
            raise UnreadableModel(f"{len(primitives)} primitives, exactly one is allowed")
        primitive = primitives[0]
        for name in primitive.extensions:
            if name != "KHR_materials_variants":
                raise UnreadableModel(f"uses {name}")
        if primitive.mode != 4:
            kind = _MODES[primitive.mode] if 0 <= primitive.mode < len(_MODES) else f"mode {primitive.mode}"
            raise UnreadableModel(f"draws {kind}, only triangles are allowed")
        if "POSITION" not in primitive.attributes:
            raise UnreadableModel("no POSITION attribute")

        positions = self.attribute(primitive, "POSITION", (3,))
        assert positions is not None
        normals = self.attribute(primitive, "NORMAL", (3,))
        if normals is not None and not np.isfinite(normals).all():
            normals = np.where(np.isfinite(normals), normals, np.float32(0))
        material = self.material(primitive)
        colours = None
        if material is None:
            colours = self.attribute(primitive, "COLOR_0", (3, 4))
            if colours is not None:
                if colours.shape[1] == 3:
                    colours = np.concatenate([colours, np.ones((len(colours), 1), np.float32)], axis=1)
                if not np.isfinite(colours).all():
                    raise UnreadableModel("COLOR_0 has values that are not finite numbers")
                colours = np.clip(colours, np.float32(0), np.float32(1))
            material = NO_MATERIAL if colours is None else COLOURED_VERTICES
        return Mesh(
            positions=positions,
            indices=self.indices(primitive, len(positions)),
            normals=normals,
            uv=self.attribute(primitive, "TEXCOORD_0", (2,)),
            colours=colours,
            material=material,
        )

    # geometry

    def indices(self, primitive: _Primitive, vertices: int) -> NDArray[np.uint32]:
        """[T, 3] triangle corners; a list of vertices without indices is its own order."""
        if primitive.indices is None:
            count = vertices
        else:
            accessor = _at(self.document.accessors, primitive.indices, "accessor")
            if accessor.type != "SCALAR" or accessor.componentType not in (5121, 5123, 5125):
                raise UnreadableModel("indices are not unsigned integers")
            count = accessor.count
        if count % 3:
            raise UnreadableModel(f"{count} triangle corners, not a multiple of 3")
        if count > 3 * MAX_TRIANGLES:
            raise UnreadableModel(f"{count // 3} triangles, at most {MAX_TRIANGLES} are allowed")
        flat = np.arange(count, dtype=np.uint32) if primitive.indices is None else self.accessor(primitive.indices)
        return np.require(flat.reshape(-1, 3), np.uint32, ["C", "A"])

    def attribute(self, primitive: _Primitive, name: str, widths: tuple[int, ...]) -> Floats | None:
        """[V, width] float32 values of a vertex attribute, integers scaled as normalised; None where it is absent."""
        if name not in primitive.attributes:
            return None
        number = primitive.attributes[name]
        accessor = _at(self.document.accessors, number, "accessor")
        vertices = _at(self.document.accessors, primitive.attributes["POSITION"], "accessor").count
        if accessor.count > MAX_VERTICES:
            raise UnreadableModel(f"{accessor.count} vertices, at most {MAX_VERTICES} are allowed")
        if accessor.count != vertices:
            raise UnreadableModel(f"{name} has {accessor.count} values for {vertices} vertices")
        if _WIDTHS.get(accessor.type) not in widths:
            raise UnreadableModel(f"{name} has type {accessor.type[:20]}")
        if accessor.componentType == 5126:
            return np.require(self.accessor(number), np.float32, ["C", "A"])
        if name == "POSITION" or not accessor.normalized or accessor.componentType == 5125:
            raise UnreadableModel(f"{name} is quantised (component type {accessor.componentType})")
        limit = np.float32(np.iinfo(_COMPONENTS[accessor.componentType]).max)  # type: ignore[type-var]
        scaled: Floats = np.divide(self.accessor(number), limit, dtype=np.float32)
        return np.maximum(scaled, np.float32(-1))

    def accessor(self, number: int) -> NDArray[np.generic]:
        """[count, width] values of an accessor, sparse changes applied; a view of the file where nothing changes."""
        accessor = _at(self.document.accessors, number, "accessor")
        where = f"accessor {number}"
        dtype, width = _COMPONENTS.get(accessor.componentType), _WIDTHS.get(accessor.type)
        if dtype is None or width is None:
            raise UnreadableModel(f"{where} has an unknown type")
        if accessor.bufferView is not None:
            values = self.values(
                accessor.bufferView, accessor.byteOffset, accessor.count, np.dtype(dtype), width, where
            )
        elif accessor.sparse is not None:
            if accessor.count > MAX_IMPLIED_VALUES:
                raise UnreadableModel(f"{where} declares {accessor.count} values without data")
            values = np.zeros((accessor.count, width), dtype)
        else:
            raise UnreadableModel(f"{where} has no data")
        if accessor.sparse is None:
            return values
        sparse, where = accessor.sparse, f"the sparse part of accessor {number}"
        if sparse.count > accessor.count:
            raise UnreadableModel(f"{where} has {sparse.count} values for {accessor.count}")
        if sparse.indices.componentType not in (5121, 5123, 5125):
            raise UnreadableModel(f"{where} has indices that are not unsigned integers")
        index_type = np.dtype(_COMPONENTS[sparse.indices.componentType])
        at = self.values(sparse.indices.bufferView, sparse.indices.byteOffset, sparse.count, index_type, 1, where)
        changed = self.values(
            sparse.values.bufferView, sparse.values.byteOffset, sparse.count, np.dtype(dtype), width, where
        )
        places = at.astype(np.int64)[:, 0]
        if len(places) and int(places.max()) >= accessor.count:
            raise UnreadableModel(f"{where} writes past its {accessor.count} values")
        values = values.copy()
        values[places] = changed
        return values

    def values(
        self, view: int, offset: int, count: int, dtype: np.dtype[Any], width: int, where: str
    ) -> NDArray[np.generic]:
        """[count, width] view of a buffer view from a byte offset; the stride is the buffer view's."""
        block, stride = self.buffer_view(view)
        size = dtype.itemsize * width
        stride = stride or size
        if stride < size:
            raise UnreadableModel(f"{where} overlaps itself: values of {size} bytes every {stride}")
        if count and offset + (count - 1) * stride + size > len(block):
            raise UnreadableModel(f"{where} reads past its buffer")
        if not count:
            return np.empty((0, width), dtype)
        return np.ndarray((count, width), dtype, block, offset, (stride, dtype.itemsize))

    def buffer_view(self, number: int) -> tuple[memoryview, int | None]:
        view = _at(self.document.bufferViews, number, "buffer view")
        for name in view.extensions:
            if name.endswith("_meshopt_compression"):
                raise UnreadableModel(f"uses {name}")
        buffer = _at(self.document.buffers, view.buffer, "buffer")
        block = self.binary if buffer.uri is None else _data_uri(buffer.uri, f"buffer {view.buffer}")
        if buffer.uri is None and view.buffer != 0:
            raise UnreadableModel(f"buffer {view.buffer} has no data")
        end = view.byteOffset + view.byteLength
        if end > min(len(block), buffer.byteLength):
            raise UnreadableModel(f"buffer view {number} reads past its buffer")
        return block[view.byteOffset : end], view.byteStride

    # looks

    def material(self, primitive: _Primitive) -> Material | None:
        if primitive.material is None:
            return None
        material = _at(self.document.materials, primitive.material, "material")
        surface = material.pbrMetallicRoughness
        # Without coordinates a texture cannot be looked up: only the factors remain.
        mapped = "TEXCOORD_0" in primitive.attributes

        def texture(info: _TextureInfo | None) -> Texture | None:
            return self.texture(info.index) if info is not None and mapped else None

        red, green, blue, alpha = (round(255 * min(max(factor, 0.0), 1.0)) / 255 for factor in surface.baseColorFactor)
        emissive = tuple(min(max(factor, 0.0), 1.0) for factor in material.emissiveFactor)
        return Material(
            base_colour=(red, green, blue, alpha),
            metallic=min(max(surface.metallicFactor, 0.0), 1.0),
            roughness=min(max(surface.roughnessFactor, 0.0), 1.0),
            emissive=(emissive[0], emissive[1], emissive[2]),
            base_colour_texture=texture(surface.baseColorTexture),
            metallic_roughness_texture=texture(surface.metallicRoughnessTexture),
            normal_texture=texture(material.normalTexture),
            occlusion_texture=texture(material.occlusionTexture),
            emissive_texture=texture(material.emissiveTexture) if any(emissive) else None,
        )

    def texture(self, number: int) -> Texture:
        """[H, W, 4] decoded pixels of a texture; images that several textures share are decoded once."""
        texture = _at(self.document.textures, number, "texture")
        source = texture.source
        webp = texture.extensions.get("EXT_texture_webp")
        if isinstance(webp, dict) and isinstance(webp.get("source"), int):
            source = webp["source"]
        if source is None:
            for name in _IMAGE_EXTENSIONS:
                if name in texture.extensions:
                    raise UnreadableModel(f"uses {name}")
            raise UnreadableModel(f"texture {number} has no image")
        if source not in self.images:
            self.images[source] = self.image(source)
        return self.images[source]

    def image(self, number: int) -> Texture:
        image = _at(self.document.images, number, "image")
        if image.bufferView is not None:
            data, _ = self.buffer_view(image.bufferView)
        elif image.uri is not None:
            data = _data_uri(image.uri, f"image {number}")
        else:
            raise UnreadableModel(f"image {number} has no data")
        if bytes(data[:12]) == b"\xabKTX 20\xbb\r\n\x1a\n":
            raise UnreadableModel(f"image {number} is KTX2, only PNG, JPEG and WebP are supported")
        pixels = _decode_image(data, number, MAX_TEXTURE_PIXELS - self.pixels)
        self.pixels += pixels.shape[0] * pixels.shape[1]
        return pixels


def _decode_image(data: memoryview, number: int, pixels_left: int) -> Texture:
    """[H, W, 4] pixels; the declared size is checked before the pixels are decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
            width, height = picture.size
            if max(width, height) > MAX_TEXTURE_SIDE or width * height > pixels_left:
                raise UnreadableModel(f"image {number} of {width} x {height} is too large")
            if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip rather than scale
                grey = (np.asarray(picture, np.int32) >> 8).clip(0, 255).astype(np.uint8)
                return np.ascontiguousarray(np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1))
            return np.ascontiguousarray(np.asarray(picture.convert("RGBA"), np.uint8))
    except UnreadableModel:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableModel(f"image {number} is too large") from None
    except Exception as error:  # a decoder fed with a stranger's bytes raises whatever it likes
        raise UnreadableModel(f"image {number} cannot be decoded: {type(error).__name__}") from None


def _data_uri(uri: str, where: str) -> memoryview:
    head, comma, body = uri.partition(",")
    if not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise UnreadableModel(f"{where} lies outside the file")
    try:
        return memoryview(base64.b64decode(body, validate=True))
    except (binascii.Error, ValueError):
        raise UnreadableModel(f"{where} is not base64") from None


def _at(items: list[Item], number: int, kind: str) -> Item:
    if not 0 <= number < len(items):
        raise UnreadableModel(f"{kind} {number} does not exist")
    return items[number]


# --- writing ---


def write_glb(
    positions: ArrayLike,
    indices: ArrayLike,
    normals: ArrayLike | None = None,
    uv: ArrayLike | None = None,
    colours: ArrayLike | None = None,
    base_colour: tuple[float, float, float, float] | None = (1.0, 1.0, 1.0, 1.0),
    metallic: float = 0.0,
    roughness: float = 1.0,
    base_colour_png: bytes | None = None,
    *,
    material: dict[str, Any] | None = None,
    images: dict[str, bytes] | None = None,
) -> bytes:
    """Pack one triangle mesh into a GLB; equal arguments give equal bytes.

    positions: [V, 3]; indices: [T, 3]; normals: [V, 3]; uv: [V, 2], v downwards; colours: [V, 4] linear RGBA.
    base_colour: linear RGBA, or None for a file without a material (colours count only there).
    base_colour_png: an encoded image (PNG, JPEG) that multiplies base_colour; needs uv.
    material: further glTF material keys, e.g. {"emissiveFactor": [1, 1, 1]}.
    images: encoded images for the material's other textures: "normalTexture", "occlusionTexture", "emissiveTexture",
        "metallicRoughnessTexture".
    """
    blocks: list[bytes] = []
    views: list[dict[str, int]] = []
    accessors: list[dict[str, Any]] = []

    def add_block(block: bytes) -> int:
        views.append({"buffer": 0, "byteOffset": sum(map(len, blocks)), "byteLength": len(block)})
        blocks.append(block + b"\0" * (-len(block) % 4))
        return len(views) - 1

    def add_values(values: ArrayLike, dtype: type, kind: str, bounds: bool = False) -> int:
        array: NDArray[Any] = np.ascontiguousarray(values, dtype)
        accessor: dict[str, Any] = {
            "bufferView": add_block(array.tobytes()),
            "componentType": 5126 if dtype is np.float32 else 5125,
            "count": array.size // _WIDTHS[kind],
            "type": kind,
        }
        if bounds:
            accessor["min"], accessor["max"] = array.min(axis=0).tolist(), array.max(axis=0).tolist()
        accessors.append(accessor)
        return len(accessors) - 1

    attributes = {"POSITION": add_values(positions, np.float32, "VEC3", bounds=True)}
    for name, values, kind in (("NORMAL", normals, "VEC3"), ("TEXCOORD_0", uv, "VEC2"), ("COLOR_0", colours, "VEC4")):
        if values is not None:
            attributes[name] = add_values(values, np.float32, kind)
    primitive: dict[str, Any] = {"attributes": attributes, "indices": add_values(indices, np.uint32, "SCALAR")}
    document: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}]}
    if base_colour is not None:
        surface: dict[str, Any] = {
            "baseColorFactor": list(base_colour),
            "metallicFactor": metallic,
            "roughnessFactor": roughness,
        }
        described: dict[str, Any] = {"pbrMetallicRoughness": surface, **(material or {})}
        pictures = dict(images or {})
        if base_colour_png is not None:
            pictures["baseColorTexture"] = base_colour_png
        for slot, picture in sorted(pictures.items()):
            kind = "image/jpeg" if picture.startswith(b"\xff\xd8") else "image/png"
            document.setdefault("images", []).append({"bufferView": add_block(picture), "mimeType": kind})
            number = len(document["images"]) - 1
            document.setdefault("textures", []).append({"source": number})
            home = surface if slot in ("baseColorTexture", "metallicRoughnessTexture") else described
            home[slot] = {"index": number}
        document["materials"] = [described]
        primitive["material"] = 0
    binary = b"".join(blocks)
    document |= {
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(binary)}],
    }
    text = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), _JSON_CHUNK) + text + struct.pack("<II", len(binary), _BIN_CHUNK) + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

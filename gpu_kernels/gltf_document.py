"""What a GLB file says about itself: its two chunks and the JSON in the first.

Belongs here: the container, and the parts of glTF's JSON that are read; everything else in it is ignored.
Does not: whether what the JSON says is true of the bytes, and which of it is supported (`gltf`).
Source: glTF 2.0 specification (Khronos).
"""

import struct
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpu_kernels.errors import UnreadableModel

MAX_JSON_BYTES = 8 << 20

JSON_CHUNK, BINARY_CHUNK = 0x4E4F534A, 0x004E4942

Count = Annotated[int, Field(ge=0, le=1 << 40)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Item = TypeVar("Item")
Many = Annotated[list[Item], Field(max_length=100_000, fail_fast=True)]


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    extensions: dict[str, Any] = {}


class Buffer(Part):
    byteLength: Count
    uri: str | None = None


class BufferView(Part):
    buffer: Count
    byteOffset: Count = 0
    byteLength: Count
    byteStride: Count | None = None


class SparseIndices(Part):
    bufferView: Count
    byteOffset: Count = 0
    componentType: int


class SparseValues(Part):
    bufferView: Count
    byteOffset: Count = 0


class Sparse(Part):
    count: Count
    indices: SparseIndices
    values: SparseValues


class Accessor(Part):
    bufferView: Count | None = None
    byteOffset: Count = 0
    componentType: int
    count: Count
    type: str
    normalized: bool = False
    sparse: Sparse | None = None


class Primitive(Part):
    attributes: dict[str, Count]
    indices: Count | None = None
    material: Count | None = None
    mode: int = 4


class Mesh(Part):
    primitives: Many[Primitive] = []


class Image(Part):
    uri: str | None = None
    bufferView: Count | None = None


class Texture(Part):
    source: Count | None = None


class TextureInfo(Part):
    index: Count


class MetallicRoughness(Part):
    baseColorFactor: tuple[Number, Number, Number, Number] = (1.0, 1.0, 1.0, 1.0)
    metallicFactor: Number = 1.0
    roughnessFactor: Number = 1.0
    baseColorTexture: TextureInfo | None = None
    metallicRoughnessTexture: TextureInfo | None = None


class Material(Part):
    pbrMetallicRoughness: MetallicRoughness = MetallicRoughness()
    normalTexture: TextureInfo | None = None
    occlusionTexture: TextureInfo | None = None
    emissiveTexture: TextureInfo | None = None
    emissiveFactor: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)


class Document(Part):
    extensionsRequired: Many[str] = []
    buffers: Many[Buffer] = []
    bufferViews: Many[BufferView] = []
    accessors: Many[Accessor] = []
    meshes: Many[Mesh] = []
    materials: Many[Material] = []
    textures: Many[Texture] = []
    images: Many[Image] = []


def split_glb(data: memoryview) -> tuple[Document, memoryview]:
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
        if not chunks and kind != JSON_CHUNK:
            raise UnreadableModel("not a GLB file: the first chunk is not JSON")
        if kind in (JSON_CHUNK, BINARY_CHUNK):
            chunks.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    if JSON_CHUNK not in chunks:
        raise UnreadableModel("not a GLB file: no JSON chunk")
    if len(chunks[JSON_CHUNK]) > MAX_JSON_BYTES:
        raise UnreadableModel(f"{len(chunks[JSON_CHUNK])} bytes of JSON, at most {MAX_JSON_BYTES} are allowed")
    try:
        document = Document.model_validate_json(bytes(chunks[JSON_CHUNK]).rstrip(b" \0"))
    except ValidationError as error:
        if error.error_count() > 1000:  # listing them would take longer than reading did
            raise UnreadableModel(f"malformed glTF: {error.error_count()} errors") from None
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "JSON"
        raise UnreadableModel(f"malformed glTF: {where}: {first['msg']}") from None
    return document, chunks.get(BINARY_CHUNK, memoryview(b""))

"""GLB files: bytes to a `Mesh`.

Belongs here: accessors, the material, and every reason to refuse a file. The bytes come from a stranger: each count,
offset and size is checked here before anything is read or allocated.
Does not: the container and its JSON (`gltf_document`), decoding of images (`gltf_images`), the cube that a preview must
fit in (`mesh.check_cube`), pixels.
Source: glTF 2.0 specification (Khronos); what is honoured of it is spec/rendering.md "Meshes".
"""

import base64
import binascii
import dataclasses
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_kernels import threads
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.gltf_document import Document, Primitive, split_glb
from gpu_kernels.gltf_images import MAX_TEXTURE_PIXELS, EncodedImage, decode_image, open_image
from gpu_kernels.gltf_write import write_glb
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

__all__ = ["load_glb", "write_glb"]

Item = TypeVar("Item")

MAX_IMPLIED_VALUES = 1_000_000  # of a sparse accessor that stands on zeros, not on bytes of the file

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
# KHR_mesh_quantization is among the refused: its integers become coordinates through a node's transform, which is ignored.
_HARMLESS = (
    "KHR_materials_",
    "KHR_texture_transform",
    "KHR_lights_punctual",
    "KHR_node_visibility",
    "EXT_texture_webp",
)
# Nor is this harmless: the public renderer converts such a material, and draws it instead of the metallic-roughness one.
_OTHER_MODEL = "KHR_materials_pbrSpecularGlossiness"
_IMAGE_EXTENSIONS = ("KHR_texture_basisu", "MSFT_texture_dds")


def load_glb(data: bytes | bytearray | memoryview) -> Mesh:
    """Decode a GLB that holds exactly one triangle primitive. Arrays are views of `data` where its layout allows.

    Node transforms, samplers, TANGENT and texture coordinates beyond the first set are ignored. Normals that are not
    finite become zero, which is lit as facing away. Colours count only where the primitive has no material.

    Raises UnreadableModel, and nothing else, for a file that is refused.
    """
    document, binary = split_glb(memoryview(data).cast("B"))
    reader = _Reader(document, binary)
    try:
        return reader.mesh()
    finally:
        for image in reader.decoding.values():
            image.cancel()  # only of a refused file are some not done yet


class _Reader:
    """One file being read: the document, its binary chunk, its decoded data URIs, and the images being decoded."""

    def __init__(self, document: Document, binary: memoryview) -> None:
        self.document = document
        self.binary = binary
        self.buffers: dict[int, memoryview] = {}
        self.decoding: dict[int, Future[Texture]] = {}
        self.pixels_left = MAX_TEXTURE_PIXELS

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

        # Decoding takes far longer than all that follows: it starts first, and is waited for last.
        textures = self.start_textures(primitive)
        positions = self.attribute(primitive, "POSITION", (3,))
        assert positions is not None
        normals = self.attribute(primitive, "NORMAL", (3,))
        if normals is not None and not np.isfinite(normals).all():
            normals = np.where(np.isfinite(normals), normals, np.float32(0))
        material = self.material(primitive)
        colours = self.colours(primitive) if material is None else None
        if material is None:
            material = NO_MATERIAL if colours is None else COLOURED_VERTICES
        indices = self.indices(primitive, len(positions))
        uv = self.attribute(primitive, "TEXCOORD_0", (2,))
        decoded: dict[str, Any] = {slot: texture.result() for slot, texture in textures.items()}
        return Mesh(positions, indices, normals, uv, colours, dataclasses.replace(material, **decoded))

    # geometry

    def indices(self, primitive: Primitive, vertices: int) -> NDArray[np.uint32]:
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

    def attribute(self, primitive: Primitive, name: str, widths: tuple[int, ...]) -> Floats | None:
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

    def colours(self, primitive: Primitive) -> Floats | None:
        """[V, 4] vertex colours clipped to 0..1 and rounded to n / 255, as the public renderer holds them.

        Opaque where the file has three components.
        """
        colours = self.attribute(primitive, "COLOR_0", (3, 4))
        if colours is None:
            return None
        if not np.isfinite(colours).all():
            raise UnreadableModel("COLOR_0 has values that are not finite numbers")
        clipped = np.ones((len(colours), 4), np.float32)
        levels = np.rint(colours.clip(np.float32(0), np.float32(1)) * np.float32(255))
        np.divide(levels, np.float32(255), out=clipped[:, : colours.shape[1]])
        return clipped

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
        if buffer.uri is not None:
            if view.buffer not in self.buffers:
                self.buffers[view.buffer] = _data_uri(buffer.uri, f"buffer {view.buffer}")
            block = self.buffers[view.buffer]
        elif view.buffer == 0:
            block = self.binary
        else:
            raise UnreadableModel(f"buffer {view.buffer} has no data")
        end = view.byteOffset + view.byteLength
        if end > min(len(block), buffer.byteLength):
            raise UnreadableModel(f"buffer view {number} reads past its buffer")
        return block[view.byteOffset : end], view.byteStride

    # looks

    def material(self, primitive: Primitive) -> Material | None:
        if primitive.material is None:
            return None
        material = _at(self.document.materials, primitive.material, "material")
        if _OTHER_MODEL in material.extensions:
            raise UnreadableModel(f"uses {_OTHER_MODEL}")
        surface = material.pbrMetallicRoughness
        red, green, blue, alpha = (round(255 * min(max(factor, 0.0), 1.0)) / 255 for factor in surface.baseColorFactor)
        emissive = tuple(min(max(factor, 0.0), 1.0) for factor in material.emissiveFactor)
        return Material(
            base_colour=(red, green, blue, alpha),
            metallic=min(max(surface.metallicFactor, 0.0), 1.0),
            roughness=min(max(surface.roughnessFactor, 0.0), 1.0),
            emissive=(emissive[0], emissive[1], emissive[2]),
        )

    def start_textures(self, primitive: Primitive) -> dict[str, Future[Texture]]:
        """Textures of the primitive's material, by field of `Material`, on their way to being decoded."""
        # Without coordinates a texture cannot be looked up: only the factors remain.
        if primitive.material is None or "TEXCOORD_0" not in primitive.attributes:
            return {}
        material = _at(self.document.materials, primitive.material, "material")
        surface = material.pbrMetallicRoughness
        infos = {
            "base_colour_texture": surface.baseColorTexture,
            "metallic_roughness_texture": surface.metallicRoughnessTexture,
            "normal_texture": material.normalTexture,
            "occlusion_texture": material.occlusionTexture,
            "emissive_texture": material.emissiveTexture if any(material.emissiveFactor) else None,
        }
        sources = {slot: self.source(info.index) for slot, info in infos.items() if info is not None}
        images = {number: self.image(number) for number in sources.values()}
        self.decoding = {number: threads.start(decode_image, image) for number, image in images.items()}
        return {slot: self.decoding[number] for slot, number in sources.items()}

    def source(self, number: int) -> int:
        """Number of the image that a texture shows."""
        texture = _at(self.document.textures, number, "texture")
        webp = texture.extensions.get("EXT_texture_webp")
        if isinstance(webp, dict) and isinstance(webp.get("source"), int):
            return int(webp["source"])
        if texture.source is not None:
            return texture.source
        for name in _IMAGE_EXTENSIONS:
            if name in texture.extensions:
                raise UnreadableModel(f"uses {name}")
        raise UnreadableModel(f"texture {number} has no image")

    def image(self, number: int) -> EncodedImage:
        """An image of an acceptable size, not yet decoded."""
        image = _at(self.document.images, number, "image")
        if image.bufferView is not None:
            data, _ = self.buffer_view(image.bufferView)
        elif image.uri is not None:
            data = _data_uri(image.uri, f"image {number}")
        else:
            raise UnreadableModel(f"image {number} has no data")
        opened = open_image(data, f"image {number}", self.pixels_left)
        self.pixels_left -= opened.pixels
        return opened


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

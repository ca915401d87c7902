"""A mesh's arrays to a GLB file.

Belongs here: the one layout that is written: a single triangle primitive, float32 values, 32-bit indices.
Does not: reading (`gltf`).
Source: glTF 2.0 specification (Khronos).
"""

import json
import struct
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gpu_kernels.gltf_document import BINARY_CHUNK, JSON_CHUNK

_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


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
    chunks = struct.pack("<II", len(text), JSON_CHUNK) + text + struct.pack("<II", len(binary), BINARY_CHUNK) + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

"""A decoded mesh: what every mesh backend draws and every mesh reader produces.

Belongs here: the arrays, the material, and the limits and checks that make them safe to hand to a kernel.
Does not: file formats (`gltf`), pictures (`preview`, `cpu`).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.errors import UnreadableModel

Floats = NDArray[np.float32]
Texture = NDArray[np.uint8]  # [H, W, 4] RGBA as stored in the file: sRGB or data, row 0 at v = 0

MAX_VERTICES = 10_000_000
MAX_TRIANGLES = 5_000_000
CUBE = 0.6  # every coordinate of a preview lies in [-CUBE, CUBE]


@dataclass(frozen=True)
class Material:
    """Metallic-roughness material, as the public renderer reads it. Texture factors multiply; None means 1."""

    base_colour: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # linear, already quantised to n / 255
    metallic: float = 1.0
    roughness: float = 1.0
    emissive: tuple[float, float, float] = (0.0, 0.0, 0.0)  # linear
    base_colour_texture: Texture | None = None  # sRGB + alpha
    metallic_roughness_texture: Texture | None = None  # roughness = G, metallic = B
    normal_texture: Texture | None = None  # tangent space, green up
    occlusion_texture: Texture | None = None  # R
    emissive_texture: Texture | None = None  # sRGB


# What the public renderer puts where a file has no material (spec "Meshes", rule 9).
COLOURED_VERTICES = Material(metallic=0.2, roughness=0.8)
NO_MATERIAL = Material(base_colour=(0.3, 0.3, 0.3, 1.0), metallic=0.2, roughness=0.8)


@dataclass(frozen=True)
class Mesh:
    """One triangle list in the file's own coordinates (node transforms ignored), +Y up.

    Raises UnreadableModel when the arrays do not fit together, are too large, or would lead a kernel out of bounds.
    """

    positions: Floats  # [V, 3]
    indices: NDArray[np.uint32]  # [T, 3], counter-clockwise seen from the front
    normals: Floats | None = None  # [V, 3], any length; None: computed from the faces
    uv: Floats | None = None  # [V, 2], glTF: v grows downwards in the image
    colours: Floats | None = None  # [V, 4] linear RGBA in 0..1; None with a material
    material: Material = field(default=NO_MATERIAL)

    def __post_init__(self) -> None:
        vertices = len(self.positions)
        if vertices > MAX_VERTICES:
            raise UnreadableModel(f"{vertices} vertices, at most {MAX_VERTICES} are allowed")
        if len(self.indices) > MAX_TRIANGLES:
            raise UnreadableModel(f"{len(self.indices)} triangles, at most {MAX_TRIANGLES} are allowed")
        if not len(self.indices):
            raise UnreadableModel("no triangles")
        _check_array("positions", self.positions, np.float32, (vertices, 3))
        _check_array("indices", self.indices, np.uint32, (len(self.indices), 3))
        for name, array, width in (("normals", self.normals, 3), ("uv", self.uv, 2), ("colours", self.colours, 4)):
            if array is not None:
                _check_array(name, array, np.float32, (vertices, width))
        largest = int(self.indices.max())
        if largest >= vertices:
            raise UnreadableModel(f"index {largest} points past the {vertices} vertices")
        for name, array in (("positions", self.positions), ("texture coordinates", self.uv), ("colours", self.colours)):
            if array is not None and not np.isfinite(array).all():
                raise UnreadableModel(f"{name} are not all finite numbers")


def check_cube(mesh: Mesh) -> None:
    """Raise UnreadableModel unless every coordinate lies within the cube [-0.6, 0.6] (spec "Meshes", rule 1)."""
    limit = np.float32(CUBE)
    if -limit <= mesh.positions.min() and mesh.positions.max() <= limit:  # many times faster than axis by axis
        return
    for axis, low, high in zip("xyz", mesh.positions.min(axis=0), mesh.positions.max(axis=0), strict=True):
        worst = low if -low > high else high
        if abs(worst) > limit:
            raise UnreadableModel(f"{axis} reaches {worst:.4g}, outside [-{CUBE}, {CUBE}]")


def _check_array(name: str, array: NDArray[np.generic], dtype: type, shape: tuple[int, int]) -> None:
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous or not array.flags.aligned:
        raise UnreadableModel(
            f"{name}: {array.dtype}{list(array.shape)}, expected contiguous {np.dtype(dtype)}{list(shape)}"
        )

"""Pictures of 3D models, fast: the package's public door.

Belongs here: names that other packages use, and nothing that takes time to import (numba, Pillow and the file formats
are imported when they are first needed).
Does not: anything of the competition; this package knows files, pixels and vectors only.
"""

from typing import TYPE_CHECKING, Any

from gpu_kernels.errors import UnreadableModel

if TYPE_CHECKING:
    from gpu_kernels.gltf import load_glb, write_glb
    from gpu_kernels.mesh import Material, Mesh
    from gpu_kernels.models import load_model
    from gpu_kernels.preview import draw_preview, encode_png, render_preview, render_view, self_test, warm_up
    from gpu_kernels.registry import Backend, Choice, backends, choose
    from gpu_kernels.splats import Splats

# Identifies the picture's definition: changes whenever an unchanged file would give other pixels.
RENDERER_VERSION = "3"

__all__ = [
    "RENDERER_VERSION",
    "Backend",
    "Choice",
    "Material",
    "Mesh",
    "Splats",
    "UnreadableModel",
    "backends",
    "choose",
    "draw_preview",
    "encode_png",
    "load_glb",
    "load_model",
    "render_preview",
    "render_view",
    "self_test",
    "warm_up",
    "write_glb",
]

_HOMES = {
    "Backend": "registry",
    "Choice": "registry",
    "Material": "mesh",
    "Mesh": "mesh",
    "Splats": "splats",
    "backends": "registry",
    "choose": "registry",
    "draw_preview": "preview",
    "encode_png": "preview",
    "load_glb": "gltf",
    "load_model": "models",
    "render_preview": "preview",
    "render_view": "preview",
    "self_test": "preview",
    "warm_up": "preview",
    "write_glb": "gltf",
}


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value

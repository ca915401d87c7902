"""Which machines can draw which models, and why not.

Belongs here: the list of backends and the choice among them. A backend imports its own libraries when it is asked to
draw, never before. Does not: the environment variable that names a backend (callers read it).
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.camera import View
from gpu_kernels.mesh import Mesh


class Scene(Protocol):
    """A model made ready for drawing from several views, by one thread at a time."""

    def draw(self, view: View) -> NDArray[np.uint8]:
        """[view.size, view.size, 3] picture on white."""


@dataclass(frozen=True)
class Backend:
    """One way to draw meshes on this machine."""

    name: str
    available: bool
    why: str  # what it runs on, or what is missing
    open_mesh: Callable[[Mesh], Scene]


def backends() -> list[Backend]:
    """All mesh backends that this package knows, best first, available here or not."""
    has_numba = importlib.util.find_spec("numba") is not None
    return [
        Backend(
            "cpu", has_numba, "Numba on the processor" if has_numba else "numba is not installed", _open_mesh_on_cpu
        )
    ]


def choose(name: str = "auto") -> Backend:
    """The named backend, or the best available one for "auto".

    Raises ValueError, which names the choices, for a backend that is unknown or not available here.
    """
    known = backends()
    for backend in known:
        if backend.available and name in ("auto", backend.name):
            return backend
    choices = "; ".join(f"{backend.name}: {backend.why}" for backend in known)
    raise ValueError(f"render backend {name!r} is not available here ({choices})")


def _open_mesh_on_cpu(mesh: Mesh) -> Scene:
    from gpu_kernels.cpu.mesh import MeshScene

    return MeshScene(mesh)

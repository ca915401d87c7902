"""Which machines can draw which models, why not, and which of them is chosen.

Belongs here: the list of backends and the choice among them. Each backend's module offers `probe() -> Backend`, which is
cheap, imports its heavy libraries lazily, and never raises: a missing library or device is `available=False` with a
`why` that says what is missing. Does not: the environment variable that names a backend (callers read it).
"""

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.camera import View
from gpu_kernels.mesh import Mesh
from gpu_kernels.splats import Splats

Picture = NDArray[np.uint8]
Kind = Literal["mesh", "splats"]

# What "auto" takes, in this order: these share one source of formulas, so that every machine draws the same picture.
AUTOMATIC = ("cuda", "cpu")
# All there are; each is a package of that name with a module `backend`. Those after the automatic ones must be named.
NAMES = (*AUTOMATIC, "gl", "gsplat", "nvdiffrast")


class DrawMesh(Protocol):
    def __call__(self, mesh: Mesh, views: Sequence[View], pictures: Sequence[Picture]) -> None:
        """Draw view n of a mesh, supersampled and resolved, over the whole of pictures[n].

        pictures: each [view.size, view.size, 3], possibly strided (a part of the grid).
        Raises UnreadableModel when the mesh would take far too long to draw.
        """


class DrawSplats(Protocol):
    def __call__(self, splats: Splats, views: Sequence[View], pictures: Sequence[Picture]) -> None:
        """Draw view n of the normalised splats over the whole of pictures[n]; as `DrawMesh` otherwise."""


@dataclass(frozen=True)
class Backend:
    """One way to draw on this machine; a kind of model that it cannot draw is None."""

    name: str
    available: bool
    why: str  # what it runs on, or what is missing
    draw_mesh: DrawMesh | None = None
    draw_splats: DrawSplats | None = None


@dataclass(frozen=True)
class Choice:
    """A backend, and in words why it was taken: "cpu: chosen by auto: cuda is not available (no CUDA driver)"."""

    backend: Backend
    reason: str


@functools.cache
def _probe(name: str) -> Backend:
    backend: Backend = importlib.import_module(f"gpu_kernels.{name}.backend").probe()
    return backend


def backends() -> list[Backend]:
    """All backends that this package knows, in the order in which "auto" prefers them, available here or not."""
    return [_probe(name) for name in NAMES]


def choose(kind: Kind, name: str = "auto") -> Choice:
    """The named backend; for "auto", or a kind of model that the named one never draws, the first automatic one.

    Only those up to the one chosen are asked whether they are available: asking some takes seconds.
    Raises ValueError, which names the choices, for a backend that is unknown or not available here.
    """
    if name not in ("auto", *NAMES):
        raise ValueError(f"render backend {name!r} is unknown; available here: {_available()}")
    passed: list[str] = []
    if name != "auto":
        backend = _probe(name)
        obstacle = _obstacle(backend, kind)
        if not obstacle:
            return Choice(backend, f"{name}: chosen by name ({backend.why})")
        if not backend.available:
            raise ValueError(f"render backend {name!r} {obstacle}; available here: {_available()}")
        passed.append(f"{name} {obstacle}")
    passed.append("chosen by auto")
    for backend in map(_probe, AUTOMATIC):
        obstacle = _obstacle(backend, kind)
        if not obstacle:
            return Choice(backend, f"{backend.name}: {'; '.join(passed)} ({backend.why})")
        passed.append(f"{backend.name} {obstacle}")
    raise ValueError(f"no render backend draws {kind} here: {'; '.join(passed)}")


def _available() -> str:
    return ", ".join(backend.name for backend in backends() if backend.available) or "none"


def _obstacle(backend: Backend, kind: Kind) -> str:
    """Why a backend cannot draw a kind of model; empty when it can."""
    if not backend.available:
        return f"is not available ({backend.why})"
    if (backend.draw_mesh if kind == "mesh" else backend.draw_splats) is None:
        return f"does not draw {kind}"
    return ""

"""The processor as a backend: always there, and the one whose pixels the others are compared with.

Belongs here: `probe`, and the imports of the kernels that wait until something is drawn.
Does not: kernels.
"""

import importlib.util
from collections.abc import Sequence

from gpu_kernels.camera import View
from gpu_kernels.mesh import Mesh
from gpu_kernels.registry import Backend, Picture
from gpu_kernels.splats import Splats


def probe() -> Backend:
    """Available wherever Numba is installed."""
    if importlib.util.find_spec("numba") is None:
        return Backend("cpu", False, "numba is not installed: pip install numba")
    return Backend("cpu", True, "Numba on the processor", _draw_mesh, _draw_splats)


def _draw_mesh(mesh: Mesh, views: Sequence[View], pictures: Sequence[Picture]) -> None:
    from gpu_kernels.cpu.mesh import draw_mesh

    draw_mesh(mesh, views, pictures)


def _draw_splats(splats: Splats, views: Sequence[View], pictures: Sequence[Picture]) -> None:
    from gpu_kernels.cpu.splats import draw_splats

    draw_splats(splats, views, pictures)

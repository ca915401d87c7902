"""OpenGL as a backend: which graphics card, or what is missing.

Belongs here: `probe`, and the import of moderngl that waits until it is needed. Does not: drawing (`renderer`).
"""

import importlib.util
from collections.abc import Sequence

from gpu_kernels.camera import View
from gpu_kernels.mesh import Mesh
from gpu_kernels.registry import Backend, Picture


def probe() -> Backend:
    """Available where moderngl gets OpenGL 3.3 through EGL, which opens a context to find out."""
    if importlib.util.find_spec("moderngl") is None:
        return Backend("gl", False, "moderngl is not installed: pip install 'gen404-dagster[gl]'")
    try:
        from gpu_kernels.gl.renderer import renderer

        opened = renderer()
    except Exception as error:  # a broken driver may raise anything; it must not take the other backends with it
        return Backend("gl", False, f"{error} (Debian and Ubuntu: apt install libegl1 libgl1 libgl1-mesa-dri)")
    kind = "software OpenGL, slower than cpu" if opened.is_software else "OpenGL"
    return Backend("gl", True, f"{kind} on {opened.name}", _draw_mesh)


def _draw_mesh(mesh: Mesh, views: Sequence[View], pictures: Sequence[Picture]) -> None:
    from gpu_kernels.gl.renderer import renderer

    renderer().draw(mesh, views, pictures)

"""nvdiffrast as a backend: meshes on a CUDA device, only when it is named.

Belongs here: `probe`, the licence's notice, one view drawn. Does not: the formulas (`shading`).
Its licence (NVIDIA Source Code License) allows research and evaluation, not commercial use: it is no dependency of
ours, `auto` never takes it, and the notice is in `why` and logged when it is switched on.
"""

import functools
import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_kernels.camera import MESH_NEAR, View
from gpu_kernels.devices import torch_cuda_obstacle, torch_device_name
from gpu_kernels.mesh import Mesh
from gpu_kernels.registry import Backend, Picture

LICENCE = "NVIDIA Source Code License: research and evaluation only, no commercial use"

_log = logging.getLogger(__name__)


def probe() -> Backend:
    """Available with the library and a CUDA device. The first drawing compiles for a minute."""
    if importlib.util.find_spec("nvdiffrast") is None:
        why = f"nvdiffrast is not installed: pip install 'gen404-dagster[nvdiffrast]' ({LICENCE})"
        return Backend("nvdiffrast", False, why)
    try:
        if obstacle := torch_cuda_obstacle():
            return Backend("nvdiffrast", False, f"{obstacle} ({LICENCE})")
        return Backend("nvdiffrast", True, f"{torch_device_name()}; {LICENCE}", draw_mesh)
    except Exception as error:  # a broken driver may raise anything; it must not take the other backends with it
        return Backend("nvdiffrast", False, f"torch fails: {' '.join(str(error).split())[:200]}")


def draw_mesh(mesh: Mesh, views: Sequence[View], pictures: Sequence[Picture]) -> None:
    """Draw view n of a mesh over pictures[n]; `registry.DrawMesh`.

    A translucent mesh is blended in the order of its triangles, which a rasteriser of the nearest surface cannot do:
    the cpu backend draws it.
    """
    from gpu_kernels.cpu import mesh as cpu

    _switch_on()
    scene = cpu.pack(mesh)
    if cpu.is_translucent(scene):
        cpu.draw_mesh(mesh, views, pictures)
        return
    import torch

    from gpu_kernels.cpu.resolve import resolve
    from gpu_kernels.nvdiffrast.shading import Surface

    with torch.inference_mode():
        surface = Surface(scene, "cuda")
        for view, picture in zip(views, pictures, strict=True):
            side = cpu.SUPERSAMPLING * view.size
            resolve(_draw_view(surface, view, side), np.array([0, 0, side - 1, side - 1]), picture)


def _draw_view(surface: Any, view: View, side: int) -> Picture:
    """[3, side, side] picture on white, row 0 at the top."""
    import nvdiffrast.torch as nvdiffrast
    import torch

    seen = surface.facing(view)
    if not len(seen):
        return np.full((3, side, side), 255, np.uint8)
    triangles = surface.indices[seen].int().contiguous()
    hits, _ = nvdiffrast.rasterize(
        _context(), surface.clip_positions(view, MESH_NEAR), triangles, (side, side), grad_db=False
    )
    weights_a, weights_b, _, number = hits[0].flip(0).unbind(-1)  # OpenGL's row 0 is the lowest
    hit = number > 0
    picture = torch.full((3, side, side), 255, dtype=torch.uint8, device=hits.device)
    a, b = weights_a[hit], weights_b[hit]
    light = surface.shade(seen[number[hit].long() - 1], torch.stack([a, b, 1 - a - b], dim=1), view)
    picture[:, hit] = (light * 255).round().to(torch.uint8).T
    return picture.cpu().numpy()


@functools.cache
def _context() -> Any:
    import nvdiffrast.torch as nvdiffrast

    return nvdiffrast.RasterizeCudaContext()


@functools.cache
def _switch_on() -> None:
    _log.warning("nvdiffrast draws the meshes. %s.", LICENCE)

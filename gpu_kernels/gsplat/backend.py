"""gsplat as a backend: splats on a CUDA device.

Belongs here: `probe`, normalisation and cameras as spec/rendering.md "Gaussian splats" has them, one call of gsplat.
Does not: files, kernels. `import gsplat` is the library; this package is `gpu_kernels.gsplat`.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpu_kernels.camera import View
from gpu_kernels.devices import torch_cuda_obstacle, torch_device_name
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.registry import Backend, Picture
from gpu_kernels.splats import Splats

EXTENT = 1.5  # side of the normalised scene, world units
SH_C0 = 0.28209479
TILE = 16  # pixels
# Pairs of a splat and a tile in one view: far above honest splats; beyond, memory runs out.
MAX_PAIRS = 32_000_000


def probe() -> Backend:
    """Available with the gsplat library and a CUDA device. The first drawing may compile for minutes."""
    if importlib.util.find_spec("gsplat") is None:
        return Backend("gsplat", False, "gsplat is not installed: pip install 'gen404-dagster[gpu]'")
    try:
        if obstacle := torch_cuda_obstacle():
            return Backend("gsplat", False, obstacle)
        return Backend("gsplat", True, f"gsplat on {torch_device_name()}", draw_splats=draw_splats)
    except Exception as error:  # a broken driver may raise anything; it must not take the other backends with it
        return Backend("gsplat", False, f"torch fails: {' '.join(str(error).split())[:200]}")


def draw_splats(splats: Splats, views: Sequence[View], pictures: Sequence[Picture]) -> None:
    """Draw view n of the normalised splats over pictures[n]; `registry.DrawSplats`.

    Raises UnreadableModel when they cover the picture too many times over.
    """
    import torch
    from gsplat import fully_fused_projection, rasterization

    with torch.inference_mode():
        scene = activate(splats, "cuda")
        white = torch.ones((1, 3), device="cuda")
        for view, picture in zip(views, pictures, strict=True):
            camera = place(view, "cuda")
            frustum = {"near_plane": 0.01, "far_plane": 100.0, "eps2d": 0.3, "packed": False}
            gaussians = {name: scene[name] for name in ("means", "quats", "scales", "opacities")}
            radii, means2d, *_ = fully_fused_projection(**gaussians, **camera, **frustum, covars=None)
            if count_pairs(means2d, radii, view.size) > MAX_PAIRS:
                raise UnreadableModel("too much to draw: its splats cover the picture too many times over")
            light, _, _ = rasterization(
                **scene, **camera, **frustum, backgrounds=white, tile_size=TILE, rasterize_mode="classic"
            )
            picture[:] = (light[0].clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()  # truncated, not rounded


def activate(splats: Splats, device: str) -> dict[str, Any]:
    """means, quats, scales, opacities and colors as gsplat takes them, normalised (rules 1 and 2)."""
    import torch

    low, high = splats.positions.min(axis=0), splats.positions.max(axis=0)
    extent = float((high.astype(np.float64) - low).max())
    shrink = EXTENT / extent
    means = (splats.positions - splats.positions.mean(dtype=np.float64)) * shrink
    positions, logs, quats, opacities, colours = (
        torch.from_numpy(array).to(device)
        for array in (means.astype(np.float32), splats.log_scales, splats.rotations, splats.opacities, splats.colours)
    )
    unturned = torch.tensor([1.0, 0.0, 0.0, 0.0], device=device)
    return {
        "means": positions,
        "quats": torch.where((quats * quats).sum(-1, keepdim=True) > 0, quats, unturned),
        "scales": shrink * torch.exp(logs.clamp(max=40)),  # larger ones have no finite square
        "opacities": (torch.sigmoid(opacities) / shrink).clamp(0, 1),
        "colors": 0.5 + SH_C0 * colours,
    }


def place(view: View, device: str) -> dict[str, Any]:
    """viewmats, Ks, width and height of one view: +z forward, +y down the picture (rules 3 and 4)."""
    import torch

    camera = np.eye(4)
    camera[:3, :3] = view.right, -view.up, view.forward
    camera[:3, 3] = -camera[:3, :3] @ view.eye
    centre = view.size / 2
    intrinsics = [[view.focal, 0, centre], [0, view.focal, centre], [0, 0, 1]]
    return {
        "viewmats": torch.tensor(camera[None], dtype=torch.float32, device=device),
        "Ks": torch.tensor([intrinsics], dtype=torch.float32, device=device),
        "width": view.size,
        "height": view.size,
    }


def count_pairs(means2d: Any, radii: Any, size: int) -> int:
    """Pairs of a splat and a tile that it touches. means2d: [1, N, 2] pixels; radii: [1, N, 2] pixels, 0: culled."""
    across = -(-size // TILE)
    seen = (radii > 0).all(-1)
    low = ((means2d - radii) / TILE).floor().clamp(0, across)
    high = ((means2d + radii) / TILE).ceil().clamp(0, across)
    return int(((high - low).prod(-1) * seen).nan_to_num().double().sum())

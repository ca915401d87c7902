"""Model files to pictures: the 2 x 2 preview grid, single views, PNG.

Belongs here: the grid, where its views look from, the self-test.
Does not: decoding (`models`), kernels and supersampling (each backend), which backend (`registry`).
Rules: spec/rendering.md "Common".
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpu_kernels import camera
from gpu_kernels.camera import AZIMUTHS, ELEVATION, GAP, GRID_SIZE, VIEW_SIZE
from gpu_kernels.mesh import Material, Mesh, check_cube
from gpu_kernels.registry import choose
from gpu_kernels.splats import Splats

Picture = NDArray[np.uint8]
Model = Mesh | Splats

MAX_VIEW_SIZE = 4096


def render_preview(data: bytes, backend: str = "auto") -> Picture:
    """The preview of a GLB, PLY or SPZ file: load it, then `draw_preview`.

    Raises UnreadableModel for a file that is refused, ValueError for a backend that is not available here.
    """
    from gpu_kernels.models import load_model

    return draw_preview(load_model(data), backend)


def draw_preview(model: Model, backend: str = "auto") -> Picture:
    """[1041, 1041, 3] RGB: four views of 518 pixels on white, 5 black pixels between them.

    Raises UnreadableModel for a mesh outside the cube or too costly to draw, ValueError for a backend that is not
    available here.
    """
    grid = np.zeros((GRID_SIZE, GRID_SIZE, 3), np.uint8)
    places = [tuple(place * (VIEW_SIZE + GAP) for place in divmod(number, 2)) for number in range(len(AZIMUTHS))]
    pictures = [grid[top : top + VIEW_SIZE, left : left + VIEW_SIZE] for top, left in places]
    _draw(model, [(azimuth, ELEVATION) for azimuth in AZIMUTHS], pictures, backend)
    return grid


def render_view(mesh: Mesh, azimuth: float, elevation: float, size: int, backend: str = "auto") -> Picture:
    """One view of a mesh, [size, size, 3] RGB on white, shaded and resolved as a preview is.

    azimuth: degrees from +Z towards +X; elevation: degrees above the horizon; size: pixels, at most 4096.
    Raises UnreadableModel for a mesh outside the cube, ValueError for a size out of range.
    """
    if not 1 <= size <= MAX_VIEW_SIZE:
        raise ValueError(f"size {size} is not within 1..{MAX_VIEW_SIZE}")
    picture = np.empty((size, size, 3), np.uint8)
    _draw(mesh, [(azimuth, elevation)], [picture], backend)
    return picture


def encode_png(image: Picture) -> bytes:
    """PNG of an [H, W, 3] RGB picture; equal pictures give equal bytes. Compression is light: speed counts here."""
    import cv2

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"no PNG is made of {image.dtype}{list(image.shape)}, only of uint8[H, W, 3]")
    cv2.setNumThreads(1)
    # One fixed filter and run lengths only: half the time of the best compression, a few percent larger.
    settings = {
        cv2.IMWRITE_PNG_COMPRESSION: 1,
        cv2.IMWRITE_PNG_STRATEGY: cv2.IMWRITE_PNG_STRATEGY_RLE,
        cv2.IMWRITE_PNG_FILTER: cv2.IMWRITE_PNG_FILTER_SUB,
    }
    flat = [number for setting in settings.items() for number in setting]
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), flat)
    return data.tobytes()


def warm_up(backend: str = "auto") -> None:
    """Compile, or load from the cache, every kernel that a preview may need, by drawing something small with each."""
    for model in _small_models():
        _draw(model, [(0.0, 0.0)], [np.empty((8, 8, 3), np.uint8)], backend)


def self_test(backend: str = "auto") -> str:
    """SHA-256 of small pictures made of models made here: two machines that agree on it draw the same pixels.

    Raises ValueError for a backend that is not available here.
    """
    digest = hashlib.sha256()
    for model in _small_models():
        pictures = np.empty((2, 64, 64, 3), np.uint8)
        _draw(model, [(24.0, ELEVATION), (216.0, ELEVATION)], list(pictures), backend)
        digest.update(pictures.tobytes())
    return digest.hexdigest()


def _draw(model: Model, directions: Sequence[tuple[float, float]], pictures: Sequence[Picture], backend: str) -> None:
    """Draw a model from (azimuth, elevation) in degrees into each picture."""
    places = [(*direction, len(picture)) for direction, picture in zip(directions, pictures, strict=True)]
    if isinstance(model, Mesh):
        draw_mesh = choose("mesh", backend).backend.draw_mesh
        assert draw_mesh is not None
        check_cube(model)
        draw_mesh(model, [camera.mesh_view(*place) for place in places], pictures)
    else:
        draw_splats = choose("splats", backend).backend.draw_splats
        assert draw_splats is not None
        draw_splats(model, [camera.splat_view(*place) for place in places], pictures)


def _small_models() -> list[Model]:
    """A textured, bumpy ball of 512 triangles and 64 splats, from arithmetic that every machine rounds alike."""
    across, down = (grid.ravel() for grid in np.meshgrid(np.arange(17), np.arange(17), indexing="ij"))
    u, v = across / 16, down / 16
    theta, phi = 2 * math.pi * u, math.pi * v
    unit = np.stack([np.sin(phi) * np.sin(theta), np.cos(phi), np.sin(phi) * np.cos(theta)], axis=1)
    positions = (0.5 * unit).round(5).astype(np.float32)
    corner = (17 * np.arange(16)[:, None] + np.arange(16)).ravel()
    squares = np.stack([corner, corner + 1, corner + 18, corner, corner + 18, corner + 17], axis=1)
    texture = np.full((8, 8, 4), 255, np.uint8)
    texture[..., :3] = np.arange(0, 256, 4 / 3).astype(np.uint8).reshape(8, 8, 3)
    uv = np.stack([u, v], axis=1).astype(np.float32)
    triangles = squares.reshape(-1, 3).astype(np.uint32)
    materials = [
        Material(base_colour_texture=texture, roughness=0.5, metallic=0.3, normal_texture=texture),
        Material(base_colour=(0.2, 0.6, 0.9, 0.5), roughness=0.5, metallic=0.0),
    ]
    meshes = [Mesh(positions, triangles, uv=uv, material=material) for material in materials]
    step = np.arange(64, dtype=np.float32)
    splats = Splats(
        positions=positions[4:260:4].copy(),
        log_scales=np.stack([-3 - step / 64, -2 - step / 32, -3 + step / 64], axis=1),
        rotations=np.stack([1 + step, step, 32 - step, np.ones_like(step)], axis=1),
        opacities=step / np.float32(8) - np.float32(4),
        colours=np.stack([step / 32 - 1, 1 - step / 32, step / 64], axis=1),
    )
    return [*meshes, splats]

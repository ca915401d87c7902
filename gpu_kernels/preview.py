"""Model files to pictures: the 2 x 2 preview grid, single views, PNG.

Belongs here: supersampling, the grid, the version of the picture's definition.
Does not: decoding (`gltf`), kernels (`cpu`), which backend (`registry`).
Rules: spec/rendering.md "Common" and "Meshes (GLB)".
"""

import io

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.camera import AZIMUTHS, ELEVATION, GAP, GRID_SIZE, VIEW_SIZE, mesh_view
from gpu_kernels.gltf import load_glb, write_glb
from gpu_kernels.mesh import Mesh, check_cube
from gpu_kernels.registry import Scene, choose

Picture = NDArray[np.uint8]

SUPERSAMPLING = 2
MAX_VIEW_SIZE = 4096


def render_preview(data: bytes, backend: str = "auto") -> Picture:
    """The preview of a GLB file: [1041, 1041, 3] RGB, four views of 518 pixels on white, 5 black pixels between them.

    Raises UnreadableModel for a file that is refused, ValueError for a backend that is not available.
    """
    drawer = choose(backend)
    mesh = load_glb(data)
    check_cube(mesh)
    scene = drawer.open_mesh(mesh)
    grid = np.zeros((GRID_SIZE, GRID_SIZE, 3), np.uint8)
    for number, azimuth in enumerate(AZIMUTHS):
        top, left = (place * (VIEW_SIZE + GAP) for place in divmod(number, 2))
        grid[top : top + VIEW_SIZE, left : left + VIEW_SIZE] = _draw(scene, azimuth, ELEVATION, VIEW_SIZE)
    return grid


def render_view(mesh: Mesh, azimuth: float, elevation: float, size: int) -> Picture:
    """One view of a mesh, [size, size, 3] RGB on white, shaded and resolved as a preview is.

    azimuth: degrees from +Z towards +X; elevation: degrees above the horizon; size: pixels, at most 4096.
    Raises UnreadableModel for a mesh outside the cube, ValueError for a size out of range.
    """
    if not 1 <= size <= MAX_VIEW_SIZE:
        raise ValueError(f"size {size} is not within 1..{MAX_VIEW_SIZE}")
    check_cube(mesh)
    return _draw(choose().open_mesh(mesh), azimuth, elevation, size)


def encode_png(image: Picture) -> bytes:
    """PNG of an [H, W, 3] RGB picture; equal pictures give equal bytes. Compression is light: speed counts here."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image, np.uint8), "RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def warm_up() -> None:
    """Compile, or load from the cache, every kernel, and draw one triangle with each."""
    corners = [[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 0.5, 0.0]]
    for alpha in (1.0, 0.5):
        render_view(load_glb(write_glb(corners, [[0, 1, 2]], base_colour=(1, 1, 1, alpha))), 0.0, 0.0, 8)


def _draw(scene: Scene, azimuth: float, elevation: float, size: int) -> Picture:
    """[size, size, 3]: drawn at twice the size, resolved with Lanczos-3."""
    return _resolve(scene.draw(mesh_view(azimuth, elevation, SUPERSAMPLING * size)))


def _resolve(picture: Picture) -> Picture:
    """Halve a picture with Lanczos-3. Rows and columns of plain white at the rim are skipped: they stay white."""
    from PIL import Image

    size = len(picture) // 2
    resolved = np.full((size, size, 3), 255, np.uint8)
    drawn = picture.reshape(len(picture), -1) != 255
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0)) // 3
    if not len(rows):
        return resolved
    # A sample spreads over 3 output pixels, and those read 3 further: none of them may be cut short.
    reach = 7
    top, left = (max(int(used[0]) // 2 - reach, 0) for used in (rows, columns))
    bottom, right = (min(int(used[-1]) // 2 + reach + 1, size) for used in (rows, columns))
    part = Image.fromarray(np.ascontiguousarray(picture[2 * top : 2 * bottom, 2 * left : 2 * right]), "RGB")
    shrunk = part.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    resolved[top:bottom, left:right] = np.asarray(shrunk)
    return resolved

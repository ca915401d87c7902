"""Small models that the tests of this folder share."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Shape:
    positions: NDArray[np.float32]  # [V, 3]
    indices: NDArray[np.uint32]  # [T, 3]
    normals: NDArray[np.float32]  # [V, 3]
    uv: NDArray[np.float32]  # [V, 2]


def make_sphere(radius: float = 0.5, rings: int = 8) -> Shape:
    """A globe: u grows eastwards (0 at -Z), v from the north pole (+Y) down, faces outwards."""
    v, u = (grid.ravel() for grid in np.meshgrid(np.linspace(0, 1, rings + 1), np.linspace(0, 1, 2 * rings + 1)))
    u, v = (np.ascontiguousarray(values) for values in (u, v))
    theta, phi = 2 * np.pi * u + np.pi, np.pi * v
    normals = np.stack([np.sin(phi) * np.sin(theta), np.cos(phi), np.sin(phi) * np.cos(theta)], axis=1)
    i, j = (grid.ravel() for grid in np.meshgrid(np.arange(2 * rings), np.arange(rings), indexing="ij"))
    north_west, south_west = i * (rings + 1) + j, i * (rings + 1) + j + 1
    north_east, south_east = north_west + rings + 1, south_west + rings + 1
    triangles = np.stack([north_west, south_west, south_east, north_west, south_east, north_east], axis=1)
    return Shape(
        (radius * normals).astype(np.float32),
        triangles.reshape(-1, 3).astype(np.uint32),
        normals.astype(np.float32),
        np.stack([u, v], axis=1).astype(np.float32),
    )


@pytest.fixture(scope="session")
def sphere() -> Shape:
    return make_sphere()


def make_png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_noise(seed: int, low: int = 0, high: int = 256, channels: int = 3, size: int = 16) -> NDArray[np.uint8]:
    """[size, size, channels] smooth-ish random texture."""
    return np.random.default_rng(seed).integers(low, high, (size, size, channels)).astype(np.uint8)


@pytest.fixture(scope="session")
def noise_png() -> bytes:
    return make_png(make_noise(1))

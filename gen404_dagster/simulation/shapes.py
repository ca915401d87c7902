"""Solids to build objects from: positions, normals, texture coordinates and triangles of one part each.

Belongs here: geometry. Every solid but the box is a profile turned around the Y axis; all fit in [-0.5, 0.5]^3.
Does not: which parts make an object (`objects`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Solid:
    positions: Array  # [V, 3]
    normals: Array  # [V, 3] unit
    uv: Array  # [V, 2] in [0, 1]
    triangles: NDArray[np.int64]  # [T, 3] counter-clockwise seen from outside


@dataclass(frozen=True)
class _Run:
    """A smooth piece of a profile from bottom to top; between two runs is an edge."""

    radius: Array  # [R]
    height: Array  # [R]


def build(shape: str, segments: int) -> Solid:
    """The named solid with so many segments around (and in proportion along)."""
    segments = max(segments, 3)
    if shape == "box":
        return _box(max(1, segments // 9))
    if shape == "prism":
        return _turn(_cylinder(2), 6, smooth=False)
    if shape == "gem":
        return _turn(_gem(2), 8, smooth=False)
    return _turn(_PROFILES[shape](max(2, segments // 2)), segments, smooth=True)


def _cylinder(rows: int) -> list[_Run]:
    return [
        _Run(np.array([0.0, 0.5]), np.array([-0.5, -0.5])),
        _Run(np.full(rows, 0.5), np.linspace(-0.5, 0.5, rows)),
        _Run(np.array([0.5, 0.0]), np.array([0.5, 0.5])),
    ]


def _cone(rows: int) -> list[_Run]:
    return [
        _Run(np.array([0.0, 0.5]), np.array([-0.5, -0.5])),
        _Run(np.linspace(0.5, 0.0, rows), np.linspace(-0.5, 0.5, rows)),
    ]


def _sphere(rows: int) -> list[_Run]:
    angle = np.linspace(-np.pi / 2, np.pi / 2, rows + 1)
    return [_Run(0.5 * np.cos(angle), 0.5 * np.sin(angle))]


def _capsule(rows: int) -> list[_Run]:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 2 * (rows // 2) + 2)
    return [_Run(0.3 * np.cos(angle), 0.3 * np.sin(angle) + np.where(angle < 0, -0.2, 0.2))]


def _torus(rows: int) -> list[_Run]:
    angle = np.linspace(-np.pi, np.pi, rows + 1)
    return [_Run(0.36 + 0.14 * np.cos(angle), 0.14 * np.sin(angle))]


def _vase(rows: int) -> list[_Run]:
    height = np.linspace(-0.5, 0.5, rows + 2)
    radius = 0.30 + 0.17 * np.sin(2.1 * np.pi * (height + 0.42)) - 0.06 * height
    return [
        _Run(np.array([0.0, radius[0]]), np.array([-0.5, -0.5])),
        _Run(radius, height),
        _Run(np.array([radius[-1], 0.0]), np.array([0.5, 0.5])),
    ]


def _gem(rows: int) -> list[_Run]:
    return [
        _Run(np.linspace(0.0, 0.5, rows), np.linspace(-0.5, 0.15, rows)),
        _Run(np.linspace(0.5, 0.28, rows), np.linspace(0.15, 0.5, rows)),
        _Run(np.array([0.28, 0.0]), np.array([0.5, 0.5])),
    ]


_PROFILES: dict[str, Callable[[int], list[_Run]]] = {
    "cylinder": _cylinder,
    "cone": _cone,
    "sphere": _sphere,
    "capsule": _capsule,
    "torus": _torus,
    "vase": _vase,
}
SHAPES = ("box", "prism", "gem", *_PROFILES)


def _turn(runs: list[_Run], segments: int, smooth: bool) -> Solid:
    """Turn a profile around Y; `smooth` rounds it, else every segment is a flat facet."""
    lengths = [float(np.hypot(np.diff(run.radius), np.diff(run.height)).sum()) for run in runs]
    ends = np.concatenate([[0.0], np.cumsum(lengths)]) / sum(lengths)
    if smooth:
        columns = np.linspace(0, 2 * np.pi, segments + 1)
        facing = columns
        pairs = np.arange(segments)
        across = np.linspace(0, 1, segments + 1)
    else:
        corners = np.linspace(0, 2 * np.pi, segments + 1)
        columns = np.stack([corners[:-1], corners[1:]], axis=1).ravel()
        facing = np.repeat((corners[:-1] + corners[1:]) / 2, 2)
        pairs = np.arange(0, 2 * segments, 2)
        across = columns / (2 * np.pi)
    positions, normals, uv, triangles = [], [], [], []
    first = 0
    for run, low, high in zip(runs, ends[:-1], ends[1:], strict=True):
        rows = len(run.radius)
        slope = np.stack([np.gradient(run.height), -np.gradient(run.radius)], axis=1)  # [R, 2] outward, upward
        slope /= np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
        shape = (rows, len(columns))
        positions.append(
            np.stack(
                [
                    run.radius[:, None] * np.sin(columns),
                    np.broadcast_to(run.height[:, None], shape),
                    run.radius[:, None] * np.cos(columns),
                ],
                axis=2,
            ).reshape(-1, 3)
        )
        normals.append(
            np.stack(
                [slope[:, :1] * np.sin(facing), np.broadcast_to(slope[:, 1:], shape), slope[:, :1] * np.cos(facing)],
                axis=2,
            ).reshape(-1, 3)
        )
        along = np.linspace(low, high, rows)
        uv.append(
            np.stack(
                [np.broadcast_to(across, shape), np.broadcast_to(1 - along[:, None], shape)],
                axis=2,
            ).reshape(-1, 2)
        )
        row, column = np.meshgrid(np.arange(rows - 1), pairs, indexing="ij")
        corner = (first + row * len(columns) + column).ravel()
        above = corner + len(columns)
        triangles += [
            np.stack([corner, corner + 1, above + 1], axis=1),
            np.stack([corner, above + 1, above], axis=1),
        ]
        first += rows * len(columns)
    return Solid(*_solid(positions, normals, uv, triangles))


_FACES = (  # (outward, right)
    ((0, 0, 1), (1, 0, 0)),
    ((1, 0, 0), (0, 0, -1)),
    ((0, 0, -1), (-1, 0, 0)),
    ((-1, 0, 0), (0, 0, 1)),
    ((0, 1, 0), (1, 0, 0)),
    ((0, -1, 0), (1, 0, 0)),
)


def _box(steps: int) -> Solid:
    grid = np.linspace(-0.5, 0.5, steps + 1)
    across, along = (axis.ravel() for axis in np.meshgrid(grid, grid, indexing="xy"))
    row, column = (axis.ravel() for axis in np.meshgrid(np.arange(steps), np.arange(steps), indexing="ij"))
    corner = row * (steps + 1) + column
    quads = np.concatenate(
        [
            np.stack([corner, corner + 1, corner + steps + 2], axis=1),
            np.stack([corner, corner + steps + 2, corner + steps + 1], axis=1),
        ]
    )
    positions, normals, uv, triangles = [], [], [], []
    for number, (outward, right) in enumerate(_FACES):
        normal, tangent = np.array(outward, float), np.array(right, float)
        up = np.cross(normal, tangent)
        positions.append(0.5 * normal + across[:, None] * tangent + along[:, None] * up)
        normals.append(np.broadcast_to(normal, positions[-1].shape))
        uv.append(np.stack([across + 0.5, 0.5 - along], axis=1))
        triangles.append(quads + number * len(across))
    return Solid(*_solid(positions, normals, uv, triangles))


def _solid(
    positions: list[Array], normals: list[Array], uv: list[Array], triangles: list[NDArray[np.int64]]
) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    return np.concatenate(positions), np.concatenate(normals), np.concatenate(uv), np.concatenate(triangles)

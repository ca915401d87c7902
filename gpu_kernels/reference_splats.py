"""Splats drawn slowly: the splat by splat, float64 twin of the kernels, written from spec/rendering.md alone.

Belongs here: `draw`, for tests to compare backends with. Does not: anything that a program calls.
"""

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.camera import View
from gpu_kernels.splats import Splats


def draw(splats: Splats, view: View) -> NDArray[np.uint8]:
    """[size, size, 3] picture of the normalised splats in one view."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return _draw(splats, view)


def _draw(splats: Splats, view: View) -> NDArray[np.uint8]:
    positions = splats.positions.astype(np.float64)
    shrink = 1.5 / np.ptp(positions, axis=0).max()
    opacities = np.clip(1 / (1 + np.exp(-splats.opacities.astype(np.float64))) / shrink, 0, 1)
    colours = 0.5 + 0.28209479 * splats.colours.astype(np.float64)
    turns = np.stack([_rotation(quaternion) for quaternion in splats.rotations.astype(np.float64)])
    axes = turns * (shrink * np.exp(splats.log_scales.astype(np.float64)))[:, None, :]

    world_to_camera = np.stack([view.right, -view.up, view.forward])
    x, y, z = world_to_camera @ ((positions - positions.mean()) * shrink).T - (world_to_camera @ view.eye)[:, None]
    # Splats of an SPZ lie on a grid: from 120 degrees some are exactly as far as others, but for rounding.
    z = np.round(z, 11)
    edge = view.size / 2 / view.focal * 1.3
    kept = np.flatnonzero((z >= 0.01) & (z <= 100) & (opacities >= 1 / 255))
    light = np.zeros((view.size, view.size, 3))
    transmittance = np.ones((view.size, view.size))
    stopped = np.zeros((view.size, view.size), bool)
    for n in kept[np.argsort(z[kept], kind="stable")]:
        tx, ty = z[n] * np.clip([x[n] / z[n], y[n] / z[n]], -edge, edge)
        jacobian = view.focal / z[n] * np.array([[1, 0, -tx / z[n]], [0, 1, -ty / z[n]]])
        half = jacobian @ world_to_camera @ axes[n]
        covariance = half @ half.T + 0.3 * np.eye(2)
        determinant = np.linalg.det(covariance)
        if not (np.isfinite(covariance).all() and 0 < determinant < np.inf):
            continue
        centre = view.focal * np.array([x[n], y[n]]) / z[n] + view.size / 2
        radii = np.ceil(min(3.33, np.sqrt(2 * np.log(255 * opacities[n]))) * np.sqrt(np.diag(covariance)))
        left, top = (int(tile) * 16 for tile in np.clip(np.floor((centre - radii) / 16), 0, view.size))
        right, bottom = (int(tile) * 16 for tile in np.clip(np.ceil((centre + radii) / 16), 0, view.size))
        part = np.s_[top:bottom, left:right]
        rows, columns = np.mgrid[top : min(bottom, view.size), left : min(right, view.size)] + 0.5
        inverse = np.linalg.inv(covariance)
        dx, dy = columns - centre[0], rows - centre[1]
        q = (inverse[0, 0] * dx * dx + inverse[1, 1] * dy * dy) / 2 + inverse[0, 1] * dx * dy
        alpha = np.minimum(0.999, opacities[n] * np.exp(-q))
        seen = (q >= 0) & (alpha >= 1 / 255) & ~stopped[part]
        after = transmittance[part] * (1 - alpha)
        stopped[part] |= seen & (after <= 1e-4)
        seen &= after > 1e-4
        light[part] += np.where(seen, alpha * transmittance[part], 0)[..., None] * colours[n]
        transmittance[part] = np.where(seen, after, transmittance[part])
    return (np.clip(light + transmittance[..., None], 0, 1) * 255).astype(np.uint8)


def _rotation(quaternion: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(quaternion)
    if length == 0:
        return np.eye(3)
    w, x, y, z = quaternion / length
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross

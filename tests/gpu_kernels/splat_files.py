"""Splats for tests of file formats."""

import numpy as np

from gpu_kernels.splats import Splats


def make_splats(count: int, seed: int = 0) -> Splats:
    """Random splats in the cube of a preview, with unit quaternions."""
    random = np.random.default_rng(seed)

    def uniform(low: float, high: float, *shape: int) -> np.ndarray:
        return random.uniform(low, high, shape).astype(np.float32)

    rotations = random.normal(size=(count, 4))
    return Splats(
        positions=uniform(-0.5, 0.5, count, 3),
        log_scales=uniform(-9, 0, count, 3),
        rotations=(rotations / np.linalg.norm(rotations, axis=1, keepdims=True)).astype(np.float32),
        opacities=uniform(-6, 6, count),
        colours=uniform(-3, 3, count, 3),
    )


def assert_same(one: Splats, other: Splats) -> None:
    for name in ("positions", "log_scales", "rotations", "opacities", "colours"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)

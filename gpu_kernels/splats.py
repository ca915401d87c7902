"""Decoded Gaussian splats: what every splat backend draws and every splat reader produces.

Belongs here: the arrays as files store them, and the limits and checks that make them safe to hand to a kernel.
Does not: file formats (`ply`, `spz`), activations and pictures (the kernels).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.errors import UnreadableModel

Floats = NDArray[np.float32]

MAX_SPLATS = 5_000_000
EXTENTS = (
    1e-30,
    1e30,
)  # of the centres' largest axis: beyond these, 1.5 / extent does not leave float32 room to compute
MAX_OFFSET = 1e6  # extents between the origin and a centre: further away, float32 no longer tells centres apart


@dataclass(frozen=True)
class Splats:
    """Gaussians in the file's own coordinates and encoding; spherical harmonics beyond degree 0 are not kept.

    Raises UnreadableModel when the arrays do not fit together, are too many, hold numbers that are not finite, or have
    centres that cannot be scaled to a preview (spec "Gaussian splats", rule 2).
    """

    positions: Floats  # [N, 3]
    log_scales: Floats  # [N, 3], natural logarithm
    rotations: Floats  # [N, 4] quaternion wxyz, any length
    opacities: Floats  # [N], before the sigmoid; +-inf stands for exactly 1 and 0
    colours: Floats  # [N, 3], coefficient of spherical harmonic 0 (f_dc)

    def __post_init__(self) -> None:
        count = len(self.positions)
        if not count:
            raise UnreadableModel("no splats")
        if count > MAX_SPLATS:
            raise UnreadableModel(f"{count} splats, at most {MAX_SPLATS} are allowed")
        arrays = {
            "positions": (self.positions, (count, 3)),
            "scales": (self.log_scales, (count, 3)),
            "rotations": (self.rotations, (count, 4)),
            "opacities": (self.opacities, (count,)),
            "colours": (self.colours, (count, 3)),
        }
        for name, (array, shape) in arrays.items():
            if array.dtype != np.float32 or array.shape != shape or not array.flags.c_contiguous:
                raise UnreadableModel(f"{name}: {array.dtype}{list(array.shape)}, expected float32{list(shape)}")
            finite = not np.isnan(array).any() if name == "opacities" else bool(np.isfinite(array).all())
            if not finite:
                raise UnreadableModel(f"{name} are not all finite numbers")
        low, high = (
            np.array([edge(self.positions[:, axis]) for axis in range(3)], np.float64) for edge in (np.min, np.max)
        )
        extent, reach = float((high - low).max()), float(max(-low.min(), high.max()))
        if extent == 0:
            raise UnreadableModel("all splats have the same centre")
        if not EXTENTS[0] <= extent <= EXTENTS[1]:
            raise UnreadableModel(f"the centres extend over {extent:.4g}, outside {EXTENTS[0]:g} to {EXTENTS[1]:g}")
        if reach > MAX_OFFSET * extent:
            raise UnreadableModel(f"the centres extend over {extent:.4g} only, {reach:.4g} away from the origin")

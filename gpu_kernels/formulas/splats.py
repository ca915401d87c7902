"""Formulas of a Gaussian splat: activation, covariance, projection, and what it covers of a pixel.

Belongs here: spec/rendering.md "Gaussian splats" 1, 2, 4 and 5, for one splat in one view, or one splat on one pixel.
Does not: sorting, tiles, compositing loops (the backends).
Projection is in float64, so that depth order and edges are those of the exact formula; pixels are in float32.
"""

# A formula's types are its callers'.
# mypy: disable-error-code="no-untyped-def"

import math

import numpy as np

from gpu_kernels.formulas import formula

EXTENT = 1.5  # side of the normalised scene, world units
NEAR, FAR = 0.01, 100.0  # world units
BLUR = 0.3  # pixels^2 added to the diagonal of every 2D covariance
MAX_SIGMAS = 3.33
LARGEST_EXPONENT = 300.0  # e^300 squared is still a float64; no picture can tell a larger scale

LEAST_ALPHA = np.float32(1 / 255)
MOST_ALPHA = np.float32(0.999)
LEAST_TRANSMITTANCE = np.float32(1e-4)
SH_C0 = np.float32(0.28209479)

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_EIGHTH = np.float32(1 / 8)
_FARTHEST = np.float32(5.6)  # e^-5.6 < 1/255
# e^-u on 0..0.7, degree 5 through the Chebyshev nodes: relative error 1e-7.
_C0, _C1, _C2, _C3, _C4, _C5 = (
    np.float32(c)
    for c in np.polynomial.Chebyshev.interpolate(lambda u: np.exp(-u), 5, [0, 0.7])
    .convert(kind=np.polynomial.Polynomial)
    .coef
)


@formula
def activate_opacity(logit, shrink):
    """clip(sigmoid(logit) / shrink, 0, 1); shrink: the factor that normalised the scene."""
    return min(1.0 / (1.0 + math.exp(min(-logit, LARGEST_EXPONENT))) / shrink, 1.0)


@formula
def activate_scale(log_scale, shrink):
    """World units after normalisation."""
    return shrink * math.exp(min(log_scale, LARGEST_EXPONENT))


@formula
def covariance(w, x, y, z, sx, sy, sz):
    """xx, xy, xz, yy, yz, zz of R diag(s^2) R', R from a quaternion of any length; length 0 stands for no rotation."""
    squared = w * w + x * x + y * y + z * z
    two = 2.0 / squared if squared > 0.0 else 0.0
    r00, r01, r02 = 1.0 - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)
    r10, r11, r12 = two * (x * y + w * z), 1.0 - two * (x * x + z * z), two * (y * z - w * x)
    r20, r21, r22 = two * (x * z - w * y), two * (y * z + w * x), 1.0 - two * (x * x + y * y)
    sx, sy, sz = sx * sx, sy * sy, sz * sz
    return (
        r00 * r00 * sx + r01 * r01 * sy + r02 * r02 * sz,
        r00 * r10 * sx + r01 * r11 * sy + r02 * r12 * sz,
        r00 * r20 * sx + r01 * r21 * sy + r02 * r22 * sz,
        r10 * r10 * sx + r11 * r11 * sy + r12 * r12 * sz,
        r10 * r20 * sx + r11 * r21 * sy + r12 * r22 * sz,
        r20 * r20 * sx + r21 * r21 * sy + r22 * r22 * sz,
    )


@formula
def sigmas(opacity):
    """How many standard deviations out alpha falls to 1/255; 0 for a splat that is nowhere so opaque."""
    return min(MAX_SIGMAS, math.sqrt(2.0 * math.log(255.0 * opacity))) if opacity >= 1.0 / 255.0 else 0.0


@formula
def depth(x, y, z, view):
    """Distance along the view's axis, world units; view: the 17 numbers of `View.packed`, a tuple."""
    origin = view[0] * view[9] + view[1] * view[10] + view[2] * view[11]
    return x * view[9] + y * view[10] + z * view[11] - origin


@formula
def project(x, y, z, xx, xy, xz, yy, yz, zz, reach, view):
    """(x, y) in pixels (y down), conic a, b, c in 1/pixels^2, half width and half height in pixels.

    Half width 0: culled (behind, too far, outside the picture, or without a finite covariance).
    (x, y, z): centre, world units; xx..zz: covariance; reach: `sigmas`; view: the 17 numbers of `View.packed`, a tuple.
    EWA splatting, Zwicker et al. 2001; the Jacobian's direction is clamped as gsplat's persp_proj does.
    """
    distance = depth(x, y, z, view)
    if not (distance >= NEAR and distance <= FAR):
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    x, y, z = x - view[0], y - view[1], z - view[2]
    focal, size = view[15], view[16]
    centre = 0.5 * size
    over = 1.0 / distance
    across = (x * view[3] + y * view[4] + z * view[5]) * over
    down = -(x * view[6] + y * view[7] + z * view[8]) * over
    limit = 1.3 * centre / focal
    u = min(max(across, -limit), limit)
    v = min(max(down, -limit), limit)
    # Rows of J W: the change of the picture's x and y, in pixels, along each world axis.
    scale = focal * over
    xa = scale * (view[3] - u * view[9])
    xb = scale * (view[4] - u * view[10])
    xc = scale * (view[5] - u * view[11])
    ya = scale * (-view[6] - v * view[9])
    yb = scale * (-view[7] - v * view[10])
    yc = scale * (-view[8] - v * view[11])
    sa, sb, sc = xx * xa + xy * xb + xz * xc, xy * xa + yy * xb + yz * xc, xz * xa + yz * xb + zz * xc
    s00 = xa * sa + xb * sb + xc * sc + BLUR
    s01 = ya * sa + yb * sb + yc * sc
    sa, sb, sc = xx * ya + xy * yb + xz * yc, xy * ya + yy * yb + yz * yc, xz * ya + yz * yb + zz * yc
    s11 = ya * sa + yb * sb + yc * sc + BLUR
    determinant = s00 * s11 - s01 * s01
    if not (determinant > 0.0 and determinant < math.inf):
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    over = 1.0 / determinant
    x, y = centre + focal * across, centre + focal * down
    half_width, half_height = reach * math.sqrt(s00), reach * math.sqrt(s11)
    if not (x + half_width > 0.0 and x - half_width < size and y + half_height > 0.0 and y - half_height < size):
        half_width = 0.0
    return x, y, s11 * over, -s01 * over, s00 * over, half_width, half_height


@formula
def cover(dx, dy, a, b, c, opacity):
    """Alpha (float32) at a pixel (dx, dy) pixels from the centre; 0 where the splat is skipped.

    min(0.999, opacity e^-q), q = (a dx^2 + 2 b dx dy + c dy^2) / 2; skipped where q < 0 or alpha < 1/255.
    """
    q = _HALF * (a * dx * dx + c * dy * dy) + b * dx * dy
    u = min(q, _FARTHEST) * _EIGHTH
    # e^-q as the eighth power of a polynomial: vectorises, and rounds the same on every processor.
    e = _C0 + u * (_C1 + u * (_C2 + u * (_C3 + u * (_C4 + u * _C5))))
    e *= e
    e *= e
    e *= e
    alpha = min(opacity * e, MOST_ALPHA)
    return alpha if (q >= _ZERO) & (alpha >= LEAST_ALPHA) else _ZERO

"""The distance of two vectors from their sums of products."""

import math

from gpu_kernels.formulas import formula


@formula
def cosine_distance(dot, aa, bb):  # type: ignore[no-untyped-def]
    """1 - a.b / (|a| |b|) from a.b, a.a and b.b, all float64: in [0, 2], exactly 0 for a = b, NaN for 0."""
    distance = 1.0 - dot / math.sqrt(aa * bb)
    if distance < 0.0:
        return 0.0
    if distance > 2.0:
        return 2.0
    return distance

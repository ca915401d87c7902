"""What the launches of this package share: sizes of grids, and views that can be drawn at once.

Belongs here: arithmetic on the processor's side of a launch. Does not: kernels.
"""

from collections.abc import Iterator, Sequence

from gpu_kernels.camera import View
from gpu_kernels.registry import Picture


def covering(count: int, block: int) -> int:
    """Blocks that hold count threads or pixels; at least one, for a grid must not be empty."""
    return max(1, -(-count // block))


def by_size(views: Sequence[View], pictures: Sequence[Picture]) -> Iterator[tuple[int, list[View], list[Picture]]]:
    """Views and pictures of one size at a time."""
    pairs = list(zip(views, pictures, strict=True))
    for size in dict.fromkeys(view.size for view in views):
        same = [pair for pair in pairs if pair[0].size == size]
        yield size, [view for view, _ in same], [picture for _, picture in same]

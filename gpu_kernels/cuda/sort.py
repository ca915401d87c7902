"""Lists of what may be seen in each tile: running totals, one stable sort for all views, ranges.

Belongs here: what the kernels leave to a library, PyTorch (its sort is CUB's radix sort), and the one kernel on its
result. Arrays are shared with PyTorch where they lie. Under Numba's simulator NumPy takes its place.
Does not: what is listed, and by which key.
"""

# A kernel's types are those of its arguments.
# mypy: disable-error-code="no-untyped-def, call-arg, var-annotated"

from typing import Any

import numpy as np
from numba import config, cuda
from numpy.typing import NDArray

from gpu_kernels.cuda.launch import covering

_THREADS = 128
_SIMULATED = bool(getattr(config, "ENABLE_CUDASIM", False))


def available() -> bool:
    """Whether there is a library that sorts on the device."""
    if _SIMULATED:
        return True
    import torch

    return torch.cuda.is_available()


def running_total(counts: Any) -> tuple[Any, NDArray[np.int64]]:
    """[V, N] running total of counts [V, N] on the device, int64, and [V] what each row adds to it."""
    if _SIMULATED:
        summed = np.cumsum(counts.copy_to_host(), dtype=np.int64).reshape(counts.shape)
        return cuda.to_device(summed), np.diff(summed[:, -1], prepend=0)
    import torch

    total = torch.as_tensor(counts, device="cuda").flatten().cumsum(0, dtype=torch.int64).reshape(counts.shape)
    return cuda.as_cuda_array(total), np.diff(total[:, -1].cpu().numpy(), prepend=0)


def sort_pairs(keys: Any, values: Any) -> tuple[Any, Any]:
    """Keys [N] in ascending order with their values, stably, on the device."""
    if _SIMULATED:
        order = np.argsort(keys.copy_to_host(), kind="stable")
        return cuda.to_device(keys.copy_to_host()[order]), cuda.to_device(values.copy_to_host()[order])
    import torch

    ordered, places = torch.sort(torch.as_tensor(keys, device="cuda"), stable=True)
    return cuda.as_cuda_array(ordered), cuda.as_cuda_array(torch.as_tensor(values, device="cuda")[places])


@cuda.jit
def find_ranges(keys, shift, ranges):
    """First and last + 1 of the sorted keys of each tile (key >> shift) into ranges [tiles, 2]. One thread a key."""
    n = cuda.grid(1)
    if n >= keys.shape[0]:
        return
    tile = keys[n] >> shift
    if n == 0 or keys[n - 1] >> shift != tile:
        ranges[tile, 0] = n
    if n == keys.shape[0] - 1 or keys[n + 1] >> shift != tile:
        ranges[tile, 1] = n + 1


def tile_ranges(keys: Any, shift: int, tiles: int) -> Any:
    """[tiles, 2] on the device, as `find_ranges`; empty for a tile without keys."""
    ranges = cuda.to_device(np.zeros((tiles, 2), np.int64))
    if len(keys):
        find_ranges[covering(len(keys), _THREADS), _THREADS](keys, shift, ranges)
    return ranges

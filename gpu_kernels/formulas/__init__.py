"""Scalar formulas of the pictures: one source, compiled for CPU by numba.njit and for CUDA by cuda.jit(device=True).

Belongs here: pure functions of numbers (no arrays, `math` functions only, float32 where marked), decorated `formula`.
Does not: loops over pixels or primitives, memory, threads; those are each backend's own.

A formula carries no explicit signature: Numba's CUDA target compiles the Python function behind an njit dispatcher as a
device function of its own, which it refuses for one with signatures. Under the CUDA simulator the compiled CPU function
is called, to which the simulator's arrays mean nothing: tuples and numbers only.
No fast math: reciprocal approximations and fused operations differ between processors, and with them the bytes.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

formula = njit(error_model="numpy", nogil=True, forceinline=True)

_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


def kernel(signature: object) -> Callable[[Callable[..., Any]], Any]:
    """njit for one signature, cached on disk; compiled anew when its own file or any formula has changed.

    Numba alone looks at the kernel's file only: with a changed formula it would go on drawing the old picture. It also
    writes the index before the code: killed in between, the next process would find older code under the old name.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher: Any = njit(error_model="numpy", nogil=True, boundscheck=False)(function)
        dispatcher.enable_caching()
        index = dispatcher._cache._cache_file
        index._source_stamp = (index._source_stamp, _SOURCES)
        version = hashlib.sha256(repr(index._source_stamp).encode()).hexdigest()[:16]
        index._data_name_pattern = index._data_name_pattern.replace("{number:d}", f"{version}.{{number:d}}")
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return compiled

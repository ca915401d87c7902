"""CUDA as a backend: which device, or what is missing.

Belongs here: `probe`, and the imports of the kernels that wait until something is drawn.
Does not: kernels. The driver is asked directly: without a context, which a process that forks must not have.
"""

import ctypes
import importlib.util
import os
import warnings
from collections.abc import Sequence

from gpu_kernels.camera import View
from gpu_kernels.mesh import Mesh
from gpu_kernels.registry import Backend, Picture
from gpu_kernels.splats import Splats


def probe() -> Backend:
    """Available with numba-cuda and an NVIDIA device; draws splats where PyTorch, which sorts for it, has CUDA too."""
    try:
        device = _first_device()
    except OSError as error:
        return Backend("cuda", False, f"no CUDA device: {error}")
    if importlib.util.find_spec("numba_cuda") is None:
        return Backend("cuda", False, "numba-cuda is not installed: pip install 'gen404-dagster[gpu]'")
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0":
        return Backend("cuda", False, "NUMBA_ENABLE_CUDASIM is set: the simulator is for tests")
    try:
        import torch

        if torch.cuda.is_available():
            return Backend("cuda", True, device, _draw_mesh, _draw_splats)
        obstacle = "has no CUDA"
    except Exception as error:  # a broken installation may raise anything; it must not take the other backends with it
        obstacle = f"fails: {' '.join(str(error).split())[:200]}"
    return Backend("cuda", True, f"{device}; meshes only: torch, which sorts splats, {obstacle}", _draw_mesh)


def _first_device() -> str:
    """Name and memory of the first device; OSError, in the driver's words, where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise OSError("the NVIDIA driver (libcuda.so.1) is missing") from None

    def ask(question: str, *arguments: object) -> None:
        if code := getattr(driver, question)(*arguments):
            words = ctypes.c_char_p()
            driver.cuGetErrorString(code, ctypes.byref(words))
            raise OSError(f"{question}: {(words.value or b'').decode(errors='replace') or f'error {code}'}")

    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    ask("cuInit", 0)
    ask("cuDeviceGet", ctypes.byref(device), 0)
    ask("cuDeviceGetName", name, len(name), device)
    ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    return f"{name.value.decode(errors='replace')}, {memory.value / 2**30:.0f} GiB"


def _draw_mesh(mesh: Mesh, views: Sequence[View], pictures: Sequence[Picture]) -> None:
    from gpu_kernels.cuda.mesh import draw_mesh

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*under-utilization.*")  # a small model is small
        draw_mesh(mesh, views, pictures)


def _draw_splats(splats: Splats, views: Sequence[View], pictures: Sequence[Picture]) -> None:
    from gpu_kernels.cuda.splats import draw_splats

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*under-utilization.*")
        draw_splats(splats, views, pictures)

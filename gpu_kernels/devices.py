"""Is there a graphics card that PyTorch can compute on.

Belongs here: the question, asked cheaply. Does not: what is drawn with it (each backend).
"""

import ctypes
import shutil


def torch_cuda_obstacle() -> str:
    """What keeps PyTorch's CUDA extensions from running here; empty when nothing does. Imports torch only if needed."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA device: the NVIDIA driver (libcuda.so.1) is missing"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install it from PyTorch's CUDA index"
    if not torch.cuda.is_available():
        return "no CUDA device: torch.cuda.is_available() says no"
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None or shutil.which("ninja") is None:
        return "its kernels are compiled on first use, which needs the CUDA toolkit (nvcc) and ninja on the PATH"
    return ""


def torch_device_name() -> str:
    """Of the device that PyTorch uses; only where there is no obstacle."""
    import torch

    return str(torch.cuda.get_device_name())

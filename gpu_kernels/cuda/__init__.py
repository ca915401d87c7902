"""The pictures of `gpu_kernels.cpu` on an NVIDIA device, with the same formulas: kernels for `numba.cuda`.

Belongs here: one module a model kind, and `backend`, which says whether there is a device.
Does not: formulas (`gpu_kernels.formulas`, compiled for the device as they stand).
"""

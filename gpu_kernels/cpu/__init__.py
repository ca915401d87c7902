"""Numba kernels for the processor.

Belongs here: one module a kind of model (`mesh`, `splats`), the resolve they need, and the backend that offers them.
Kernels release the GIL and share no output; their callers spread them over `threads`. Does not: files, grids, PNG.
"""

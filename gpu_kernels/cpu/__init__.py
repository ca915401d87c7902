"""Numba kernels for the processor.

Belongs here: one module a kind of model (`mesh` today), kernels that release the GIL and never start threads of their
own: callers parallelise over files. Does not: files, grids, PNG.
"""

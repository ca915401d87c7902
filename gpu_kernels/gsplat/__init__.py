"""Drawing splats with gsplat, the library that the public service uses; CUDA only.

Belongs here: our definition of a preview in gsplat's terms. Does not: kernels of our own (`cuda`).
"""

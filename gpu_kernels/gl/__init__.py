"""Drawing meshes with OpenGL: on a graphics card without CUDA, and as an independent picture to compare with.

Belongs here: the context, the shaders, one draw call. Does not: splats, decoding, the choice of a backend.
"""

"""Drawing meshes with nvdiffrast: CUDA, opt-in, and licensed for research and evaluation only.

Belongs here: visibility by nvdiffrast, shading in PyTorch. Does not: anything that is used unless named.
"""

"""Any model file to what it holds.

Belongs here: telling formats apart by their first bytes.
Does not: reading them (`gltf`, `ply`, `spz`), what a preview further asks of a model.
"""

from gpu_kernels.errors import UnreadableModel
from gpu_kernels.mesh import Mesh
from gpu_kernels.splats import Splats


def load_model(data: bytes | bytearray | memoryview) -> Mesh | Splats:
    """Decode a GLB, PLY or SPZ file, known by its first bytes; a file's name counts for nothing.

    Raises UnreadableModel, and nothing else, for a file that is refused.
    """
    # Imported here: one file needs one reader, and each brings its own libraries.
    head = bytes(memoryview(data)[:4])
    if head == b"glTF":
        from gpu_kernels.gltf import load_glb

        return load_glb(data)
    if head.startswith(b"ply"):
        from gpu_kernels.ply import load_ply

        return load_ply(data)
    from gpu_kernels.spz import GZIP_MAGIC, ZSTD_MAGIC, load_spz

    if head.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
        return load_spz(data)
    raise UnreadableModel("not a GLB, PLY or SPZ file")

"""The store of 3D files, previews and the judge's answers: objects by key, whole or absent.

`protocol` is the contract of every store, `local` a folder, `s3` Cloudflare R2 or any other S3. Does not belong here:
which key an object has (`competition.paths.object_key`), where its bytes come from (`resources.cdn`,
`resources.renderer`).

An object is written once: the same content again is nothing new, other content is refused unless it is asked for.
`s3` is imported where it is used: its packages are optional.
"""

from gen404_dagster.resources.object_store.local import LocalObjectStore
from gen404_dagster.resources.object_store.protocol import (
    CHUNK_BYTES,
    GLB,
    MAX_KEY_BYTES,
    PNG,
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    ObjectWriter,
    StoredObject,
)

__all__ = [
    "CHUNK_BYTES",
    "GLB",
    "MAX_KEY_BYTES",
    "PNG",
    "LocalObjectStore",
    "ObjectExists",
    "ObjectMissing",
    "ObjectStore",
    "ObjectWriter",
    "StoredObject",
]

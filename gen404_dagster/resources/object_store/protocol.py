"""What every object store answers, and which keys and prefixes there are.

Belongs here: the contract. Does not: a form of it (`local`, `s3`).
"""

import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import quote, unquote

from gen404_dagster.errors import OperatorError

CHUNK_BYTES = 1024**2
MAX_KEY_BYTES = 1024

GLB, PNG = "model/gltf-binary", "image/png"
"""Content types of the 3D files and of their previews."""


class ObjectMissing(OperatorError):
    """The store has no such object. Names the key."""


class ObjectExists(OperatorError):
    """The store has another object of this key, and objects are written once. Names the key."""


@dataclass(frozen=True)
class StoredObject:
    key: str
    size: int
    sha256: str
    content_type: str


class ObjectWriter(Protocol):
    """Takes an object piece by piece; it becomes visible, whole, when the `with` block ends without an exception.

    Calls block, so asynchronous code makes them in a thread; they need not come from one and the same thread.
    """

    def write(self, chunk: bytes) -> None: ...

    def commit(self) -> StoredObject:
        """Make the object visible now. Raises ObjectExists."""

    def abort(self) -> None:
        """Leave nothing behind. No effect after `commit`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ObjectStore(Protocol):
    """Objects by key. Every form keeps the same contract; `tests/resources/test_object_store.py` runs over all."""

    def put(self, key: str, data: bytes, content_type: str, overwrite: bool = False) -> StoredObject:
        """Store an object. The same content again is a no-op; other content raises ObjectExists unless `overwrite`."""

    def writer(self, key: str, content_type: str, overwrite: bool = False) -> ObjectWriter: ...

    def read(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing."""

    def chunks(self, key: str, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The object piece by piece. Raises ObjectMissing before the first piece."""

    def stat(self, key: str) -> StoredObject | None: ...

    def exists(self, key: str) -> bool: ...

    def url(self, key: str) -> str:
        """Public address, as the state files record it."""

    def key_of(self, url: str) -> str | None:
        """Key of an object of this store by its address; None for any other address."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Keys that begin with `prefix`, in order."""

    def delete(self, key: str) -> None:
        """Remove an object, if it is there. Only for what nothing refers to."""


def checked_key(key: str) -> str:
    """The key, if it is one: relative, printable, and safe as a path. Raises OperatorError."""
    parts = key.split("/")
    if (
        not key.isprintable()
        or "\\" in key
        or len(key.encode(errors="replace")) > MAX_KEY_BYTES
        or any(not part or part.startswith(".") or len(part.encode(errors="replace")) > 255 for part in parts)
    ):
        raise OperatorError(f"no key of an object: {key[:200]!r}")
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix, if keys may begin with it. Raises OperatorError."""
    if prefix.startswith("/") or "\\" in prefix or any(part.startswith(".") for part in prefix.split("/")):
        raise OperatorError(f"no prefix of objects: {prefix[:200]!r}")
    return prefix


def guessed_type(key: str) -> str:
    """Content type of an object that somebody stored without one."""
    return mimetypes.guess_type(key)[0] or "application/octet-stream"


def public_url(base_url: str, key: str) -> str:
    return f"{base_url}/{quote(key)}"


def key_of_url(base_url: str, url: str) -> str | None:
    if not url.startswith(f"{base_url}/"):
        return None
    try:
        return checked_key(unquote(url[len(base_url) + 1 :], errors="strict"))
    except (OperatorError, UnicodeDecodeError):
        return None

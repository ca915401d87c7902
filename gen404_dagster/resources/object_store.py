"""The store of 3D files, previews and the judge's answers: objects by key, whole or absent.

Belongs here: the protocol that every store keeps, and the local folder. Does not: which key an object has
(`competition.paths.object_key`), where its bytes come from (`resources.cdn`, `resources.renderer`).

An object is written once: the same content again is nothing new, other content is refused unless it is asked for.
"""

import fcntl
import hashlib
import json
import mimetypes
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import quote, unquote

from gen404_dagster.errors import OperatorError, Unavailable

CHUNK_BYTES = 1024**2
MAX_KEY_BYTES = 1024

_PARTIAL = ".partial"
_FACTS = ".facts"

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


def public_url(base_url: str, key: str) -> str:
    return f"{base_url}/{quote(key)}"


def key_of_url(base_url: str, url: str) -> str | None:
    if not url.startswith(f"{base_url}/"):
        return None
    try:
        return checked_key(unquote(url[len(base_url) + 1 :], errors="strict"))
    except (OperatorError, UnicodeDecodeError):
        return None


class LocalObjectStore:
    """A folder of files, served to others at `base_url`.

    Size, digest and content type stand beside the objects in `.facts`, bound to the file's inode and time, so that
    facts of another file are never believed; what is missing there is computed. Unfinished objects lie in `.partial`,
    locked by their writer: those of dead writers are swept when a store is opened.
    """

    def __init__(self, root: Path, base_url: str) -> None:
        self.root = Path(root).absolute()
        self.base_url = base_url.rstrip("/")
        try:
            (self.root / _PARTIAL).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OperatorError(f"the store's folder {self.root} cannot be used: {error.strerror}") from error
        self.sweep()

    def put(self, key: str, data: bytes, content_type: str, overwrite: bool = False) -> StoredObject:
        with self.writer(key, content_type, overwrite) as sink:
            sink.write(data)
            return sink.commit()

    def writer(self, key: str, content_type: str, overwrite: bool = False) -> "LocalWriter":
        return LocalWriter(self, checked_key(key), content_type, overwrite)

    def read(self, key: str) -> bytes:
        return b"".join(self.chunks(key))

    def chunks(self, key: str, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        try:
            file = open(self.path(key), "rb")  # noqa: SIM115 (closed by the generator)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise ObjectMissing(f"no object {key} in {self.root}") from error

        def pieces() -> Iterator[bytes]:
            with file:
                while piece := file.read(size):
                    yield piece

        return pieces()

    def stat(self, key: str) -> StoredObject | None:
        try:
            with open(self.path(key), "rb") as file:
                found = os.fstat(file.fileno())
                facts = self._facts(key, found)
                if facts is None:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    content_type = mimetypes.guess_type(key)[0] or "application/octet-stream"
                    facts = StoredObject(key, found.st_size, digest, content_type)
                    self._keep_facts(facts, found)
                return facts
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def url(self, key: str) -> str:
        return public_url(self.base_url, checked_key(key))

    def key_of(self, url: str) -> str | None:
        return key_of_url(self.base_url, url)

    def list(self, prefix: str = "") -> Iterator[str]:
        if prefix.startswith("/") or "\\" in prefix or any(part.startswith(".") for part in prefix.split("/")):
            raise OperatorError(f"no prefix of objects: {prefix[:200]!r}")
        folder = prefix.rpartition("/")[0]
        yield from sorted(key for key in self._walk(self.root / folder) if key.startswith(prefix))

    def path(self, key: str) -> Path:
        """File of an object, there or not."""
        return self.root / checked_key(key)

    def sweep(self) -> None:
        """Remove what killed writers left: a partial file that nobody locks."""
        for path in (self.root / _PARTIAL).glob("*.part"):
            try:
                with open(path, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            except OSError:  # locked by a writer that lives, or just gone
                continue

    def _walk(self, folder: Path) -> Iterator[str]:
        for base, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            where = Path(base).relative_to(self.root)
            yield from ((where / name).as_posix() for name in files if not name.startswith("."))

    def _facts(self, key: str, found: os.stat_result) -> StoredObject | None:
        try:
            facts = json.loads(self._facts_path(key).read_bytes())
            if facts["file"] != _identity(found):
                return None
            return StoredObject(key, found.st_size, str(facts["sha256"]), str(facts["content_type"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep_facts(self, stored: StoredObject, found: os.stat_result) -> None:
        path = self._facts_path(stored.key)
        facts = {"file": _identity(found), "sha256": stored.sha256, "content_type": stored.content_type}
        with suppress(OSError):  # only saves computing them
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(f".{uuid.uuid4().hex}")
            fresh.write_text(json.dumps(facts))
            fresh.replace(path)

    def _facts_path(self, key: str) -> Path:
        return self.root / _FACTS / f"{key}.json"


class LocalWriter:
    """An object on its way into a folder: a locked partial file, moved to its place when complete."""

    def __init__(self, store: LocalObjectStore, key: str, content_type: str, overwrite: bool) -> None:
        self.key = key
        self._store = store
        self._content_type = content_type
        self._overwrite = overwrite
        self._digest = hashlib.sha256()
        self._size = 0
        self._stored: StoredObject | None = None
        try:
            while True:
                self._path = store.root / _PARTIAL / f"{uuid.uuid4().hex}.part"
                self._file = open(self._path, "xb")  # noqa: SIM115 (closed by commit and abort)
                fcntl.flock(self._file, fcntl.LOCK_EX)
                if os.fstat(self._file.fileno()).st_nlink:
                    break
                self._file.close()  # swept between its creation and its lock
        except OSError as error:
            raise _unwritable(store, error) from error

    def write(self, chunk: bytes) -> None:
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _unwritable(self._store, error) from error
        self._digest.update(chunk)
        self._size += len(chunk)

    def commit(self) -> StoredObject:
        if self._stored is not None:
            return self._stored
        stored = StoredObject(self.key, self._size, self._digest.hexdigest(), self._content_type)
        target = self._store.path(self.key)
        try:
            self._file.flush()
            target.parent.mkdir(parents=True, exist_ok=True)
            found = os.fstat(self._file.fileno())
            if self._overwrite:
                self._path.replace(target)
            else:
                os.link(self._path, target)  # refuses an existing file, in one step
            self._store._keep_facts(stored, found)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            present = self._store.stat(self.key)
            if present is None or (present.size, present.sha256) != (stored.size, stored.sha256):
                raise ObjectExists(
                    f"object {self.key}: its place is taken by other content, and objects are written once"
                ) from None
            stored = present
        except OSError as error:
            raise _unwritable(self._store, error) from error
        finally:
            self.abort()
        self._stored = stored
        return stored

    def abort(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


def _identity(found: os.stat_result) -> list[int]:
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _unwritable(store: LocalObjectStore, error: OSError) -> Unavailable:
    return Unavailable(f"the store's folder {store.root} cannot be written: {error.strerror or error}")

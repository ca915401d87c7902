"""The local folder as an object store.

Belongs here: objects as files, whole at any moment of a killed writer. Does not: serving them to others.
"""

import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.object_store.protocol import (
    CHUNK_BYTES,
    ObjectExists,
    ObjectMissing,
    StoredObject,
    checked_key,
    checked_prefix,
    guessed_type,
    key_of_url,
    public_url,
)

_PARTIAL = ".partial"
_FACTS = ".facts"


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
                    facts = StoredObject(key, found.st_size, digest, guessed_type(key))
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
        folder = checked_prefix(prefix).rpartition("/")[0]
        yield from sorted(key for key in self._walk(self.root / folder) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        for path in (self.path(key), self._facts_path(key)):
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                path.unlink()

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

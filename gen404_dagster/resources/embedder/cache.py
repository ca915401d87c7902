"""Vectors on disk: a picture is embedded once, also by runs that are killed and run again.

Belongs here: one small file per (model, sha256 of a picture's bytes). Does not: anything a result depends on; a vector
that is lost or damaged is computed again.
"""

import hashlib
import logging
import tempfile
from pathlib import Path
from threading import Lock

import numpy as np

from gen404_dagster.resources.embedder.protocol import Vectors

log = logging.getLogger(__name__)

MOST_BYTES = 256 * 1024**2  # about four rounds of 45 miners and 128 prompts under EfficientNet
EVICTED_TO = 0.8
_CHECKSUM_BYTES = 32


class EmbeddingCache:
    """Vectors of any model under one folder, the oldest removed when they outgrow `most_bytes`.

    Any number of threads and processes may use one folder: files appear whole (written aside, then moved), and begin
    with the checksum of what follows, because after a power cut they may not be.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._until_counted = 0  # bytes that may be written before the folder is looked through

    def get(self, model: str, key: bytes, dimension: int) -> Vectors | None:
        """[D] a vector as it was put, or None."""
        try:
            data = self._path(model, key).read_bytes()
        except OSError:
            return None
        checksum, values = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
        if len(values) != 4 * dimension or hashlib.sha256(values).digest() != checksum:
            return None
        return np.frombuffer(values, "<f4")

    def put(self, model: str, key: bytes, vector: Vectors) -> None:
        """Keep a vector. A disk that is full or read-only costs the memory of it, and is logged."""
        values = vector.astype("<f4").tobytes()
        path = self._path(model, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with open(handle, "wb") as file:
                    file.write(hashlib.sha256(values).digest() + values)
                Path(aside).replace(path)
            except BaseException:
                Path(aside).unlink(missing_ok=True)
                raise
            self._keep_within(len(values) + _CHECKSUM_BYTES)
        except OSError as error:
            log.warning("embedding cache %s: %s", self._folder, error.strerror)

    def _path(self, model: str, key: bytes) -> Path:
        name = key.hex()
        return self._folder / hashlib.sha256(model.encode()).hexdigest()[:16] / name[:2] / name

    def _keep_within(self, written: int) -> None:
        """Every so many bytes the folder is looked through, and the oldest files removed."""
        with self._lock:
            self._until_counted -= written
            if self._until_counted > 0:
                return
            files = sorted(self._files())
            total = sum(size for _, size, _ in files)
            if total > self._most_bytes:
                for _, size, path in files:
                    path.unlink(missing_ok=True)
                    total -= size
                    if total <= EVICTED_TO * self._most_bytes:
                        break
            self._until_counted = max(1, (self._most_bytes - total) // 2)  # another process writes as well

    def _files(self) -> list[tuple[float, int, Path]]:
        """(written at, bytes, path) of all files, also of those that a killed process left half-written."""
        found = []
        for path in self._folder.glob("*/*/*"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # removed by another process
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        return found

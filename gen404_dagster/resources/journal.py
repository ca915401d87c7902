"""Checkpoints of long work: what a killed run has already done, by unit.

Belongs here: one SQLite file of (repository, round, unit, hash of inputs) -> JSON value. Does not: anything a result
depends on. Losing the journal costs work, never correctness: the truth is the state repository and the object store.
"""

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from gen404_dagster.errors import Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

BUSY_SECONDS = 30.0

# The surroundings' fault, not the contents': worth another try with the same file.
_OUTSIDE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
_PROBE = "SELECT sequence, repository, round, unit, inputs, value, checksum FROM checkpoints LIMIT 0"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checkpoints (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    repository TEXT NOT NULL,
    round INTEGER NOT NULL,
    unit TEXT NOT NULL,
    inputs TEXT NOT NULL,
    value TEXT NOT NULL,
    checksum TEXT NOT NULL,
    UNIQUE (repository, round, unit, inputs)
)
"""


class Journal:
    """The checkpoints of one state repository. Several threads and processes may use one file.

    A damaged file is moved aside (kept as `<name>.damaged-<time>`) and a new one is begun; a value whose checksum does
    not fit counts as absent.
    """

    def __init__(self, path: Path, repository: str) -> None:
        self.path = Path(path).absolute()
        self.repository = repository
        self._mutex = RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: int | None = None
        self._run(lambda _: None)

    def get(self, round: int, unit: str, inputs: str) -> Any | None:
        """Value of a unit done with these inputs, or None."""
        row = self._run(
            lambda db: db.execute(
                "SELECT value, checksum FROM checkpoints WHERE (repository, round, unit, inputs) = (?, ?, ?, ?)",
                (self.repository, round, unit, inputs),
            ).fetchone()
        )
        return json.loads(row[0]) if row is not None and self._is_whole(round, unit, inputs, *row) else None

    def put(self, round: int, unit: str, inputs: str, value: Any) -> None:
        """Record that a unit is done; replaces an earlier value for the same inputs."""
        text = json.dumps(value, separators=(",", ":"))
        row = (self.repository, round, unit, inputs, text, self._checksum(round, unit, inputs, text))
        self._run(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO checkpoints (repository, round, unit, inputs, value, checksum)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
        )

    def units(self, round: int, prefix: str = "") -> dict[str, Any]:
        """Values of all units whose name begins with `prefix`, for each the one recorded last whatever its inputs."""
        rows = self._run(
            lambda db: db.execute(
                "SELECT unit, inputs, value, checksum FROM checkpoints"
                " WHERE repository = ? AND round = ? AND substr(unit, 1, ?) = ? ORDER BY sequence",
                (self.repository, round, len(prefix), prefix),
            ).fetchall()
        )
        return {
            unit: json.loads(value)
            for unit, inputs, value, checksum in rows
            if self._is_whole(round, unit, inputs, value, checksum)
        }

    def forget(self, round: int, prefix: str = "") -> int:
        """Remove the units whose name begins with `prefix`: they will be done again. How many values were removed."""
        return self._run(
            lambda db: (
                db.execute(
                    "DELETE FROM checkpoints WHERE repository = ? AND round = ? AND substr(unit, 1, ?) = ?",
                    (self.repository, round, len(prefix), prefix),
                ).rowcount
            )
        )

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._mutex:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_whole(self, round: int, unit: object, inputs: object, value: object, checksum: object) -> bool:
        """SQLite notices broken pages, not flipped bits in a value (nor in its type)."""
        if not (isinstance(unit, str) and isinstance(inputs, str) and isinstance(value, str)):
            return False
        return checksum == self._checksum(round, unit, inputs, value)

    def _checksum(self, round: int, unit: str, inputs: str, value: str) -> str:
        text = json.dumps([self.repository, round, unit, inputs, value])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction. A damaged file is replaced and the work done once more."""
        with self._mutex:
            for attempt in range(2):
                try:
                    if self._connection is None:
                        self._connection = self._connect()
                    with self._connection as connection:
                        return work(connection)
                except (
                    sqlite3.DatabaseError,
                    UnicodeDecodeError,
                ) as error:  # the latter from a damaged schema's message
                    self.close()
                    if attempt or getattr(error, "sqlite_errorcode", 0) & 0xFF in _OUTSIDE:
                        raise Unavailable(f"journal {self.path}: {_line(error)}") from error
                    self._replace_damaged(error)
        raise AssertionError

    def _connect(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"journal {self.path}: {error.strerror}") from error
        with self._alone():  # two processes that turn WAL on at once would refuse each other
            self._opened = _inode(self.path)
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, check_same_thread=False)
            try:
                connection.text_factory = _decoded
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(_SCHEMA)
                connection.execute(_PROBE)  # a file of another shape is as good as damaged
                self._opened = _inode(self.path)
            except BaseException:
                connection.close()
                raise
            return connection

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            lock = FileLock(f"{self.path}.lock", thread_local=False)
            with lock.acquire(timeout=BUSY_SECONDS, poll_interval=0.01):
                yield
        except (Timeout, OSError) as error:
            raise Unavailable(f"journal {self.path}: {error}") from error

    def _replace_damaged(self, error: Exception) -> None:
        """Move the damaged file aside, unless another process has just done so."""
        with self._alone():
            if _inode(self.path) != self._opened:
                return
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
            for suffix in ("", "-wal", "-shm"):
                old = self.path.with_name(self.path.name + suffix)
                if old.exists():
                    old.replace(aside.with_name(aside.name + suffix))
            log.warning(
                "journal %s was damaged (%s): kept as %s, a new one is begun", self.path, _line(error), aside.name
            )


def _decoded(text: bytes) -> str:
    """Damaged text is no error here: its checksum does not fit."""
    return text.decode("utf-8", "replace")


def _line(error: Exception) -> str:
    """SQLite quotes a damaged schema with its line breaks."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None

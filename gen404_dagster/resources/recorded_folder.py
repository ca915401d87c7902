"""A plain folder of state files, read as it is: a competition's record without commits and times.

Belongs here: the folder behind the interface of `state_repo`, so that every reader takes it for a repository that
nobody can write to. Does not: making a repository of it.
"""

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path

from gen404_dagster.competition import paths
from gen404_dagster.errors import OperatorError, StateFileError
from gen404_dagster.resources.state_repo import MAX_FILE_BYTES, Change, CommitInfo, Snapshot, StateRepository, Step


def is_recorded_folder(remote: str) -> bool:
    """Whether this is a folder of state files that is no git repository, with or without a working tree."""
    folder = Path(remote)
    if not remote or not (folder / paths.STATE).is_file():
        return False
    return not (folder / ".git").exists() and not ((folder / "HEAD").exists() and (folder / "objects").is_dir())


class FolderSnapshot(Snapshot):
    """The files as they are when they are read. There is no commit: `commit` is empty, logs too."""

    def __init__(self, folder: Path) -> None:
        self.commit = ""
        self._folder = folder

    def read(self, path: str) -> str | None:
        where = self._inside(path)
        if where is None or not where.exists():
            return None
        kind = where.lstat()
        if stat.S_ISDIR(kind.st_mode):
            return None
        if not stat.S_ISREG(kind.st_mode):
            raise StateFileError(f"{path}: is a link, not a file")
        if kind.st_size > MAX_FILE_BYTES:
            raise StateFileError(f"{path}: {kind.st_size} bytes, more than {MAX_FILE_BYTES >> 20} MiB are not read")
        try:
            return where.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise StateFileError(f"{path}: is not UTF-8 text (byte {error.start})") from error

    def exists(self, path: str) -> bool:
        where = self._inside(path)
        return where is not None and where.exists()

    def names(self, folder: str) -> list[str]:
        where = self._inside(folder)
        return sorted(found.name for found in where.iterdir()) if where is not None and where.is_dir() else []

    def last_commit(self, path: str) -> CommitInfo | None:
        return None

    def fingerprint(self) -> str:
        files = ((path, path.lstat()) for path in sorted(self._folder.rglob("*")))
        names = [f"{path} {facts.st_size} {facts.st_mtime_ns}" for path, facts in files]
        return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()

    def log(self, limit: int) -> list[CommitInfo]:
        return []

    def _inside(self, path: str) -> Path | None:
        parts = path.strip("/").split("/") if path.strip("/") else []
        return None if any(part in ("", ".", "..") or "\0" in part for part in parts) else self._folder.joinpath(*parts)

    def __repr__(self) -> str:
        return f"FolderSnapshot({self._folder})"


class RecordedFolder(StateRepository):
    """The folder as a repository that can only be read: no commits, no links, no times."""

    def __init__(self, folder: Path) -> None:
        self.remote = self.display = str(folder.absolute())
        self.branch, self.author = "", ""
        self._snapshot = FolderSnapshot(folder.absolute())

    def close(self) -> None: ...

    def head(self, fetch: bool = True) -> Snapshot:
        return self._snapshot

    def at(self, sha: str) -> Snapshot:
        raise OperatorError(f"{self.display} is a plain folder, it has no commit {sha}: name a git repository")

    def waiting(self) -> list[CommitInfo]:
        return []

    def commit_link(self, sha: str) -> str | None:
        return None

    def commit(self, step: Step, decide: Callable[[Snapshot], Change | None], run_id: str = "") -> CommitInfo | None:
        if decide(self._snapshot) is None:
            return None
        raise OperatorError(f"{self.display} is a plain folder and only read: commits go to a git repository")

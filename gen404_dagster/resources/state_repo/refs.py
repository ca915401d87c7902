"""Files that name a commit, as git writes its refs: whole at any moment, and what they name is never pruned.

Belongs here: one such file. Does not: what a ref stands for (`repository`). Git itself writes none of ours: its lock
would outlive a kill.
"""

import os
from pathlib import Path

from gen404_dagster.errors import Unavailable


class Ref:
    def __init__(self, path: Path, mirror: Path) -> None:
        self._path, self._mirror = path, mirror

    def read(self) -> str | None:
        try:
            sha = self._path.read_text(errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return sha if len(sha) == 40 else None

    def write(self, sha: str) -> None:
        fresh = self._mirror / f"{self._path.name}.{os.getpid()}.tmp"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("w") as file:
                file.write(f"{sha}\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise Unavailable(f"{self._mirror} cannot be written: {error.strerror or error}") from error

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

"""Opening a competition's record to read it: a git repository by path or URL at any commit, or a plain folder.

Belongs here: telling the two apart, and a mirror that lives as long as the reading. Does not: what a file means
(`competition.models`), the pipeline's own repository (`configured`).
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.recorded_folder import FolderSnapshot, is_recorded_folder
from gen404_dagster.resources.state_repo import Snapshot, StateRepository


@contextmanager
def open_record(location: str, commit: str | None = None) -> Iterator[Snapshot]:
    """The state files of a folder, or of a git repository's default branch, as they were at `commit` when given.

    Raises OperatorError when there is none, or when a commit is asked of a plain folder.
    """
    if is_recorded_folder(location):
        if commit is not None:
            raise OperatorError(
                f"{location} is a plain folder without commits: leave out --at, or name a git repository"
            )
        yield FolderSnapshot(Path(location).absolute())
        return
    local = Path(location)
    if ":" not in location and not local.is_dir():
        raise OperatorError(f"{location} does not exist: name a folder, or a git repository by path or URL")
    with tempfile.TemporaryDirectory(prefix="gen404-record-") as folder:
        mirror = Path(folder) / "mirror.git"
        with StateRepository(location, mirror, default_branch(location)) as repository:
            yield repository.head() if commit is None else repository.at(commit)


def default_branch(location: str) -> str:
    """The branch that the remote's HEAD names; `main` when it does not say."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    command = ["git", "ls-remote", "--symref", "--", location, "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return "main"
    named = (line for line in answer.stdout.splitlines() if line.startswith("ref: refs/heads/"))
    return next(named, "ref: refs/heads/main").split("\t")[0].removeprefix("ref: refs/heads/")

"""A state repository as a test wants it: a bare remote, made from files, and git at it."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

WHO = ("-c", "user.name=t", "-c", "user.email=t@t")


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, timeout=300).stdout


def make_remote(folder: Path, files: Mapping[str, str]) -> Path:
    """`folder`/remote.git with one commit of `files` on main, cloned from the checkout `folder`/work."""
    work, remote = folder / "work", folder / "remote.git"
    git("init", "-q", "-b", "main", str(work))
    for path, text in files.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
    git("-C", str(work), "add", ".")
    git("-C", str(work), *WHO, "commit", "-qm", "Round 0")
    git("clone", "-q", "--bare", str(work), str(remote))
    return remote

"""Git's trees: entries, their bytes, and a tree with changes below it.

Belongs here: pure building and reading; objects come and go through two functions. Does not: git processes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gen404_dagster.errors import StateFileError

MAX_FILE_BYTES = 64 * 1024**2

Changes = Mapping[tuple[bytes, ...], bytes | None]
"""New content by path, in parts; None removes the file."""


class Entry(NamedTuple):
    mode: bytes  # as git writes it: b"100644", b"40000"
    sha: str

    @property
    def is_tree(self) -> bool:
        return self.mode == b"40000"

    @property
    def is_file(self) -> bool:
        return self.mode.startswith(b"100")


Tree = dict[bytes, Entry]


def parse_tree(data: bytes) -> Tree:
    """Entries of a tree object: `mode name NUL sha` without anything between."""
    tree: Tree = {}
    start = 0
    while start < len(data):
        blank = data.index(b" ", start)
        end = data.index(b"\0", blank)
        tree[data[blank + 1 : end]] = Entry(data[start:blank], data[end + 1 : end + 21].hex())
        start = end + 21
    return tree


def encoded(files: Mapping[str, str | None]) -> Changes:
    """Changes of files as git stores them. Raises StateFileError for what is no path, no Unicode or too large."""
    changes: dict[tuple[bytes, ...], bytes | None] = {}
    for path, text in files.items():
        parts = _parts(path)
        try:
            content = None if text is None else text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise StateFileError(f"{path}: the new text is not Unicode (character {error.start})") from error
        if content is not None and len(content) > MAX_FILE_BYTES:
            raise StateFileError(f"{path}: the new text is larger than {MAX_FILE_BYTES >> 20} MiB")
        changes[parts] = content
    return changes


def write_tree(
    sha: str | None, changes: Changes, read: Callable[[str], Tree], store: Callable[[str, bytes], str], where: str = ""
) -> str | None:
    """Tree with changes below it; only the folders on the way are read and written. None when it ends empty."""
    tree = dict(read(sha)) if sha is not None else {}
    below: dict[bytes, dict[tuple[bytes, ...], bytes | None]] = {}
    for parts, content in changes.items():
        if len(parts) > 1:
            below.setdefault(parts[0], {})[parts[1:]] = content
            continue
        (name,) = parts
        old = tree.get(name)
        if old is not None and not old.is_file:
            raise StateFileError(f"{where}{name.decode(errors='replace')}: is a folder or a link, not a file")
        if content is None:
            tree.pop(name, None)
        else:
            tree[name] = Entry(old.mode if old else b"100644", store("blob", content))
    for name, inner in below.items():
        old = tree.get(name)
        if old is not None and not old.is_tree:
            raise StateFileError(f"{where}{name.decode(errors='replace')}: is a file, not a folder")
        new = write_tree(old.sha if old else None, inner, read, store, f"{where}{name.decode(errors='replace')}/")
        if new is None:
            tree.pop(name, None)
        else:
            tree[name] = Entry(b"40000", new)
    if not tree:
        return None
    # git sorts a folder as if its name ended in a slash
    ordered = sorted(tree.items(), key=lambda item: item[0] + b"/" if item[1].is_tree else item[0])
    return store("tree", b"".join(b"%s %s\0%s" % (e.mode, n, bytes.fromhex(e.sha)) for n, e in ordered))


def _parts(path: str) -> tuple[bytes, ...]:
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts) or not path.isprintable():
        raise StateFileError(f"{path!r} is no path of a state file")
    return tuple(part.encode("utf-8") for part in parts)

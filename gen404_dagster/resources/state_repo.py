"""The competition's git repository: read at a commit, changed by whole commits on the remote's head.

Belongs here: a bare mirror of the remote, snapshots, building and pushing a commit, the trailer that makes a step
unique. Does not: what a file means (`competition.models`), where it lies (`competition.paths`), what to commit (assets).

Nothing is checked out. A commit is made of objects (blobs, then trees, then the commit) that nobody refers to until the
push moves the remote's branch, so a kill at any line leaves the old state or the new one. The mirror is only a copy:
delete it, and the next start fetches it again.
"""

import hashlib
import io
import logging
import os
import random
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from gen404_dagster.errors import OperatorError, StateFileError, Unavailable

if TYPE_CHECKING:
    from git import Repo

log = logging.getLogger(__name__)

STEP_TRAILER = "Gen404-Step"
RUN_TRAILER = "Gen404-Run"

MAX_FILE_BYTES = 64 * 1024**2
PUSH_ATTEMPTS = 20
LOCK_SECONDS = 600.0
ASK_SECONDS = 120.0
TRANSFER_SECONDS = 900.0
# git holds the lock of a ref for milliseconds; one that is older was left by a killed process.
DEAD_LOCK_SECONDS = 10.0
CACHED_TREES = 8192

_MIRROR_CONFIG = """\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = true
\thooksPath = /dev/null
\tlogAllRefUpdates = false
\tquotePath = false
[log]
\tfollow = false
[gc]
\tautoDetach = false
\tpackRefs = false
[maintenance]
\tautoDetach = false
[push]
\tgpgSign = false
\tfollowTags = false
"""

_LOST_RACE = re.compile(
    r"fetch first|non-fast-forward|stale info|failed to update ref|cannot lock ref|failed to lock|incorrect old value"
    r"|reference already exists"
)
_NO_REPOSITORY = re.compile(
    r"does not appear to be a git repository|not a git repository|repository .*not found|does not exist|error: 404",
    re.I,
)
_NO_ACCESS = re.compile(
    r"authentication failed|could not read (username|password)|permission denied|access denied|error: 40[13]"
    r"|dubious ownership|host key verification failed|unsupported protocol|unable to find remote helper",
    re.I,
)
_DAMAGED = re.compile(
    r"is corrupt|bad object|missing (blob|tree|commit|object)|inflate: |loose object|packfile .* cannot|unable to parse",
    re.I,
)
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/@\s'\"]*@", re.I)
_TOKEN = re.compile(r"[^\s/]+")
_SHA = re.compile(r"[0-9a-f]{4,40}")


@dataclass(frozen=True)
class Step:
    """A piece of work that is committed once: `inputs` is the hash of everything it read."""

    round: int
    name: str
    inputs: str
    unit: str | None = None

    def __post_init__(self) -> None:
        for part in (self.name, self.inputs, *(self.unit.split("/") if self.unit is not None else ())):
            if not _TOKEN.fullmatch(part) or not part.isprintable():
                raise ValueError(f"a step's name, unit and inputs are words without blanks, not {part!r}")

    @property
    def value(self) -> str:
        return "/".join([str(self.round), self.name, *([self.unit] if self.unit is not None else []), self.inputs])

    def again(self, times: int) -> "Step":
        """The step, done `times` before: its inputs get a number, so that each step is in the log once."""
        return self if times == 0 else replace(self, inputs=f"{self.inputs}.{times + 1}")

    @property
    def trailer(self) -> str:
        return f"{STEP_TRAILER}: {self.value}"


@dataclass(frozen=True)
class Change:
    """What a step writes: text by path (None removes the file), and the message."""

    files: Mapping[str, str | None]
    subject: str
    body: str = ""


@dataclass(frozen=True)
class CommitInfo:
    sha: str
    subject: str
    author: str
    time: datetime
    step: str | None
    files: tuple[str, ...] = ()


class _Entry(NamedTuple):
    mode: bytes  # as git writes it: b"100644", b"40000"
    sha: str

    @property
    def is_tree(self) -> bool:
        return self.mode == b"40000"

    @property
    def is_file(self) -> bool:
        return self.mode.startswith(b"100")


_Tree = dict[bytes, _Entry]


class Snapshot:
    """The repository's files at one commit. Immutable, and safe to read from several threads."""

    def __init__(self, repository: "StateRepository", commit: str) -> None:
        self.commit = commit
        self._repository = repository
        self._root: str | None = None

    def read(self, path: str) -> str | None:
        """Text of a file, or None where there is none. Raises StateFileError when it is too large or no UTF-8."""
        entry = self._entry(path)
        if entry is None or entry.is_tree:
            return None
        if not entry.is_file:
            raise StateFileError(f"{path}: is a link, not a file")
        try:
            return self._repository._blob(entry.sha, path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise StateFileError(f"{path}: is not UTF-8 text (byte {error.start})") from error

    def exists(self, path: str) -> bool:
        """Whether there is a file or a folder of this name."""
        return self._entry(path) is not None

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted; none where there is no such folder."""
        entry = self._entry(folder)
        if entry is None or not entry.is_tree:
            return []
        return sorted(name.decode("utf-8", "surrogateescape") for name in self._repository._tree(entry.sha))

    def last_commit(self, path: str) -> CommitInfo | None:
        """The last commit that changed this file or folder, with only its files under `path`."""
        return next(iter(self._repository._log(self.commit, limit=1, path=path)), None)

    def fingerprint(self) -> str:
        """Names these files: whatever was read under the same name need not be read again."""
        return self.commit

    def log(self, limit: int) -> list[CommitInfo]:
        """The last commits, newest first."""
        return self._repository._log(self.commit, limit=limit)

    def _entry(self, path: str) -> _Entry | None:
        if self._root is None:
            self._root = self._repository._root_tree(self.commit)
        entry = _Entry(b"40000", self._root)
        for part in path.strip("/").encode("utf-8", "surrogateescape").split(b"/") if path.strip("/") else ():
            if not entry.is_tree:
                return None
            found = self._repository._tree(entry.sha).get(part)
            if found is None:
                return None
            entry = found
        return entry

    def __repr__(self) -> str:
        return f"Snapshot({self.commit[:12]})"


class StateRepository:
    """The state repository at `remote` (a URL or a path), through a bare mirror of ours in the folder `mirror`.

    Several threads and processes may use one mirror; several mirrors and other git clients may write to one remote.
    """

    def __init__(self, remote: str, mirror: Path, branch: str = "main", author: str = "") -> None:
        if not remote:
            raise OperatorError("no state repository: set GEN404_STATE_REPO to its URL or path")
        if not re.fullmatch(r"[^\s~^:?*\[\\]+", branch) or ".." in branch or branch.startswith(("-", "/")):
            raise OperatorError(f"GEN404_STATE_BRANCH is no name of a branch: {branch!r}")
        author = author or "gen404-dagster <gen404@localhost>"
        if not re.fullmatch(r"[^<>\n\0]*[^<>\s\0] <[^<>\s\0]+>", author):
            raise OperatorError(f"GEN404_GIT_AUTHOR must read 'Name <mail>', not {author!r}")
        self.remote = _absolute(remote)
        self.display = _without_credentials(self.remote)
        self.branch = branch
        self.author = author
        self.mirror = Path(os.path.abspath(mirror))  # noqa: PTH100 (links stay as they are)
        self._known_ref = (
            self.mirror / "refs" / "gen404" / hashlib.sha256(self.remote.encode()).hexdigest()[:16] / f"{branch}.head"
        )
        self._file_lock = FileLock(f"{self.mirror}.lock", thread_local=False)
        self._writing = RLock()
        self._reading = Lock()
        self._trees: OrderedDict[str, _Tree] = OrderedDict()
        self._repo = self._open()

    def close(self) -> None:
        """Ends git's reading processes; a later read starts them again."""
        with self._reading:
            self._repo.close()

    def __enter__(self) -> "StateRepository":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def head(self, fetch: bool = True) -> Snapshot:
        """The branch as the remote has it now, or (`fetch=False`) as it was when last seen, if it ever was.

        Raises Unavailable when the remote does not answer, OperatorError when there is no such repository or branch.
        """
        known = self._known()
        if known is not None and (not fetch or self._remote_head() == known):
            return Snapshot(self, known)
        with self._exclusive():
            return Snapshot(self, self._update())

    def at(self, sha: str) -> Snapshot:
        """The branch's files at an earlier commit (abbreviations allowed). Raises OperatorError when there is none."""
        if not _SHA.fullmatch(sha):
            raise OperatorError(f"{sha!r} is no commit of {self.display}: give its hexadecimal name")
        known = self._known()
        if sha == known:
            return Snapshot(self, sha)
        full = self._ancestor(sha, known) if known else None
        full = full or self._ancestor(sha, self.head().commit)
        if full is None:
            raise OperatorError(f"no commit {sha} on branch {self.branch} of {self.display}")
        return Snapshot(self, full)

    def commit_link(self, sha: str) -> str | None:
        """Page of a commit, when the remote is on GitHub over https."""
        url = urlsplit(self.remote)
        if url.scheme != "https" or url.hostname not in ("github.com", "www.github.com"):
            return None
        return f"https://github.com/{url.path.strip('/').removesuffix('.git')}/commit/{sha}"

    # Writing

    def commit(self, step: Step, decide: Callable[[Snapshot], Change | None], run_id: str = "") -> CommitInfo | None:
        """Commit what `decide` says of the remote's head.

        Returns the commit; None when there is nothing to change, which is what `decide` must say of a head that holds
        this step already. A push that loses a race is decided again on the new head, never forced.
        """
        if run_id and (not run_id.isprintable() or run_id != run_id.strip()):
            raise ValueError(f"a run id is one printable word, not {run_id!r}")
        with self._exclusive():
            for attempt in range(PUSH_ATTEMPTS):
                if attempt:
                    time.sleep(min(2.0, 0.02 * 1.5**attempt) * random.uniform(0.5, 1.5))
                head = Snapshot(self, self._update())
                change = decide(head)
                tree = self._changed_tree(head, change.files) if change is not None else None
                if change is None or tree is None:
                    return None
                # The same step again, and yet there is something to change: an operator took the first one back.
                named = step.again(self._times_done(head.commit, step))
                sha = self._store("commit", self._commit_text(head.commit, tree, change, named, run_id))
                if self._push(sha):
                    self._remember(sha)
                    if sha.startswith("00"):  # now and then; git itself decides whether there is something to pack
                        self._git("gc", "--auto", "--quiet", timeout=TRANSFER_SECONDS)
                    return self._log(sha, limit=1)[0]
                log.info("%s moved on while committing %s: deciding again", self.display, step.value)
        raise Unavailable(f"{self.display}: lost {PUSH_ATTEMPTS} races for branch {self.branch}; nothing was committed")

    def _commit_text(self, parent: str, tree: str, change: Change, step: Step, run_id: str) -> bytes:
        subject = change.subject.strip()
        if not subject or "\n" in subject or "\0" in subject + change.body:
            raise ValueError(f"a commit's subject is one line of text, not {subject!r}")
        trailers = "\n".join([step.trailer, *([f"{RUN_TRAILER}: {run_id}"] if run_id else [])])
        message = "\n\n".join(part for part in (subject, change.body.strip(), trailers) if part)
        stamp = f"{self.author} {int(time.time())} +0000"
        return f"tree {tree}\nparent {parent}\nauthor {stamp}\ncommitter {stamp}\n\n{message}\n".encode()

    def _changed_tree(self, head: Snapshot, files: Mapping[str, str | None]) -> str | None:
        """Root tree of `head` with the files changed, or None when none differs."""
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
        root = self._root_tree(head.commit)
        new = self._write_tree(root, changes, "")
        if new is None:
            raise StateFileError("a commit may not remove the last file")
        return None if new == root else new

    def _write_tree(self, sha: str | None, changes: Mapping[tuple[bytes, ...], bytes | None], where: str) -> str | None:
        """Tree with changes below it; only the folders on the way are read and written. None when it ends empty."""
        tree = dict(self._tree(sha)) if sha is not None else {}
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
                tree[name] = _Entry(old.mode if old else b"100644", self._store("blob", content))
        for name, inner in below.items():
            old = tree.get(name)
            if old is not None and not old.is_tree:
                raise StateFileError(f"{where}{name.decode(errors='replace')}: is a file, not a folder")
            new = self._write_tree(old.sha if old else None, inner, f"{where}{name.decode(errors='replace')}/")
            if new is None:
                tree.pop(name, None)
            else:
                tree[name] = _Entry(b"40000", new)
        if not tree:
            return None
        # git sorts a folder as if its name ended in a slash
        ordered = sorted(tree.items(), key=lambda item: item[0] + b"/" if item[1].is_tree else item[0])
        return self._store("tree", b"".join(b"%s %s\0%s" % (e.mode, n, bytes.fromhex(e.sha)) for n, e in ordered))

    def _store(self, kind: str, data: bytes) -> str:
        from gitdb import IStream  # type: ignore[import-untyped]
        from gitdb.db import LooseObjectDB  # type: ignore[import-untyped]

        # In this process: GitPython's own store starts a git process for each object.
        stored = LooseObjectDB(str(self.mirror / "objects")).store(IStream(kind, len(data), io.BytesIO(data)))
        return str(stored.binsha.hex())

    def _push(self, sha: str) -> bool:
        """Move the remote's branch to `sha` if that is a fast-forward; False when the race is lost."""
        status, out, err = self._git(
            "push", "--porcelain", "--no-verify", "--", self.remote, f"{sha}:refs/heads/{self.branch}",
            timeout=TRANSFER_SECONDS,
        )  # fmt: skip
        if status == 0:
            return True
        answer = next((line.split("\t")[-1] for line in out.splitlines() if line.startswith("!")), "")
        if answer and _LOST_RACE.search(answer):
            self._remove_dead_locks()
            return False
        if answer:
            raise OperatorError(f"{self.display} refuses commits to {self.branch}: {_one_line(answer, err)}")
        raise self._fault(err)

    def _remove_dead_locks(self) -> None:
        """A git process killed while it updated a local remote leaves the branch locked for ever: unlock it."""
        for folder in (Path(self.remote), Path(self.remote) / ".git"):
            for name in ("HEAD.lock", f"refs/heads/{self.branch}.lock"):  # a push locks the HEAD of its branch too
                lock = folder / name
                try:
                    if time.time() - lock.stat().st_mtime > DEAD_LOCK_SECONDS:
                        lock.unlink()
                        log.warning("removed %s, left by a killed git process", lock)
                except OSError:
                    continue

    # The mirror

    def _open(self) -> "Repo":
        try:
            from git import Repo
        except ImportError as error:
            raise OperatorError(f"git cannot be used, install it: {str(error).splitlines()[0]}") from error
        if not (self.mirror / "config").is_file():
            with self._exclusive():
                if not (self.mirror / "config").is_file():
                    self._create()
        repo = Repo(self.mirror)
        repo.git.update_environment(
            GIT_DIR=str(self.mirror),
            GIT_OBJECT_DIRECTORY=str(self.mirror / "objects"),
            GIT_TERMINAL_PROMPT="0",
            GIT_LITERAL_PATHSPECS="1",
            GIT_SSH_COMMAND=os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes -o ConnectTimeout=20"),
        )
        return repo

    def _create(self) -> None:
        """An empty mirror, complete at once: made beside its place, then moved there."""
        fresh = self.mirror.with_name(f"{self.mirror.name}.new-{os.getpid()}-{time.monotonic_ns()}")
        for folder in ("objects", "refs/heads"):
            (fresh / folder).mkdir(parents=True)
        (fresh / "HEAD").write_text("ref: refs/heads/main\n")
        (fresh / "config").write_text(_MIRROR_CONFIG)
        fresh.rename(self.mirror)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One thread of one process at a time changes the mirror; may be entered again by its holder."""
        with self._writing:
            try:
                self.mirror.parent.mkdir(parents=True, exist_ok=True)
                self._file_lock.acquire(timeout=LOCK_SECONDS, poll_interval=0.02)
            except Timeout as error:
                raise Unavailable(f"another process has held {self.mirror}.lock for {LOCK_SECONDS:.0f} s") from error
            except OSError as error:
                raise OperatorError(f"the folder {self.mirror.parent} cannot be used: {error.strerror}") from error
            try:
                yield
            finally:
                self._file_lock.release()

    def _update(self) -> str:
        """Fetch what the remote has that the mirror has not; the branch's head. Call while exclusive."""
        head = self._remote_head()
        if head == self._known():
            return head
        # No ref is written by git: its lock would outlive a kill. Ours is written after all objects are here.
        status, _, err = self._git(
            "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules",
            "--", self.remote, f"refs/heads/{self.branch}",
            timeout=TRANSFER_SECONDS,
        )  # fmt: skip
        if status:
            raise self._fault(err)
        if self._git("cat-file", "-e", f"{head}^{{commit}}")[0]:
            raise Unavailable(f"{self.display}: branch {self.branch} was rewritten while it was fetched")
        self._remember(head)
        return head

    def _remote_head(self) -> str:
        ref = f"refs/heads/{self.branch}"
        status, out, err = self._git("ls-remote", "--", self.remote, ref, timeout=ASK_SECONDS)
        if status:
            raise self._fault(err)
        for line in out.splitlines():
            sha, _, name = line.partition("\t")
            if name == ref:
                return sha
        raise OperatorError(
            f"{self.display} has no branch {self.branch}: push a first commit to it, or set GEN404_STATE_BRANCH"
        )

    def _known(self) -> str | None:
        """Head at the last complete fetch or push."""
        try:
            sha = self._known_ref.read_text().strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return sha if len(sha) == 40 else None

    def _remember(self, sha: str) -> None:
        """Written like a ref of git's, which keeps its objects from being pruned; whole at any moment."""
        self._known_ref.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.mirror / f"head.{os.getpid()}.tmp"
        fresh.write_text(f"{sha}\n")
        fresh.replace(self._known_ref)

    def _git(self, *arguments: str, timeout: float = ASK_SECONDS) -> tuple[int, str, str]:
        status, out, err = self._repo.git.execute(
            ["git", *arguments], with_extended_output=True, with_exceptions=False, kill_after_timeout=timeout
        )
        return status, str(out or ""), err

    def _fault(self, err: str) -> OperatorError | Unavailable:
        """What git's complaint means: an operator's matter, or worth another try."""
        said = _one_line("", err)
        if _NO_ACCESS.search(err):
            return OperatorError(f"{self.display} refuses access: check its address and credentials ({said})")
        if _DAMAGED.search(err):
            return OperatorError(f"damaged objects: delete {self.mirror}, it is only a copy ({said})")
        if _NO_REPOSITORY.search(err):
            return OperatorError(f"{self.display} is not a git repository: set GEN404_STATE_REPO ({said})")
        return Unavailable(f"{self.display} does not answer: {said}")

    # Objects

    def _ancestor(self, sha: str, head: str) -> str | None:
        status, full, _ = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{sha}^{{commit}}")
        if status or self._git("merge-base", "--is-ancestor", full.strip(), head)[0]:
            return None
        return full.strip()

    def _object(self, sha: str, name: str) -> bytes:
        with self._reading:
            for attempt in range(2):
                try:
                    size = self._repo.git.get_object_header(sha)[2]
                    if size > MAX_FILE_BYTES:
                        raise StateFileError(f"{name}: {size} bytes, more than {MAX_FILE_BYTES >> 20} MiB are not read")
                    return self._repo.git.get_object_data(sha)[3]
                except (ValueError, OSError) as error:  # git's reading process was killed, or the object is missing
                    self._repo.git.clear_cache()
                    if attempt:
                        raise OperatorError(
                            f"{name}: object {sha} cannot be read; delete {self.mirror}, it is only a copy"
                        ) from error
        raise AssertionError

    def _blob(self, sha: str, path: str) -> bytes:
        return self._object(sha, path)

    def _root_tree(self, commit: str) -> str:
        return self._object(commit, f"commit {commit}")[5:45].decode("ascii")

    def _tree(self, sha: str) -> _Tree:
        with self._reading:
            cached = self._trees.get(sha)
            if cached is not None:
                self._trees.move_to_end(sha)
                return cached
        tree = _parse_tree(self._object(sha, f"tree {sha}"))
        with self._reading:
            self._trees[sha] = tree
            while len(self._trees) > CACHED_TREES:
                self._trees.popitem(last=False)
        return tree

    def _times_done(self, head: str, step: Step) -> int:
        found = self._log(head, "--fixed-strings", f"--grep={step.trailer}")
        again = re.compile(re.escape(step.value) + r"(\.\d+)?")
        return sum(again.fullmatch(commit.step or "") is not None for commit in found)

    def _log(self, head: str, *options: str, limit: int | None = None, path: str | None = None) -> list[CommitInfo]:
        status, out, err = self._git(
            "log", "--name-only", "--no-renames", "--no-color", "--no-show-signature", "--no-ext-diff", "--encoding=UTF-8",
            "--format=format:%x00%H%x00%an%x00%ct%x00%B%x00", *([f"-{limit}"] if limit is not None else []), *options,
            head, "--", *([path] if path is not None else []),
        )  # fmt: skip
        if status:
            raise self._fault(err)
        fields = out.split("\0")[1:]
        return [_commit_info(*fields[i : i + 5]) for i in range(0, len(fields) - 4, 5)]


def _commit_info(sha: str, author: str, stamp: str, message: str, names: str) -> CommitInfo:
    paragraphs = message.strip().split("\n\n")
    step = None
    for line in paragraphs[-1].splitlines() if len(paragraphs) > 1 else ():
        key, _, value = line.partition(": ")
        if key == STEP_TRAILER:
            step = value.strip()
    return CommitInfo(
        sha=sha,
        subject=paragraphs[0].replace("\n", " "),
        author=author,
        time=datetime.fromtimestamp(int(stamp), UTC),
        step=step,
        files=tuple(line for line in names.split("\n") if line),
    )


def _parse_tree(data: bytes) -> _Tree:
    """Entries of a tree object: `mode name NUL sha` without anything between."""
    tree: _Tree = {}
    start = 0
    while start < len(data):
        blank = data.index(b" ", start)
        end = data.index(b"\0", blank)
        tree[data[blank + 1 : end]] = _Entry(data[start:blank], data[end + 1 : end + 21].hex())
        start = end + 21
    return tree


def _parts(path: str) -> tuple[bytes, ...]:
    parts = path.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts) or not path.isprintable():
        raise StateFileError(f"{path!r} is no path of a state file")
    return tuple(part.encode("utf-8") for part in parts)


def _is_remote_host(remote: str) -> bool:
    """`user@host:path`, the short form of ssh."""
    return re.match(r"[^/:]+:", remote) is not None


def _absolute(remote: str) -> str:
    if Path(remote).exists() or not ("://" in remote or _is_remote_host(remote)):
        return os.path.abspath(Path(remote).expanduser())  # noqa: PTH100 (links stay as they are)
    return remote


def _without_credentials(text: str) -> str:
    return _CREDENTIALS.sub(r"\1", text)


def _one_line(answer: str, err: str) -> str:
    """What git said, without credentials, short."""
    lines = [answer, *(line.strip() for line in err.splitlines())]
    return _without_credentials("; ".join(line for line in lines if line) or "git gave no reason")[:300]

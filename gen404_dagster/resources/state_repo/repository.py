"""The door to the state repository: snapshots to read, commits on the remote's head.

Belongs here: the mirror, reading objects, deciding and pushing, commits that wait for the network. Does not: running
git (`git`), trees' bytes (`trees`).

Nothing is checked out. A commit is made of objects (blobs, then trees, then the commit) that nobody refers to until the
push moves the remote's branch, so a kill at any line leaves the old state or the new one. The mirror is only a copy:
delete it, and the next start fetches it again. The one thing in it that is nowhere else is the queue.

A mirror of another machine is a partial clone: all commits and trees, so that history and steps are told without the
network, and files only of the folders that are read. State files are written once, so a shallow clone would save little:
of 2,000 commits with 20 files each (47 MB) it fetches 43 MB with a depth of 1, the partial clone 4 MB.

**Without the network** results wait in the queue: a chain of commits on the last known head, which `head` and `decide`
take for the head. At the next contact they are pushed first, in order. Where the branch has moved on, each is put on the
new head if the files that it changes, the stage and the rules are still what it was decided on and its step is not
there; else it is set aside under `refs/gen404/*/aside`, and the pipeline does the step again from what it keeps (journal,
object store). A transition (a commit with state.json) never waits: nobody may act on a stage that others cannot see.
"""

import configparser
import hashlib
import io
import logging
import os
import random
import re
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from gen404_dagster.competition import paths
from gen404_dagster.errors import OperatorError, StateFileError, Unavailable
from gen404_dagster.resources.state_repo import git as running
from gen404_dagster.resources.state_repo import trees
from gen404_dagster.resources.state_repo.commits import LOG_FORMAT, Change, CommitInfo, Step, commit_text, read_log
from gen404_dagster.resources.state_repo.git import REMOTE, Git
from gen404_dagster.resources.state_repo.refs import Ref
from gen404_dagster.resources.state_repo.trees import Entry, Tree, encoded, parse_tree, write_tree

if TYPE_CHECKING:
    from git import Repo

log = logging.getLogger(__name__)

PUSH_ATTEMPTS = 20
LOCK_SECONDS = 600.0
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
[repack]
\twriteBitmaps = false
"""
_PARTIAL_CONFIG = f"""\
[remote "{REMOTE}"]
\tpromisor = true
\tpartialclonefilter = blob:none
"""

_SHA = re.compile(r"[0-9a-f]{4,40}")


class Snapshot:
    """The repository's files at one commit. Immutable, and safe to read from several threads."""

    def __init__(self, repository: "StateRepository", commit: str) -> None:
        self.commit = commit
        self._repository = repository
        self._root: str | None = None

    def read(self, path: str) -> str | None:
        """Text of a file, or None where there is none. Raises StateFileError when it is too large or no UTF-8, and
        Unavailable when it has to be fetched first and the remote does not answer."""
        entry = self._entry(path)
        if entry is None or entry.is_tree:
            return None
        if not entry.is_file:
            raise StateFileError(f"{path}: is a link, not a file")
        try:
            return self._repository._blob(entry.sha, self, path).decode("utf-8")
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

    def _entry(self, path: str) -> Entry | None:
        if self._root is None:
            self._root = self._repository._root_tree(self.commit)
        entry = Entry(b"40000", self._root)
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
    `token` goes to the remote's own host, over https; `ssh_key` names the file of a key.
    """

    def __init__(
        self,
        remote: str,
        mirror: Path,
        branch: str = "main",
        author: str = "",
        token: str = "",
        ssh_key: str = "",
    ) -> None:
        if not remote:
            raise OperatorError("no state repository: set GEN404_STATE_REPO to its URL or path")
        if not re.fullmatch(r"[^\s~^:?*\[\\]+", branch) or ".." in branch or branch.startswith(("-", "/")):
            raise OperatorError(f"GEN404_STATE_BRANCH is no name of a branch: {branch!r}")
        author = author or "gen404-dagster <gen404@localhost>"
        if not re.fullmatch(r"[^<>\n\0]*[^<>\s\0] <[^<>\s\0]+>", author):
            raise OperatorError(f"GEN404_GIT_AUTHOR must read 'Name <mail>', not {author!r}")
        self.mirror = Path(os.path.abspath(mirror))  # noqa: PTH100 (links stay as they are)
        self._git = Git(remote, self.mirror, token, ssh_key)
        self.remote, self.display = self._git.remote, self._git.display
        self.branch = branch
        self.author = author
        self._refs = self.mirror / "refs" / "gen404" / hashlib.sha256(self.remote.encode()).hexdigest()[:16]
        self._known = Ref(self._refs / f"{branch}.head", self.mirror)
        """Head at the last complete fetch or push."""
        self._queue = Ref(self._refs / f"{branch}.queue", self.mirror)
        """The last of the commits that wait for the network, and the commit that the first was made on."""
        self._queue_base = Ref(self._refs / f"{branch}.base", self.mirror)
        self._file_lock = FileLock(f"{self.mirror}.lock", thread_local=False)
        self._writing = RLock()
        self._reading = Lock()
        self._fetching = Lock()
        self._trees: OrderedDict[str, Tree] = OrderedDict()
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

        While results wait for the network, it is the branch with them on top. Raises Unavailable when the remote does
        not answer and nothing waits, OperatorError when there is no such repository or branch.
        """
        waiting, known = self._queue.read(), self._known.read()
        if not fetch and (waiting or known):
            return Snapshot(self, waiting or known or "")
        if not waiting and known is not None and self._remote_head() == known:
            return Snapshot(self, known)
        with self._exclusive():
            try:
                return Snapshot(self, self._update())
            except Unavailable as error:
                waiting = self._queue.read()
                if waiting is None:
                    raise
                log.warning("%s; %d commits wait for it", error, len(self.waiting()))
                return Snapshot(self, waiting)

    def at(self, sha: str) -> Snapshot:
        """The branch's files at an earlier commit (abbreviations allowed). Raises OperatorError when there is none."""
        if not _SHA.fullmatch(sha):
            raise OperatorError(f"{sha!r} is no commit of {self.display}: give its hexadecimal name")
        known = self._known.read()
        if sha == known:
            return Snapshot(self, sha)
        full = self._ancestor(sha, known) if known else None
        full = full or self._ancestor(sha, self.head().commit)
        if full is None:
            raise OperatorError(f"no commit {sha} on branch {self.branch} of {self.display}")
        return Snapshot(self, full)

    def waiting(self) -> list[CommitInfo]:
        """Commits that wait for the network, oldest first."""
        end, base = self._queue.read(), self._queue_base.read()
        return self._log(end, f"^{base}")[::-1] if end and base else []

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
        this step already. A push that loses a race is decided again on the new head, never forced. Without the network
        a result waits in the queue, and this returns as if it had been pushed; a transition raises Unavailable.
        """
        if run_id and (not run_id.isprintable() or run_id != run_id.strip()):
            raise ValueError(f"a run id is one printable word, not {run_id!r}")
        with self._exclusive():
            for attempt in range(PUSH_ATTEMPTS):
                if attempt:
                    time.sleep(min(2.0, 0.02 * 1.5**attempt) * random.uniform(0.5, 1.5))
                head, outage = self._newest()
                change = decide(head)
                tree = self._changed_tree(head.commit, encoded(change.files)) if change is not None else None
                if change is None or tree is None:
                    return None
                # The same step again, and yet there is something to change: an operator took the first one back.
                named = step.again(self._times_done(head.commit, step))
                text = commit_text(tree, head.commit, self.author, change, named, run_id)
                sha = self._store("commit", text)
                try:
                    if outage is not None:
                        raise outage
                    pushed = self._push(sha)
                except Unavailable as error:
                    if paths.STATE in change.files:
                        raise Unavailable(f"{error}; {change.subject!r} is decided again when it answers") from error
                    if self._queue.read() is None:
                        self._queue_base.write(head.commit)
                    self._queue.write(sha)
                    log.warning("%s: %r waits for it", error, change.subject)
                    return self._log(sha, limit=1)[0]
                if pushed:
                    self._known.write(sha)
                    if sha.startswith("00"):  # now and then; git itself decides whether there is something to pack
                        self._git("gc", "--auto", "--quiet", timeout=running.TRANSFER_SECONDS)
                    return self._log(sha, limit=1)[0]
                log.info("%s moved on while committing %s: deciding again", self.display, step.value)
        raise Unavailable(f"{self.display}: lost {PUSH_ATTEMPTS} races for branch {self.branch}; nothing was committed")

    def _newest(self) -> tuple[Snapshot, Unavailable | None]:
        """What to decide on: the remote's head, or what is known of it and the error that keeps us from knowing more."""
        try:
            return Snapshot(self, self._update()), None
        except Unavailable as error:
            known = self._queue.read() or self._known.read()
            if known is None:
                raise
            return Snapshot(self, known), error

    def probe(self) -> None:
        """Push a branch of its own name with the known head, and delete it. Raises what a commit would raise."""
        branch = f"gen404-doctor-{uuid.uuid4().hex[:12]}"
        for source in (self.head().commit, ""):  # an empty one deletes
            if not self._push(source, branch):
                raise Unavailable(f"{self.display}: {branch} is locked; delete it there")

    def _changed_tree(self, commit: str, changes: trees.Changes) -> str | None:
        """Root tree of a commit with files changed, or None when none differs."""
        root = self._root_tree(commit)
        new = write_tree(root, changes, self._tree, self._store)
        if new is None:
            raise StateFileError("a commit may not remove the last file")
        return None if new == root else new

    def _store(self, kind: str, data: bytes) -> str:
        from gitdb import IStream  # type: ignore[import-untyped]
        from gitdb.db import LooseObjectDB  # type: ignore[import-untyped]

        # In this process: GitPython's own store starts a git process for each object.
        objects = LooseObjectDB(str(self.mirror / "objects"))
        try:
            return str(objects.store(IStream(kind, len(data), io.BytesIO(data))).binsha.hex())
        except OSError as error:
            raise Unavailable(f"{self.mirror} cannot be written: {error.strerror or error}") from error

    def _push(self, sha: str, branch: str = "") -> bool:
        """Move the remote's branch to `sha` if that is a fast-forward; False when the race is lost."""
        branch = branch or self.branch
        status, out, err = self._git.ask(
            "push", "--porcelain", "--no-verify", "--no-thin", REMOTE, f"{sha}:refs/heads/{branch}",
            timeout=running.TRANSFER_SECONDS,
        )  # fmt: skip
        if status == 0:
            return True
        answer = next((line.split("\t")[-1] for line in out.splitlines() if line.startswith("!")), "")
        if not answer:
            raise self._git.fault(err)
        refusal = self._git.refusal(answer, branch, err)
        if refusal is not None:
            raise refusal
        self._remove_dead_locks()
        return False

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

    # Commits that wait for the network

    def _push_waiting(self, head: str) -> str:
        """Push what waits onto the remote's `head`; the branch's new head. Call while exclusive."""
        for _ in range(PUSH_ATTEMPTS):
            end = self._queue.read()
            if end is None:
                return head
            moved = self._moved(end, head)
            if moved == head:
                self._queue.clear()
                return head
            self._queue.write(moved)
            self._queue_base.write(head)
            if self._push(moved):
                self._known.write(moved)
                self._queue.clear()
                log.info("%s answers again: what waited is pushed, up to %s", self.display, moved[:10])
                return moved
            head = self._fetch()
        raise Unavailable(f"{self.display}: lost {PUSH_ATTEMPTS} races for branch {self.branch}; commits wait on")

    def _moved(self, end: str, head: str) -> str:
        """The end of the queue, put on `head`: of its commits those that are not there and still hold."""
        # Without the base a branch that somebody set back would get back what was taken from it.
        shas = self._lines("rev-list", "--reverse", end, f"^{head}", f"^{self._queue_base.read() or head}")
        if not shas:
            return head
        base = self._lines("rev-parse", f"{shas[0]}^")[0]
        if base == head:
            return end
        before, tip = Snapshot(self, base), Snapshot(self, head)
        done = {commit.step for commit in self._log(head, f"^{base}")}
        same_rules = all(before._entry(path) == tip._entry(path) for path in (paths.STATE, paths.CONFIG))
        for sha in shas:
            info = self._log(sha, limit=1)[0]
            if info.step in done:
                log.info("%s was committed by another pipeline: ours is dropped", info.step)
                continue
            tree = self._still_holds(sha, tip) if same_rules else None
            if tree is None:
                Ref(self._refs / "aside" / sha, self.mirror).write(sha)
                log.warning(
                    "%r was decided on a branch that has moved on meanwhile: it is set aside and decided again "
                    "(git --git-dir %s show %s)", info.subject, self.mirror, sha[:10],
                )  # fmt: skip
            elif tree:
                header, _, rest = self._object(sha, f"commit {sha}").partition(b"\nauthor ")
                assert header.startswith(b"tree ")
                text = f"tree {tree}\nparent {tip.commit}\nauthor ".encode() + rest
                tip = Snapshot(self, self._store("commit", text))
        return tip.commit

    def _still_holds(self, sha: str, tip: Snapshot) -> str | None:
        """Root tree of `tip` with a commit's files; "" when they are there already, None when `tip` has others."""
        ours, before = Snapshot(self, sha), Snapshot(self, self._lines("rev-parse", f"{sha}^")[0])
        changes: dict[tuple[bytes, ...], bytes | None] = {}
        names = self._git("diff-tree", "-r", "-z", "--no-renames", "--name-only", before.commit, sha)[1]
        for path in names.split("\0")[:-1]:
            old, new, now = (snapshot._entry(path) for snapshot in (before, ours, tip))
            if now == new:
                continue
            if now != old:
                return None
            changes[tuple(path.encode().split(b"/"))] = None if new is None else self._object(new.sha, path)
        return self._changed_tree(tip.commit, changes) or "" if changes else ""

    # The mirror

    def _open(self) -> "Repo":
        try:
            from git import GitError, Repo
        except ImportError as error:
            raise OperatorError(f"git cannot be used, install it: {str(error).splitlines()[0]}") from error
        try:
            if not (self.mirror / "config").is_file():
                with self._exclusive():
                    if not (self.mirror / "config").is_file():
                        self._create()
            self._partial = REMOTE in (self.mirror / "config").read_text() and not self._git.is_path
            repo = Repo(self.mirror)
        except (GitError, configparser.Error, OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not whole"
            raise OperatorError(
                f"{self.mirror} cannot be used ({why}): if it is damaged, delete it, it is only a copy"
            ) from error
        repo.git.update_environment(**self._git.environment)
        return repo

    def _create(self) -> None:
        """An empty mirror, complete at once: made beside its place, then moved there."""
        fresh = self.mirror.with_name(f"{self.mirror.name}.new-{os.getpid()}-{time.monotonic_ns()}")
        for folder in ("objects", "refs/heads"):
            (fresh / folder).mkdir(parents=True)
        (fresh / "HEAD").write_text("ref: refs/heads/main\n")
        (fresh / "config").write_text(_MIRROR_CONFIG + ("" if self._git.is_path else _PARTIAL_CONFIG))
        try:
            fresh.rename(self.mirror)
        except OSError:  # something else is there
            shutil.rmtree(fresh, ignore_errors=True)
            raise

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
        """Push what waits, fetch what the mirror has not; the branch's head. Call while exclusive."""
        return self._push_waiting(self._fetch())

    def _fetch(self) -> str:
        """Fetch what the remote has that the mirror has not; the branch's head there. Call while exclusive."""
        head, known = self._remote_head(), self._known.read()
        if head == known:
            return head
        # What is new is small and read at once; only the past comes without files.
        partial = ["--no-filter" if known else "--filter=blob:none"] if self._partial else []
        # No ref is written by git: its lock would outlive a kill. Ours is written after all objects are here.
        status, _, err = self._git.ask(
            "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", *partial,
            REMOTE, f"refs/heads/{self.branch}",
            timeout=running.TRANSFER_SECONDS,
        )  # fmt: skip
        if status:
            raise self._git.fault(err)
        if self._git("cat-file", "-e", f"{head}^{{commit}}")[0]:
            raise Unavailable(f"{self.display}: branch {self.branch} was rewritten while it was fetched")
        self._known.write(head)
        return head

    def _remote_head(self) -> str:
        ref = f"refs/heads/{self.branch}"
        status, out, err = self._git.ask("ls-remote", REMOTE, ref)
        if status:
            raise self._git.fault(err)
        for line in out.splitlines():
            sha, _, name = line.partition("\t")
            if name == ref:
                return sha
        raise OperatorError(
            f"{self.display} has no branch {self.branch}: push a first commit to it, or set GEN404_STATE_BRANCH"
        )

    # Objects

    def _ancestor(self, sha: str, head: str) -> str | None:
        status, full, _ = self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{sha}^{{commit}}")
        if status or self._git("merge-base", "--is-ancestor", full.strip(), head)[0]:
            return None
        return full.strip()

    def _lines(self, *arguments: str) -> list[str]:
        status, out, err = self._git(*arguments)
        if status:
            raise self._git.fault(err)
        return out.split()

    def _object(self, sha: str, name: str) -> bytes:
        found = self._find(sha, name)
        if found is None:
            raise OperatorError(f"{name}: object {sha} cannot be read; delete {self.mirror}, it is only a copy")
        return found

    def _find(self, sha: str, name: str, attempts: int = 2) -> bytes | None:
        """An object's bytes, None when the mirror does not have it, or has it damaged."""
        with self._reading:
            for _ in range(attempts):
                try:
                    size = self._repo.git.get_object_header(sha)[2]
                    if size > trees.MAX_FILE_BYTES:
                        most = trees.MAX_FILE_BYTES >> 20
                        raise StateFileError(f"{name}: {size} bytes, more than {most} MiB are not read")
                    _, kind, _, data = self._repo.git.get_object_data(sha)
                    named = hashlib.sha1(b"%s %d\0" % (os.fsencode(kind), len(data)), usedforsecurity=False)
                    named.update(data)
                    if named.hexdigest() == sha:  # git itself hands on what it can read of a damaged file
                        return data
                except (ValueError, OSError):  # git's reading process was killed, or the object is missing
                    pass
                self._repo.git.clear_cache()
        return None

    def _blob(self, sha: str, snapshot: Snapshot, path: str) -> bytes:
        if self._partial:
            found = self._find(sha, path, attempts=1)
            if found is not None:
                return found
            with self._fetching:  # one thread fetches, the others find it then
                found = self._find(sha, path, attempts=1)
                if found is not None:
                    return found
                self._fetch_files(sha, snapshot, path)
        return self._object(sha, path)

    def _fetch_files(self, sha: str, snapshot: Snapshot, path: str) -> None:
        """Fetch a file that the partial clone has not, and in the same breath those that are read with it: all of its
        round (the first two folders of its path), or those beside it."""
        folders = path.strip("/").split("/")[:-1]
        entry = snapshot._entry("/".join(folders[:2])) if len(folders) >= 2 else None
        if entry is not None:
            listed = self._lines("rev-list", "--objects", "--missing=print", "--no-object-names", entry.sha)
            wanted = {line[1:] for line in listed if line.startswith("?")}
        else:
            beside = snapshot._entry("/".join(folders))
            wanted = {e.sha for e in self._tree(beside.sha).values() if e.is_file} if beside else set()
        status, _, err = self._git.ask(
            "-c", "fetch.negotiationAlgorithm=noop", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head",
            "--no-recurse-submodules", "--filter=blob:none", "--stdin", REMOTE,
            timeout=running.TRANSFER_SECONDS, given="".join(f"{one}\n" for one in sorted(wanted | {sha})),
        )  # fmt: skip
        if status:
            raise self._git.fault(err)

    def _root_tree(self, commit: str) -> str:
        return self._object(commit, f"commit {commit}")[5:45].decode("ascii")

    def _tree(self, sha: str) -> Tree:
        with self._reading:
            cached = self._trees.get(sha)
            if cached is not None:
                self._trees.move_to_end(sha)
                return cached
        tree = parse_tree(self._object(sha, f"tree {sha}"))
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
            "log", "--name-only", "--no-renames", "--no-color", "--no-show-signature", "--no-ext-diff",
            "--encoding=UTF-8", f"--format={LOG_FORMAT}", *([f"-{limit}"] if limit is not None else []), *options,
            head, "--", *([path] if path is not None else []),
        )  # fmt: skip
        if status:
            raise self._git.fault(err)
        return read_log(out)

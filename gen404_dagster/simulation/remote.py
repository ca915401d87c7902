"""The state repository as the outside world sees it: reading its head, opening it, and the source auditor's commits.

Belongs here: everything that the embedded world does with git. Does not: the pipeline's own writing
(`resources.state_repo`), which never goes through here.
"""

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from time import monotonic, sleep, time

import git

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.models import Hotkey, SourceAudit
from gen404_dagster.simulation.cast import COMPETITION, WINDOW_END, Cast
from gen404_dagster.simulation.chain import time_of
from gen404_dagster.simulation.prompts import Pool

BRANCH = "main"
ORGANISER = git.Actor("404 organiser", "organiser@404.invalid")
AUDITOR = git.Actor("Source auditor", "auditor@404.invalid")
PUSH_ATTEMPTS = 50
PUSH_PAUSE_SECONDS = 0.1
DEAD_LOCK_SECONDS = 2.0  # git locks a ref of this remote for milliseconds; an older lock was left by a kill


class Remote:
    """Reads the bare repository at its head. Files of one commit never change: they are kept by commit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._git = git.Git(str(path))
        self._file = lru_cache(maxsize=512)(self._read)

    def head(self) -> str:
        return str(self._git.rev_parse(BRANCH))

    def read(self, path: str, commit: str | None = None) -> str | None:
        """Text of a file at a commit (default: the head), None when it is not there."""
        return self._file(commit or self.head(), path)

    def _read(self, commit: str, path: str) -> str | None:
        try:
            return str(self._git.show(f"{commit}:{path}", strip_newline_in_stdout=False))
        except git.GitCommandError:
            return None

    def current_round(self, commit: str) -> int:
        return models.read_json(models.STATE, self.read(paths.STATE, commit) or "").current_round

    def has_submissions_commit(self, number: int) -> bool:
        """Whether a commit subject ends in "submissions for round N"."""
        ending = f"submissions for round {number}"
        subjects = self._git.log(BRANCH, "--format=%s", "--fixed-strings", f"--grep={ending}")
        return any(subject.endswith(ending) for subject in str(subjects).splitlines())


def open_competition(path: Path, scratch: Path, cast: Cast, pool: Pool) -> None:
    """Create the bare state repository with the organiser's commit, or leave the one that is there."""
    if path.exists():
        return
    prompts = min(cast.parameters.prompts, len(pool.stems))
    with _temporary_folder(scratch) as folder:
        checkout = git.Repo.init(folder / "checkout", initial_branch=BRANCH)
        files = _opening_files(cast, pool, prompts)
        _commit(checkout, files, "Open the competition", ORGANISER, time_of(0))
        bare = git.Repo.init(folder / "remote.git", bare=True, initial_branch=BRANCH)
        with bare.config_writer() as config:
            # As a protected branch: history is never rewritten, whoever pushes.
            config.set_value("receive", "denyNonFastForwards", "true")
            config.set_value("receive", "autogc", "false")
        checkout.git.push(str(folder / "remote.git"), BRANCH)
        checkout.close()
        bare.close()
        (folder / "remote.git").rename(path)


def _opening_files(cast: Cast, pool: Pool, prompts: int) -> dict[str, str]:
    config = models.CompetitionConfig.model_validate(
        {
            "name": COMPETITION,
            "description": "The embedded world's image-to-3D competition",
            "first_evaluation_date": "2026-01-05",
            "last_competition_date": "2027-01-05",
            "round_start_time": "08:00:00",
            "generation_stage_minutes": 60,
            "finalization_buffer_hours": 1,
            "win_margin": 0.05,
            "weight_decay": 0.2,
            "weight_floor": 0.2,
            "prompts_per_round": prompts,
            "carryover_prompts": max(1, prompts // 4) if prompts else 0,
            "round_duration_days": 1,
        }
    )
    state = models.CompetitionStage(current_round=0, stage=models.Stage.OPEN, next_stage_eta=time_of(WINDOW_END))
    leader = models.LeaderTransition(
        hotkey=cast.base.hotkey,
        repo=cast.base.repo,
        commit=cast.base.commit(0),
        docker=cast.first_image,
        weight=0.0,
        effective_block=WINDOW_END,
    )
    schedule = models.Schedule(
        earliest_reveal_block=0, latest_reveal_block=WINDOW_END, generation_deadline_block=2 * WINDOW_END
    )
    urls = [f"http://127.0.0.1:{cast.port}/prompts/{stem}.png" for stem in pool.stems]
    return {
        paths.CONFIG: models.write_json(models.CONFIG, config),
        paths.STATE: models.write_json(models.STATE, state),
        paths.LEADERS: models.write_json(models.LEADERS, [leader]),
        paths.PROMPT_POOL: models.write_prompts(urls),
        paths.schedule(0): models.write_json(models.SCHEDULE, schedule),
    }


def remove_dead_locks(remote: Path) -> bool:
    """Remove locks that killed pushes have left on the branch and on HEAD; whether a young one may still be held."""
    young = False
    for lock in (remote / "HEAD.lock", *(remote / "refs" / "heads").rglob("*.lock")):
        try:
            if time() - lock.stat().st_mtime > DEAD_LOCK_SECONDS:
                lock.unlink()
            else:
                young = True
        except FileNotFoundError:
            continue
    return young


def wait_out_dead_locks(remote: Path) -> None:
    """Return when no push can be stopped by a lock that nobody holds; after a kill that takes DEAD_LOCK_SECONDS."""
    deadline = monotonic() + 2 * DEAD_LOCK_SECONDS
    while remove_dead_locks(remote) and monotonic() < deadline:
        sleep(0.05)


class SourceAuditor:
    """Looks at submitted source code as a person would: a second writer of the state repository."""

    def __init__(self, remote: Remote, scratch: Path, cast: Cast) -> None:
        self._remote = remote
        self._scratch = scratch
        self._missing_sources = {h for h, miner in cast.miners.items() if not miner.role.source_exists}
        self._one_at_a_time = threading.Lock()

    def review(self, now: datetime) -> list[Hotkey]:
        """Enter the verdicts that are due, in one commit; returns whose. Looks again after a lost race."""
        with self._one_at_a_time:
            if not self._due(self._remote.head())[1]:
                return []
            with _temporary_folder(self._scratch) as folder:
                checkout = git.Repo.clone_from(str(self._remote.path), folder / "checkout", branch=BRANCH)
                try:
                    return self._enter(checkout, now)
                finally:
                    checkout.close()

    def _enter(self, checkout: git.Repo, now: datetime) -> list[Hotkey]:
        for _ in range(PUSH_ATTEMPTS):
            number, due = self._due(checkout.head.commit.hexsha)
            if not due:
                return []
            path = paths.source_audits(number)
            before = self._verdicts(number, checkout.head.commit.hexsha)
            text = models.write_json(models.SOURCE_AUDITS, [*before, *due])
            passed = sum(audit.verdict == "passed" for audit in due)
            subject = f"Source audit of round {number}: {passed} passed, {len(due) - passed} failed"
            _commit(checkout, {path: text}, subject, AUDITOR, now)
            try:
                checkout.git.push("origin", BRANCH)
            except git.GitCommandError as error:
                if "rejected" not in str(error.stderr) and "cannot lock ref" not in str(error.stderr):
                    raise
                remove_dead_locks(self._remote.path)
                sleep(PUSH_PAUSE_SECONDS)
                checkout.git.fetch("origin")
                checkout.git.reset("--hard", f"origin/{BRANCH}")
            else:
                return [audit.hotkey for audit in due]
        raise RuntimeError(f"source audit: {PUSH_ATTEMPTS} pushes lost a race")

    def _due(self, commit: str) -> tuple[int, list[SourceAudit]]:
        """The current round at a commit, and the verdicts that are not entered there yet."""
        number = self._remote.current_round(commit)
        submitted = self._remote.read(paths.submissions(number), commit)
        if submitted is None:
            return number, []
        requested = self._remote.read(paths.audit_requests(number), commit)
        requests = models.read_json(models.AUDIT_REQUESTS, requested) if requested else []
        decided = {audit.hotkey for audit in self._verdicts(number, commit)}
        # Read as plain JSON: an auditor does not refuse a round because one entry is odd.
        due = [
            SourceAudit(hotkey=hotkey, verdict="failed", reason="Repository not found")
            for hotkey in json.loads(submitted)
            if hotkey in self._missing_sources and hotkey not in decided
        ]
        decided |= {audit.hotkey for audit in due}
        for request in requests:
            if request.hotkey not in decided:
                due.append(SourceAudit(hotkey=request.hotkey, verdict="passed", reason="No issues found"))
                decided.add(request.hotkey)
        return number, due

    def _verdicts(self, number: int, commit: str) -> list[SourceAudit]:
        text = self._remote.read(paths.source_audits(number), commit)
        return models.read_json(models.SOURCE_AUDITS, text) if text else []


def _commit(checkout: git.Repo, files: dict[str, str], subject: str, author: git.Actor, when: datetime) -> None:
    root = Path(checkout.working_dir)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text.encode())
    checkout.index.add(list(files))
    # The world's time, not the machine's: equal worlds make equal commits.
    checkout.index.commit(subject, author=author, committer=author, author_date=when, commit_date=when)


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

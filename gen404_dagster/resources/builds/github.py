"""Builds on GitHub Actions, through githubkit.

Belongs here: which workflow runs belong to a round, which job to a hotkey, and what GitHub's answers mean. Does not: when
to look again and when a build has timed out (`assets.verification`). Anyone can open a pull request whose commit says
"submissions for round 7": only runs of this repository's own branch count.
https://docs.github.com/en/rest/actions/workflow-runs, https://docs.github.com/en/rest/actions/workflow-jobs
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, Field, ValidationError

from gen404_dagster.competition.models import BuildStatus, Hotkey
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.builds.protocol import BuildRun

if TYPE_CHECKING:
    from githubkit import GitHub, Response
    from githubkit.exception import GitHubException, RequestFailed
    from githubkit.retry import RetryOption

CALL_SECONDS = 30.0
"""Longest wait for one answer, in seconds."""
WAIT_SECONDS = 120.0
"""A rate limit that ends so soon is waited for, in seconds; a longer one makes GitHub unavailable."""
UNTOLD_SECONDS = 60.0
"""Wait for a rate limit that does not say when it ends, in seconds; GitHub's documentation asks for a minute."""
TRIES = 4
PAGE = 100
RUN_PAGES = 10
"""Pages of workflow runs, newest first, in which the round's commit is looked for: GitHub gives 1,000 runs at most."""
JOB_PAGES = 30
_HOTKEY = re.compile(r"\(([1-9A-HJ-NP-Za-km-z]+)\)$")  # base58, as "Bake and push images (5Abc...)"
_WORST_FIRST = (BuildStatus.FAILURE, BuildStatus.IN_PROGRESS, BuildStatus.PENDING, BuildStatus.SUCCESS)

T = TypeVar("T", bound=BaseModel)


class _Repository(BaseModel):
    full_name: str = ""


class _Commit(BaseModel):
    message: str = ""


class _Run(BaseModel):
    id: int
    status: str | None = None
    head_sha: str = ""
    head_branch: str | None = None
    head_commit: _Commit | None = None
    head_repository: _Repository | None = None
    created_at: datetime | None = None
    run_started_at: datetime | None = None  # of the latest attempt


class _Runs(BaseModel):
    workflow_runs: list[_Run]


class _Job(BaseModel):
    id: int
    name: str = ""
    run_attempt: int = 1
    status: str | None = None
    conclusion: str | None = None

    @property
    def build(self) -> BuildStatus:
        """Spec section 4: a job that ended in any other way than well has no image."""
        if self.conclusion == "success":
            return BuildStatus.SUCCESS
        if self.conclusion is not None or self.status == "completed":
            return BuildStatus.FAILURE
        return BuildStatus.IN_PROGRESS if self.status == "in_progress" else BuildStatus.PENDING


class _Jobs(BaseModel):
    total_count: int = Field(0, ge=0)
    jobs: list[_Job]


class GitHubBuilds:
    """The runs of a repository's build workflow."""

    def __init__(self, repository: str, token: str, branch: str = "main", base_url: str = "") -> None:
        """`repository`: owner/name. `base_url` empty: api.github.com."""
        if not token:
            raise OperatorError("GITHUB_TOKEN is not set: GEN404_BUILDS=github needs a token that may read Actions")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            raise OperatorError(
                "GEN404_BUILDS_REPO is not set to owner/name, and GEN404_STATE_REPO is not a repository on GitHub"
            )
        self._owner, self._name = repository.split("/")
        self._token, self._branch, self._base_url = token, branch, base_url
        self._client: GitHub | None = None
        self._known: dict[tuple[object, ...], tuple[str, bytes]] = {}  # last answer to a question, with its ETag

    def run_of(self, number: int) -> BuildRun:
        runs, now = self._runs(f"submissions for round {number}")
        if not runs:
            return BuildRun(found=False, finished=False)
        jobs: dict[Hotkey, BuildStatus] = {}
        for run in sorted(runs, key=lambda run: run.id):  # a later run's job replaces an earlier one's
            jobs |= _builds(self._jobs(run.id))
        started = [run.run_started_at or run.created_at for run in runs]
        seconds = min(((now - start).total_seconds() for start in started if start is not None), default=0.0)
        # The answer about jobs may be older than that about runs.
        going = {BuildStatus.PENDING, BuildStatus.IN_PROGRESS} & set(jobs.values())
        finished = not going and all(run.status == "completed" for run in runs)
        return BuildRun(True, finished, jobs, max(0.0, seconds))

    def _runs(self, subject_end: str) -> tuple[list[_Run], datetime]:
        """All runs of the newest commit whose subject ends so, and GitHub's time."""
        now = datetime.now(UTC)
        for page in range(1, RUN_PAGES + 1):
            runs, now = self._run_page(page=page)
            for run in runs:
                if _subject(run).endswith(subject_end) and self._ours(run):
                    same, now = self._run_page(page=1, head_sha=run.head_sha)
                    return [one for one in same if self._ours(one)] or [run], now
            if len(runs) < PAGE:
                break
        return [], now

    def _run_page(self, page: int, head_sha: str = "") -> tuple[list[_Run], datetime]:
        from githubkit.utils import UNSET

        found, now = self._ask(
            ("runs", head_sha, page),
            _Runs,
            lambda github, headers: github.rest.actions.list_workflow_runs_for_repo(
                self._owner,
                self._name,
                branch=self._branch,
                head_sha=head_sha or UNSET,
                per_page=PAGE,
                page=page,
                headers=headers,
            ),
        )
        return found.workflow_runs, now

    def _ours(self, run: _Run) -> bool:
        repository = run.head_repository.full_name if run.head_repository else ""
        return repository.lower() == f"{self._owner}/{self._name}".lower() and run.head_branch == self._branch

    def _jobs(self, run: int) -> Iterator[_Job]:
        """Jobs of all attempts of a run: an attempt may repeat only some of them."""
        for page in range(1, JOB_PAGES + 1):
            found = self._job_page(run, page)
            yield from found
            if len(found) < PAGE:
                return

    def _job_page(self, run: int, page: int) -> list[_Job]:
        found, _ = self._ask(
            ("jobs", run, page),
            _Jobs,
            lambda github, headers: github.rest.actions.list_jobs_for_workflow_run(
                self._owner, self._name, run, filter_="all", per_page=PAGE, page=page, headers=headers
            ),
        )
        return found.jobs

    def _ask(
        self, question: tuple[object, ...], model: type[T], call: "Callable[[GitHub, dict[str, str]], Response]"
    ) -> tuple[T, datetime]:
        """An answer of the API and its time; one that did not change since we last asked costs no rate limit."""
        tag, content = self._known.get(question, ("", b""))
        response = self._call(lambda github: call(github, {"If-None-Match": tag} if tag else {}))
        if response.status_code != 304:
            content = response.content
            self._known[question] = response.headers.get("etag", ""), content
        return _parsed(model, content), _date(response.headers)

    def _call(self, call: "Callable[[GitHub], Response]") -> "Response":
        """The API's errors as ours; none of them holds the token."""
        from githubkit import GitHub
        from githubkit.exception import GitHubException, RateLimitExceeded, RequestFailed

        if self._client is None:
            self._client = GitHub(
                self._token,
                base_url=self._base_url or None,
                user_agent="gen404-dagster",
                timeout=CALL_SECONDS,
                auto_retry=_retry,
                http_cache=False,  # hishel, its cache, drops the timeout
            )
        try:
            return call(self._client)
        except RateLimitExceeded as error:
            wait = int(error.retry_after.total_seconds())
            raise Unavailable(f"GitHub's rate limit is used up for another {wait} s") from None
        except RequestFailed as error:
            status = error.response.status_code
            where = f"{self._owner}/{self._name}"
            if _is_limit(error):
                raise Unavailable(f"GitHub's rate limit is used up ({status})") from None
            if status == 401:
                raise OperatorError("GitHub refuses GITHUB_TOKEN (401): set a valid token") from None
            if status == 403:
                raise OperatorError(f"GITHUB_TOKEN may not read the Actions of {where} (403)") from None
            if status == 404:
                raise OperatorError(
                    f"GitHub shows no repository {where} to GITHUB_TOKEN (404): check GEN404_BUILDS_REPO"
                ) from None
            raise Unavailable(f"GitHub answered {status}") from None
        except GitHubException as error:
            reason = getattr(error, "exc", error)
            raise Unavailable(f"GitHub does not answer: {type(reason).__name__}") from None
        except ValueError as error:
            raise Unavailable(f"GitHub's answer cannot be read: {type(error).__name__}") from None


def _subject(run: _Run) -> str:
    message = run.head_commit.message if run.head_commit else ""
    return message.strip().split("\n", 1)[0].rstrip()


def _builds(jobs: Iterable[_Job]) -> dict[Hotkey, BuildStatus]:
    """Each hotkey's latest attempt; with several jobs a hotkey, the one that is furthest from an image."""
    latest: dict[str, _Job] = {}
    for job in jobs:
        known = latest.get(job.name)
        if known is None or (job.run_attempt, job.id) > (known.run_attempt, known.id):
            latest[job.name] = job
    found: dict[Hotkey, list[BuildStatus]] = {}
    for name, job in latest.items():
        match = _HOTKEY.search(name)
        if match:
            found.setdefault(match[1], []).append(job.build)
    return {hotkey: _worst(statuses) for hotkey, statuses in found.items()}


def _worst(statuses: Sequence[BuildStatus]) -> BuildStatus:
    return next(status for status in _WORST_FIRST if status in statuses)


def _retry(error: "GitHubException", count: int) -> "RetryOption":
    """Wait out short rate limits and passing server errors."""
    from githubkit.exception import RateLimitExceeded, RequestFailed
    from githubkit.retry import RetryOption

    if count >= TRIES - 1:
        return RetryOption(False)
    if isinstance(error, RateLimitExceeded):
        # At least a second: githubkit takes no pause for a minute.
        return RetryOption(
            error.retry_after.total_seconds() <= WAIT_SECONDS, max(error.retry_after, timedelta(seconds=1))
        )
    if isinstance(error, RequestFailed) and _is_limit(error):
        return RetryOption(True, timedelta(seconds=UNTOLD_SECONDS))
    if isinstance(error, RequestFailed) and error.response.status_code >= 500:
        return RetryOption(True, timedelta(seconds=0.5 * 4**count))
    return RetryOption(False)


def _is_limit(error: "RequestFailed") -> bool:
    """A secondary rate limit may come with neither `retry-after` nor `x-ratelimit-remaining`: then it is in words."""
    response = error.response
    return response.status_code == 429 or (response.status_code == 403 and "rate limit" in response.text.lower())


def _parsed(model: type[T], content: bytes) -> T:
    # Not the SDK's own models: they are as large as the API, and refuse an answer for any field that we never read.
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise Unavailable(f"GitHub's answer is not what its documentation says: {error.error_count()} faults") from None


def _date(headers: Mapping[str, str]) -> datetime:
    try:
        return parsedate_to_datetime(headers.get("date", "")).astimezone(UTC)
    except ValueError:
        return datetime.now(UTC)


def github_repository(remote: str) -> str:
    """owner/name of a repository's URL on GitHub; empty for any other."""
    found = re.fullmatch(
        r"(?:https://(?:[^@/]+@)?|ssh://git@|git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", remote
    )
    return found[1] if found else ""

"""GitHub's Actions API on loopback, in the shapes that docs.github.com records: runs, jobs, pages, ETags, rate limits."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "ghp_secret0123456789"
REPOSITORY = "404-Repo/competition"
NOW = datetime(2026, 2, 10, 12, 0, 0, tzinfo=UTC)


def run(number: int, message: str, **changes: Any) -> dict[str, Any]:
    """A workflow run. `number` is its id; a push to main of the repository itself."""
    started = (NOW - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": number,
        "name": "Build miners",
        "node_id": "WFR_kwLOI9GM3s8AAAAB",
        "head_branch": "main",
        "head_sha": hashlib.sha1(message.encode()).hexdigest(),
        "path": ".github/workflows/build.yml",
        "run_number": number,
        "run_attempt": 1,
        "event": "push",
        "status": "completed",
        "conclusion": "success",
        "workflow_id": 159038,
        "url": f"https://api.github.com/repos/{REPOSITORY}/actions/runs/{number}",
        "pull_requests": [],
        "created_at": started,
        "updated_at": started,
        "run_started_at": started,
        "head_commit": {"id": "acb5820c", "tree_id": "d23f6eed", "message": message, "timestamp": started},
        "repository": {"id": 217723378, "full_name": REPOSITORY},
        "head_repository": {"id": 217723378, "full_name": REPOSITORY},
        **changes,
    }


def job(number: int, name: str, conclusion: str | None = "success", **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "run_id": 1,
        "run_attempt": 1,
        "node_id": "MDg6Q2hlY2tSdW4=",
        "head_sha": "f83a356604ae3c5d03e1b46ef4d1ca77d64a90b0",
        "url": f"https://api.github.com/repos/{REPOSITORY}/actions/jobs/{number}",
        "status": "completed" if conclusion else "in_progress",
        "conclusion": conclusion,
        "name": name,
        "steps": [],
        "labels": ["ubuntu-latest"],
        **changes,
    }


@dataclass
class GitHub:
    """`limited`: answers to come that say how long to wait, as headers; `down`: answers of 502 to come."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    jobs: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    limited: list[dict[str, str]] = field(default_factory=list)
    down: int = 0
    status: int = 200
    garbage: bool = False
    hang: float = 0.0
    asked: list[str] = field(default_factory=list)
    unchanged: int = 0
    root: str = ""

    def app(self) -> Any:
        base = "/repos/404-Repo/competition/actions/runs"
        return Starlette(routes=[Route(base, self._runs), Route(base + "/{run}/jobs", self._jobs)])

    def _answer(self, request: Request, body: dict[str, Any]) -> Response:
        self.asked.append(str(request.url.path) + "?" + str(request.url.query))
        time.sleep(self.hang)
        if request.headers.get("authorization") not in (f"token {TOKEN}", f"Bearer {TOKEN}"):
            return JSONResponse({"message": "Bad credentials", "documentation_url": "https://docs.github.com"}, 401)
        if self.limited:
            message = {"message": f"API rate limit exceeded for {TOKEN}"}
            return JSONResponse(message, 403 if len(self.limited) % 2 else 429, headers=self.limited.pop(0))
        if self.down:
            self.down -= 1
            return Response("<html>Unicorn!</html>", 502)
        if self.status != 200:
            return JSONResponse({"message": "no"}, self.status)
        if self.garbage:
            return Response(b'{"workflow_runs": [{"id": "one"}], "jobs": 7', media_type="application/json")
        etag = f'W/"{hashlib.sha256(repr(body).encode()).hexdigest()}"'
        headers = {
            "etag": etag,
            "date": format_datetime(NOW, usegmt=True),
            "cache-control": "private, max-age=60, s-maxage=60",
            "vary": "Accept, Authorization",
            "x-ratelimit-remaining": "4999",
        }
        if request.headers.get("if-none-match") == etag:
            self.unchanged += 1
            return Response(status_code=304, headers=headers)
        return JSONResponse(body, headers=headers)

    def _runs(self, request: Request) -> Response:
        query = request.query_params
        assert query["branch"] == "main"
        found = [run for run in self.runs if query.get("head_sha") in (None, run["head_sha"])]
        found = [run for run in found if run["head_branch"] == query["branch"]]
        return self._answer(request, {"total_count": len(found), "workflow_runs": _page(found, request)})

    def _jobs(self, request: Request) -> Response:
        found = self.jobs.get(int(request.path_params["run"]), [])
        if request.query_params.get("filter") != "all":
            latest = max((job["run_attempt"] for job in found), default=1)
            found = [job for job in found if job["run_attempt"] == latest]
        return self._answer(request, {"total_count": len(found), "jobs": _page(found, request)})


def _page(found: list[dict[str, Any]], request: Request) -> list[dict[str, Any]]:
    size, page = int(request.query_params.get("per_page", 30)), int(request.query_params.get("page", 1))
    return found[(page - 1) * size : page * size]


@contextmanager
def serving(github: GitHub) -> Iterator[GitHub]:
    config = uvicorn.Config(
        github.app(),
        port=0,
        log_level="critical",
        lifespan="off",
        ws="none",
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    github.root = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield github
    finally:
        server.should_exit = True
        thread.join(10)

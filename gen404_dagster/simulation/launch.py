"""The public door of the embedded world: start it, talk to it, and the environment of a pipeline that plays in it.

Belongs here: what the command line and tests call. Does not: the world itself (`world`).
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from gen404_dagster.competition.models import Block, Hotkey
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.simulation.cast import Cast
from gen404_dagster.simulation.parameters import (
    Workdir,
    WorldParameters,
    parse_parameters,
    parse_skills,
    read_record,
    refuse_other_parameters,
)
from gen404_dagster.simulation.prompts import read_pool

__all__ = [
    "Workdir",
    "World",
    "WorldParameters",
    "parse_parameters",
    "parse_skills",
    "pipeline_environment",
    "read_record",
    "refuse_other_parameters",
    "serve_world",
    "start_world",
]

START_SECONDS = 180.0  # drawing the pool may have to compile the renderer first
STOP_SECONDS = 10.0


class World:
    """A running world that ends with this process, or with `close`."""

    def __init__(self, workdir: Workdir, url: str, process: "subprocess.Popen[bytes]") -> None:
        self.workdir = workdir
        self.url = url
        self.process = process
        self._client = httpx.Client(base_url=url, timeout=60.0, trust_env=False)

    def block(self) -> Block:
        """The finalized block."""
        return int(self._answer("GET", "/chain/head")["block"])

    def advance(self, to: Block) -> Block:
        """Move the chain on to a block. Raises OperatorError for a block in the past."""
        return int(self._answer("POST", "/clock", json={"block": to})["block"])

    def review_sources(self) -> list[Hotkey]:
        """Let the source auditor look once; returns whose verdicts it entered."""
        return list(self._answer("POST", "/auditor/review")["entered"])

    def cast(self) -> list[dict[str, Any]]:
        """Who plays, for humans and tests."""
        return list(self._answer("GET", "/cast"))

    def _answer(self, method: str, path: str, json: object = None) -> Any:
        try:
            answer = self._client.request(method, path, json=json)
        except httpx.HTTPError as error:
            raise Unavailable(f"the embedded world at {self.url} did not answer {path}: {error}") from error
        if answer.status_code == 409:
            raise OperatorError(f"embedded world: {answer.json()['detail']}")
        if answer.status_code != 200:
            raise Unavailable(f"the embedded world at {self.url} answered {answer.status_code} to {method} {path}")
        return answer.json()

    def close(self) -> None:
        """End the world. Its workdir can be started again."""
        self._client.close()
        end_process(self.process)

    def __enter__(self) -> "World":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve_world(
    workdir: Path | str,
    parameters: WorldParameters,
    blocks_per_second: float = 0.0,
    end_with_stdin: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the world of a workdir in the foreground; `on_ready` is told its address.

    Raises OperatorError when it cannot be started.
    """
    from gen404_dagster.simulation.world import run_world

    run_world(workdir, parameters, blocks_per_second, end_with_stdin, on_ready)


def start_world(workdir: Path | str, parameters: WorldParameters, blocks_per_second: float = 0.0) -> World:
    """Start the world of a workdir as a process that ends with this one, and wait until it answers.

    Raises OperatorError with the world's own words when it refuses to start, or does not answer in time.
    """
    place = Workdir(workdir)
    try:
        place.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"workdir {place.root}: {error.strerror}") from error
    command = [sys.executable, "-m", "gen404_dagster.simulation.world", "--workdir", str(place.root)]
    command += ["--parameters", parameters.model_dump_json(), "--blocks-per-second", str(blocks_per_second)]
    with place.log.open("ab") as log:
        began = log.tell()
        # A session of its own: Ctrl-C reaches the parent, and the world ends when the parent's pipe closes.
        process = subprocess.Popen(
            [*command, "--end-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return World(place, _wait_until_healthy(place, process, began), process)
    except BaseException:
        end_process(process)
        raise


def _wait_until_healthy(workdir: Workdir, process: "subprocess.Popen[bytes]", log_start: int) -> str:
    deadline = time.monotonic() + START_SECONDS
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise OperatorError(_last_words(workdir, process.returncode, log_start))
            record = read_record(workdir)
            if record:
                url = f"http://127.0.0.1:{record.port}"
                try:
                    # The number tells this world from an older one that has not ended yet.
                    if client.get(f"{url}/health").json()["pid"] == process.pid:
                        return url
                except (httpx.HTTPError, ValueError, KeyError, TypeError):
                    pass
            time.sleep(0.05)
    raise OperatorError(f"the embedded world did not start within {START_SECONDS:.0f} s: see {workdir.log}")


def _last_words(workdir: Workdir, code: int, log_start: int) -> str:
    with workdir.log.open("rb") as log:
        log.seek(log_start)
        words = log.read(64 * 1024).decode(errors="replace").strip()
    last = words.splitlines()[-1] if words else "it said nothing"
    return last if code == 2 else f"the embedded world ended with code {code}: {last} (see {workdir.log})"


def end_process(process: "subprocess.Popen[bytes]") -> None:
    """Close the pipe and wait; a process that does not end is killed."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def pipeline_environment(workdir: Path | str, url: str) -> dict[str, str]:
    """Environment of a pipeline that plays in the world of a workdir, with limits scaled to small, fast rounds.

    Raises OperatorError when the workdir holds no started world.
    """
    place = Workdir(workdir)
    record, pool = read_record(place), read_pool(place)
    if record is None or pool is None:
        raise OperatorError(f"{place.root} holds no world: start one with `gen404 world --workdir {place.root}`")
    prompts = min(record.parameters.prompts, len(pool.stems))
    command = f"{shlex.quote(sys.executable)} -m gen404_dagster.simulation.image --world {url} --image {{image}} --port {{port}}"
    limits = {
        "MAX_FILE_BYTES": 32 * 1024**2,
        "DOWNLOAD_JITTER_SECONDS": 0,
        "DOWNLOAD_RETRY_SECONDS": 0.05,
        "DOWNLOAD_TIMEOUT_SECONDS": 20,
        "POD_START_INTERVAL_SECONDS": 0,
        "POD_DEPLOY_RETRY_SECONDS": 0.2,
        "POD_DEPLOY_ATTEMPTS": 5,
        "POD_HEALTHY_SECONDS": 60,
        "POD_VISIBLE_SECONDS": 60,
        "BUILD_POLL_SECONDS": 0.2,
        "MAX_MISMATCHES": max(1, prompts // 6),
        "MAX_CRITICAL_MISMATCHES": 1,
    }
    return {
        "GEN404_WORLD": url,
        "GEN404_DATA": str(place.data),
        "GEN404_STATE_REPO": str(place.remote),
        "GEN404_WALLET_NAME": Cast(record.parameters, record.port).validator,
        "CDN_URL": f"{url}/store",
        "GEN404_ALLOW_PRIVATE_NETWORK": "true",
        "GEN404_ENTROPY_SEED": str(record.parameters.seed),
        "GEN404_LOCAL_IMAGE_COMMAND": command,
        "DAGSTER_HOME": str(place.dagster),
        **{f"GEN404_LIMITS__{name}": str(value) for name, value in limits.items()},
    }

"""A small embedded world over real HTTP, and a stand-in for the pipeline's commits."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gen404_dagster.competition.commitments import collect_submissions
from gen404_dagster.competition.models import SUBMISSIONS, Schedule, write_json
from gen404_dagster.simulation.launch import Workdir, World, WorldParameters, start_world

ROUND_SEED = 77
Git = Callable[..., str]
Publish = Callable[[Workdir, dict[str, object], str], None]


@pytest.fixture(scope="session")
def git() -> Git:
    def run_git(*arguments: str, at: Path) -> str:
        identity = ["-c", "user.name=pipeline", "-c", "user.email=pipeline@example.invalid"]
        return subprocess.run(["git", *identity, *arguments], cwd=at, capture_output=True, text=True, check=True).stdout

    return run_git


@pytest.fixture(scope="session")
def publish(git: Git, tmp_path_factory: pytest.TempPathFactory) -> Publish:
    """Commits files to a world's state repository, as the pipeline would; tries again after a lost race."""

    def publish_files(workdir: Workdir, files: dict[str, object], subject: str) -> None:
        checkout = tmp_path_factory.mktemp("pipeline") / "checkout"
        git("clone", "-q", str(workdir.remote), str(checkout), at=workdir.root)
        for path, content in files.items():
            (checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (checkout / path).write_text(content if isinstance(content, str) else json.dumps(content))
        git("add", "-A", at=checkout)
        git("commit", "-q", "-m", subject, at=checkout)
        for _ in range(20):
            try:
                git("push", "-q", "origin", "main", at=checkout)
                return
            except subprocess.CalledProcessError:
                git("pull", "-q", "--rebase", "origin", "main", at=checkout)
        raise AssertionError("20 pushes lost a race")

    return publish_files


@pytest.fixture(scope="session")
def pool(git: Git) -> Callable[[World], list[str]]:
    return lambda world: git("show", "main:prompts.txt", at=world.workdir.remote).split()


@pytest.fixture(scope="session")
def open_round(publish: Publish, pool: Callable[[World], list[str]]) -> Callable[[World], list[str]]:
    """Opens round 0 on the first six prompts of the pool; returns their stems."""

    def open_round_0(world: World) -> list[str]:
        schedule = Schedule(earliest_reveal_block=0, latest_reveal_block=300, generation_deadline_block=600)
        if world.block() < 300:
            world.advance(300)
        revealed = httpx.get(f"{world.url}/chain/commitments").json()["commitments"]
        submissions = collect_submissions(revealed, schedule, "sim-0", allow_http=True).submissions
        files: dict[str, object] = {
            "rounds/0/seed.json": {"seed": ROUND_SEED},
            "rounds/0/prompts.txt": "\n".join(pool(world)[:6]),
            "rounds/0/submissions.json": write_json(SUBMISSIONS, submissions),
        }
        publish(world.workdir, files, "Seed, prompts and submissions for round 0")
        return [url.rsplit("/", 1)[1].removesuffix(".png") for url in pool(world)[:6]]

    return open_round_0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Nine miners, six prompts a round; nothing has happened yet."""
    parameters = WorldParameters(seed=3, prompts=6, oversize_bytes=3_000_000)
    with start_world(tmp_path_factory.mktemp("world"), parameters) as running:
        yield running


@pytest.fixture(scope="module")
def stems(world: World, open_round: Callable[[World], list[str]]) -> list[str]:
    """The prompts of round 0 of `world`, which is open from now on."""
    return open_round(world)


@pytest.fixture(scope="module")
def hotkeys(world: World) -> dict[str, str]:
    return {member["name"]: member["hotkey"] for member in world.cast()}

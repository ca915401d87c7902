"""Two complete pipelines, each with its own journal, mirror and Dagster, play one competition on one state repository.

They share what they share in production: the chain, the remote (by HTTP, with a token) and the object store. Costly work
may be done twice, but every step is in the log once, the log is linear, and no commit that a pipeline was told of is
lost.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gen404_dagster.simulation.launch import World, WorldParameters, pipeline_environment, start_world
from tests.resources.git_server import GitServer, git_server

PLAY_SECONDS = 1500
STEPS = "--format=%(trailers:key=Gen404-Step,valueonly,separator=)"

PIPELINE = """
import sys
from pathlib import Path

import dagster as dg

from gen404_dagster.assets import common
from gen404_dagster.driver import Driver, EventLog
from gen404_dagster.errors import OperatorError
from gen404_dagster.settings import load_settings
from gen404_dagster.simulation.launch import World, Workdir

workdir, home, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
settings = load_settings()
world = World(Workdir(workdir), settings.world, None)
told = (home / "commits").open("a")
commit = common.StateRepository.commit

def noted(repository, step, decide, run_id=""):
    info = commit(repository, step, decide, run_id)
    if info is not None:
        print(info.sha, info.step, file=told, flush=True)
    return info

common.StateRepository.commit = noted

def advance(block):
    try:
        world.advance(block)
    except OperatorError:  # the other one was faster
        assert world.block() >= block

with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
    driver = Driver(settings, instance, EventLog(home / "simulation.log"))
    driver.resources["renderer"].get().start()
    driver.play(rounds, advance, world.review_sources)
"""


def start(world: World, server: GitServer, home: Path, rounds: int) -> "subprocess.Popen[bytes]":
    """A pipeline with folders of its own; the object store is the world's, as one bucket is everyone's."""
    dagster = home / "dagster"
    dagster.mkdir(parents=True)
    (dagster / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    (home / "data").mkdir()
    (home / "data/store").symlink_to(world.workdir.store)
    own = {
        "GEN404_DATA": str(home / "data"),
        "DAGSTER_HOME": str(dagster),
        "GEN404_STATE_REPO": f"{server.url}/{world.workdir.remote.name}",
        "GITHUB_TOKEN": server.token,
    }
    environment = {**os.environ, **pipeline_environment(world.workdir.root, world.url), **own}
    with (home / "err").open("ab") as errors:
        command = [sys.executable, "-c", PIPELINE, str(world.workdir.root), str(home), str(rounds)]
        return subprocess.Popen(command, env=environment, cwd=home, stdout=errors, stderr=errors)


def git(world: World, *arguments: str) -> str:
    command = ["git", "-C", str(world.workdir.remote), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.timeout(PLAY_SECONDS + 60)
@pytest.mark.parametrize(
    ("rounds", "miners", "prompts"), [(1, 2, 2), pytest.param(3, 3, 3, marks=pytest.mark.slow)], ids=["1", "3"]
)
def test_two_pipelines_on_one_remote_commit_every_step_once_and_lose_nothing(
    rounds: int, miners: int, prompts: int, tmp_path: Path
) -> None:
    parameters = WorldParameters(seed=7, miners=miners, prompts=prompts)
    homes = [tmp_path / name for name in ("left", "right")]
    with start_world(tmp_path / "world", parameters) as world, git_server(world.workdir.root) as server:
        world.workdir.store.mkdir(parents=True, exist_ok=True)
        git(world, "config", "uploadpack.allowFilter", "true")
        pipelines = [start(world, server, home, rounds) for home in homes]
        try:
            codes = [pipeline.wait(PLAY_SECONDS) for pipeline in pipelines]
        finally:
            for pipeline in pipelines:
                pipeline.kill()
        assert codes == [0, 0], "\n".join((home / "err").read_text()[-2000:] for home in homes)

        assert git(world, "fsck", "--strict", "--no-dangling") == ""
        assert git(world, "log", "--min-parents=2", "main") == "", "the log is not linear"
        steps = git(world, "log", STEPS, "main").split()
        assert [step for step, count in Counter(steps).items() if count > 1] == [], "a step was committed twice"

        told = [dict(line.split() for line in (home / "commits").read_text().splitlines()) for home in homes]
        log = set(git(world, "log", "--format=%H", "main").split())
        assert set(told[0]) & set(told[1]) == set()
        # Whose commit wins is a race: one of them may win each, but both did the work.
        assert all((home / "simulation.log").read_text().count('"start"') > 3 for home in homes)
        assert (set(told[0]) | set(told[1])) - log == set(), "a commit is lost"
        assert sorted([*told[0].values(), *told[1].values()]) == sorted(steps)

        transitions = git(world, "log", "--reverse", STEPS, "main", "--", "state.json").split()
        kinds = [tuple(step.split("/")[:2]) for step in transitions]
        of_a_round = ["open", "advance", "advance", "crown", "finalize"]
        assert kinds == [(str(number), kind) for number in range(rounds) for kind in of_a_round]

        state = json.loads(git(world, "show", "main:state.json"))
        assert (state["current_round"], state["stage"]) == (rounds, "open")

"""The build registry of the embedded world."""

from pydantic import BaseModel

from gen404_dagster.competition.models import BuildStatus
from gen404_dagster.resources.builds.protocol import BuildRun
from gen404_dagster.resources.chain import get_from_world

_STATUS = {
    "queued": BuildStatus.PENDING,
    "in_progress": BuildStatus.IN_PROGRESS,
    "success": BuildStatus.SUCCESS,
    "failure": BuildStatus.FAILURE,
}


class _RegistryAnswer(BaseModel):
    run_found: bool
    jobs: dict[str, str] = {}


class SimulatedBuilds:
    """Builds of the embedded world: all in one run, ended as soon as it is found."""

    def __init__(self, world: str) -> None:
        self._world = world.rstrip("/")

    def run_of(self, number: int) -> BuildRun:
        answer = _RegistryAnswer.model_validate_json(get_from_world(self._world, f"/registry/builds?round={number}"))
        jobs = {hotkey: _STATUS.get(state, BuildStatus.PENDING) for hotkey, state in answer.jobs.items()}
        going = {BuildStatus.PENDING, BuildStatus.IN_PROGRESS} & set(jobs.values())
        return BuildRun(answer.run_found, answer.run_found and not going, jobs)

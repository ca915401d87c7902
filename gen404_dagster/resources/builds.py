"""Where miners' docker images are built: which jobs the build run of a round has, and how they ended."""

from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from gen404_dagster.competition.models import BuildStatus, Hotkey
from gen404_dagster.resources.chain import get_from_world

_STATUS = {
    "queued": BuildStatus.PENDING,
    "in_progress": BuildStatus.IN_PROGRESS,
    "success": BuildStatus.SUCCESS,
    "failure": BuildStatus.FAILURE,
    "cancelled": BuildStatus.FAILURE,
    "skipped": BuildStatus.FAILURE,
    "timed_out": BuildStatus.FAILURE,
    "action_required": BuildStatus.FAILURE,
}


@dataclass(frozen=True)
class BuildRun:
    """The build run of a round. `finished`: no job will change or appear any more."""

    found: bool
    finished: bool
    jobs: dict[Hotkey, BuildStatus] = field(default_factory=dict)

    def status(self, hotkey: Hotkey) -> BuildStatus:
        """A hotkey without a job is pending while the run goes on, and only then not found."""
        waiting = BuildStatus.NOT_FOUND if self.finished else BuildStatus.PENDING
        return self.jobs.get(hotkey, waiting)


class BuildTracker(Protocol):
    def run_of(self, number: int) -> BuildRun:
        """The build run of a round, found by its commit message "...submissions for round N". Raises Unavailable."""
        ...


class _RegistryAnswer(BaseModel):
    run_found: bool
    jobs: dict[str, str] = {}


class SimulatedBuilds:
    """The build registry of the embedded world."""

    def __init__(self, world: str) -> None:
        self._world = world.rstrip("/")

    def run_of(self, number: int) -> BuildRun:
        answer = _RegistryAnswer.model_validate_json(get_from_world(self._world, f"/registry/builds?round={number}"))
        jobs = {hotkey: _STATUS.get(state, BuildStatus.PENDING) for hotkey, state in answer.jobs.items()}
        going = {BuildStatus.PENDING, BuildStatus.IN_PROGRESS} & set(jobs.values())
        return BuildRun(answer.run_found, answer.run_found and not going, jobs)


def docker_image(template: str, hotkey: Hotkey, tag: str) -> str:
    """Image name of a successful build: {hotkey} is the first 10 characters, the whole is lower-cased."""
    return template.format(hotkey=hotkey[:10], tag=tag).lower()


def build_tag(commit: str, round_name: str) -> str:
    return f"{commit[:7]}-{round_name}"

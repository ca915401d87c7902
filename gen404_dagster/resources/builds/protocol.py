"""What a tracker of builds answers, and how images are named."""

from dataclasses import dataclass, field
from typing import Protocol

from gen404_dagster.competition.models import BuildStatus, Hotkey


@dataclass(frozen=True)
class BuildRun:
    """The build run of a round. `finished`: no job will change or appear any more. `seconds`: since it started."""

    found: bool
    finished: bool
    jobs: dict[Hotkey, BuildStatus] = field(default_factory=dict)
    seconds: float = 0.0

    def status(self, hotkey: Hotkey) -> BuildStatus:
        """A hotkey without a job is pending while the run goes on, and only then not found."""
        waiting = BuildStatus.NOT_FOUND if self.finished else BuildStatus.PENDING
        return self.jobs.get(hotkey, waiting)


class BuildTracker(Protocol):
    def run_of(self, number: int) -> BuildRun:
        """The build run of a round, found by its commit message "...submissions for round N".

        Raises Unavailable, and OperatorError naming the variable when it is refused.
        """
        ...


def docker_image(template: str, hotkey: Hotkey, tag: str) -> str:
    """Image name of a successful build: {hotkey} is the first 10 characters, the whole is lower-cased."""
    return template.format(hotkey=hotkey[:10], tag=tag).lower()


def build_tag(commit: str, round_name: str) -> str:
    return f"{commit[:7]}-{round_name}"

"""What a tracker of builds answers, and how images are named."""

from dataclasses import dataclass, field
from string import Formatter
from typing import Protocol

from gen404_dagster.competition.models import BuildStatus, Hotkey
from gen404_dagster.errors import OperatorError


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


def check_template(template: str) -> None:
    """Raises OperatorError for a template of which images could not be told apart, or not be made."""
    try:
        fields = {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except ValueError:
        fields = set()
    if fields != {"hotkey", "tag"}:
        raise OperatorError(
            f"GEN404_DOCKER_IMAGE_TEMPLATE is {template!r}: it must hold {{hotkey}} and {{tag}}, and no other braces"
        )


def docker_image(template: str, hotkey: Hotkey, tag: str) -> str:
    """Image name of a successful build: {hotkey} is the first 10 characters, the whole is lower-cased."""
    return template.format(hotkey=hotkey[:10], tag=tag).lower()


def build_tag(commit: str, round_name: str) -> str:
    return f"{commit[:7]}-{round_name}"

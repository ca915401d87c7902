"""Where miners' docker images are built: which jobs the build run of a round has, and how they ended.

`protocol` is what a tracker of builds answers and how images are named, `simulated` asks the embedded world, `github` the
Actions API.
"""

from gen404_dagster.resources.builds.protocol import BuildRun, BuildTracker, build_tag, check_template, docker_image
from gen404_dagster.resources.builds.simulated import SimulatedBuilds

__all__ = ["BuildRun", "BuildTracker", "SimulatedBuilds", "build_tag", "check_template", "docker_image"]

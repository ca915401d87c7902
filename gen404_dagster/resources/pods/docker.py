"""Pods as containers on this machine: miners' images run by the docker command line.

Belongs here: which docker commands a pod is. Does not: subprocess pods without a daemon (`local`), how an image's
results are used (`fleet`). A container outlives this process: the sweep of leftovers ends it.
"""

import asyncio
import builtins
import re
import shlex
import shutil

from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.pods.protocol import IMAGE_PORT, Endpoint

COMMAND_SECONDS = 60.0
"""Longest wait for a docker command, in seconds."""
PULL_SECONDS = 1800.0
"""Longest wait for `docker run`, which fetches the image first, in seconds."""
_CANNOT_RUN = {126, 127}
"""Exit codes of `docker run` that blame the image: its command cannot be run, or does not exist."""


class DockerPods:
    """Provider of containers on this machine's docker daemon."""

    def __init__(self, run_options: str = "") -> None:
        """`run_options`: words for `docker run`, as `--gpus=all --memory=64g`."""
        self._options = shlex.split(run_options)

    @property
    def name(self) -> str:
        return "docker"

    async def deploy(self, pod: str, image: str) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", pod):
            raise OperatorError(f"{pod[:128]!r} is not a pod's name")
        if not re.fullmatch(r"[\w.:/@-]{1,512}", image) or image.startswith("-"):
            raise MinerFault(f"{image[:128]!r} is not the name of an image")
        # Not --rm: a container that ended by itself tells its exit code until it is deleted.
        publish = f"127.0.0.1::{IMAGE_PORT}"
        command = ("run", "--detach", "--name", pod, "--publish", publish, *self._options, image)
        code, _, fault = await self._docker(*command, seconds=PULL_SECONDS)
        if code in _CANNOT_RUN:
            raise MinerFault(f"image does not start: {fault}")
        if code:
            raise Unavailable(f"pod {pod} could not be started: {fault}")

    async def visible(self, pod: str) -> bool:
        state = await self._inspect(pod, "{{.State.Status}} {{.State.ExitCode}}")
        status, _, code = state.partition(" ")
        if status in ("exited", "dead"):
            raise MinerFault(f"image ended with exit code {code}")
        return bool(status)

    async def endpoint(self, pod: str) -> Endpoint | None:
        ports = f'{{{{(index (index .NetworkSettings.Ports "{IMAGE_PORT}/tcp") 0).HostPort}}}}'
        port = await self._inspect(pod, ports)
        return Endpoint(f"http://127.0.0.1:{port}") if port.isdecimal() else None

    async def delete(self, pod: str) -> None:
        code, _, fault = await self._docker("rm", "--force", "--volumes", pod)
        if code and pod in await self.list(pod):
            raise Unavailable(f"pod {pod} could not be deleted: {fault}")

    async def list(self, prefix: str) -> builtins.list[str]:
        code, output, fault = await self._docker("ps", "--all", "--format", "{{.Names}}")
        if code:
            raise Unavailable(f"docker: {fault}")
        return [name for name in output.split() if name.startswith(prefix)]

    async def _inspect(self, pod: str, template: str) -> str:
        """A container's property; empty when there is none."""
        code, output, fault = await self._docker("container", "inspect", "--format", template, pod)
        if code and "no such container" not in fault.lower() and "template" not in fault.lower():
            raise Unavailable(f"docker: {fault}")
        return "" if code else output

    async def _docker(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> tuple[int, str, str]:
        """Exit code, output, and the last line of the complaint."""
        program = shutil.which("docker")
        if program is None:
            return 1, "", "there is no docker command on this machine"
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            return 1, "", str(error)
        try:
            async with asyncio.timeout(seconds):
                output, complaint = await process.communicate()
        except TimeoutError as error:
            raise Unavailable(f"docker {arguments[0]} did not end within {seconds:g}s") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        lines = complaint.decode(errors="replace").strip().splitlines()
        return process.returncode or 0, output.decode(errors="replace").strip(), lines[-1] if lines else ""

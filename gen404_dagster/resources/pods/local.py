"""Pods as subprocesses on this machine: each serves the image contract on a loopback port of its own.

Belongs here: starting and ending the command that the setting `local_image_command` gives. Does not: what the image
does with a prompt (`simulation.image`, or a real image under docker), how its results are used (`fleet`).
"""

import asyncio
import builtins
import os
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.pods.protocol import Endpoint

GUARD = Path(__file__).with_name("guard.py")
LOG_BYTES = 1024**2
"""Most bytes of a pod's output that are kept."""
END_SECONDS = 10.0
"""A pod that has not ended so long after its pipe was closed is killed, in seconds."""
_POLL_SECONDS = 0.02

# A miner's code gets no credentials: only what programs need to start.
_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|VIRTUAL_ENV|PYTHON\w+|LD_LIBRARY_PATH|XDG_RUNTIME_DIR|DOCKER_HOST"
    r"|CUDA_\w+|NVIDIA_\w+|OMP_NUM_THREADS|NUMBA_\w+|GEN404_WORLD"
)


@dataclass(frozen=True)
class _Pod:
    process: subprocess.Popen[bytes]
    port: int


class LocalPods:
    """Provider of subprocess pods. They end with this process, however it ends."""

    def __init__(self, command_template: str, folder: Path) -> None:
        """`{image}` and `{port}` are replaced in every word of the command; `folder` gets a log of each pod."""
        self._words = shlex.split(command_template)
        if not any("{port}" in word for word in self._words):
            raise OperatorError(
                f"GEN404_LOCAL_IMAGE_COMMAND must be a command with {{port}} (and {{image}}), not {command_template!r}"
            )
        self._folder = folder
        self._pods: dict[str, _Pod] = {}

    @property
    def name(self) -> str:
        return "local"

    async def deploy(self, pod: str, image: str) -> None:
        """Start the command. Deploying a pod again replaces it."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", pod):
            raise OperatorError(f"{pod[:128]!r} is not a pod's name")
        await self.delete(pod)
        port = self._free_port()
        command = [word.replace("{image}", image).replace("{port}", str(port)) for word in self._words]
        log = self._folder / f"{pod}.log"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            process = subprocess.Popen(  # noqa: ASYNC220 - takes a millisecond, and any event loop may end the pod
                [sys.executable, "-I", "-S", str(GUARD), str(log), str(LOG_BYTES), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={key: value for key, value in os.environ.items() if _PASSED_ON.fullmatch(key)},
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"pod {pod} could not be started: {error}") from error
        self._pods[pod] = _Pod(process, port)

    async def visible(self, pod: str) -> bool:
        found = self._pods.get(pod)
        if found is not None and found.process.poll() is not None:
            raise MinerFault(f"image ended with exit code {found.process.returncode}")
        return found is not None

    async def endpoint(self, pod: str) -> Endpoint | None:
        found = self._pods.get(pod)
        return Endpoint(f"http://127.0.0.1:{found.port}") if found else None

    async def delete(self, pod: str) -> None:
        found = self._pods.get(pod)
        if found is None:
            return
        process = found.process
        if process.stdin is not None:
            process.stdin.close()  # the guard lets the image end, then kills what is left of it
        loop = asyncio.get_running_loop()
        deadline = loop.time() + END_SECONDS
        while process.poll() is None:
            if loop.time() > deadline:
                process.kill()
                process.wait()
            await asyncio.sleep(_POLL_SECONDS)
        self._pods.pop(pod, None)

    async def list(self, prefix: str) -> builtins.list[str]:
        """Pods of this process: those of another one ended with it."""
        return [pod for pod in self._pods if pod.startswith(prefix)]

    def log(self, pod: str) -> Path:
        """Where a pod's output is kept."""
        return self._folder / f"{pod}.log"

    def _free_port(self) -> int:
        taken = {pod.port for pod in self._pods.values()}
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in taken:
                return port

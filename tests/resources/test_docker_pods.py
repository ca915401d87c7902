"""Pods as docker containers: what the docker command is asked, by a stand-in that runs the image as a subprocess.

With a daemon at hand the same scenario runs a real container: GEN404_TEST_DOCKER_IMAGE names one that serves the contract.
"""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.pods import fleet
from gen404_dagster.resources.pods.docker import DockerPods
from gen404_dagster.resources.pods.fleet import RegenerationJob
from gen404_dagster.resources.pods.protocol import sweep
from tests.resources.pod_world import SERVER, World, prompts, runs
from tests.waiting import wait_for

STAND_IN = f'''#!{sys.executable}
"""docker run, ps, rm and container inspect, for containers that are subprocesses; a folder each in $DOCKER_ROOT."""
import json, os, shutil, signal, socket, subprocess, sys
from pathlib import Path

root, (verb, *words) = Path(os.environ["DOCKER_ROOT"]), sys.argv[1:]

def fail(code, complaint):
    print(complaint, file=sys.stderr)
    sys.exit(code)

def alive(folder):
    try:
        return Path("/proc", (folder / "process").read_text(), "stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False

if (root / "daemon-is-down").exists():
    fail(1, "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?")
if verb == "run":
    options, image = words[:-1], words[-1]
    assert options[:3] == ["--detach", "--name", options[2]] and options[3:5] == ["--publish", "127.0.0.1::10006"], options
    assert options[5:] == ["--gpus=all", "--label=a b"], options
    if image.endswith("unknown"):
        fail(125, "docker: Error response from daemon: manifest unknown.")
    if image.endswith("broken"):
        fail(127, "docker: exec failed: no such file or directory.")
    folder = root / options[2]
    if folder.exists():
        fail(125, f"Conflict. The container name {{options[2]}} is already in use.")
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    image_server = [sys.executable, {str(SERVER)!r}, os.environ["DOCKER_PLAN"], str(port)]
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # the container holds its own leash
    process = subprocess.Popen(image_server, stdin=reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               start_new_session=True, pass_fds=[writer])
    (folder / "port").write_text(str(port))
    (folder / "process").write_text(str(process.pid))
    print("0123456789ab")
elif verb == "ps":
    print("\\n".join(path.name for path in root.iterdir() if path.is_dir()))
elif verb == "rm":
    folder = root / words[-1]
    if folder.exists():
        os.killpg(int((folder / "process").read_text()), signal.SIGKILL)
        shutil.rmtree(folder)
elif (verb, *words[:2]) == ("container", "inspect", "--format"):
    folder = root / words[-1]
    if not folder.exists():
        fail(1, f"Error response from daemon: No such container: {{words[-1]}}")
    if "State" in words[2]:
        print("running 0" if alive(folder) else "exited 3")
    elif alive(folder):
        print((folder / "port").read_text())
    else:
        fail(1, "template parsing error: index of nil pointer")
else:
    fail(1, f"docker: '{{verb}}' is not a docker command.")
'''


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world with the stand-in first on PATH. Afterwards no container may be left."""
    root, programs = tmp_path / "containers", tmp_path / "bin"
    root.mkdir()
    programs.mkdir()
    (programs / "docker").write_text(STAND_IN)
    (programs / "docker").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(fleet, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("DOCKER_ROOT", str(root))
    monkeypatch.setenv("DOCKER_PLAN", str(tmp_path / "plan.json"))
    world = World(tmp_path)
    world.provider()  # writes the plan
    yield world
    assert list(root.iterdir()) == [], "containers are left"
    assert world.alive() == []


def pods() -> DockerPods:
    return DockerPods("--gpus=all '--label=a b'")


def job(*stems: str) -> RegenerationJob:
    return RegenerationJob("test", 1, "5Miner7890123", "registry.example/competition/5miner:0123456-3", 42, stems)


def test_containers_serve_a_regeneration_and_are_deleted(world: World) -> None:
    outcome = world.run(job(*prompts(4)), pods())
    assert list(outcome.results) == prompts(4)
    assert {pod.termination_reason for pod in outcome.pods.values()} <= {"no work available", "stopped"}


def test_a_container_that_ends_by_itself_tells_its_exit_code(world: World) -> None:
    world.provider({"mode": "crash"})

    async def deploy_and_wait() -> None:
        provider = pods()
        await provider.deploy("gen404-test-1-5aaa-0", "image")
        endpoint = await provider.endpoint("gen404-test-1-5aaa-0")
        assert endpoint is not None
        assert endpoint.url.startswith("http://127.0.0.1:")
        process = int((world.folder / "containers" / "gen404-test-1-5aaa-0" / "process").read_text())
        os.kill(process, 9)
        await asyncio.to_thread(wait_for, lambda: not runs(process))
        with pytest.raises(MinerFault, match="image ended with exit code 3"):
            await provider.visible("gen404-test-1-5aaa-0")
        assert await provider.endpoint("gen404-test-1-5aaa-0") is None
        await provider.delete("gen404-test-1-5aaa-0")
        assert not await provider.visible("gen404-test-1-5aaa-0")
        assert await provider.endpoint("gen404-test-1-5aaa-0") is None

    asyncio.run(deploy_and_wait())


def test_another_process_finds_and_deletes_exactly_its_own_containers(world: World) -> None:
    names = ["gen404-test-1-5aaa-0", "gen404-test-1-5aaab-0", "gen404-test-10-5aaa-0"]

    async def deploy_and_sweep() -> None:
        for name in names:
            await pods().deploy(name, "image")
        assert await sweep([pods()], "gen404-test-1-5aaa-") == names[:1]
        assert sorted(await pods().list("gen404-")) == names[1:]
        await sweep([pods()], "gen404-test-")

    asyncio.run(deploy_and_sweep())


def test_whose_fault_a_failed_start_is(world: World) -> None:
    async def start(image: str) -> None:
        await pods().deploy("gen404-test-1-5aaa-0", image)

    with pytest.raises(MinerFault, match=r"image does not start: .*no such file"):
        asyncio.run(start("registry/broken"))
    with pytest.raises(Unavailable, match="manifest unknown"):
        asyncio.run(start("registry/unknown"))
    with pytest.raises(MinerFault, match="is not the name of an image"):
        asyncio.run(start("--privileged"))
    with pytest.raises(OperatorError, match="is not a pod's name"):
        asyncio.run(pods().deploy("--rm", "image"))


def test_without_a_daemon_it_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    down = world.folder / "containers" / "daemon-is-down"
    down.touch()
    with pytest.raises(Unavailable, match="Is the docker daemon running"):
        asyncio.run(pods().list("gen404-"))
    with pytest.raises(Unavailable, match="Is the docker daemon running"):
        asyncio.run(pods().visible("gen404-test-1-5aaa-0"))
    down.unlink()
    monkeypatch.setenv("PATH", str(world.folder))
    with pytest.raises(Unavailable, match="there is no docker command on this machine"):
        asyncio.run(pods().list("gen404-"))


@pytest.mark.skipif("GEN404_TEST_DOCKER_IMAGE" not in os.environ, reason="GEN404_TEST_DOCKER_IMAGE names no image")
def test_a_real_container_comes_and_goes() -> None:
    docker = shutil.which("docker")
    assert docker
    assert subprocess.run([docker, "version"], capture_output=True, check=False).returncode == 0
    name = f"gen404-test-1-5aaa-{os.getpid()}"

    async def come_and_go() -> None:
        provider = DockerPods()
        await provider.deploy(name, os.environ["GEN404_TEST_DOCKER_IMAGE"])
        try:
            assert await provider.visible(name)
            assert await provider.endpoint(name) is not None
            assert await provider.list(name) == [name]
        finally:
            await provider.delete(name)
        assert await provider.list(name) == []

    asyncio.run(come_and_go())

"""The image process: the contract that real docker images serve."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gen404_dagster.simulation.launch import World, WorldParameters, start_world
from gen404_dagster.simulation.prompts import draw_object
from gpu_kernels import load_glb, render_view, write_glb

Git = Callable[..., str]


@contextmanager
def running_image(world: World, image: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gen404_dagster.simulation.image", "--world", world.url]
    with subprocess.Popen([*command, "--image", image, "--port", str(port)], stdin=subprocess.PIPE) as process:
        try:
            yield wait_until_healthy(f"http://127.0.0.1:{port}", process), process
        finally:
            process.kill()


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the image ended with code {process.returncode}"
        try:
            assert httpx.get(f"{url}/health").status_code == 200
            return url
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError("the image was not healthy within 120 s")


def generate(url: str, picture: bytes, seed: object = 77) -> httpx.Response:
    files = {"prompt_image_file": ("prompt.png", picture, "image/png")}
    return httpx.post(f"{url}/generate", files=files, data={"seed": str(seed)}, timeout=120)


def image_of(world: World, name: str) -> str:
    submissions = json.loads(
        subprocess.check_output(["git", "show", "main:rounds/0/submissions.json"], cwd=world.workdir.remote)
    )
    hotkey = next(member["hotkey"] for member in world.cast() if member["name"] == name)
    return f"registry.local/competition/{hotkey[:10]}:{submissions[hotkey]['commit'][:7]}-sim-0".lower()


def picture(world: World, stem: str) -> bytes:
    return (world.workdir.prompts / f"{stem}.png").read_bytes()


def apart(a: bytes, b: bytes) -> float:
    """Mean difference of two models' pictures, of 255."""
    first, second = (render_view(load_glb(data), 24, 15, 96).astype(float) for data in (a, b))
    return float(abs(first - second).mean())


def test_an_honest_image_makes_nearly_what_was_submitted(
    world: World, stems: list[str], hotkeys: dict[str, str]
) -> None:
    with running_image(world, image_of(world, "best")) as (url, _):
        for stem in stems[:3]:
            submitted = httpx.get(f"{world.url}/cdn/{hotkeys['best']}/{stem}.glb").content
            answer = generate(url, picture(world, stem))
            assert answer.headers["content-type"] == "model/gltf-binary"
            assert answer.content != submitted
            assert apart(answer.content, submitted) < 1.5
            assert generate(url, picture(world, stem)).content == answer.content
            assert generate(url, picture(world, stem), seed=78).content != answer.content


def test_the_cheaters_image_makes_something_else(world: World, stems: list[str], hotkeys: dict[str, str]) -> None:
    with running_image(world, image_of(world, "cheater")) as (url, _):
        for stem in stems[:3]:
            submitted = httpx.get(f"{world.url}/cdn/{hotkeys['cheater']}/{stem}.glb").content
            made = generate(url, picture(world, stem)).content
            assert apart(made, submitted) > 3


def test_the_first_leaders_image_is_in_the_opening_commit(world: World, stems: list[str], git: Git) -> None:
    (leader,) = json.loads(git("show", "main:leader.json", at=world.workdir.remote))
    with running_image(world, leader["docker"]) as (url, _):
        assert load_glb(generate(url, picture(world, stems[0])).content)


def test_odd_requests_are_refused_and_the_image_goes_on(world: World, stems: list[str]) -> None:
    with running_image(world, image_of(world, "weaker")) as (url, _):
        assert generate(url, b"not a picture").status_code == 400
        assert generate(url, picture(world, stems[0]), seed="many").status_code == 422
        assert httpx.post(f"{url}/generate", data={"seed": "1"}).status_code == 422
        assert httpx.post(f"{url}/generate", content=iter([b"x"])).status_code == 413
        assert generate(url, picture(world, stems[0])).status_code == 200


def test_requests_at_once_are_answered_one_after_the_other(world: World, stems: list[str]) -> None:
    with running_image(world, image_of(world, "weaker")) as (url, _):
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda stem=stem: answers.append(generate(url, picture(world, stem)).status_code))
            for stem in stems
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert answers == [200] * len(stems)


def test_the_image_ends_when_its_parents_pipe_closes(world: World, stems: list[str]) -> None:
    with running_image(world, image_of(world, "best")) as (_, process):
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("name", ["build-fails", "copycat"])
def test_an_image_that_was_never_built_does_not_start(world: World, stems: list[str], name: str) -> None:
    command = [sys.executable, "-m", "gen404_dagster.simulation.image", "--world", world.url, "--port", "1"]
    done = subprocess.run([*command, "--image", image_of(world, name)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is unknown to the registry" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, gen404_dagster.simulation.image; print([m for m in sys.modules if m in HEAVY])"
    heavy = "HEAVY = {'dagster', 'torch', 'numba', 'pandas', 'openai'}\n"
    assert subprocess.check_output([sys.executable, "-c", heavy + code], text=True).strip() == "[]"


def test_a_folders_files_are_made_again_in_other_bytes(
    tmp_path: Path, open_round: Callable[[World], list[str]]
) -> None:
    (tmp_path / "files").mkdir()
    content = write_glb([[0, 0, 0], [0.4, 0, 0], [0, 0.4, 0]], [[0, 1, 2]])
    (tmp_path / "files" / "a.glb").write_bytes(content)
    parameters = WorldParameters(prompts=6, miners=1, miner_from=str(tmp_path / "files"))
    with start_world(tmp_path / "W", parameters) as world:
        stems = open_round(world)
        with running_image(world, image_of(world, "real-files")) as (url, _):
            made = generate(url, picture(world, stems[2])).content
        assert made != content
        assert (load_glb(made).positions == load_glb(content).positions).all()


def test_a_real_picture_becomes_nearly_the_same_relief_twice(
    tmp_path: Path, open_round: Callable[[World], list[str]]
) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(draw_object(9, number))
    parameters = WorldParameters(miners=1, prompts_from=str(tmp_path / "pictures"))
    with start_world(tmp_path / "W", parameters) as world:
        stems = open_round(world)
        with running_image(world, image_of(world, "best")) as (url, _):
            made = [generate(url, picture(world, stem)).content for stem in stems]
        hotkey = world.cast()[0]["hotkey"]
        served = [httpx.get(f"{world.url}/cdn/{hotkey}/{stem}.glb").content for stem in stems]
        assert made[0] != served[0]
        assert apart(made[0], served[0]) < 1.5 < apart(served[0], served[1])

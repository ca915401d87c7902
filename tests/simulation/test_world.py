"""The world's process: equal twice, whole after any kill, gone with its parent."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.settings import load_settings
from gen404_dagster.simulation import world as world_module
from gen404_dagster.simulation.launch import (
    Workdir,
    World,
    WorldParameters,
    parse_parameters,
    pipeline_environment,
    serve_world,
    start_world,
)
from tests.waiting import wait_for

Git = Callable[..., str]
SMALL = WorldParameters(seed=5, miners=4, prompts=1)


def everything(world: World, git: Git, stems: list[str]) -> str:
    """All that a world shows, without its port."""
    workdir = world.workdir
    shown = [path.read_bytes().hex() for path in sorted(workdir.prompts.iterdir())]
    shown += [path.name for path in sorted(workdir.prompts.iterdir())]
    shown.append(git("show", "main:config.json", "main:leader.json", "main:prompts.txt", at=workdir.remote))
    shown.append(httpx.get(f"{world.url}/chain/commitments").text)
    for member in world.cast():
        shown.append(json.dumps(member))
        for stem in stems:
            shown.append(httpx.get(f"{world.url}/cdn/{member['hotkey']}/{stem}.glb").content.hex())
    port = world.url.rsplit(":", 1)[1]
    return re.sub(rf"127\.0\.0\.1:{port}", "ADDRESS", "\n".join(shown))


def test_equal_parameters_make_equal_worlds(tmp_path: Path, git: Git, open_round: Callable[[World], list[str]]) -> None:
    shown = []
    for name in ("one", "two"):
        with start_world(tmp_path / name, SMALL) as world:
            stems = open_round(world)
            shown.append(everything(world, git, stems))
    assert shown[0] == shown[1]
    assert "ADDRESS" in shown[0]


def test_the_block_and_the_address_survive_a_kill(tmp_path: Path) -> None:
    world = start_world(tmp_path, SMALL)
    threading.Timer(0.4, world.process.kill).start()
    told = 0
    with contextlib.suppress(Unavailable):
        while True:
            told = world.advance(told + 1)
    with start_world(tmp_path, SMALL) as again:
        assert again.block() in (told, told + 1)
        assert again.url == world.url
    world.close()


def test_a_first_start_killed_anywhere_is_finished_by_the_next(tmp_path: Path, git: Git) -> None:
    command = [sys.executable, "-m", "gen404_dagster.simulation.world", "--workdir", str(tmp_path)]
    command += ["--parameters", SMALL.model_dump_json()]
    for moment in range(8):
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            time.sleep(0.15 + 0.12 * moment)
            process.kill()
    with start_world(tmp_path, SMALL) as world:
        assert git("log", "--format=%s", "main", at=world.workdir.remote).strip() == "Open the competition"
        pool = git("show", "main:prompts.txt", at=world.workdir.remote).split()
        assert len(pool) == 9
        assert all(httpx.get(url).headers["content-type"] == "image/png" for url in pool)
        assert not list(tmp_path.glob("tmp/*"))


def test_other_parameters_on_a_workdir_are_refused_and_named(tmp_path: Path) -> None:
    start_world(tmp_path, SMALL).close()
    with pytest.raises(OperatorError, match=r"seed 5 there, 6 now; miners 4 there, 9 now"):
        start_world(tmp_path, WorldParameters(seed=6, miners=9, prompts=1))


def test_a_served_workdir_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "LOCK_SECONDS", 0.1)
    with pytest.raises(OperatorError, match="served by another process"):
        serve_world(world.workdir.root, WorldParameters())


@pytest.mark.parametrize("option", ["prompts_from", "miner_from"])
def test_an_empty_folder_is_refused_before_anything_is_written(tmp_path: Path, option: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OperatorError, match=rf"--{option.replace('_', '-')} .*empty: holds no"):
        start_world(tmp_path / "W", parse_parameters(json.dumps({option: str(tmp_path / "empty")})))
    assert not (tmp_path / "W" / "world.json").exists()


def test_time_is_the_blocks_time_and_never_goes_back(world: World) -> None:
    world.advance(300)
    head = httpx.get(f"{world.url}/chain/head").json()
    assert head["block"] == world.block() >= 300
    genesis = datetime.fromisoformat("2026-01-05T07:00:00Z")
    assert (datetime.fromisoformat(head["timestamp"]) - genesis).total_seconds() == 12 * head["block"]
    with pytest.raises(OperatorError, match="block 7 is in the past"):
        world.advance(7)
    for body in (b"", b"[]", b"{}", b'{"block": "9"}', b'{"block": true}', b'{"block": 1e9}'):
        assert httpx.post(f"{world.url}/clock", content=body).status_code == 400
    assert httpx.post(f"{world.url}/clock", json={"block": 10**30}).status_code == 409


def test_blocks_pass_by_themselves_when_asked(tmp_path: Path) -> None:
    with start_world(tmp_path, SMALL, blocks_per_second=200) as world:
        before, began = world.block(), time.monotonic()
        wait_for(lambda: world.block() > before + 100)
        assert world.block() < before + 200 * (time.monotonic() - began) + 2000


def test_the_store_is_served_and_nothing_beside_it(world: World) -> None:
    folder = world.workdir.store / "rounds" / "0" / "5X" / "submitted"
    folder.mkdir(parents=True)
    for suffix, kind in (("png", "image/png"), ("glb", "model/gltf-binary"), ("json", "application/json")):
        (folder / f"a.{suffix}").write_bytes(b"content")
        answer = httpx.get(f"{world.url}/store/rounds/0/5X/submitted/a.{suffix}")
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"content", kind)
    (world.workdir.store / "link.json").symlink_to(world.workdir.record)
    for key in ("..%2F..%2Fworld.json", "%2e%2e/%2e%2e/block", "/etc/passwd", "rounds", "", "link.json", "a%00b"):
        assert httpx.get(f"{world.url}/store/{key}").status_code == 404, key


def test_the_world_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from gen404_dagster.simulation.launch import WorldParameters, start_world\n"
        f"world = start_world({str(tmp_path)!r}, WorldParameters(seed=5, miners=4, prompts=1))\n"
        "print(world.process.pid, world.url, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        assert httpx.get(f"{url}/health").json()["pid"] == int(pid)
        parent.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health")
        except httpx.HTTPError:
            break
        time.sleep(0.05)
    else:
        os.kill(int(pid), signal.SIGKILL)
        pytest.fail("the world still answers 60 s after its parent was killed")


def test_a_pipelines_environment_is_complete_settings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in pipeline_environment(world.workdir.root, world.url).items():
        monkeypatch.setenv(name, value)
    read = load_settings()
    assert (read.world, read.state_repo) == (world.url, str(world.workdir.remote))
    assert read.limits.max_file_bytes == 32 * 1024**2
    assert (read.limits.max_mismatches, read.limits.download_jitter_seconds) == (1, 0)
    assert "{image}" in read.local_image_command


def test_an_environment_needs_a_world(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="holds no world"):
        pipeline_environment(tmp_path, "http://127.0.0.1:1")


def test_real_pictures_can_be_the_pool(tmp_path: Path, git: Git) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, colour in (("b.jpg", "red"), ("a.png", "blue"), ("c.txt", None), ("d.png", "blue")):
        if colour:
            Image.new("RGB", (300, 200), colour).save(pictures / name)
        else:
            (pictures / name).write_text("not a picture")
    with start_world(tmp_path / "W", WorldParameters(prompts_from=str(pictures))) as world:
        pool = git("show", "main:prompts.txt", at=world.workdir.remote).split()
        assert json.loads(git("show", "main:config.json", at=world.workdir.remote))["prompts_per_round"] == 2
        assert httpx.get(pool[0]).content == (pictures / "a.png").read_bytes()
        assert httpx.get(pool[1]).content.startswith(b"\x89PNG")


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(OperatorError, match=r"broken\.png: not a picture"):
        start_world(tmp_path / "W", WorldParameters(prompts_from=str(tmp_path)))


def test_a_workdir_is_found_wherever_it_is_called_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Workdir("W").remote == tmp_path / "W" / "remote.git"
    assert WorldParameters(miner_from="files").miner_from == str(tmp_path / "files")

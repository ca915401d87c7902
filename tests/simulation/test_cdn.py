"""Miners' CDNs and the build registry, over HTTP: each member of the cast does what its role says."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from gen404_dagster.simulation.launch import World, WorldParameters, start_world
from gpu_kernels import UnreadableModel, load_glb, render_preview, write_glb


def fetch(world: World, hotkey: str, stem: str) -> httpx.Response:
    return httpx.get(f"{world.url}/cdn/{hotkey}/{stem}.glb")


def test_nothing_is_there_before_the_seed_is_published(tmp_path: Path, pool: Callable[[World], list[str]]) -> None:
    with start_world(tmp_path, WorldParameters(prompts=1, miners=1)) as world:
        stem = pool(world)[0].rsplit("/", 1)[1].removesuffix(".png")
        assert fetch(world, world.cast()[0]["hotkey"], stem).status_code == 404
        assert httpx.get(f"{world.url}/registry/builds?round=0").json() == {"run_found": False, "jobs": {}}


def test_honest_miners_serve_every_prompt_of_the_round(world: World, stems: list[str], hotkeys: dict[str, str]) -> None:
    for name in ("best", "weaker", "rising", "honest-1", "cheater", "build-fails", "copycat"):
        for stem in stems:
            answer = fetch(world, hotkeys[name], stem)
            assert answer.headers["content-type"] == "model/gltf-binary"
            assert load_glb(answer.content)
    assert fetch(world, hotkeys["best"], stems[0]).content == fetch(world, hotkeys["best"], stems[0]).content


def test_nobody_serves_what_is_not_asked_for(world: World, stems: list[str], hotkeys: dict[str, str]) -> None:
    for hotkey, stem in ((hotkeys["best"], "0" * 64), ("5unknown", stems[0]), (hotkeys["base"], stems[0])):
        assert fetch(world, hotkey, stem).status_code == 404


def test_the_messy_miner_has_one_unusable_file_of_each_kind(
    world: World, stems: list[str], hotkeys: dict[str, str]
) -> None:
    faults = []
    for stem in stems:
        with httpx.stream("GET", f"{world.url}/cdn/{hotkeys['messy']}/{stem}.glb") as answer:
            data = answer.read()
            sized = "content-length" in answer.headers
        if len(data) == 3_000_000:
            assert not sized  # the length is only known at the end
            faults.append("too large")
            continue
        try:
            render_preview(data)
        except UnreadableModel as error:
            faults.append("outside" if "outside" in str(error) else "garbage")
    assert sorted(faults) == ["garbage", "outside", "too large"]


def test_the_dead_cdn_does_not_answer(world: World, stems: list[str], hotkeys: dict[str, str]) -> None:
    revealed = httpx.get(f"{world.url}/chain/commitments").json()["commitments"][hotkeys["cdn-down"]]
    assert '"http://127.0.0.1:9/' in revealed[-1][1]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:9/{stems[0]}.glb")
    assert fetch(world, hotkeys["cdn-down"], stems[0]).status_code == 404


def test_builds_are_found_by_the_openings_subject(world: World, stems: list[str], hotkeys: dict[str, str]) -> None:
    answer = httpx.get(f"{world.url}/registry/builds?round=0").json()
    failed = {name for name, hotkey in hotkeys.items() if answer["jobs"].get(hotkey) == "failure"}
    assert answer["run_found"]
    assert failed == {"build-fails", "copycat"}
    assert set(answer["jobs"]) == set(hotkeys.values()) - {hotkeys["base"]}
    assert not httpx.get(f"{world.url}/registry/builds?round=1").json()["run_found"]
    assert httpx.get(f"{world.url}/registry/builds?round=x").status_code == 400


def test_a_folder_of_files_is_served_in_order_and_repeated(
    tmp_path: Path, open_round: Callable[[World], list[str]]
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    corners = [[0, 0, 0], [0.4, 0, 0], [0, 0.4, 0]]
    contents = [write_glb(corners, [[0, 1, 2]], base_colour=(shade, 0, 0, 1)) for shade in (0.1, 0.5, 0.9)]
    for name, content in zip("abc", contents, strict=True):
        (folder / f"{name}.glb").write_bytes(content)
    parameters = WorldParameters(prompts=6, miners=1, miner_from=str(folder))
    with start_world(tmp_path / "W", parameters) as world:
        stems = open_round(world)
        hotkey = next(member["hotkey"] for member in world.cast() if member["name"] == "real-files")
        assert [fetch(world, hotkey, stem).content for stem in stems] == contents * 2

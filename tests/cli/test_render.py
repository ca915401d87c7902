"""`gen404 render` as a user meets it."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen404_dagster.batch import Picture, plan, render_files
from gen404_dagster.errors import OperatorError
from gen404_dagster.settings import Settings
from gpu_kernels import Splats, write_glb
from gpu_kernels.ply import write_ply
from gpu_kernels.spz import write_spz
from tests.cli.test_cli import gen404

CORNERS = np.array([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 0.5, 0.0]], np.float32)
SPLATS = Splats(CORNERS, CORNERS - 3, np.ones((3, 4), np.float32), np.ones(3, np.float32), CORNERS)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with one model in three formats, another one below it, a broken one, and what is none."""
    folder = tmp_path / "models"
    (folder / "below").mkdir(parents=True)
    (folder / "one.glb").write_bytes(write_glb(CORNERS, [[0, 1, 2]]))
    (folder / "one.ply").write_bytes(write_ply(SPLATS))
    (folder / "one.spz").write_bytes(write_spz(SPLATS))
    (folder / "below" / "two.GLB").write_bytes(write_glb(CORNERS / 2, [[0, 1, 2]]))
    (folder / "broken.spz").write_bytes(write_spz(SPLATS)[:-9])
    (folder / "notes.txt").write_text("not a model")
    return folder


def test_a_folder_is_rendered_and_the_refused_are_named_at_the_end(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = gen404("render", str(models), "-o", str(out))
    assert done.returncode == 1
    assert done.stderr.startswith(f"{models / 'broken.spz'}: refused: ")
    made = {out / name for name in ("one.glb.png", "one.ply.png", "one.spz.png", "below/two.png")}
    assert {Path(line) for line in done.stdout.split("\n") if line} == made
    assert {path for path in out.rglob("*") if path.is_file()} == made
    for path in made:
        with Image.open(io.BytesIO(path.read_bytes())) as preview:
            assert preview.size == (1041, 1041)


def test_json_says_what_became_of_each_file(models: Path, tmp_path: Path) -> None:
    done = gen404("render", str(models), "-o", str(tmp_path / "out"), "--jobs", "1", "--backend", "cpu", "--json")
    found = {Path(entry["file"]).name: entry for entry in json.loads(done.stdout)}
    assert set(found) == {"one.glb", "one.ply", "one.spz", "two.GLB", "broken.spz"}
    assert set(found["one.glb"]) == {"file", "output", "seconds", "backend", "refused"}
    assert found["one.glb"]["backend"] == "cpu"
    assert 0 < found["one.glb"]["seconds"] < 60
    assert found["broken.spz"]["output"] is None
    assert found["broken.spz"]["refused"]
    assert Path(found["two.GLB"]["output"]).is_file()


def test_pictures_are_made_again_unless_existing_ones_are_to_be_skipped(models: Path, tmp_path: Path) -> None:
    target = tmp_path / "one.png"
    arguments = ("render", str(models / "one.glb"), "-o", str(target))
    assert gen404(*arguments).returncode == 0
    first = target.stat().st_mtime_ns
    assert gen404(*arguments, "--skip-existing").stdout == ""
    assert target.stat().st_mtime_ns == first
    assert gen404(*arguments).stdout == f"{target}\n"
    assert target.stat().st_mtime_ns > first
    os.utime(models / "one.glb")
    assert gen404(*arguments, "--skip-existing").stdout == f"{target}\n"


def test_the_limits_of_a_round_hold(models: Path, tmp_path: Path) -> None:
    done = gen404(
        "render", str(models / "one.glb"), "-o", str(tmp_path / "one.png"), GEN404_LIMITS__MAX_FILE_BYTES="100"
    )
    assert done.returncode == 1
    assert "larger than" in done.stderr
    assert not (tmp_path / "one.png").exists()


def test_a_backend_that_is_not_there_is_a_one_line_error(models: Path) -> None:
    done = gen404("render", str(models / "one.glb"), "--backend", "abacus")
    assert done.returncode == 1
    assert done.stderr.startswith("gen404: ")
    assert "abacus" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_picture_that_cannot_be_written_is_a_one_line_error(models: Path) -> None:
    done = gen404("render", str(models / "one.glb"), "-o", str(models / "notes.txt" / "one.png"))
    assert done.returncode == 1
    assert done.stderr.startswith("gen404: ")
    assert "notes.txt/one.png cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_cannot_be_read_costs_only_itself(models: Path) -> None:
    gone, there = (Picture(models / name, models / f"{name}.png") for name in ("gone.glb", "one.glb"))
    refused, made = render_files([gone, there], Settings(), "cpu", 1, skip_existing=False, quiet=True)
    assert refused.refused is not None
    assert refused.refused.startswith("cannot be read")
    assert made.refused is None


def test_a_model_is_never_overwritten(models: Path) -> None:
    with pytest.raises(OperatorError, match="name of a model"):
        plan([models / "one.ply"], models / "one.glb")


def test_pictures_never_share_a_place(models: Path, tmp_path: Path) -> None:
    one, two = models / "one.glb", models / "below" / "two.GLB"
    assert plan([one], None) == [Picture(one, models / "one.png")]
    assert plan([one, models / "one.ply"], None)[1].output == models / "one.ply.png"
    assert [picture.output for picture in plan([one, two], tmp_path)] == [tmp_path / "one.png", tmp_path / "two.png"]
    assert len(plan([one, one, models], tmp_path)) == 5
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "one.glb"
    other.touch()
    with pytest.raises(OperatorError, match="would both become"):
        plan([one, other], tmp_path)
    with pytest.raises(OperatorError, match="name a folder"):
        plan([one, two], tmp_path / "one.png")
    with pytest.raises(OperatorError, match="name a folder"):
        plan([models], tmp_path / "one.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OperatorError, match="holds no file"):
        plan([tmp_path / "empty"], None)

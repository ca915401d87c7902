"""`gen404 distance`: one pair or two folders, with the verdict of an audit and whose distance it is."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen404_dagster.distances import compare_folders, compare_pictures
from gen404_dagster.errors import OperatorError
from gen404_dagster.settings import Settings


def picture(path: Path, number: int, spot: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    coarse = np.random.default_rng(number).integers(0, 255, (5, 5, 3)).astype(np.uint8)
    drawn = Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC)
    drawn.paste("white", (0, 0, spot, spot))
    drawn.save(path, lossless=True)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data")


def test_one_pair_says_distance_verdict_and_model(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    first, near, other = (
        picture(tmp_path / name, *of) for name, of in {"a.png": (1,), "b.png": (1, 4), "c.png": (2,)}.items()
    )
    assert compare_pictures(settings, first, near, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert 0 < said["distance"] <= said["limit"] == 0.03
    assert (said["accepted"], said["model"]) == (True, "efficientnet-lite0")
    assert said["revision"]
    compare_pictures(settings, first, other, as_json=False)
    line = capsys.readouterr().out
    assert "too far, over 0.03  efficientnet-lite0" in line


def test_folders_are_paired_by_name_the_farthest_first(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(20):  # more than are compared at once
        picture(tmp_path / "one" / f"p{number:02}.png", number)
        picture(tmp_path / "two" / f"p{number:02}.webp", number if number != 7 else 70)
    picture(tmp_path / "two" / "alone.png", 1)
    (tmp_path / "two" / "notes.txt").write_text("no picture")
    assert compare_folders(settings, tmp_path / "one", tmp_path / "two", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["pairs"][0]["name"] == "p07"
    assert [row["accepted"] for row in said["pairs"]] == [False] + [True] * 19
    values = [row["distance"] for row in said["pairs"]]
    assert values == sorted(values, reverse=True)
    assert (said["unpaired"], said["limit"]) == (["alone"], 0.03)
    compare_folders(settings, tmp_path / "one", tmp_path / "two", as_json=False)
    shown = capsys.readouterr().out
    assert "without a partner: alone" in shown
    assert shown.index("p07") < shown.index("p01")


def test_a_picture_that_is_none_costs_its_pair_and_the_exit_code(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        picture(tmp_path / "one" / f"[{number}].png", number)
        picture(tmp_path / "two" / f"[{number}].png", number)
    (tmp_path / "two" / "[1].png").write_bytes(b"no picture")
    assert not compare_folders(settings, tmp_path / "one", tmp_path / "two", as_json=True)
    pairs = {row["name"]: row for row in json.loads(capsys.readouterr().out)["pairs"]}
    assert pairs["[1]"]["distance"] is None
    assert "not a picture" in pairs["[1]"]["fault"]
    assert pairs["[0]"]["distance"] == pairs["[2]"]["distance"] == 0
    assert not compare_folders(settings, tmp_path / "one", tmp_path / "two", as_json=False)
    assert "[1]" in capsys.readouterr().out


def test_folders_that_cannot_be_compared_are_refused_in_one_line(tmp_path: Path, settings: Settings) -> None:
    picture(tmp_path / "one" / "a.png", 1)
    picture(tmp_path / "two" / "b.png", 1)
    with pytest.raises(OperatorError, match="no pictures of the same name"):
        compare_folders(settings, tmp_path / "one", tmp_path / "two", as_json=False)
    picture(tmp_path / "two" / "b.jpg", 1)
    with pytest.raises(OperatorError, match=r"has b\.jpg and b\.png"):
        compare_folders(settings, tmp_path / "one", tmp_path / "two", as_json=False)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(OperatorError, match=r"c\.png.*not a picture"):
        compare_pictures(settings, tmp_path / "one" / "a.png", tmp_path / "c.png", as_json=False)

"""What is made is sound, and skill shows."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen404_dagster.errors import MinerFault
from gen404_dagster.simulation.making import make_model, padded_glb
from gen404_dagster.simulation.objects import imitation
from gen404_dagster.simulation.prompts import draw_object
from gen404_dagster.simulation.reliefs import relief
from gen404_dagster.simulation.shapes import SHAPES, build
from gpu_kernels import load_glb, render_view

SIZE = 128


def seen(glb: bytes) -> np.ndarray:
    return render_view(load_glb(glb), 24, 15, SIZE).astype(float)


def made(index: int, skill: float, hotkey: str = "A", occasion: str = "submitted") -> bytes:
    return make_model(1, hotkey, skill, 77, f"stem{index}", occasion, index=index).glb()  # type: ignore[arg-type]


def error(index: int, skill: float, **who: str) -> float:
    return float(np.abs(seen(made(index, skill, **who)) - seen(imitation(1, index, 1.0).glb())).mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("segments", [5, 13, 26])
def test_solids_are_closed_within_the_cube_and_face_outwards(shape: str, segments: int) -> None:
    solid = build(shape, segments)
    assert np.abs(solid.positions).max() <= 0.5 + 1e-9
    a, b, c = (solid.positions[solid.triangles[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    area = np.linalg.norm(across, axis=1)
    assert np.abs(across.sum(axis=0)).max() < 1e-9  # closed: the faces' areas cancel out
    assert (a * across).sum() > 0  # outwards: the volume is positive
    outward = solid.normals[solid.triangles].mean(axis=1)
    assert ((across * outward).sum(axis=1)[area > 1e-9] > 0).all()


def test_skill_shows_in_the_picture_step_by_step() -> None:
    skills = (1.0, 0.92, 0.8, 0.62, 0.5, 0.35, 0.1)
    errors = np.array([[error(index, skill) for skill in skills] for index in range(10)])
    assert (np.diff(errors.mean(axis=0)) > 0).all(), errors.mean(axis=0)
    assert (errors[:, 0] < errors[:, 1]).all()
    assert (errors[:, 1] < errors[:, 3]).mean() > 0.8


def test_equal_skill_is_nearly_equal_quality() -> None:
    for index in range(5):
        assert error(index, 0.7, hotkey="A") == pytest.approx(error(index, 0.7, hotkey="B"), rel=0.2)


def test_regenerated_files_differ_in_bytes_and_hardly_in_looks() -> None:
    for index in range(5):
        for skill in (1.0, 0.7):
            submitted, regenerated = (made(index, skill, occasion=name) for name in ("submitted", "regenerated"))
            assert submitted != regenerated
            assert submitted == made(index, skill)
            assert np.abs(seen(submitted) - seen(regenerated)).mean() < 1.5


def test_files_are_small_and_stay_in_the_cube() -> None:
    for index in range(30):
        for skill in (1.0, 0.6, 0.0):
            data = made(index, skill)
            assert len(data) < 150_000
            assert np.abs(load_glb(data).positions).max() <= 0.5


def test_objects_of_a_pool_are_recognisably_different() -> None:
    pictures = [seen(imitation(1, index, 1.0).glb()) for index in range(20)]
    apart = [np.abs(a - b).mean() for number, a in enumerate(pictures) for b in pictures[:number]]
    assert min(apart) > 4 * max(error(index, 1.0) for index in range(5))


def test_prompts_are_drawn_equally_every_time() -> None:
    data = draw_object(5, 2)
    assert data == draw_object(5, 2) != draw_object(6, 2)
    assert Image.open(io.BytesIO(data)).size == (512, 512)


def test_a_picture_becomes_a_relief_that_looks_like_it() -> None:
    picture = draw_object(1, 4)
    small = np.asarray(Image.open(io.BytesIO(picture)).resize((SIZE, SIZE)), float)
    errors = [float(np.abs(seen(relief(picture, skill, 1, 77).glb()) - small).mean()) for skill in (1.0, 0.7, 0.3)]
    assert errors == sorted(errors)
    assert relief(picture, 0.9, 1, 77, ("a",)).glb() != relief(picture, 0.9, 1, 77, ("b",)).glb()


@pytest.mark.parametrize("colour", ["white", "black"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (40, 30)])
def test_any_picture_becomes_a_model(colour: str, size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    for skill in (1.0, 0.0):
        assert np.abs(load_glb(relief(buffer.getvalue(), skill, 1, 77, ("a",)).glb()).positions).max() <= 0.5


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"x" * 1000], ids=["empty", "header", "garbage"])
def test_what_is_no_picture_is_the_senders_fault(data: bytes) -> None:
    with pytest.raises(MinerFault, match="not a picture"):
        relief(data, 1.0, 1, 77)


@pytest.mark.shared
def test_real_pictures_and_real_files(shared: Path) -> None:
    for path in (shared / "samples" / "prompts").glob("*.png"):
        assert len(relief(path.read_bytes(), 0.9, 1, 77, ("a",)).glb()) < 150_000
    for name in ("box_textured", "fox", "dense_torus_vcolor"):
        data = (shared / "samples" / "glb" / f"{name}.glb").read_bytes()
        again = padded_glb(data)
        assert again != data
        assert np.array_equal(load_glb(again).positions, load_glb(data).positions)


def test_padding_leaves_other_bytes_alone() -> None:
    for data in (b"", b"glTF", b"ply\nformat ascii", b"glTF" + b"\xff" * 12 + b"JSON"):
        assert padded_glb(data) == data

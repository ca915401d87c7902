"""The splat kernels against their slow twin, against pictures drawn by others, and against themselves."""

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gpu_kernels import reference_splats, threads
from gpu_kernels.camera import AZIMUTHS, ELEVATION, View, splat_view
from gpu_kernels.cpu import splats as kernels
from gpu_kernels.cpu.splats import draw_splats
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.models import load_model
from gpu_kernels.splats import Splats

SAMPLES = ("hamburger.ply", "monkey.ply", "robocop_404zstd.spz")
PICTURES = Path(__file__).parent / "pictures"


def make_splats(
    positions: object,
    scale: object = 0.05,
    rotations: object = (1, 0, 0, 0),
    opacity: object = 1.0,
    colours: object = 1.0,
) -> Splats:
    """Splats with what is given, broadcast; scale and opacity are after their activations, colours are RGB."""
    place = np.asarray(positions, np.float32)
    count = len(place)

    def spread(values: object, *shape: int) -> NDArray[np.float32]:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(values, np.float32), (count, *shape)))

    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(opacity)) - np.log1p(-np.asarray(opacity))
        return Splats(
            np.ascontiguousarray(place),
            spread(np.log(scale), 3),
            spread(rotations, 4),
            spread(logits),
            spread((np.asarray(colours) - 0.5) / 0.28209479, 3),
        )


def make_cloud(kind: str, count: int = 400) -> Splats:
    random = np.random.default_rng(sum(kind.encode()))
    positions, scale = random.uniform(-0.5, 0.5, (count, 3)), np.exp(random.normal(-3, 0.8, (count, 3)))
    rotations, opacity = random.normal(size=(count, 4)), random.uniform(0, 1, count)
    if kind == "tiny":
        scale *= 1e-4
    elif kind == "needles":
        scale *= [20, 0.01, 0.01]
    elif kind == "opaque":
        opacity = np.ones(count)
    elif kind == "faint":
        opacity *= 0.02
    elif kind == "around the eye":
        positions *= [20, 1, 20]
        positions[:2] += [[60, 0, 0], [0, 0, -60]]  # far from the rest: c and E move
        scale *= 10
    elif kind == "degenerate":
        rotations[::3] = 0
        scale[::5] = np.exp(80.0)
        scale[1::5] = [1e3, 1e-9, 1]
        scale[2::5] = np.exp(-80.0)
        opacity[::7], opacity[1::7] = 0, 1
    elif kind == "one plane, one depth":
        positions[:, 2] = 0
        positions[::2] = positions[1::2]
    return make_splats(positions, scale, rotations, opacity, random.uniform(-0.5, 1.5, (count, 3)))


def draw(splats: Splats, *views: View) -> list[NDArray[np.uint8]]:
    pictures = [np.full((view.size, view.size, 3), 77, np.uint8) for view in views]
    draw_splats(splats, views, pictures)
    return pictures


def preview_views(size: int) -> list[View]:
    return [splat_view(azimuth, ELEVATION, size) for azimuth in AZIMUTHS]


def difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.abs(first.astype(np.int64) - second)


def load_splats(shared: Path, name: str) -> Splats:
    splats = load_model((shared / "samples" / "splat" / name).read_bytes())
    assert isinstance(splats, Splats)
    return splats


def draw_grid(splats: Splats) -> NDArray[np.uint8]:
    grid = np.zeros((1041, 1041, 3), np.uint8)
    corners = [(0, 0), (0, 523), (523, 0), (523, 523)]
    draw_splats(splats, preview_views(518), [grid[top : top + 518, left : left + 518] for top, left in corners])
    return grid


@pytest.fixture
def some_threads() -> Iterator[None]:
    before = threads.count()
    yield
    threads.configure(before)


KINDS = ("plain", "tiny", "needles", "opaque", "faint", "around the eye", "degenerate", "one plane, one depth")


@pytest.mark.parametrize("size", [64, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_splats_look_as_in_the_float64_reference(kind: str, size: int) -> None:
    splats, views = make_cloud(kind), preview_views(size)
    for view, picture in zip(views, draw(splats, *views), strict=True):
        assert (picture < 255).any(), "nothing was drawn"
        assert difference(picture, reference_splats.draw(splats, view)).max() <= 2


def test_splats_in_one_plane_that_faces_the_eye_lie_over_each_other_in_the_order_of_the_file() -> None:
    """Their depths differ by rounding alone."""
    splats, views = make_cloud("one plane, one depth"), [splat_view(180, 0, 21), splat_view(0, 0, 64)]
    for view, picture in zip(views, draw(splats, *views), strict=True):
        assert difference(picture, reference_splats.draw(splats, view)).max() <= 2


@pytest.mark.shared
def test_a_sample_looks_as_in_the_float64_reference(shared: Path) -> None:
    splats, view = load_splats(shared, "monkey.ply"), splat_view(AZIMUTHS[1], ELEVATION, 96)
    assert difference(draw(splats, view)[0], reference_splats.draw(splats, view)).max() <= 2


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", SAMPLES)
def test_whole_previews_of_samples_look_as_in_the_float64_reference(shared: Path, name: str) -> None:
    splats, views = load_splats(shared, name), preview_views(518)
    for view, picture in zip(views, draw(splats, *views), strict=True):
        assert difference(picture, reference_splats.draw(splats, view)).max() <= 2


@pytest.mark.shared
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_look_as_stored(shared: Path, name: str) -> None:
    stored = np.asarray(Image.open(PICTURES / f"{Path(name).stem}.png").convert("RGB"))
    apart = difference(draw_grid(load_splats(shared, name)), stored).max(axis=2)
    assert apart.max() <= 1
    assert (apart > 0).mean() <= 0.001


@pytest.mark.shared
def test_both_kinds_of_spz_give_the_same_picture(shared: Path) -> None:
    first, second = (draw_grid(load_splats(shared, name)) for name in ("robocop_404zstd.spz", "robocop_gzip.spz"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.shared
def test_the_subnet_s_own_picture_is_met(shared: Path) -> None:
    """Drawn by 404's renderer on a GPU: 1080 px, azimuth 45, elevation 0, distance 3, extent 1, upright."""
    splats, grown = load_splats(shared, "hamburger.ply"), np.float32(1.5)
    # A file 1.5 times as large is shrunk, opacities too, as by extent 1 in place of 1.5; then all is 1.5 times as far.
    splats = dataclasses.replace(
        splats, positions=splats.positions * grown, log_scales=splats.log_scales + np.log(grown)
    )
    view = splat_view(225, 0, 1080)
    view = dataclasses.replace(view, eye=view.eye * 4.5 / 2.5, right=-view.right, up=-view.up)
    theirs = np.asarray(Image.open(shared / "samples/splat/hamburger_reference_render.png").convert("RGB"))
    error = np.mean(difference(draw(splats, view)[0], theirs) ** 2.0)
    assert 10 * np.log10(255**2 / error) > 70


def test_one_splat_follows_the_formula() -> None:
    """Two splats (one has no extent), the nearer one seen alone in the middle: 0.5 of the colour, 0.5 of white."""
    positions = np.array([[0, 0, 0.5], [0, 0, -0.5]])
    # E = 1, s = 1.5: opacity 0.75 is drawn as 0.5.
    splats = make_splats(positions, 0.2, opacity=[0.0, 0.75], colours=[0.2, 0.4, 2.0])
    picture = draw(splats, splat_view(0, 0, 33))[0]
    np.testing.assert_array_equal(picture[16, 16], [int(255 * 0.6), int(255 * 0.7), 255])


def test_the_eye_is_behind_the_origin_and_up_is_down() -> None:
    """Azimuth 0 looks along +Z: +X is right and +Y is down in the picture."""
    corners = np.array([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]])
    for place, (row, column) in {(0.3, 0.0): (32, 45), (0.0, 0.3): (45, 32), (0.0, -0.3): (19, 32)}.items():
        # The invisible ones only make E = 1 and c = 0.
        shown = np.array([*place, 0.0])
        splats = make_splats([*corners, -shown, shown], 0.01, opacity=[0, 0, 0, 1], colours=0)
        dark = np.argwhere(draw(splats, splat_view(0, 0, 65))[0][..., 0] < 128)
        np.testing.assert_allclose(dark.mean(axis=0), (row, column), atol=0.5)
    view = splat_view(24, 15, 518)
    np.testing.assert_allclose(view.eye @ view.forward, -2.5)
    assert view.eye[1] < 0 < view.forward[1]
    assert view.focal == pytest.approx(567.0118, abs=1e-3)


def test_equal_depths_are_drawn_in_the_order_of_the_file() -> None:
    pair = make_splats(
        [[0.5, 0, 0], [-0.5, 0, 0], [0, 0, 0], [0, 0, 0]], 0.1, opacity=[0, 0, 1, 1], colours=np.eye(4)[:, 1:]
    )
    assert draw(pair, splat_view(24, 15, 33))[0][16, 16].argmax() == 1
    turned = dataclasses.replace(pair, colours=np.ascontiguousarray(pair.colours[::-1]))
    assert draw(turned, splat_view(24, 15, 33))[0][16, 16].argmax() == 0


def test_a_picture_may_be_a_part_of_another_and_only_that_part_is_written() -> None:
    splats, view = make_cloud("plain"), splat_view(24, 15, 50)
    whole = np.full((70, 80, 3), 7, np.uint8)
    draw_splats(splats, [view], [whole[11:61, 13:63]])
    np.testing.assert_array_equal(whole[11:61, 13:63], draw(splats, view)[0])
    whole[11:61, 13:63] = 7
    assert (whole == 7).all()


def test_many_splats_are_drawn_a_few_views_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    splats, views = make_cloud("plain"), preview_views(64)
    together = draw(splats, *views)
    monkeypatch.setattr(kernels, "_RECORDS", 2 * len(splats.positions))
    np.testing.assert_array_equal(together, draw(splats, *views))


@pytest.mark.usefixtures("some_threads")
def test_pictures_are_the_same_bits_with_any_number_of_threads_and_in_another_process() -> None:
    code = (
        "import sys, hashlib; from tests.gpu_kernels.test_splat_pictures import *\n"
        "threads.configure(int(sys.argv[1]))\n"
        "print(hashlib.sha256(np.stack(draw(make_cloud('plain', 40_000), *preview_views(200)))).hexdigest())"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", code, "2"], capture_output=True, text=True, timeout=600, check=True
    ).stdout.strip()
    for count in (1, 2, 4):
        threads.configure(count)
        here = np.stack(draw(make_cloud("plain", 40_000), *preview_views(200)))
        assert hashlib.sha256(here).hexdigest() == elsewhere, f"{count} threads"


def test_splats_that_cover_everything_too_often_are_refused_before_memory_is_taken() -> None:
    positions = np.random.default_rng(0).uniform(-0.5, 0.5, (40_000, 3))
    with pytest.raises(UnreadableModel, match="too much to draw"):
        draw(make_splats(positions, 100.0, opacity=0.5), splat_view(24, 15, 518))


@pytest.mark.parametrize("doublings", [-90, 10, 95])
def test_a_scene_of_any_size_is_normalised(doublings: int) -> None:
    """Opacities are divided by the factor: opaque splats stay so when the file grows, and vanish when it is tiny."""
    splats, view = make_cloud("opaque"), splat_view(24, 15, 64)

    def grow(times: int) -> NDArray[np.uint8]:
        positions, log_scales = (
            splats.positions * np.float32(2.0**times),
            splats.log_scales + np.float32(times * np.log(2)),
        )
        return draw(dataclasses.replace(splats, positions=positions, log_scales=log_scales), view)[0]

    expected = grow(1) if doublings > 0 else np.full((64, 64, 3), 255)
    assert difference(grow(doublings), expected).max() <= 2

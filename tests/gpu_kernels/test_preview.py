"""The public door: grids, views, PNG, backends, and that it costs nothing until it is used."""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gpu_kernels
from gpu_kernels.camera import AZIMUTHS

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
SAMPLES = SHARED / "samples" / "glb"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="no ../shared/samples beside the checkout")


@pytest.fixture(scope="module")
def ball(sphere: Any, noise_png: bytes) -> bytes:
    return gpu_kernels.write_glb(
        sphere.positions, sphere.indices, sphere.normals, sphere.uv, roughness=0.5, base_colour_png=noise_png
    )


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, gpu_kernels; print([m for m in ('numba', 'numpy', 'PIL', 'pydantic') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    for name in gpu_kernels.__all__:
        assert getattr(gpu_kernels, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        gpu_kernels.nonsense  # noqa: B018


def test_a_preview_is_four_views_with_a_black_cross_between(ball: bytes) -> None:
    grid = gpu_kernels.render_preview(ball)
    assert (grid.shape, grid.dtype) == ((1041, 1041, 3), np.uint8)
    assert (grid[518:523] == 0).all()
    assert (grid[:, 518:523] == 0).all()
    mesh = gpu_kernels.load_glb(ball)
    for azimuth, (top, left) in zip(AZIMUTHS, [(0, 0), (0, 523), (523, 0), (523, 523)], strict=True):
        view = grid[top : top + 518, left : left + 518]
        np.testing.assert_array_equal(view, gpu_kernels.render_view(mesh, azimuth, 15.0, 518))
        assert (view[[0, -1]] == 255).all()
        assert (view[:, [0, -1]] == 255).all()
        assert 0.1 < (view != 255).any(axis=2).mean() < 0.6


def test_azimuths_are_those_of_the_spec() -> None:
    assert AZIMUTHS == (24.0, 120.0, 216.0, 312.0)


def test_edges_are_smooth_but_the_background_stays_white(ball: bytes) -> None:
    """Lanczos-3 has negative lobes: they may darken pixels beside an edge, not the background away from it."""
    view = gpu_kernels.render_view(gpu_kernels.load_glb(ball), 0.0, 0.0, 100)
    y, x = np.mgrid[:100, :100] + 0.5 - 50
    outside = np.hypot(x, y) > 0.5 * 50 / 0.4566 / np.sqrt(4 - 0.25) + 4
    assert (view[outside] == 255).all()


def test_threads_and_repetitions_give_the_same_bytes(ball: bytes) -> None:
    first = gpu_kernels.encode_png(gpu_kernels.render_preview(ball))
    with ThreadPoolExecutor(4) as pool:
        others = list(pool.map(lambda _: gpu_kernels.encode_png(gpu_kernels.render_preview(ball)), range(8)))
    assert all(other == first for other in others)


def test_a_png_holds_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (7, 11, 3)).astype(np.uint8)
    with Image.open(io.BytesIO(gpu_kernels.encode_png(picture))) as decoded:
        assert (decoded.format, decoded.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(decoded), picture)


def test_equal_pictures_give_equal_bytes_however_they_lie_in_memory() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    framed = np.zeros((50, 50, 3), np.uint8)
    framed[5:45, 7:37] = picture
    assert gpu_kernels.encode_png(framed[5:45, 7:37]) == gpu_kernels.encode_png(picture)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (4, 4, 1)])
def test_only_rgb_becomes_a_png(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"no PNG is made of uint8\[4, 4"):
        gpu_kernels.encode_png(np.zeros(shape, np.uint8))


def test_splats_have_previews_too() -> None:
    positions = np.random.default_rng(3).normal(0, 1, (500, 3)).astype(np.float32)
    splats = gpu_kernels.Splats(
        positions,
        log_scales=np.full((500, 3), -2, np.float32),
        rotations=np.ones((500, 4), np.float32),
        opacities=np.full(500, 2, np.float32),
        colours=np.zeros((500, 3), np.float32),
    )
    grid = gpu_kernels.draw_preview(splats, "cpu")
    assert (grid[518:523] == 0).all()
    for top, left in [(0, 0), (0, 523), (523, 0), (523, 523)]:
        assert 0.1 < (grid[top : top + 518, left : left + 518] != 255).any(axis=2).mean() < 0.9


def test_the_self_test_draws_both_kinds_and_always_the_same() -> None:
    first = gpu_kernels.self_test("cpu")
    assert len(first) == 64
    assert gpu_kernels.self_test("cpu") == first


@pytest.mark.parametrize("size", [0, -5, 100_000])
def test_views_of_impossible_sizes_are_refused(size: int, ball: bytes) -> None:
    with pytest.raises(ValueError, match="is not within"):
        gpu_kernels.render_view(gpu_kernels.load_glb(ball), 0.0, 0.0, size)


@pytest.mark.shared
@needs_samples
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("alien", "18 primitives, exactly one is allowed"),
        ("cake_birthday", "42 primitives, exactly one is allowed"),
        ("dense_torus_vcolor", r"x reaches 1.416, outside \[-0.6, 0.6\]"),
        ("flight_helmet", "6 primitives, exactly one is allowed"),
        ("fox", r"x reaches -?12.59, outside \[-0.6, 0.6\]"),
        ("robot", "19 primitives, exactly one is allowed"),
    ],
)
def test_samples_that_break_the_rules_are_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(gpu_kernels.UnreadableModel, match=reason):
        gpu_kernels.render_preview((SAMPLES / f"{name}.glb").read_bytes())


@pytest.mark.shared
@needs_samples
def test_the_textured_box_is_drawn() -> None:
    """Its node turns it by 90 degrees, which is ignored; its front shows the logo's green above its blue."""
    grid = gpu_kernels.render_preview((SAMPLES / "box_textured.glb").read_bytes()).astype(int)
    green, blue = grid[190, 220], grid[400, 220]
    assert green[1] > green[0] + 20 > green[2] + 20
    assert blue[2] > blue[1] > blue[0]

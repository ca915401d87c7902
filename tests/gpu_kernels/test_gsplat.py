"""Our splats in gsplat's terms (checked on any machine), and gsplat's pictures against the processor's (on CUDA)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_kernels.camera import AZIMUTHS, splat_view
from gpu_kernels.formulas import splats as formulas
from gpu_kernels.gsplat import backend
from gpu_kernels.splats import Splats

probed = backend.probe()


def make_splats(count: int = 300, seed: int = 0) -> Splats:
    random = np.random.default_rng(seed)
    arrays = (random.normal(size=(count, width)).astype(np.float32) for width in (3, 3, 4, 3))
    positions, scales, rotations, colours = arrays
    return Splats(2 + 3 * positions, scales - 2, rotations, random.normal(size=count).astype(np.float32), colours)


@pytest.mark.parametrize("azimuth", AZIMUTHS)
def test_centres_fall_on_the_pixels_that_the_formula_gives(azimuth: float) -> None:
    splats, view = make_splats(), splat_view(azimuth, 15, 518)
    scene, camera = backend.activate(splats, "cpu"), backend.place(view, "cpu")
    means = torch.cat([scene["means"], torch.ones(len(scene["means"]), 1)], dim=1)
    seen = (camera["viewmats"][0] @ means.T)[:3]
    pixels = (camera["Ks"][0] @ (seen / seen[2]))[:2].T.numpy()
    wide = (1e6, 0.0, 0.0, 1e6, 0.0, 1e6, 3.0, view.packed())  # so large that none is culled
    expected = np.array([formulas.project(*mean.astype(np.float64), *wide)[:2] for mean in scene["means"].numpy()])
    np.testing.assert_allclose(pixels, expected, atol=1e-3)


def test_activations_are_those_of_the_formula() -> None:
    splats = make_splats()
    scene = backend.activate(splats, "cpu")
    shrink = 1.5 / float(np.ptp(splats.positions, axis=0).max())
    assert float((scene["means"].max(0).values - scene["means"].min(0).values).max()) == pytest.approx(1.5, rel=1e-5)
    assert float(scene["means"].mean()) == pytest.approx(0, abs=1e-5)
    opacities = [formulas.activate_opacity(float(logit), shrink) for logit in splats.opacities]
    np.testing.assert_allclose(scene["opacities"].numpy(), opacities, rtol=1e-5)
    scales = [[formulas.activate_scale(float(log), shrink) for log in row] for row in splats.log_scales]
    np.testing.assert_allclose(scene["scales"].numpy(), scales, rtol=1e-5)


def test_extreme_values_stay_numbers() -> None:
    splats = make_splats(4)
    hostile = Splats(
        splats.positions,
        np.full((4, 3), 3e38, np.float32),
        np.zeros((4, 4), np.float32),
        np.array([np.inf, -np.inf, 3e38, -3e38], np.float32),
        splats.colours,
    )
    for name, values in backend.activate(hostile, "cpu").items():
        assert torch.isfinite(values).all(), name
    assert (backend.activate(hostile, "cpu")["quats"] == torch.tensor([1.0, 0, 0, 0])).all()


def test_pairs_of_splats_and_tiles_are_counted() -> None:
    means = torch.tensor([[[8.0, 8.0], [16.0, 16.0], [259.0, 259.0], [100.0, 100.0]]])
    radii = torch.tensor([[[2, 2], [1, 1], [10_000, 10_000], [0, 0]]])
    assert backend.count_pairs(means, radii, 518) == 1 + 4 + 33 * 33


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probed.available == (probed.draw_splats is not None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install" in backend.probe().why
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(backend, "torch_cuda_obstacle", lambda: "no CUDA device")
    assert not backend.probe().available
    assert backend.probe().why == "no CUDA device"


@pytest.mark.gpu
@pytest.mark.skipif(not probed.available, reason=probed.why)
def test_made_up_splats_look_as_on_the_processor() -> None:
    assert_same_picture(make_splats(5000))


@pytest.mark.gpu
@pytest.mark.shared
@pytest.mark.skipif(not probed.available, reason=probed.why)
@pytest.mark.parametrize("name", ["hamburger.ply", "monkey.ply", "robocop_gzip.spz"])
def test_real_splats_look_as_on_the_processor(name: str, shared: Path) -> None:
    from gpu_kernels.models import load_model

    splats = load_model((shared / "samples" / "splat" / name).read_bytes())
    assert isinstance(splats, Splats)
    assert_same_picture(splats)


def assert_same_picture(splats: Splats) -> None:
    """To 2 of 255."""
    from gpu_kernels.cpu.splats import draw_splats

    views = [splat_view(azimuth, 15, 518) for azimuth in AZIMUTHS]
    ours, theirs = np.empty((2, 4, 518, 518, 3), np.uint8)
    draw_splats(splats, views, list(ours))
    backend.draw_splats(splats, views, list(theirs))
    assert (ours != 255).any(axis=-1).mean() > 0.05, "next to nothing is drawn"
    assert np.abs(ours.astype(int) - theirs).max() <= 2

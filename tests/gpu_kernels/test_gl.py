"""OpenGL's pictures against the processor's, on every material feature; and what it says when it cannot draw."""

import dataclasses
import importlib.util
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_kernels import UnreadableModel, load_glb, render_preview, render_view
from gpu_kernels.camera import mesh_view
from gpu_kernels.gl import backend
from gpu_kernels.mesh import Material, Mesh
from gpu_kernels.registry import AUTOMATIC, Backend

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def meshes() -> dict[str, bytes]:
    """GLB files that use every material feature, by name."""
    made: dict[str, bytes] = runpy.run_path(str(PEERS / "material_meshes.py"))["make_meshes"]()
    return made


@pytest.fixture(scope="module")
def gl() -> Backend:
    probed = backend.probe()
    if not probed.available:
        pytest.skip(probed.why)
    return probed


def psnr(picture: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Decibels."""
    error = np.mean((picture.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.mark.usefixtures("gl")
def test_every_material_looks_as_on_the_processor(meshes: dict[str, bytes]) -> None:
    assert len(meshes) > 30
    different = {}
    for name, data in meshes.items():
        mesh = load_glb(data)
        expected = render_view(mesh, 24, 15, 160, backend="cpu")
        assert (expected != 255).mean() > 0.02, f"next to nothing is drawn of {name}"
        if (decibels := psnr(render_view(mesh, 24, 15, 160, backend="gl"), expected)) < 45:
            different[name] = decibels
    assert not different


@pytest.mark.slow
@pytest.mark.usefixtures("gl")
def test_every_preview_looks_as_on_the_processor(meshes: dict[str, bytes]) -> None:
    equal = {name: psnr(render_preview(data, "gl"), render_preview(data, "cpu")) for name, data in meshes.items()}
    assert not {name: decibels for name, decibels in equal.items() if decibels < 45}


@pytest.mark.shared
@pytest.mark.usefixtures("gl")
def test_real_models_look_as_on_the_processor(shared: Path) -> None:
    compared = 0
    for path in sorted((shared / "samples" / "glb").glob("*.glb")):
        try:
            mesh = load_glb(path.read_bytes())
        except UnreadableModel:  # more than one primitive
            continue
        middle, size = mesh.positions.mean(axis=0), np.ptp(mesh.positions, axis=0).max()
        fitted = dataclasses.replace(mesh, positions=(0.6 * (mesh.positions - middle) / size).astype(np.float32))
        expected = render_view(fitted, 24, 15, 518, backend="cpu")
        assert psnr(render_view(fitted, 24, 15, 518, backend="gl"), expected) >= 45, path.name
        compared += 1
    assert compared >= 3


@pytest.mark.usefixtures("gl")
def test_many_threads_share_the_one_context(meshes: dict[str, bytes]) -> None:
    mesh = load_glb(meshes["everything"])
    alone = render_view(mesh, 24, 15, 64, backend="gl")
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: render_view(mesh, 24, 15, 64, backend="gl"), range(12)))
    for picture in together:
        np.testing.assert_array_equal(picture, alone)


@pytest.mark.usefixtures("gl")
def test_four_samples_smooth_the_edges_and_change_nothing_else(sphere: Any) -> None:
    from gpu_kernels.gl.renderer import renderer

    mesh = Mesh(sphere.positions, sphere.indices, sphere.normals, material=Material((0.0, 0.0, 0.0, 1.0), 0.0))
    one, four = np.empty((2, 128, 128, 3), np.uint8)
    for samples, picture in ((1, one), (4, four)):
        renderer().draw(mesh, [mesh_view(0, 0, 128)], [picture], samples)
    changed = np.abs(one.astype(int) - four).max(axis=2) > 2
    assert changed.any()
    assert changed.mean() < 0.1
    assert not changed[54:74, 54:74].any()


@pytest.mark.usefixtures("gl")
def test_a_texture_too_large_for_this_opengl_is_the_machines_fault(
    sphere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpu_kernels.gl.renderer import renderer

    monkeypatch.setattr(renderer(), "_max_texture", 8)
    material = Material(base_colour_texture=np.full((4, 16, 4), 255, np.uint8))
    mesh = Mesh(sphere.positions, sphere.indices, sphere.normals, sphere.uv, material=material)
    with pytest.raises(RuntimeError, match=r"texture of 16 x 4, at most 8 .* cpu backend"):
        render_view(mesh, 0, 0, 16, backend="gl")
    plain = Mesh(sphere.positions, sphere.indices, sphere.normals)
    assert (render_view(plain, 0, 0, 16, backend="gl") != 255).any(), "the context does not survive a refusal"


@pytest.mark.usefixtures("gl")
def test_triangles_that_would_take_minutes_are_refused() -> None:
    from gpu_kernels.gl.renderer import MAX_FACE_AREA, face_area

    corners = np.array([[-0.6, -0.6, 0], [0.6, -0.6, 0], [0.6, 0.6, 0]], np.float32)
    one = np.arange(3, dtype=np.uint32)[None]
    assert face_area(corners, one) == pytest.approx(0.72)
    with pytest.raises(UnreadableModel, match="too many times"):
        render_view(Mesh(corners, np.tile(one, (int(MAX_FACE_AREA / 0.72) + 10, 1))), 0, 0, 16, backend="gl")


def test_without_moderngl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not backend.probe().available
    assert "gen404-dagster[gl]" in backend.probe().why


def test_it_says_what_it_runs_on_and_is_used_only_when_named(gl: Backend) -> None:
    from gpu_kernels.gl.renderer import renderer

    assert renderer().name in gl.why
    assert ("software" in gl.why) == renderer().is_software
    assert "gl" not in AUTOMATIC

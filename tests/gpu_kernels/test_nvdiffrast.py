"""The shading in PyTorch against the slow reference (on any machine), and nvdiffrast's pictures (on CUDA)."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from gpu_kernels import load_glb, reference
from gpu_kernels.camera import AZIMUTHS, MESH_NEAR, mesh_view
from gpu_kernels.cpu.mesh import draw_mesh, is_translucent, pack
from gpu_kernels.mesh import Mesh
from gpu_kernels.nvdiffrast import backend
from gpu_kernels.nvdiffrast.shading import Surface
from gpu_kernels.registry import AUTOMATIC

probed = backend.probe()
PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture(scope="module")
def meshes() -> dict[str, bytes]:
    """GLB files that use every material feature, by name."""
    made: dict[str, bytes] = runpy.run_path(str(PEERS / "material_meshes.py"))["make_meshes"]()
    return made


def test_every_material_is_shaded_as_the_reference_shades_it(meshes: dict[str, bytes]) -> None:
    view, compared = mesh_view(24, 15, 100), 0
    for name, data in meshes.items():
        mesh, random = load_glb(data), np.random.default_rng(0)
        if is_translucent(pack(mesh)):
            continue
        few = random.permutation(len(mesh.indices))[:150]
        mesh = Mesh(mesh.positions, mesh.indices[few], mesh.normals, mesh.uv, mesh.colours, mesh.material)
        surface = Surface(pack(mesh), "cpu")
        triangles = surface.facing(view)
        weights = random.dirichlet(np.ones(3), len(triangles)).astype(np.float32)
        drawn = surface.shade(triangles, torch.from_numpy(weights), view).numpy()
        normals = surface.normals.numpy().astype(np.float64)
        expected = [
            reference.shade(mesh, normals, int(number), share, view)[0]
            for number, share in zip(triangles, weights, strict=True)
        ]
        assert len(expected) >= 6
        np.testing.assert_allclose(drawn, expected, atol=1.5 / 255, err_msg=name)
        compared += 1
    assert compared > 25


def test_vertices_fall_on_the_pixels_of_the_view(meshes: dict[str, bytes]) -> None:
    surface, view = Surface(pack(load_glb(meshes["rough"])), "cpu"), mesh_view(120, 15, 100)
    x, y, z, w = surface.clip_positions(view, MESH_NEAR)[0].numpy().T
    ray = surface.positions.numpy() - view.eye
    depth = ray @ view.forward
    np.testing.assert_allclose(50 + 50 * x / w, 50 + view.focal * (ray @ view.right) / depth, atol=1e-3)
    np.testing.assert_allclose(50 - 50 * y / w, 50 - view.focal * (ray @ view.up) / depth, atol=1e-3)
    assert (np.abs(z) < w).all()


def test_its_licence_is_told_and_auto_never_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nvdiffrast" not in AUTOMATIC
    for library, obstacle in ((None, ""), (True, "no CUDA device"), (True, "")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, library=library: library)
        monkeypatch.setattr(backend, "torch_cuda_obstacle", lambda obstacle=obstacle: obstacle)
        monkeypatch.setattr(backend, "torch_device_name", lambda: "a card")
        told = backend.probe()
        assert "research and evaluation only" in told.why
        assert told.available == (library is not None and not obstacle)


@pytest.mark.gpu
@pytest.mark.skipif(not probed.available, reason=probed.why)
def test_every_preview_looks_as_on_the_processor(meshes: dict[str, bytes]) -> None:
    views = [mesh_view(azimuth, 15, 518) for azimuth in AZIMUTHS]
    for name, data in meshes.items():
        ours, theirs = np.empty((2, 4, 518, 518, 3), np.uint8)
        draw_mesh(load_glb(data), views, list(ours))
        backend.draw_mesh(load_glb(data), views, list(theirs))
        error = np.mean((ours.astype(np.float64) - theirs) ** 2)
        assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 45, name

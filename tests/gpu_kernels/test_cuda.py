"""The CUDA kernels: under Numba's simulator and through its compiler on any machine, on a device where there is one."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_kernels import reference, reference_splats
from gpu_kernels.camera import AZIMUTHS, ELEVATION, View, mesh_view, splat_view
from gpu_kernels.cpu.mesh import draw_mesh, is_translucent, pack, supersampled
from gpu_kernels.cpu.splats import draw_splats
from gpu_kernels.cuda import backend
from gpu_kernels.mesh import COLOURED_VERTICES, Material, Mesh
from gpu_kernels.splats import Splats
from tests.gpu_kernels.conftest import make_noise, make_sphere

probed = backend.probe()
SCRIPT = Path(__file__).with_name("cuda_without_device.py")


def texture(seed: int, least_alpha: int = 255) -> NDArray[np.uint8]:
    pixels = make_noise(seed, channels=4, size=6)
    pixels[..., 3] = np.maximum(pixels[..., 3], least_alpha)
    return pixels


DROPPED = "behind and beside the camera"  # no such vertex is in a preview's cube; its triangles are not drawn


def make_meshes() -> dict[str, Mesh]:
    """At most 50 triangles each."""
    ball, random = make_sphere(rings=4), np.random.default_rng(3)
    shape = {"normals": ball.normals, "uv": 2.5 * ball.uv - np.float32(0.7)}
    indices = ball.indices[(ball.positions[ball.indices].mean(axis=1) @ [0.4, 0.2, 0.9]) > -0.1]  # what the views see
    textured = Material(
        base_colour_texture=texture(1),
        metallic_roughness_texture=texture(2),
        normal_texture=texture(3),
        occlusion_texture=texture(4),
        emissive_texture=texture(5),
        emissive=(0.3, 0.2, 0.1),
    )
    translucent = dataclasses.replace(textured, base_colour_texture=texture(6, least_alpha=0))
    crossing = random.uniform(-0.6, 0.6, (36, 3)).astype(np.float32)
    faces = np.arange(36, dtype=np.uint32).reshape(12, 3)
    twice = np.concatenate([faces, faces[:, ::-1], faces])  # at the same depth, other colours: the first is seen
    tints = np.concatenate([np.tile([[1, 0, 0, 1]], (36, 1)), np.tile([[0, 1, 0, 1]], (36, 1))]).astype(np.float32)
    twice[24:] += np.uint32(36)
    glass = Material(base_colour=(0.9, 0.5, 0.2, 0.5), metallic=0.0)
    beside = np.array([[0, 0, 1.999], [1e6, -3, 0], [1e6, 3, 0], [-1, 1, 3], [1, 1, 1.96], [0.2, 0, 0]], np.float32)
    return {
        "textured": Mesh(ball.positions, indices, **shape, material=textured),
        "translucent": Mesh(ball.positions, indices, **shape, material=translucent),
        "crossing and doubled": Mesh(
            np.concatenate([crossing, crossing]), np.ascontiguousarray(twice), colours=tints, material=COLOURED_VERTICES
        ),
        "crossing and translucent": Mesh(crossing, np.ascontiguousarray(twice[:24]), material=glass),
        "seen from behind": Mesh(
            crossing[:3] * np.float32([1, 1, 0]), np.array([[0, 2, 1]], np.uint32), material=glass
        ),
        DROPPED: Mesh(beside, np.array([[0, 1, 2], [3, 4, 5], [5, 4, 3]], np.uint32)),
    }


def make_splats(count: int = 40, scale: float = -2.5) -> Splats:
    random = np.random.default_rng(0)

    def uniform(low: float, high: float, *shape: int) -> NDArray[np.float32]:
        return random.uniform(low, high, (count, *shape)).astype(np.float32)

    return Splats(
        positions=uniform(-0.5, 0.5, 3),
        log_scales=uniform(scale - 1, scale + 1, 3),
        rotations=random.normal(size=(count, 4)).astype(np.float32),
        opacities=uniform(-2, 6),
        colours=uniform(-2, 2, 3),
    )


def make_splat_sets() -> dict[str, Splats]:
    """40 splats each."""
    plain = make_splats()
    level = plain.positions.copy()
    level[:, 2] = 0
    level[::2] = level[1::2]
    odd = np.resize(np.array([np.inf, -np.inf, 3e38, -3e38, 2, -6], np.float32), 40)
    return {
        "plain": plain,
        "wide and opaque": dataclasses.replace(make_splats(scale=-0.5), opacities=np.full(40, np.inf, np.float32)),
        "one plane, one depth": dataclasses.replace(plain, positions=level),
        "degenerate": dataclasses.replace(
            plain,
            opacities=odd,
            rotations=np.where(np.arange(40)[:, None] % 3, plain.rotations, np.float32(0)),
            log_scales=np.where(np.arange(40)[:, None] % 5, plain.log_scales, np.float32(80)),
        ),
        "nothing to see": dataclasses.replace(plain, opacities=np.full(40, -9, np.float32)),
    }


MESHES, SPLATS = make_meshes(), make_splat_sets()
MESH_VIEWS = [
    mesh_view(24, ELEVATION, 16),
    mesh_view(0, 0, 7),
    mesh_view(60, 40, 7),
]  # two of one size are drawn at once
SPLAT_VIEWS = [splat_view(24, ELEVATION, 32), splat_view(216, ELEVATION, 11), splat_view(30, -40, 11)]


REFUSED = ["crossing and doubled", "crossing and translucent", "plain"]


def draw(function: Any, model: Any, views: Sequence[View]) -> list[NDArray[np.uint8]]:
    pictures = [np.zeros((view.size, view.size, 3), np.uint8) for view in views]
    function(model, views, pictures)
    return pictures


def run_script(*arguments: object, **variables: str) -> str:
    """In a process of its own: the simulator takes the place of numba.cuda when Numba is imported."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), **variables}
    command = [sys.executable, "-W", "error", str(SCRIPT), *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Pictures of all models under the simulator, or why there is none; formulas run as Python, compiled ones do not take its arrays."""
    folder = tmp_path_factory.mktemp("cuda")
    models: dict[str, Any] = {name: (splats, SPLAT_VIEWS) for name, splats in SPLATS.items()}
    for name, mesh in MESHES.items():
        scene = pack(mesh)
        models[name] = ((scene, is_translucent(scene)), MESH_VIEWS)
    models |= {f"{name}, refused": models[name] for name in REFUSED}
    (folder / "models").write_bytes(pickle.dumps(models))
    run_script("simulate", folder / "models", folder / "pictures", NUMBA_ENABLE_CUDASIM="1", NUMBA_DISABLE_JIT="1")
    drawn: dict[str, Any] = pickle.loads((folder / "pictures").read_bytes())
    return drawn


@pytest.mark.parametrize("name", MESHES)
def test_meshes_look_as_on_the_processor_and_in_the_reference(name: str, simulated: dict[str, Any]) -> None:
    mesh, off = MESHES[name], []
    for ours, processors, view in zip(simulated[name], draw(draw_mesh, mesh, MESH_VIEWS), MESH_VIEWS, strict=True):
        assert_close(ours, processors, 1, 0.001)
        if name != DROPPED:
            slow = reference.halve(reference.draw_mesh(mesh, supersampled(view, 2)))
            off.append((np.abs(ours.astype(int) - slow).max(axis=2) > 3).mean())
    # A vertex snapped to 1/256 pixel moves samples on an edge, each of which a dozen pixels see.
    assert max(off, default=0) < 0.1, f"{max(off):.1%} of the pixels differ from the reference"


@pytest.mark.parametrize("name", SPLATS)
def test_splats_look_as_on_the_processor_and_in_the_reference(name: str, simulated: dict[str, Any]) -> None:
    splats = SPLATS[name]
    for ours, processors, view in zip(
        simulated[name], draw(draw_splats, splats, SPLAT_VIEWS), SPLAT_VIEWS, strict=True
    ):
        assert_close(ours, processors, 1, 0.01)
        assert_close(ours, reference_splats.draw(splats, view), 2, 1)


def test_the_models_show_what_they_are_for(simulated: dict[str, Any]) -> None:
    covered = {
        name: (pictures[0] < 255).any(axis=2).mean()
        for name, pictures in simulated.items()
        if name in {*MESHES, *SPLATS}
    }
    assert {name for name, share in covered.items() if share == 0} == {"nothing to see", "seen from behind", DROPPED}
    assert all(covered[name] > 0.3 for name in ("textured", "translucent", "wide and opaque", "crossing and doubled"))


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_beyond_the_limits_is_refused(name: str, simulated: dict[str, Any]) -> None:
    assert "too much to draw" in simulated[f"{name}, refused"]


def test_every_kernel_compiles_for_the_types_it_is_launched_with() -> None:
    """The simulator knows no types. As far as PTX; libnvvm, libdevice and ptxas are NVIDIA's and not asked."""
    kernels = json.loads(run_script("lower"))
    assert len(kernels) == 13
    for name, needs in kernels.items():
        assert needs["constant"] <= 64 * 1024, f"{name}: more constants than a device holds"
        assert needs["shared"] <= 48 * 1024, f"{name}: more shared memory than a block has"
        assert all(function.startswith("__nv_") for function in needs["unresolved"]), f"{name}: {needs['unresolved']}"
    assert kernels["gpu_kernels.cuda.splats.composite"]["shared"] > 0
    assert kernels["gpu_kernels.cuda.mesh.shade_nearest"]["constant"] > 0


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probed.available == (probed.draw_mesh is not None)
    assert probed.available or probed.why

    def no_driver() -> str:
        raise OSError("cuInit: no CUDA-capable device is detected")

    monkeypatch.setattr(backend, "_first_device", no_driver)
    assert backend.probe().why == "no CUDA device: cuInit: no CUDA-capable device is detected"
    monkeypatch.setattr(backend, "_first_device", lambda: "a card, 80 GiB")
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in backend.probe().why
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    assert not backend.probe().available


def assert_close(one: NDArray[np.uint8], other: NDArray[np.uint8], most: int, share: float) -> None:
    """Equal to `most` of 255, and equal but on that share of the pixels."""
    off = np.abs(one.astype(int) - other).max(axis=2)
    assert off.max() <= most, f"{(off > most).sum()} pixels differ by up to {off.max()} of 255"
    assert (off > 0).mean() <= share, f"{(off > 0).mean():.2%} of the pixels differ"


# --- on a device ---

on_device = pytest.mark.skipif(not probed.available, reason=probed.why)
splats_on_device = pytest.mark.skipif(probed.draw_splats is None, reason=probed.why)


def preview_views(kind: Any) -> list[View]:
    return [kind(azimuth, ELEVATION, 518) for azimuth in AZIMUTHS]


def assert_same_mesh(mesh: Mesh) -> None:
    """To 1 of 255 but for 0.1 % of the pixels, where a device rounds a vertex or a depth the other way."""
    views = preview_views(mesh_view)
    for ours, processors in zip(draw(probed.draw_mesh, mesh, views), draw(draw_mesh, mesh, views), strict=True):
        assert (processors < 255).any(axis=2).mean() > 0.02, "next to nothing is drawn"
        assert (np.abs(ours.astype(int) - processors).max(axis=2) > 1).mean() <= 0.001


def assert_same_splats(splats: Splats) -> None:
    """To 2 of 255."""
    views = preview_views(splat_view)
    for ours, processors in zip(draw(probed.draw_splats, splats, views), draw(draw_splats, splats, views), strict=True):
        assert (processors < 255).any(axis=2).mean() > 0.02, "next to nothing is drawn"
        assert_close(ours, processors, 2, 1)


@pytest.mark.gpu
@on_device
@pytest.mark.parametrize("name", [name for name in MESHES if name not in ("seen from behind", DROPPED)])
def test_made_up_meshes_on_a_device_look_as_on_the_processor(name: str) -> None:
    assert_same_mesh(MESHES[name])


@pytest.mark.gpu
@pytest.mark.shared
@on_device
@pytest.mark.parametrize("name", ["box_textured", "fox", "dense_torus_vcolor"])
def test_real_meshes_on_a_device_look_as_on_the_processor(name: str, shared: Path) -> None:
    from gpu_kernels.gltf import load_glb

    mesh = load_glb((shared / "samples" / "glb" / f"{name}.glb").read_bytes())
    low, high = mesh.positions.min(axis=0), mesh.positions.max(axis=0)
    assert_same_mesh(dataclasses.replace(mesh, positions=(mesh.positions - (low + high) / 2) / (high - low).max()))


@pytest.mark.gpu
@splats_on_device
@pytest.mark.parametrize("name", [name for name in SPLATS if name != "nothing to see"])
def test_made_up_splats_on_a_device_look_as_on_the_processor(name: str) -> None:
    assert_same_splats(SPLATS[name])


@pytest.mark.gpu
@pytest.mark.shared
@splats_on_device
@pytest.mark.parametrize("name", ["hamburger.ply", "monkey.ply", "robocop_404zstd.spz"])
def test_real_splats_on_a_device_look_as_on_the_processor(name: str, shared: Path) -> None:
    from gpu_kernels.models import load_model

    splats = load_model((shared / "samples" / "splat" / name).read_bytes())
    assert isinstance(splats, Splats)
    assert_same_splats(splats)

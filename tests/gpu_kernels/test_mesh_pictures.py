"""The mesh kernels' pictures against the slow reference, against pictures of before, and against facts."""

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gpu_kernels import draw_preview, load_glb, reference, threads
from gpu_kernels.camera import AZIMUTHS, View, mesh_view
from gpu_kernels.cpu.mesh import MAX_WORK, draw_mesh, draw_samples, is_translucent, pack
from gpu_kernels.cpu.resolve import resolve
from gpu_kernels.errors import UnreadableModel
from gpu_kernels.formulas.mesh import to_byte, to_linear
from gpu_kernels.mesh import COLOURED_VERTICES, NO_MATERIAL, Material, Mesh

SIZE = 56
PICTURES = Path(__file__).parent / "pictures"


def noise(seed: int, low: int = 0, high: int = 256) -> NDArray[np.uint8]:
    """[8, 12, 4] random texture, opaque."""
    texture = np.random.default_rng(seed).integers(low, high, (8, 12, 4)).astype(np.uint8)
    texture[..., 3] = 255
    return texture


def draw(mesh: Mesh, view: View | None = None) -> NDArray[np.uint8]:
    """[size, size, 3], one sample a pixel."""
    scene = pack(mesh)
    return draw_samples(scene, view or mesh_view(24, 15, SIZE), is_translucent(scene))[0].transpose(1, 2, 0)


def assert_same_picture(mesh: Mesh, view: View) -> None:
    """Equal to 2 of 255 but for pixels on an edge, which vertices snapped to 1/256 pixel may move."""
    fast, slow = draw(mesh, view), reference.draw_mesh(mesh, view)
    different = (np.abs(fast.astype(int) - slow).max(axis=2) > 2).mean()
    assert different < 0.005, f"{different:.2%} of the pixels differ"
    assert (slow != 255).any(axis=2).mean() > 0.1, "the reference drew next to nothing"


translucent = noise(7)
translucent[..., 3] = np.random.default_rng(8).integers(0, 256, translucent.shape[:2])
bumps = noise(3, 100, 156)
bumps[..., 2] = 255

MATERIALS = {
    "no material": NO_MATERIAL,
    "rough": Material(base_colour=(0.8, 0.2, 0.1, 1.0), metallic=0.0, roughness=0.9),
    "smooth metal": Material(base_colour=(0.9, 0.7, 0.3, 1.0), metallic=1.0, roughness=0.3),
    "glTF defaults": Material(),
    "base colour texture": Material(base_colour_texture=noise(1), metallic=0.0, roughness=0.6),
    "metallic and roughness texture": Material(metallic_roughness_texture=noise(2)),
    "normal map": Material(base_colour=(0.5, 0.5, 0.5, 1.0), metallic=0.1, roughness=0.5, normal_texture=bumps),
    "occlusion": Material(occlusion_texture=noise(4), metallic=0.0),
    "emissive factor": Material(base_colour=(0.1, 0.1, 0.1, 1.0), emissive=(0.5, 0.2, 0.9)),
    "emissive texture": Material(base_colour=(0.0, 0.0, 0.0, 1.0), emissive=(1.0, 0.8, 0.5), emissive_texture=noise(5)),
    "translucent": Material(base_colour=(0.2, 0.5, 0.9, 0.4), metallic=0.0),
    "translucent texture": Material(base_colour_texture=translucent, metallic=0.2, roughness=0.7),
    "everything": Material(
        base_colour=(0.9, 0.8, 0.7, 0.8),
        emissive=(0.2, 0.3, 0.1),
        base_colour_texture=translucent,
        metallic_roughness_texture=noise(2),
        normal_texture=bumps,
        occlusion_texture=noise(4, 128),
        emissive_texture=noise(5),
    ),
}


@pytest.mark.parametrize("name", MATERIALS)
def test_every_material_is_shaded_as_the_reference_shades_it(name: str, sphere: Any) -> None:
    mesh = Mesh(sphere.positions, sphere.indices, sphere.normals, 2.5 * sphere.uv - 0.7, material=MATERIALS[name])
    assert_same_picture(mesh, mesh_view(24, 15, SIZE))


@pytest.mark.parametrize("opacity", [1.0, 0.6])
def test_vertex_colours_tint_the_light(opacity: float, sphere: Any) -> None:
    colours = np.random.default_rng(6).random((len(sphere.positions), 4), np.float32)
    colours[:, 3] = opacity
    mesh = Mesh(sphere.positions, sphere.indices, sphere.normals, colours=colours, material=COLOURED_VERTICES)
    assert_same_picture(mesh, mesh_view(120, 15, SIZE))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_crossing_triangles_are_drawn_as_the_reference_draws_them(alpha: float) -> None:
    random = np.random.default_rng(11)
    positions = random.uniform(-0.6, 0.6, (90, 3)).astype(np.float32)
    indices = np.arange(90, dtype=np.uint32).reshape(-1, 3)
    mesh = Mesh(positions, indices, material=Material(base_colour=(0.9, 0.5, 0.2, alpha), metallic=0.0))
    assert_same_picture(mesh, mesh_view(312, 15, SIZE))


@pytest.mark.parametrize(("azimuth", "elevation"), [(0, 0), (90, 90), (200, -90), (75, -40)])
def test_any_direction_can_be_looked_from(azimuth: float, elevation: float, sphere: Any) -> None:
    mesh = Mesh(sphere.positions, sphere.indices, material=MATERIALS["rough"])
    assert_same_picture(mesh, mesh_view(azimuth, elevation, SIZE))


def test_mirrored_and_collapsed_texture_coordinates_do_not_break_a_normal_map(sphere: Any) -> None:
    material = MATERIALS["normal map"]
    uv = sphere.uv.copy()
    uv[:, 0] *= -1
    mirrored = Mesh(sphere.positions, sphere.indices, sphere.normals, uv, material=material)
    assert_same_picture(mirrored, mesh_view(24, 15, SIZE))
    collapsed = dataclasses.replace(mirrored, uv=np.zeros_like(uv))
    smooth = dataclasses.replace(collapsed, material=dataclasses.replace(material, normal_texture=None))
    np.testing.assert_array_equal(draw(collapsed), draw(smooth))


def square(corner: float = 0.5, depth: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """A square that faces +Z, split along a diagonal."""
    positions = np.array(
        [[-corner, -corner, depth], [corner, -corner, depth], [corner, corner, depth], [-corner, corner, depth]],
        np.float32,
    )
    return positions, np.array([[0, 1, 2], [0, 2, 3]], np.uint32)


def test_a_shared_edge_belongs_to_exactly_one_triangle() -> None:
    """Half-transparent: a pixel drawn twice is darker, one drawn never is white."""
    positions, indices = square()
    mesh = Mesh(positions, indices, material=Material(base_colour=(0.0, 0.0, 0.0, 0.5), metallic=0.0, roughness=1.0))
    for size in (64, 101):
        inside = draw(mesh, mesh_view(0, 0, size))[..., 1]
        drawn = inside[inside < 255]
        rows, columns = np.nonzero(inside < 255)
        assert len(drawn) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "a hole in the square"
        assert np.ptp(drawn.astype(int)) <= 25, "a pixel of the diagonal is blended twice"


def test_back_faces_are_never_seen() -> None:
    positions, indices = square()
    mesh = Mesh(positions, np.ascontiguousarray(indices[:, ::-1]))
    assert (draw(mesh, mesh_view(0, 0, 32)) == 255).all()
    assert (draw(mesh, mesh_view(180, 0, 32)) != 255).any()


def test_the_picture_is_upright_and_not_mirrored() -> None:
    """Red to the right (+X), green up (+Y), as seen from +Z."""
    corners = np.array([[0.2, -0.05, 0], [0.5, -0.05, 0], [0.5, 0.05, 0]], np.float32)
    above = np.array([[-0.05, 0.2, 0], [0.05, 0.2, 0], [0.05, 0.5, 0]], np.float32)
    colours = np.array([[1, 0, 0, 1]] * 3 + [[0, 1, 0, 1]] * 3, np.float32)
    indices = np.arange(6, dtype=np.uint32).reshape(2, 3)
    mesh = Mesh(np.concatenate([corners, above]), indices, colours=colours, material=COLOURED_VERTICES)
    picture = draw(mesh, mesh_view(0, 0, 64)).astype(int)
    red = np.argwhere(picture[..., 0] - picture[..., 1] > 50).mean(axis=0)
    green = np.argwhere(picture[..., 1] - picture[..., 0] > 50).mean(axis=0)
    assert red[1] > 40
    assert abs(red[0] - 32) < 3
    assert green[0] < 24
    assert abs(green[1] - 32) < 3


@pytest.mark.parametrize(("first_alpha", "expected"), [(0.25, "both"), (1.0, "front")])
def test_translucent_triangles_blend_in_index_order_and_hide_what_comes_later(
    first_alpha: float, expected: str
) -> None:
    """Spec rule 8: a near translucent triangle drawn first hides a far one drawn later; drawn last, it lets it show."""
    near, indices = square(depth=0.3)
    far, _ = square(depth=-0.3)
    colours = np.repeat(np.array([[1, 0, 0, first_alpha], [0, 0, 1, 1]], np.float32), 4, axis=0)

    def centre(order: list[int]) -> NDArray[np.int64]:
        stacked = np.concatenate([indices + 4 * layer for layer in order])
        mesh = Mesh(np.concatenate([near, far]), stacked, colours=colours, material=COLOURED_VERTICES)
        return draw(mesh, mesh_view(0, 0, 33))[16, 16].astype(np.int64)

    near_first, near_last = centre([0, 1]), centre([1, 0])
    if expected == "front":
        np.testing.assert_array_equal(near_first, near_last)
    else:
        assert near_first[1] > 180, "the far square shows through a near one that was drawn before it"
        assert near_last[1] < 60, "the far square does not show through"


def test_runs_of_pixels_are_shaded_as_single_ones(sphere: Any) -> None:
    """Opaque meshes are shaded step by step over runs, blended ones pixel by pixel: two forms of one formula."""
    opaque = dataclasses.replace(
        MATERIALS["everything"], base_colour=(0.9, 0.8, 0.7, 1.0), base_colour_texture=noise(1)
    )
    scene = pack(Mesh(sphere.positions, sphere.indices, sphere.normals, 3 * sphere.uv, material=opaque))
    view = mesh_view(24, 15, 300)  # wider than a run
    deferred, blended = (draw_samples(scene, view, one)[0].astype(int) for one in (False, True))
    assert np.abs(deferred - blended).max() <= 1
    assert (deferred != blended).mean() < 1e-4


def test_normals_of_any_length_are_made_unit_before_they_are_interpolated(sphere: Any) -> None:
    lengths = np.random.default_rng(9).uniform(0.001, 1000, (len(sphere.normals), 1)).astype(np.float32)
    meshes = [
        Mesh(sphere.positions, sphere.indices, normals, material=MATERIALS["rough"])
        for normals in (sphere.normals, sphere.normals * lengths)
    ]
    assert np.abs(draw(meshes[0]).astype(int) - draw(meshes[1])).max() <= 1


# --- resolving ---


def random_samples(size: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """[3, size, size]: noise in the box (left, top, right, bottom, inclusive), white around it."""
    samples = np.full((3, size, size), 255, np.uint8)
    left, top, right, bottom = box
    part = samples[:, top : bottom + 1, left : right + 1]
    part[:] = np.random.default_rng(size).integers(0, 256, part.shape)
    return samples


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 16, 131])
@pytest.mark.parametrize("part", ["all", "middle", "corner", "one sample", "nothing"])
def test_resolving_is_pillows_lanczos_bit_for_bit_and_skipping_white_changes_nothing(size: int, part: str) -> None:
    end = 2 * size - 1
    box = {
        "all": (0, 0, end, end),
        "middle": (end // 3, end // 4, end // 2, end - end // 3),
        "corner": (0, end // 2, end // 3, end),
        "one sample": (size, size, size, size),
        "nothing": (2 * size, 2 * size, -1, -1),
    }[part]
    samples = random_samples(2 * size, box)
    grid = np.full((size + 2, size + 3, 3), 7, np.uint8)
    resolve(samples, np.array(box), grid[1:-1, 1:-2])
    interleaved = np.ascontiguousarray(samples.transpose(1, 2, 0))
    pillow = np.asarray(Image.fromarray(interleaved).resize((size, size), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(grid[1:-1, 1:-2], pillow)
    assert np.abs(grid[1:-1, 1:-2].astype(int) - reference.halve(interleaved)).max() <= 1
    grid[1:-1, 1:-2] = 7
    assert (grid == 7).all(), "written outside its part of the grid"


# --- the same everywhere ---


@pytest.fixture
def some_threads() -> Iterator[None]:
    before = threads.count()
    yield
    threads.configure(before)


def hash_of_all_kinds() -> str:
    """SHA-256 of four views of an opaque and of a translucent mesh with every texture."""
    from tests.gpu_kernels.conftest import make_sphere

    ball, digest = make_sphere(rings=30), hashlib.sha256()
    for base in (noise(1), translucent):
        material = dataclasses.replace(MATERIALS["everything"], base_colour=(1, 1, 1, 1), base_colour_texture=base)
        pictures = np.empty((4, 200, 200, 3), np.uint8)
        mesh = Mesh(ball.positions, ball.indices, ball.normals, ball.uv, material=material)
        draw_mesh(mesh, [mesh_view(azimuth, 15, 200) for azimuth in AZIMUTHS], list(pictures))
        digest.update(pictures.tobytes())
    return digest.hexdigest()


@pytest.mark.usefixtures("some_threads")
def test_pictures_are_the_same_bits_with_any_number_of_threads_and_in_another_process(repository_root: Path) -> None:
    hashes = []
    for count in (1, 2, 4):
        threads.configure(count)
        hashes.append(hash_of_all_kinds())
    code = "from tests.gpu_kernels.test_mesh_pictures import hash_of_all_kinds; print(hash_of_all_kinds())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository_root
    )
    assert {*hashes, other.stdout.strip()} == {hashes[0]}


def fit(mesh: Mesh) -> Mesh:
    """The mesh at its largest extent of 1 around the origin."""
    low, high = mesh.positions.min(axis=0), mesh.positions.max(axis=0)
    return dataclasses.replace(mesh, positions=(mesh.positions - (low + high) / 2) / (high - low).max())


@pytest.mark.shared
@pytest.mark.parametrize("name", ["box_textured", "fox", "dense_torus_vcolor"])
def test_samples_look_as_they_did(name: str, shared: Path) -> None:
    """May differ by 1/255 on at most 0.1 % of the pixels: other processors, other mathematics libraries."""
    mesh = load_glb((shared / "samples" / "glb" / f"{name}.glb").read_bytes())
    grid = draw_preview(fit(mesh), "cpu").astype(int)
    with Image.open(PICTURES / f"{name}.png") as stored:
        off = np.abs(grid - np.asarray(stored))
    assert off.max() <= 1, f"{(off.max(axis=2) > 1).sum()} pixels differ by up to {off.max()} of 255"
    assert (off > 0).any(axis=2).mean() <= 0.001


# --- hostile meshes ---


def test_triangles_that_would_take_minutes_are_refused() -> None:
    """Each pair covers more than 400 000 pixels."""
    positions, indices = square(0.6)
    mesh = Mesh(positions, np.tile(indices, (MAX_WORK // 400_000, 1)))
    with pytest.raises(UnreadableModel, match="too many times"):
        draw(mesh, mesh_view(0, 0, 1036))


@pytest.mark.parametrize("kind", ["zero area", "off the picture", "huge and off the picture"])
def test_a_million_triangles_that_nobody_sees_cost_little(kind: str) -> None:
    corners = {
        "zero area": [[0, 0, 0], [0.5, 0.5, 0], [0.25, 0.25, 0]],
        "off the picture": [[8, 0, 0], [9, 0, 0], [8.5, 1, 0]],
        "huge and off the picture": [[1e30, 0, -1e30], [2e30, 0, 1e30], [1e30, 1e30, -1e30]],
    }[kind]
    mesh = Mesh(np.array(corners, np.float32), np.tile(np.arange(3, dtype=np.uint32), (1_000_000, 1)))
    assert (draw(mesh, mesh_view(0, 0, 64)) == 255).all()


def test_vertices_behind_or_beside_the_camera_are_harmless() -> None:
    positions = np.array([[0, 0, 1.999], [1e6, -3, 0], [1e6, 3, 0], [0, 0, 40], [-1, 1, 3], [1, 1, 1.96]], np.float32)
    indices = np.array([[0, 1, 2], [3, 4, 5], [0, 4, 2], [1, 2, 5], [2, 1, 5]], np.uint32)
    assert draw(Mesh(positions, indices), mesh_view(0, 0, 64)).shape == (64, 64, 3)


@pytest.mark.parametrize("huge", [1e9, 1e30, 3e38])
def test_huge_texture_coordinates_read_inside_the_texture(huge: float, sphere: Any) -> None:
    uv = np.random.default_rng(0).uniform(-huge, huge, (len(sphere.positions), 2)).astype(np.float32)
    mesh = Mesh(sphere.positions, sphere.indices, sphere.normals, uv, material=MATERIALS["everything"])
    assert draw(mesh).shape == (SIZE, SIZE, 3)


def test_normals_of_zero_length_are_lit_as_facing_away(sphere: Any) -> None:
    mesh = Mesh(sphere.positions, sphere.indices, np.zeros_like(sphere.normals), material=MATERIALS["rough"])
    assert_same_picture(mesh, mesh_view(24, 15, SIZE))


@pytest.mark.parametrize(
    ("kernel", "formula", "tolerance"),
    [
        (to_byte, lambda light: np.floor(255 * light ** (1 / 2.2) + 0.5), 0.0),
        (to_linear, reference.to_linear, 2e-7),
    ],
    ids=["display curve", "sRGB curve"],
)
def test_tables_give_what_the_formula_gives(
    kernel: Callable[[np.float32], float], formula: Callable[[Any], Any], tolerance: float
) -> None:
    values = np.linspace(0, 1, 20011, dtype=np.float32)
    expected = formula(values.astype(np.float64))
    off = np.abs(np.array([float(kernel(value)) for value in values]) - expected) > tolerance
    assert off.mean() < 0.0005, f"{off.sum()} of {len(values)} values are off"

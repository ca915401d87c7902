"""Formats are told apart by their first bytes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_kernels.errors import UnreadableModel
from gpu_kernels.gltf import write_glb
from gpu_kernels.mesh import Mesh
from gpu_kernels.models import load_model
from gpu_kernels.ply import write_ply
from gpu_kernels.splats import Splats
from gpu_kernels.spz import write_spz
from tests.gpu_kernels.splat_files import assert_same, make_splats

SPLATS = make_splats(4)


def test_a_mesh_is_read_from_glb() -> None:
    mesh = load_model(write_glb([[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0]], [[0, 1, 2]]))
    assert isinstance(mesh, Mesh)
    np.testing.assert_array_equal(mesh.indices, [[0, 1, 2]])


def test_splats_are_read_from_ply_and_spz() -> None:
    for data in (write_ply(SPLATS), write_ply(SPLATS, ascii=True)):
        splats = load_model(data)
        assert isinstance(splats, Splats)
        assert_same(splats, SPLATS)
    zstd, gzip = (load_model(write_spz(SPLATS, 3, container)) for container in ("zstd", "gzip"))
    assert isinstance(zstd, Splats)
    assert isinstance(gzip, Splats)
    assert_same(zstd, gzip)


@pytest.mark.parametrize("data", [b"", b"gl", b"PLY\n", b"PK\3\4", b"\x89PNG\r\n\x1a\n", b"<html>", b"\x28\xb5\x2f"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableModel, match=r"^not a GLB, PLY or SPZ file$"):
        load_model(data)


@given(head=st.sampled_from([b"", b"glTF", b"ply\n", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"]), data=st.binary(max_size=200))
def test_any_bytes_are_refused(head: bytes, data: bytes) -> None:
    with pytest.raises(UnreadableModel):
        load_model(head + data)


@pytest.mark.shared
def test_every_sample_is_read_or_refused_by_name(shared: Path) -> None:
    found: dict[str, str] = {}
    for file in sorted((shared / "samples").glob("*/*")):
        if file.suffix in (".glb", ".ply", ".spz"):
            try:
                found[file.name] = type(load_model(file.read_bytes())).__name__
            except UnreadableModel as error:
                found[file.name] = str(error)
    assert found == {
        "alien.glb": "18 primitives, exactly one is allowed",
        "box_textured.glb": "Mesh",
        "cake_birthday.glb": "42 primitives, exactly one is allowed",
        "dense_torus_vcolor.glb": "Mesh",
        "flight_helmet.glb": "6 primitives, exactly one is allowed",
        "fox.glb": "Mesh",
        "robot.glb": "19 primitives, exactly one is allowed",
        "hamburger.ply": "Splats",
        "monkey.ply": "Splats",
        "robocop_404zstd.spz": "Splats",
        "robocop_gzip.spz": "Splats",
    }

"""The renderer as the pipeline uses it."""

from collections.abc import Iterator

import numpy as np
import pytest

from gen404_dagster.errors import MinerFault, OperatorError
from gen404_dagster.resources.renderer import Renderer
from gen404_dagster.resources.workers import Workers
from gpu_kernels import RENDERER_VERSION, encode_png, render_preview, write_glb
from gpu_kernels.ply import write_ply
from gpu_kernels.splats import Splats
from gpu_kernels.spz import write_spz

CORNERS = np.array([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 0.5, 0.0]], np.float32)
SPLATS = Splats(CORNERS, CORNERS - 3, np.ones((3, 4), np.float32), np.ones(3, np.float32), CORNERS)
FILES = {
    "GLB": write_glb(CORNERS, [[0, 1, 2]]),
    "PLY": write_ply(SPLATS),
    "zstd SPZ": write_spz(SPLATS),
    "gzip SPZ": write_spz(SPLATS, 3, "gzip"),
}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Workers(count=1) as workers:
        yield Renderer(workers)


@pytest.mark.parametrize("name", FILES)
def test_a_worker_draws_what_this_process_would(renderer: Renderer, name: str) -> None:
    assert renderer.preview(FILES[name]) == encode_png(render_preview(FILES[name], renderer.draw(FILES[name]).backend))


def test_the_choice_names_version_backend_and_reason(renderer: Renderer) -> None:
    renderer.preview(FILES["GLB"])
    assert renderer.version == RENDERER_VERSION
    assert renderer.choice.startswith(f"version {RENDERER_VERSION}, ")
    assert "chosen by auto" in renderer.choice


def test_the_choice_is_unknown_until_something_was_drawn() -> None:
    with Workers(count=1) as workers:
        assert Renderer(workers).choice == ""


def test_a_refused_file_is_the_miners_fault(renderer: Renderer) -> None:
    for model in (b"", b"not a model", FILES["GLB"][:-8], FILES["PLY"][:-8], FILES["zstd SPZ"][:-8]):
        with pytest.raises(MinerFault, match=r"\w"):
            renderer.preview(model)


def test_a_kind_of_model_that_the_named_backend_does_not_draw_is_drawn_by_another() -> None:
    """No miner's file may stop a round."""
    with Workers("gl", count=1) as workers:
        try:
            drawn = workers.render(FILES["GLB"])
        except OperatorError:
            pytest.skip("needs OpenGL (EGL)")
        assert drawn.backend == "gl"
        assert workers.render(FILES["PLY"]).backend == "cpu"
        assert "gl does not draw splats" in workers.chosen["splats"]


def test_the_self_test_is_the_same_in_each_worker() -> None:
    with Workers("cpu", count=1) as first, Workers("cpu", count=2) as second:
        assert first.self_test() == second.self_test()

"""Which backend is taken, and what is said about it and about the others."""

import subprocess
import sys

import pytest

from gpu_kernels import registry
from gpu_kernels.registry import Backend, Kind, backends, choose


def draw(*_: object, **__: object) -> None:
    raise AssertionError("nothing is drawn by choosing")


CUDA = Backend("cuda", False, "no CUDA driver", draw, draw)
GL = Backend("gl", True, "llvmpipe", draw, None)
CPU = Backend("cpu", True, "Numba on the processor", draw, draw)
CARD = Backend("cuda", True, "NVIDIA H100", draw, None)


def with_backends(monkeypatch: pytest.MonkeyPatch, *known: Backend) -> None:
    monkeypatch.setattr(registry, "NAMES", tuple(backend.name for backend in known))
    monkeypatch.setattr(registry, "_probe", {backend.name: backend for backend in known}.__getitem__)


@pytest.mark.parametrize(
    ("kind", "name", "known", "reason"),
    [
        (
            "mesh",
            "auto",
            [CUDA, CPU, GL],
            "cpu: chosen by auto; cuda is not available (no CUDA driver) (Numba on the processor)",
        ),
        ("mesh", "auto", [CARD, CPU], "cuda: chosen by auto (NVIDIA H100)"),
        ("splats", "auto", [CARD, CPU], "cpu: chosen by auto; cuda does not draw splats (Numba on the processor)"),
        ("mesh", "gl", [CUDA, CPU, GL], "gl: chosen by name (llvmpipe)"),
        (
            "splats",
            "gl",
            [CARD, CPU, GL],
            "cpu: gl does not draw splats; chosen by auto; cuda does not draw splats (Numba on the processor)",
        ),
    ],
)
def test_the_choice_says_why(
    kind: Kind, name: str, known: list[Backend], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_backends(monkeypatch, *known)
    assert choose(kind, name).reason == reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("abacus", "'abacus' is unknown; available here: cpu, gl$"),
        ("cuda", r"'cuda' is not available \(no CUDA driver\); available here: cpu, gl$"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_the_choices(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_backends(monkeypatch, CUDA, CPU, GL)
    with pytest.raises(ValueError, match=reason):
        choose("mesh", name)


def test_only_backends_up_to_the_chosen_one_are_asked() -> None:
    """Asking the others may import torch."""
    code = (
        "import sys; from gpu_kernels.registry import choose;"
        "print(choose('mesh', 'cpu').backend.name, [m for m in ('torch', 'moderngl', 'numba') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "cpu []"


def test_the_processor_draws_everything_and_every_backend_says_what_it_runs_on_or_lacks() -> None:
    known = {backend.name: backend for backend in backends()}
    assert {"gl", "cpu", "gsplat", "nvdiffrast"} <= set(known)
    assert all(backend.why for backend in known.values())
    assert all(backend.draw_mesh or backend.draw_splats for backend in known.values() if backend.available)
    assert known["cpu"].available
    assert known["cpu"].draw_mesh is not None
    assert known["cpu"].draw_splats is not None


def test_nvdiffrast_is_never_chosen_by_itself() -> None:
    """Its licence allows research and evaluation only: whoever names it has read that."""
    assert "nvdiffrast" not in registry.AUTOMATIC

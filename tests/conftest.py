"""What all tests share: where things lie, and how property tests run."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.simulations import SMALL, Played, Simulation, play_side_by_side

# Reproducible and independent of how busy the machine is; more examples: --hypothesis-profile=thorough.
settings.register_profile("suite", deadline=None, max_examples=80, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None, max_examples=3000, database=None)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def repository_root() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared(repository_root: Path) -> Path:
    """The folder of recorded history and samples beside the checkout. Tests that use it carry `@pytest.mark.shared`."""
    folder = repository_root.parent / "shared"
    if not (folder / "history").is_dir():
        pytest.skip("needs ../shared/history beside the checkout, which is not part of the project")
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Played, Played]:
    """The same small round played twice, side by side: what disturbed simulations are compared with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    first, second = play_side_by_side(*(Simulation(folder / name, *SMALL) for name in "AB"))
    return first, second

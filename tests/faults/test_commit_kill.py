"""kill -9 while a process commits: the branch holds whole commits, each step at most once, and work goes on."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 40

WORKER = """
import sys
from pathlib import Path
from gen404_dagster.resources.state_repo import Change, StateRepository, Step, repository

repository.DEAD_LOCK_SECONDS = 1.0  # a killed git process may leave the local remote's branch locked
remote, mirror, steps = sys.argv[1:]
with StateRepository(remote, Path(mirror)) as state:
    print("ready", flush=True)
    for number in range(int(steps)):
        def decide(head):
            last = int(head.read("state.json"))
            if last >= number:
                assert head.exists(f"results/{number}/c.json")
                return None
            assert last == number - 1, f"step {number} is decided on {last}"
            files = {f"results/{number}/{part}.json": str(number) * 400 for part in "abc"}
            return Change({"state.json": str(number), **files}, f"Result {number}")
        state.commit(Step(1, "result", f"i{number}"), decide)
"""


def git(*arguments: str, at: Path) -> str:
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"), at=tmp_path)
    git("init", "-q", "-b", "main", str(tmp_path / "clone"), at=tmp_path)
    (tmp_path / "clone" / "state.json").write_text("-1")
    git("add", "-A", at=tmp_path / "clone")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "Start", at=tmp_path / "clone")
    git("push", "-q", str(tmp_path / "remote.git"), "main", at=tmp_path / "clone")
    return tmp_path / "remote.git"


def start(remote: Path, mirror: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER, str(remote), str(mirror), str(STEPS)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def assert_sound(repository: Path) -> None:
    """git's own check. It may see an orphaned push halfway, so only what stays is damage."""
    for _ in range(5):
        check = subprocess.run(
            ["git", "fsck", "--strict", "--no-dangling"], cwd=repository, capture_output=True, text=True, check=False
        )
        if (check.returncode, check.stdout) == (0, ""):
            return
        time.sleep(0.3)
    raise AssertionError(f"{repository.name} is damaged: {check.stdout}{check.stderr}")


def assert_whole(remote: Path) -> list[str]:
    """Every commit is complete, in order, and none is doubled. The subjects, oldest first."""
    assert_sound(remote)
    head = git("rev-parse", "main", at=remote).strip()  # an orphaned push may still move the branch on
    subjects = git("log", "--reverse", "--format=%s", head, at=remote).splitlines()
    assert subjects == ["Start", *(f"Result {number}" for number in range(len(subjects) - 1))]
    steps = git("log", "--format=%(trailers:key=Gen404-Step,valueonly,separator=)", head, at=remote).split()
    assert len(set(steps)) == len(steps) == len(subjects) - 1
    changed = git("log", "--reverse", "--name-only", "--format=%s", head, at=remote)
    for number in range(len(subjects) - 1):
        listed = "".join(f"results/{number}/{part}.json\n" for part in "abc")
        assert f"Result {number}\n\n{listed}state.json\n" in changed
    return subjects


@pytest.mark.parametrize("whole_group", [False, True], ids=["the process alone", "with its git processes"])
def test_killed_committers_leave_whole_commits_and_the_next_goes_on(
    remote: Path, tmp_path: Path, whole_group: bool
) -> None:
    dice = random.Random(404 + whole_group)
    for _ in range(6):
        worker = start(remote, tmp_path / "mirror.git")
        assert worker.stdout is not None
        with worker.stdout:
            assert worker.stdout.readline() == "ready\n"
            time.sleep(dice.uniform(0, 0.35))
            (os.killpg if whole_group else os.kill)(worker.pid, signal.SIGKILL)
            worker.wait()
        assert_whole(remote)
    worker = start(remote, tmp_path / "mirror.git")
    assert worker.communicate(timeout=300) == ("ready\n", None)
    assert worker.returncode == 0
    assert assert_whole(remote)[-1] == f"Result {STEPS - 1}"
    assert_sound(tmp_path / "mirror.git")

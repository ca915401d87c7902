"""The source auditor: a second writer of the state repository."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gen404_dagster.competition import models
from gen404_dagster.simulation.launch import Workdir, World, WorldParameters, start_world

Git = Callable[..., str]
Publish = Callable[[Workdir, dict[str, object], str], None]
SMALL = WorldParameters(miners=9, prompts=2)


def audits(world: World, git: Git, number: int = 0) -> list[tuple[str, str, str]]:
    text = git("show", f"main:rounds/{number}/source_audit.json", at=world.workdir.remote)
    assert models.write_json(models.SOURCE_AUDITS, models.read_json(models.SOURCE_AUDITS, text)) == text
    return [(audit["hotkey"], audit["verdict"], audit["reason"]) for audit in json.loads(text)]


def test_verdicts_are_entered_once_as_they_become_due(
    tmp_path: Path, git: Git, publish: Publish, open_round: Callable[[World], list[str]]
) -> None:
    with start_world(tmp_path, SMALL) as world:
        hotkeys = {member["name"]: member["hotkey"] for member in world.cast()}
        assert world.review_sources() == []
        open_round(world)
        assert world.review_sources() == [hotkeys["copycat"]]
        assert world.review_sources() == []
        requests = [{"hotkey": hotkeys[name], "critical_prompts": []} for name in ("cheater", "copycat", "best")]
        publish(world.workdir, {"rounds/0/require_audit.json": requests}, "Request audits")
        assert world.review_sources() == [hotkeys["cheater"], hotkeys["best"]]
        assert world.review_sources() == []
        assert audits(world, git) == [
            (hotkeys["copycat"], "failed", "Repository not found"),
            (hotkeys["cheater"], "passed", "No issues found"),
            (hotkeys["best"], "passed", "No issues found"),
        ]
        log = git("log", "-3", "--format=%an: %s", "main", at=world.workdir.remote).splitlines()
        assert log[0] == "Source auditor: Source audit of round 0: 2 passed, 0 failed"
        assert log[2] == "Source auditor: Source audit of round 0: 0 passed, 1 failed"
        assert not list(tmp_path.glob("tmp/*"))


def test_a_race_with_another_writer_loses_nothing_and_doubles_nothing(
    tmp_path: Path, git: Git, publish: Publish, open_round: Callable[[World], list[str]]
) -> None:
    commits = 12
    with start_world(tmp_path, SMALL) as world:
        open_round(world)
        asked = [member["hotkey"] for member in world.cast() if member["name"] not in ("copycat", "base")][:commits]

        def write() -> None:
            for number in range(commits):
                requests = [{"hotkey": hotkey, "critical_prompts": []} for hotkey in asked[: number + 1]]
                publish(world.workdir, {"rounds/0/require_audit.json": requests, "n.txt": str(number)}, f"w{number}")

        writer = threading.Thread(target=write)
        writer.start()
        entered = []
        while writer.is_alive():
            entered += world.review_sources()
        entered += world.review_sources()
        subjects = git("log", "--format=%s", "main", at=world.workdir.remote).splitlines()
        assert sorted(subject for subject in subjects if subject.startswith("w")) == sorted(
            f"w{number}" for number in range(commits)
        )
        assert [hotkey for hotkey, _, _ in audits(world, git)] == entered
        assert sorted(entered[1:]) == sorted(asked)


def test_the_auditor_looks_by_itself_when_time_passes(
    tmp_path: Path, git: Git, open_round: Callable[[World], list[str]]
) -> None:
    with start_world(tmp_path, SMALL, blocks_per_second=0.5) as world:
        open_round(world)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if "source_audit" in git("ls-tree", "-r", "--name-only", "main", at=world.workdir.remote):
                break
            time.sleep(0.1)
        assert [verdict for _, verdict, _ in audits(world, git)] == ["failed"]

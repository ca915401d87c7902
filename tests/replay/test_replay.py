"""`gen404 replay` as a person runs it: on the recorded history, as a folder and as a repository, and on our own rounds."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulations import Played

SCRIPT = str(Path(sys.executable).with_name("gen404"))


def replay(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([SCRIPT, "replay", *arguments], capture_output=True, text=True, timeout=600, check=False)


def replayed(*arguments: str) -> dict[str, Any]:
    answer = replay(*arguments, "--json")
    assert answer.returncode == 0, answer.stderr + answer.stdout[-2000:]
    result = json.loads(answer.stdout)
    assert isinstance(result, dict)
    return result


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout.strip()


@pytest.fixture(scope="module")
def record(shared: Path) -> str:
    return str(shared / "history" / "competition-1")


@pytest.fixture(scope="module")
def result(record: str) -> dict[str, Any]:
    return replayed(record)


@pytest.fixture(scope="module")
def repository(record: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The history as a repository whose branch is not `main`; the second commit takes a match away."""
    folder = tmp_path_factory.mktemp("record") / "competition"
    shutil.copytree(record, folder)
    git(folder, "init", "--quiet", "--initial-branch=trunk")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Four rounds")
    matrix = folder / "rounds" / "2" / "matches_matrix.csv"
    header, _, *rows = matrix.read_text().splitlines()
    matrix.write_text("\n".join([header, *rows]))
    git(folder, "commit", "--quiet", "-am", "Lose a match")
    return folder


@pytest.mark.shared
def test_four_recorded_rounds_follow_from_their_inputs(result: dict[str, Any]) -> None:
    rounds = [result["rounds"][str(number)] for number in range(4)]
    assert [one["margins"] for one in rounds] == [{"total": n, "exact": n} for n in (107, 36, 24, 41)]
    assert [one["carry_over"]["exact"] for one in rounds] == [None, True, True, True]
    assert all(one["winner"]["derived"] == one["winner"]["recorded"] for one in rounds)
    assert [one["leader"]["status"] for one in rounds] == ["exact"] * 4
    assert [one["schedule"]["status"] for one in rounds] == ["explained", "exact", "exact", "exact"]
    audits = [audit["status"] for one in rounds for audit in one["generation_audits"].values()]
    assert sorted(audits) == ["exact"] * 7 + ["explained"] * 2
    critical = [request["status"] for one in rounds for request in one["critical_prompts"].values()]
    assert sorted(critical) == ["exact"] * 7 + ["explained"] * 2
    assert result["files"] == {"total": 408, "exact": 408, "different": []}
    assert not result["deviates"]


@pytest.mark.shared
def test_what_was_regenerated_later_is_a_finding_with_its_count(result: dict[str, Any]) -> None:
    (found,) = [found for found in result["rounds"]["3"]["findings"] if found["count"] == 40]
    assert found["status"] == "explained"
    assert "82 outcomes" in found["what"]


@pytest.mark.shared
def test_the_table_shows_every_round_and_each_explanation(record: str) -> None:
    answer = replay(record)
    assert answer.returncode == 0
    assert "round 3" in answer.stdout
    assert answer.stdout.count("evidence: ") == 7
    assert "408 of 408 state files" in answer.stdout


@pytest.mark.shared
def test_four_rounds_take_under_five_seconds_and_500_megabytes(record: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert replay(record, "--rounds", "0-3", "--json").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The processor's time: on a busy machine the clock says how busy it is.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    code = "import sys; from gen404_dagster.replay.command import run_replay as r; r(sys.argv[1], None, None, [], True)"
    measure = f"{code}; print(open('/proc/self/status').read(), file=sys.stderr)"
    command = [sys.executable, "-c", measure, record]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    (peak,) = [line.split()[1] for line in child.stderr.splitlines() if line.startswith("VmHWM")]
    assert int(peak) < 500 * 1024


@pytest.mark.shared
def test_a_repository_is_replayed_at_any_commit(repository: Path, result: dict[str, Any]) -> None:
    first, last = git(repository, "rev-list", "--reverse", "HEAD").split()
    assert replayed(str(repository), "--at", first) == result
    answer = replay(str(repository), "--json")
    assert answer.returncode == 1
    found = [f for f in json.loads(answer.stdout)["rounds"]["2"]["findings"] if f["status"] == "deviates"]
    assert [(f["cell"], f["file"]) for f in found] == [
        ("matrix", "rounds/2/matches_matrix.csv"),
        ("winner", "rounds/2/winner.json"),
    ]
    assert replayed(repository.as_uri(), "--at", first, "--rounds", "1")["rounds"].keys() == {"1"}
    assert replay(str(repository), "--at", last, "--rounds", "2").returncode == 1


@pytest.mark.shared
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at", "abc123"], "plain folder without commits"),
        (["--rounds", "7-9"], "the record has rounds 0-4"),
        (["--rounds", "x"], "write A-B"),
        (["--set", "luck=1"], "known are acceptable_distance"),
        (["--set", "win_margin"], "write LIMIT=VALUE"),
        (["--set", "win_margin=much"], "win_margin=much"),
        (["--set", "max_mismatches=-1"], "max_mismatches=-1"),
    ],
)
def test_a_wrong_option_is_one_line_that_says_what_to_write(record: str, arguments: list[str], said: str) -> None:
    answer = replay(record, *arguments)
    assert answer.returncode == 1
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path) -> None:
    for location in (tmp_path, tmp_path / "absent", tmp_path.as_uri()):
        answer = replay(str(location))
        assert (answer.returncode, len(answer.stderr.splitlines())) == (1, 1), answer.stderr


# --- what if ---


def endings(record: str, *changes: str) -> dict[str, Any]:
    rounds = replayed(record, *(part for change in changes for part in ("--set", change)))["rounds"]
    assert isinstance(rounds, dict)
    return rounds


@pytest.mark.shared
def test_recorded_limits_end_every_round_as_recorded(record: str) -> None:
    same = endings(record, "win_margin=0.05", "max_mismatches=6", "weight_decay=0.2", "pods_at_once=4")
    assert {number: (one["outcome"], one["first_difference"]) for number, one in same.items()} == {
        str(number): ("same", None) for number in range(4)
    }


@pytest.mark.shared
def test_a_match_that_another_margin_would_need_is_named_not_guessed(record: str) -> None:
    rounds = endings(record, "win_margin=0.03")
    assert rounds["0"]["outcome"] == "unknown"
    assert rounds["0"]["first_difference"]["decision"].startswith("qualification of 5EqNLQ")
    assert any("match 5EqNLQ" in reason and "not on record" in reason for reason in rounds["0"]["unknown"])
    assert rounds["1"]["outcome"] == "same"
    assert "round 0" in rounds["1"]["assumes"]


@pytest.mark.shared
def test_another_decay_changes_weights_from_round_to_round(record: str) -> None:
    rounds = endings(record, "weight_decay=0.3")
    assert [one["outcome"] for one in rounds.values()] == ["same", "differs", "differs", "differs"]
    assert [one["first_difference"]["derived"] for one in list(rounds.values())[1:]] == [
        "0.7",
        "0.39999999999999997",
        "0.2",
    ]


@pytest.mark.shared
def test_a_stricter_audit_crowns_nobody_whom_it_rejects(record: str) -> None:
    rounds = endings(record, "generation_median_seconds=50")
    assert rounds["0"]["winner"]["derived"] != rounds["0"]["winner"]["recorded"]
    assert rounds["0"]["first_difference"]["decision"].startswith(("lead of", "generation audit of"))


@pytest.mark.shared
@pytest.mark.parametrize("change", ["draw_difference=2", "prompts_per_round=64", "download_attempts=5"])
def test_what_the_record_cannot_tell_is_unknown_with_the_reason(record: str, change: str) -> None:
    for one in endings(record, change).values():
        assert one["outcome"] == "unknown"
        assert one["unknown"][0].startswith(change.split("=")[0])


# --- our own rounds ---


def test_a_simulated_history_follows_from_its_inputs(undisturbed: list[Played]) -> None:
    result = replayed(str(undisturbed[0].simulation.remote))
    played = result["rounds"]["0"]
    assert played["margins"]["total"] == played["margins"]["exact"] > 0
    assert played["winner"]["derived"] == played["winner"]["recorded"] == undisturbed[0].result["rounds"][0]["winner"]
    assert result["files"]["exact"] == result["files"]["total"]
    assert {cell["status"] for one in result["rounds"].values() for cell in one["cells"].values()} <= {
        "exact",
        "explained",
    }


def test_a_changed_simulated_history_is_found_out(undisturbed: list[Played], tmp_path: Path) -> None:
    subprocess.run(["git", "clone", "-q", str(undisturbed[0].simulation.remote), str(tmp_path / "copy")], check=True)
    folder = tmp_path / "copy"
    shutil.copy(undisturbed[0].simulation.workdir / "gen404.env", tmp_path / "gen404.env")
    assert replay(str(folder)).returncode == 0
    matrix = folder / "rounds" / "0" / "matches_matrix.csv"
    lines = matrix.read_text().splitlines()
    matrix.write_text("\n".join([*lines[:1], lines[1].rsplit(",", 1)[0] + ",0.25", *lines[2:]]))
    git(folder, "commit", "--quiet", "-am", "Change a margin")
    answer = replay(str(folder))
    assert answer.returncode == 1
    assert "matches_matrix.csv" in answer.stdout

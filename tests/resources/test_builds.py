"""Builds on GitHub Actions: the real client against recorded shapes, on loopback."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen404_dagster.competition.models import BuildStatus
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.builds import BuildRun, build_tag, docker_image, github
from gen404_dagster.resources.builds.github import GitHubBuilds, github_repository
from gen404_dagster.resources.configured import build_resources
from gen404_dagster.settings import Settings
from tests.resources.github_double import REPOSITORY, TOKEN, GitHub, job, run, serving

A, B, C = "5DUg9LPGMZjzVkgHgF8iVQv6axNpNnMEH5ekPVtVtDbLnrjf", "5FNVgRnrxMibhcBGEAaajGrYjsaCn441a5HuGUBUNnxEBLo9", "5Gk"
ON_GITHUB = {"builds": "github", "github_token": "t", "state_repo": "https://github.com/a/b"}
OPENING = "Prompts, seed and submissions for round 3"


@pytest.fixture(scope="module")
def served() -> Iterator[GitHub]:
    with serving(GitHub()) as served:
        yield served


@pytest.fixture
def server(served: GitHub) -> GitHub:
    """As new, at the same address."""
    vars(served).update(vars(GitHub(root=served.root)))
    return served


def builds(server: GitHub, token: str = TOKEN) -> GitHubBuilds:
    return GitHubBuilds(REPOSITORY, token, base_url=server.root)


def name(hotkey: str) -> str:
    return f"Bake and push images to Google Cloud ({hotkey})"


def test_a_rounds_run_is_found_by_the_end_of_its_subject(server: GitHub) -> None:
    server.runs = [
        run(5, "Add submissions for round 30"),
        run(4, "Revert submissions for round 3 again"),
        run(3, f"{OPENING}\n\nGen404-Step: 3/opening"),
        run(2, "Read me\n\nsubmissions for round 3"),
        run(1, "Add submissions for round 13"),
    ]
    server.jobs = {number: [job(number, name(A), "success" if number == 3 else "failure")] for number in range(1, 6)}
    assert builds(server).run_of(3) == BuildRun(True, True, {A: BuildStatus.SUCCESS}, 3600.0)
    assert builds(server).run_of(4) == BuildRun(False, False)


@pytest.mark.parametrize(
    ("conclusion", "status", "expected"),
    [
        ("success", "completed", BuildStatus.SUCCESS),
        ("failure", "completed", BuildStatus.FAILURE),
        ("cancelled", "completed", BuildStatus.FAILURE),
        ("skipped", "completed", BuildStatus.FAILURE),
        ("timed_out", "completed", BuildStatus.FAILURE),
        ("action_required", "completed", BuildStatus.FAILURE),
        ("neutral", "completed", BuildStatus.FAILURE),
        (None, "completed", BuildStatus.FAILURE),
        (None, "in_progress", BuildStatus.IN_PROGRESS),
        (None, "queued", BuildStatus.PENDING),
        (None, "waiting", BuildStatus.PENDING),
        (None, "a status of the future", BuildStatus.PENDING),
    ],
)
def test_how_a_job_ended_decides(server: GitHub, conclusion: str | None, status: str, expected: BuildStatus) -> None:
    server.runs, server.jobs = [run(1, OPENING)], {1: [job(1, name(A), conclusion, status=status)]}
    assert builds(server).run_of(3).jobs == {A: expected}


def test_a_missing_job_is_looked_for_while_the_run_goes_on(server: GitHub) -> None:
    server.runs = [run(1, OPENING, status="in_progress", conclusion=None)]
    server.jobs = {1: [job(1, name(A)), job(2, "Set up matrix"), job(3, "Lint (python 3.11)")]}
    tracker = builds(server)
    going = tracker.run_of(3)
    assert (going.finished, going.jobs, going.status(B)) == (False, {A: BuildStatus.SUCCESS}, BuildStatus.PENDING)
    server.jobs[1].append(job(4, name(B)))
    server.runs[0]["status"] = "completed"
    over = tracker.run_of(3)
    assert (over.finished, over.status(B), over.status(C)) == (True, BuildStatus.SUCCESS, BuildStatus.NOT_FOUND)


def test_a_run_whose_jobs_have_not_all_ended_goes_on(server: GitHub) -> None:
    """What GitHub says of jobs may be older than what it says of the run."""
    server.runs, server.jobs = [run(1, OPENING)], {1: [job(1, name(A)), job(2, name(B), None)]}
    found = builds(server).run_of(3)
    assert (found.finished, found.status(B)) == (False, BuildStatus.IN_PROGRESS)


def test_more_jobs_than_a_page_holds_are_all_read(server: GitHub) -> None:
    hotkeys = [
        "5" + "".join("123456789ABCDEFGHJKLMNPQRSTUVWXYZ"[i // 33**k % 33] for k in range(4)) for i in range(230)
    ]
    server.runs = [run(1, OPENING)]
    server.jobs = {1: [job(i, name(hotkey)) for i, hotkey in enumerate(hotkeys)]}
    assert builds(server).run_of(3).jobs == dict.fromkeys(hotkeys, BuildStatus.SUCCESS)


def test_a_run_is_found_behind_many_newer_ones(server: GitHub) -> None:
    server.runs = [run(1000 - i, f"Record match {i}") for i in range(250)] + [run(7, OPENING)]
    server.jobs = {7: [job(1, name(A))]}
    assert builds(server).run_of(3).jobs == {A: BuildStatus.SUCCESS}


def test_of_a_job_that_was_run_again_the_latest_attempt_counts(server: GitHub) -> None:
    """Running failed jobs again makes an attempt that holds only these."""
    server.runs = [run(1, OPENING, run_attempt=2)]
    server.jobs = {1: [job(1, name(A)), job(2, name(B), "failure"), job(3, name(B), "success", run_attempt=2)]}
    assert builds(server).run_of(3).jobs == {A: BuildStatus.SUCCESS, B: BuildStatus.SUCCESS}


def test_of_several_runs_of_a_commit_a_later_ones_jobs_count(server: GitHub) -> None:
    server.runs = [
        run(9, OPENING, event="workflow_dispatch", status="in_progress"),
        run(8, OPENING, name="Lint"),
        run(7, OPENING),
    ]
    server.jobs = {9: [job(4, name(B))], 7: [job(1, name(A)), job(2, name(B), "failure")], 8: [job(3, "lint")]}
    found = builds(server).run_of(3)
    assert (found.finished, found.jobs) == (False, {A: BuildStatus.SUCCESS, B: BuildStatus.SUCCESS})


def test_with_several_jobs_a_hotkey_all_must_succeed(server: GitHub) -> None:
    server.runs = [run(1, OPENING)]
    server.jobs = {1: [job(1, name(A)), job(2, f"Push ({A})", "failure"), job(3, name(B)), job(4, f"Push ({B})", None)]}
    assert builds(server).run_of(3).jobs == {A: BuildStatus.FAILURE, B: BuildStatus.IN_PROGRESS}


def test_a_strangers_pull_request_is_not_taken_for_the_rounds_build(server: GitHub) -> None:
    server.runs = [
        run(9, OPENING, event="pull_request", head_repository={"full_name": "miner/competition"}),
        run(8, OPENING, head_branch="other"),
        run(7, OPENING),
    ]
    server.jobs = {9: [job(1, name(A))], 8: [job(2, name(A))], 7: [job(3, name(A), "failure")]}
    assert builds(server).run_of(3).jobs == {A: BuildStatus.FAILURE}
    server.runs = server.runs[:1]
    assert not builds(server).run_of(3).found


def test_answers_that_did_not_change_are_asked_for_by_etag(server: GitHub) -> None:
    server.runs, server.jobs = [run(1, OPENING)], {1: [job(1, name(A), None)]}
    tracker = builds(server)
    assert tracker.run_of(3).jobs == {A: BuildStatus.IN_PROGRESS}
    first = len(server.asked)
    assert tracker.run_of(3).jobs == {A: BuildStatus.IN_PROGRESS}
    assert server.unchanged == len(server.asked) - first == first
    server.jobs[1][0] |= {"status": "completed", "conclusion": "success"}
    assert tracker.run_of(3).jobs == {A: BuildStatus.SUCCESS}, "a change is seen at once"


def test_a_short_rate_limit_is_waited_for(server: GitHub) -> None:
    server.runs, server.jobs = [run(1, OPENING)], {1: [job(1, name(A))]}
    soon = str(int(time.time()) + 1)
    server.limited = [{"retry-after": "1"}, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": soon}]
    began = time.monotonic()
    assert builds(server).run_of(3).jobs == {A: BuildStatus.SUCCESS}
    assert time.monotonic() - began >= 1.0


def test_a_long_rate_limit_makes_github_unavailable_and_says_how_long(server: GitHub) -> None:
    server.limited = [{"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 1800)}]
    with pytest.raises(Unavailable, match=r"rate limit is used up for another 1[78]\d\d s"):
        builds(server).run_of(3)
    assert len(server.asked) == 1


@pytest.mark.parametrize("answers", [1, 2], ids=["403", "429 and 403"])
def test_a_rate_limit_without_an_end_is_waited_for_a_while(
    server: GitHub, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(github, "UNTOLD_SECONDS", 0.01)
    server.runs, server.jobs = [run(1, OPENING)], {1: [job(1, name(A))]}
    server.limited = [{} for _ in range(answers)]
    assert builds(server).run_of(3).found
    server.limited = [{} for _ in range(100)]
    with pytest.raises(Unavailable, match="GitHub's rate limit is used up"):
        builds(server).run_of(3)
    assert len(server.limited) == 100 - github.TRIES


def test_a_passing_server_error_is_tried_again(server: GitHub) -> None:
    server.runs, server.jobs, server.down = [run(1, OPENING)], {1: [job(1, name(A))]}, 1
    assert builds(server).run_of(3).found


def test_an_answer_that_cannot_be_read_is_githubs_trouble(server: GitHub) -> None:
    server.garbage = True
    with pytest.raises(Unavailable, match="GitHub's answer"):
        builds(server).run_of(3)


def test_a_server_that_hangs_or_is_gone_is_unavailable(server: GitHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(github, "CALL_SECONDS", 0.2)
    server.hang = 1.0
    with pytest.raises(Unavailable, match="GitHub does not answer"):
        builds(server).run_of(3)
    with pytest.raises(Unavailable, match="GitHub does not answer: ConnectError"):
        GitHubBuilds(REPOSITORY, TOKEN, base_url="http://127.0.0.1:9").run_of(3)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "GitHub refuses GITHUB_TOKEN"),
        (403, "GITHUB_TOKEN may not read the Actions of 404-Repo/competition"),
        (404, "check GEN404_BUILDS_REPO"),
    ],
)
def test_a_refusal_names_what_to_change_and_hides_the_token(
    server: GitHub, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.status = status
    secret = TOKEN if status != 401 else "ghp_wrong0123456789"
    with pytest.raises(OperatorError, match=said) as caught:
        builds(server, secret).run_of(3)
    shown = caplog.text + str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
    assert secret not in shown


@pytest.mark.parametrize(
    ("remote", "repository"),
    [
        ("https://github.com/404-Repo/404-active-competition", "404-Repo/404-active-competition"),
        ("https://github.com/404-Repo/404-active-competition.git", "404-Repo/404-active-competition"),
        ("https://user:token@github.com/a/b.c.git/", "a/b.c"),
        ("git@github.com:a/b.git", "a/b"),
        ("ssh://git@github.com/a/b", "a/b"),
        ("https://github.com.evil.example/a/b", ""),
        ("https://gitlab.com/a/b", ""),
        ("somewhere/on/disk", ""),
        ("", ""),
    ],
)
def test_the_repository_of_builds_is_that_of_the_state(remote: str, repository: str) -> None:
    assert github_repository(remote) == repository


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"builds": "github", "state_repo": "https://github.com/a/b"}, "GITHUB_TOKEN is not set"),
        ({"builds": "github", "github_token": "t", "state_repo": "a/folder/of/ours"}, "GEN404_BUILDS_REPO is not set"),
        (ON_GITHUB, "GEN404_DOCKER_IMAGE_TEMPLATE is not set"),
        ({**ON_GITHUB, "docker_image_template": ""}, "GEN404_DOCKER_IMAGE_TEMPLATE is not set"),
        ({**ON_GITHUB, "docker_image_template": "host/{hotkey}"}, "must hold {hotkey} and {tag}"),
        ({**ON_GITHUB, "docker_image_template": "host/{repo}:{tag}"}, "must hold {hotkey} and {tag}"),
        ({**ON_GITHUB, "docker_image_template": "host/{hotkey}:{tag"}, "must hold {hotkey} and {tag}"),
        ({"gpu_providers": "targon"}, "TARGON_API_KEY"),
        ({"gpu_providers": "verda", "verda_client_id": "c"}, "VERDA_CLIENT_SECRET, VERDA_INFERENCE_KEY"),
        ({"gpu_providers": "local,runpod"}, "GPU_PROVIDERS names runpod: known are local, docker, targon, verda"),
        ({"gpu_providers": " , "}, "GPU_PROVIDERS names none"),
    ],
)
def test_what_is_missing_fails_at_the_start_by_its_name(
    changes: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("GITHUB_TOKEN", "TARGON_API_KEY", "VERDA_CLIENT_ID", "VERDA_CLIENT_SECRET", "VERDA_INFERENCE_KEY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(OperatorError, match=said):
        build_resources(Settings(data=tmp_path, **changes))  # type: ignore[arg-type]


def test_secrets_of_a_file_reach_the_parts_and_not_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARGON_API_KEY", "")
    monkeypatch.delenv("TARGON_API_KEY")
    monkeypatch.setenv("GITHUB_TOKEN", "")
    monkeypatch.delenv("GITHUB_TOKEN")
    chosen = Settings(
        data=tmp_path, gpu_providers="targon", targon_api_key="key-of-targon", builds="github",
        github_token="token-of-github", state_repo="https://github.com/a/b",
        docker_image_template="host/path/{hotkey}:{tag}",
    )  # type: ignore[arg-type]  # fmt: skip
    parts = build_resources(chosen)
    shown = repr(parts)
    assert "key-of-targon" not in shown
    assert "token-of-github" not in shown


def test_images_are_named_by_template() -> None:
    assert build_tag("0123456789abcdef", "round-3") == "0123456-round-3"
    assert docker_image("Host/Path/{hotkey}:{tag}", A, "0123456-3") == "host/path/5dug9lpgmz:0123456-3"

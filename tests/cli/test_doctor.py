"""`gen404 doctor` against parts that are well, that lie, that hang, and that refuse."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gen404_dagster.doctor import Check, Finding, Remark, choose, examine
from gen404_dagster.doctor import machine as machine_checks
from gen404_dagster.doctor import parts as part_checks
from gen404_dagster.doctor.checks import checks
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.configured import open_store
from gen404_dagster.settings import Settings, load_settings
from tests.resources.seaweed import ACCESS_KEY_ID, SECRET_ACCESS_KEY, Seaweed
from tests.resources.vlm_server import VisionServer, serving
from tests.resources.webhook_receiver import receiver

GEN404 = Path(sys.executable).with_name("gen404")


def gen404(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GEN404_", "DAGSTER_", "R2_"))}
    return subprocess.run(
        [str(GEN404), *arguments], capture_output=True, text=True, timeout=600, env={**kept, **environment}
    )


def git(*arguments: str, at: Path) -> str:
    who = ["-c", "user.name=Reviewer", "-c", "user.email=reviewer@example.org"]
    return subprocess.run(["git", *who, *arguments], cwd=at, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    """Serves the folder of the local store, as a CDN does; its address."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "data" / "store"))

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A competition's repository with no more than its first two files."""
    git("init", "-q", "--bare", "-b", "main", str(tmp_path / "remote.git"), at=tmp_path)
    git("clone", "-q", str(tmp_path / "remote.git"), str(tmp_path / "clone"), at=tmp_path)
    clone = tmp_path / "clone"
    days = {
        "first_evaluation_date": "2026-01-01",
        "last_competition_date": "2026-12-31",
        "round_start_time": "12:00:00",
    }
    sizes = {"generation_stage_minutes": 60, "prompts_per_round": 4, "carryover_prompts": 0}
    (clone / "config.json").write_text(json.dumps({"name": "test", **days, **sizes}))
    (clone / "state.json").write_text(json.dumps({"current_round": 0, "stage": "open", "next_stage_eta": None}))
    git("add", "-A", at=clone)
    git("commit", "-qm", "Start", at=clone)
    git("push", "-q", "origin", "HEAD:main", at=clone)
    return tmp_path / "remote.git"


def settings(tmp_path: Path, **values: object) -> Settings:
    return load_settings(data=tmp_path / "data", **values)


# --- how checks run ---


def test_checks_run_side_by_side_and_answer_in_their_order() -> None:
    barrier = threading.Barrier(3, timeout=60)  # passed only if all three are under way at once

    def look() -> str:
        barrier.wait()
        return "well"

    found = examine([Check(name, look, 60) for name in "abc"])
    assert [(finding.part, finding.good) for finding in found] == [("a", True), ("b", True), ("c", True)]


def test_a_check_that_hangs_costs_its_own_time_and_no_other_check() -> None:
    hung = threading.Event()
    heard: list[list[str]] = []
    began = time.monotonic()
    slow, quick = examine(
        [Check("slow", lambda: str(hung.wait(60)), 1.0), Check("quick", lambda: "well", 50)], heard.append
    )
    assert time.monotonic() - began < 30
    assert (slow.good, slow.detail) == (False, "did not answer within 1 s")
    assert quick.good
    assert ["slow"] in heard
    hung.set()


def test_what_a_check_raises_decides_whether_a_round_would_stop() -> None:
    def raises(error: Exception) -> str:
        raise error

    errors = {
        "remark": Remark("a dry run"),
        "operator": OperatorError("set X\nto Y"),
        "outage": Unavailable("no answer"),
        "bug": ZeroDivisionError("division by zero"),
    }
    found = {f.part: f for f in examine([Check(name, lambda e=error: raises(e)) for name, error in errors.items()])}
    assert not any(finding.good for finding in found.values())
    assert [name for name, finding in found.items() if not finding.needed] == ["remark"]
    assert found["operator"].detail == "set X to Y"
    assert found["bug"].detail == "ZeroDivisionError: division by zero"


def test_parts_are_chosen_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    every = checks(settings(tmp_path))
    assert [check.part for check in choose(every, ["state", "Judge"])] == ["state repository", "judge"]
    assert choose(every, []) == every
    with pytest.raises(ValueError, match=r"oracle.*known are machine"):
        choose(every, ["oracle"])


# --- the parts ---


def test_the_state_repository_is_pushed_to_and_left_as_it_was(tmp_path: Path, remote: Path) -> None:
    before = git("for-each-ref", at=remote)
    hook = remote / "hooks" / "post-receive"
    hook.write_text(f"#!/bin/sh\ncat >> {tmp_path}/pushes\n")
    hook.chmod(0o755)
    words = part_checks.state_repository(settings(tmp_path, state_repo=str(remote)))
    assert "round 0, open; a probe branch was pushed and deleted" in words
    assert (tmp_path / "pushes").read_text().count("refs/heads/gen404-doctor-") == 2
    assert git("for-each-ref", at=remote) == before


def test_a_remote_that_takes_no_pushes_is_found_although_it_can_be_read(tmp_path: Path, remote: Path) -> None:
    hook = remote / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'read only for you' >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(OperatorError, match="refuses commits"):
        part_checks.state_repository(settings(tmp_path, state_repo=str(remote)))


def test_the_store_is_written_read_fetched_and_emptied_again(tmp_path: Path, files: str) -> None:
    configured = settings(tmp_path, cdn_url=files)
    assert "written, read, fetched" in part_checks.object_store(configured)
    assert list(open_store(configured).list()) == []


def test_a_public_address_that_serves_something_else_is_found(tmp_path: Path, files: str) -> None:
    with pytest.raises(OperatorError, match="answers 404: CDN_URL must be the address"):
        part_checks.object_store(settings(tmp_path, cdn_url=f"{files}/elsewhere"))
    with pytest.raises(OperatorError, match="CDN_URL is not set"):
        part_checks.object_store(settings(tmp_path))
    assert list(open_store(settings(tmp_path)).list()) == []


def test_a_real_s3_store_is_probed_with_its_secrets_from_the_environment(
    tmp_path: Path, s3_server: Seaweed, files: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"R2_ENDPOINT": s3_server.endpoint, "R2_BUCKET": s3_server.make_bucket(), "CDN_URL": files}
    keys |= {"R2_ACCESS_KEY_ID": ACCESS_KEY_ID, "R2_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OperatorError, match="answers 404"):  # the bucket is not what CDN_URL serves
        part_checks.object_store(settings(tmp_path, store="s3"))
    assert list(open_store(settings(tmp_path, store="s3")).list()) == []


def test_a_judge_that_prefers_the_wrong_picture_is_a_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "penalties 0 for nearly the prompt, 10 for something else" in part_checks.judge(settings(tmp_path))
    honest = part_checks._drawing
    swapped = {(0, True): honest(0, True), (6, True): honest(0, False), (0, False): honest(6, True)}
    monkeypatch.setattr(part_checks, "_drawing", lambda shift, disc: swapped[shift, disc])
    with pytest.raises(Remark, match="prefers the wrong picture"):
        part_checks.judge(settings(tmp_path))


def test_a_judge_that_fails_on_pictures_by_url_is_said_where_it_had_to_fetch_them(tmp_path: Path) -> None:
    with serving(VisionServer("key")) as server:
        configured = settings(
            tmp_path, judge="openai", openai_base_url=server.base_url, openai_api_key="key", judge_images="url",
            cdn_url="https://cdn.example.org/objects",
        )  # fmt: skip
        server.plan = ["status 400"] * 2
        with pytest.raises(OperatorError, match=r"HTTP 400.* pictures from CDN_URL=https://cdn\.example\.org/objects"):
            part_checks.judge(configured)
    assert list(open_store(configured).list()) == []


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it
def test_an_address_is_sent_a_test_message_only_when_asked(tmp_path: Path) -> None:
    with receiver() as hook:
        configured = settings(tmp_path, notify=f"json://{hook.address}/hunter2")
        words = part_checks.notifications(configured, notify=False)
        assert hook.got == []
        assert "address 1 (JSON); told of stage, winner, verdict, failure" in words
        assert "hunter2" not in words
        assert "was taken" in part_checks.notifications(configured, notify=True)
        assert hook.titles == ["gen404 doctor"]
        hook.status = 401
        with pytest.raises(OperatorError, match="status 401: check GEN404_NOTIFY"):
            part_checks.notifications(configured, notify=True)


def test_one_part_that_is_wrongly_set_does_not_hide_the_others(tmp_path: Path, files: str) -> None:
    """Building all resources at once would refuse for the first of these."""
    wrong = settings(tmp_path, store="s3", builds="github", gpu_providers="moon", notify_events="gossip", cdn_url=files)
    found = examine(choose(checks(wrong), ["object", "builds", "pods"]))
    assert {finding.part for finding in found} == {"object store", "builds", "pods"}
    words = {finding.part: finding.detail for finding in found}
    assert "R2_ENDPOINT" in words["object store"]
    assert "moon" in words["pods"]
    assert "GITHUB_TOKEN" in words["builds"] or "GEN404_BUILDS_REPO" in words["builds"]


# --- the machine ---


def test_a_folder_that_others_may_write_is_a_remark_and_one_that_cannot_be_used_is_wrong(tmp_path: Path) -> None:
    configured = settings(tmp_path)
    configured.data.mkdir(mode=0o755)
    assert "free" in machine_checks.data_folder(configured)
    configured.data.chmod(0o777)
    with pytest.raises(Remark, match="chmod go-w"):
        machine_checks.data_folder(configured)
    assert list(configured.data.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match=r"GEN404_DATA=.* cannot be used"):
        machine_checks.data_folder(load_settings(data=tmp_path / "file"))


@pytest.mark.parametrize("name", ["TARGON_API_KEY", "OPENAI_API_KEY"])
def test_a_file_of_secrets_that_others_may_read_is_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name, raising=False)
    env = tmp_path / "gen404.env"
    env.write_text(f"{name}=hunter2\n")
    env.chmod(0o644)
    monkeypatch.setenv("GEN404_ENV_FILE", str(env))
    with pytest.raises(Remark, match="chmod -R go-rwx") as said:
        machine_checks.configuration(load_settings())
    assert name in str(said.value)
    assert "hunter2" not in str(said.value)
    env.chmod(0o600)
    assert name in machine_checks.configuration(load_settings())


@pytest.mark.parametrize(("date", "says"), [("Mon, 05 Jan 2026 09:00:00 GMT", "ahead of"), ("x", "no server told")])
def test_a_clock_that_is_wrong_is_found_by_a_servers_date(tmp_path: Path, date: str, says: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", date)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with pytest.raises((OperatorError, Remark), match=says):
            machine_checks.clock(settings(tmp_path, world=f"http://127.0.0.1:{server.server_address[1]}"))
        server.shutdown()


def test_dagsters_instance_is_opened_and_its_silent_daemon_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository_root: Path
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(OperatorError, match="DAGSTER_HOME is not set"):
        machine_checks.dagster_instance()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with pytest.raises(OperatorError, match=r"holds no dagster\.yaml"):
        machine_checks.dagster_instance()
    ours = (repository_root / "gen404_dagster" / "dagster.yaml").read_text()
    (tmp_path / "dagster.yaml").write_text(ours)
    instance, daemon = machine_checks.dagster_instance()
    assert instance.good, instance.detail
    assert (daemon.good, daemon.needed) == (False, False)
    assert "SENSOR" in daemon.detail
    (tmp_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    assert "gen404/lane" in machine_checks.dagster_instance()[0].detail
    (tmp_path / "dagster.yaml").write_text("storage:\n  sqlite:\n    base_dir: /proc/none\n")
    with pytest.raises(Unavailable, match="cannot be used"):
        machine_checks.dagster_instance()


# --- the command ---


def test_the_command_ends_well_only_if_no_round_would_stop(tmp_path: Path, remote: Path) -> None:
    well = gen404("doctor", "--only", "state", "--json", GEN404_DATA=str(tmp_path / "d"), GEN404_STATE_REPO=str(remote))
    assert well.returncode == 0, well.stdout + well.stderr
    (found,) = [Finding(**finding) for finding in json.loads(well.stdout)]
    assert (found.part, found.good, found.needed) == ("state repository", True, True)
    ill = gen404("doctor", "--only", "state", GEN404_DATA=str(tmp_path / "d"), GEN404_STATE_REPO=str(tmp_path / "none"))
    assert ill.returncode == 1
    assert "wrong" in ill.stdout
    unknown = gen404("doctor", "--only", "oracle")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("gen404: no part is called oracle")

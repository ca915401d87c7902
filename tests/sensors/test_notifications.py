"""From a real git repository and real failed runs to a receiver on loopback, over restarts and outages."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from gen404_dagster.competition.news import Kind
from gen404_dagster.errors import Gen404Error, JudgeUnavailable, OperatorError, StateFileError
from gen404_dagster.resources import outbox as outbox_module
from gen404_dagster.resources.configured import TOKEN_TAG, NotifierResource, StateRepositoryResource
from gen404_dagster.resources.state_repo import Change, StateRepository, Step
from gen404_dagster.sensors import notifications as module
from gen404_dagster.sensors.notifications import failed_runs, notifications
from tests.resources.webhook_receiver import Receiver, receiver

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it


def git(*arguments: str, at: Path) -> str:
    who = ["-c", "user.name=Re*viewer", "-c", "user.email=reviewer@example.org"]
    return subprocess.run(["git", *who, *arguments], cwd=at, check=True, capture_output=True, text=True).stdout


def state(number: int, stage: str) -> str:
    return json.dumps({"current_round": number, "stage": stage, "next_stage_eta": None})


class Competition:
    """A remote with years of rounds, a pipeline that commits, a person who does, and people who are told."""

    def __init__(self, folder: Path, hook: Receiver) -> None:
        self.folder, self.hook = folder, hook
        self.remote, self.clone = folder / "remote.git", folder / "clone"
        git("init", "-q", "--bare", "-b", "main", str(self.remote), at=folder)
        git("clone", "-q", str(self.remote), str(self.clone), at=folder)
        for number in (3, 4):
            self.by_hand({"state.json": state(number, "duels")}, f"Round {number}")
        self.pipeline = StateRepository(str(self.remote), folder / "pipeline.git")

    def by_hand(self, files: dict[str, str], subject: str) -> None:
        git("pull", "-q", "--rebase", "origin", "main", at=self.clone) if self.remote_has_commits() else None
        for path, text in files.items():
            (self.clone / path).parent.mkdir(parents=True, exist_ok=True)
            (self.clone / path).write_text(text)
        git("add", "-A", at=self.clone)
        git("commit", "-qm", subject, at=self.clone)
        git("push", "-q", "origin", "HEAD:main", at=self.clone)

    def remote_has_commits(self) -> bool:
        return bool(git("for-each-ref", at=self.remote))

    def commits(self, step: str, files: dict[str, str | None]) -> None:
        assert self.pipeline.commit(Step(5, step, "inputs"), lambda _: Change(files, f"Round 5: {step}"))

    def notifier(self, events: list[Kind] | None = None, addresses: str = "") -> NotifierResource:
        return NotifierResource(
            addresses=addresses or f"json://{self.hook.address}",
            events=[str(event) for event in events or list(Kind)],
            outbox_path=str(self.folder / "data" / "notifications.sqlite"),
            dagster_url="http://ui.example:3000/",
        )

    def tick(self, notifier: NotifierResource | None = None) -> str:
        """One look of the sensor, in what may as well be another process."""
        resources = {
            "state": StateRepositoryResource(remote=str(self.remote), mirror=str(self.folder / "data" / "state.git")),
            "notifier": notifier or self.notifier(),
        }
        with dg.build_sensor_context(resources=resources) as context:
            result = notifications(context)
        assert isinstance(result, dg.SkipReason)
        return result.skip_message or ""


@pytest.fixture
def competition(tmp_path: Path) -> Iterator[Competition]:
    with receiver() as hook:
        made = Competition(tmp_path, hook)
        yield made
        made.pipeline.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "FIRST_PAUSE_SECONDS", 0.0)


def test_a_first_start_does_not_tell_the_past_and_then_each_commit_once(competition: Competition) -> None:
    assert competition.tick() == "nothing new to tell"
    winner = json.dumps({"winner_hotkey": "5Abc", "repo": "owner/model", "commit": "0" * 40, "docker_image": None})
    competition.commits("crown", {"rounds/5/winner.json": winner, "state.json": state(5, "finalizing")})
    competition.commits("open", {"state.json": state(6, "open")})
    assert "3 sent" in competition.tick()
    assert competition.tick() == "nothing new to tell"
    assert competition.hook.titles == ["Round 5: 5Abc wins", "Round 5: finalizing", "Round 6: open"]


def test_a_commit_by_hand_says_whose_it_is(competition: Competition) -> None:
    competition.tick()
    competition.by_hand({"state.json": state(4, "paused")}, "Pause")
    competition.tick()
    (told,) = competition.hook.got
    assert told["title"] == "Round 4: paused (from duels)"
    assert told["message"].endswith(", by hand: Re?viewer")


@pytest.mark.usefixtures("impatient")
def test_what_happens_while_the_receiver_or_the_pipeline_is_down_is_told_later_in_order(
    competition: Competition,
) -> None:
    competition.tick()
    competition.hook.status = 503
    competition.commits("a", {"state.json": state(5, "open")})
    assert "answered with status 503" in competition.tick()
    competition.commits("b", {"state.json": state(5, "duels")})  # nobody looks: the pipeline is down
    competition.commits("c", {"state.json": state(5, "finalizing")})
    competition.hook.status = 200
    competition.tick()
    assert competition.hook.titles == [
        "Round 5: open",
        "Round 5: duels (from open)",
        "Round 5: finalizing (from duels)",
    ]


def test_without_the_remote_what_waits_is_still_sent(competition: Competition) -> None:
    competition.tick()
    competition.hook.status = 500
    competition.commits("a", {"state.json": state(5, "open")})
    competition.tick()
    competition.hook.status = 200
    competition.remote.rename(competition.folder / "gone.git")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outbox_module.time, "time", lambda: 4e9)
        line = competition.tick()
    assert "1 sent" in line
    assert competition.hook.titles == ["Round 5: open"]


def test_only_the_chosen_kinds_are_told(competition: Competition) -> None:
    chosen = competition.notifier([Kind.VERDICT])
    competition.tick(chosen)
    audits = {"5A": {"hotkey": "5A", "outcome": "passed"}}
    competition.commits("audit", {"rounds/5/generation_audits.json": json.dumps(audits)})
    competition.commits("open", {"state.json": state(6, "open")})
    competition.tick(chosen)
    assert competition.hook.titles == ["Round 5: generation audit passed"]


def test_a_rewritten_branch_is_told_as_such_and_not_its_past(competition: Competition) -> None:
    competition.tick()
    git("checkout", "-q", "--orphan", "new", at=competition.clone)
    git("commit", "-qm", "All again", at=competition.clone)
    git("push", "-qf", "origin", "new:main", at=competition.clone)
    competition.tick()
    assert competition.hook.titles == ["Some of the state repository's history was not told"]
    competition.tick()
    assert len(competition.hook.got) == 1


def test_more_commits_than_are_looked_at_are_told_as_a_gap(
    competition: Competition, monkeypatch: pytest.MonkeyPatch
) -> None:
    competition.tick()
    monkeypatch.setattr(module, "MOST_COMMITS", 2)
    for stage in ("open", "duels", "finalizing"):
        competition.commits(stage, {"state.json": state(5, stage)})
    competition.tick()
    assert competition.hook.titles == ["Some of the state repository's history was not told"]


def test_a_merge_tells_each_verdict_once(competition: Competition) -> None:
    path = "rounds/5/source_audit.json"
    verdict = {"hotkey": "5A", "verdict": "passed", "reason": ""}
    competition.tick()
    git("checkout", "-q", "-b", "side", at=competition.clone)
    (competition.clone / "rounds/5").mkdir(parents=True)
    (competition.clone / path).write_text(json.dumps([verdict]))
    git("add", "-A", at=competition.clone)
    git("commit", "-qm", "Verdict", at=competition.clone)
    competition.commits("open", {"state.json": state(5, "open")})
    git("fetch", "-q", "origin", at=competition.clone)
    git("merge", "-q", "--no-ff", "origin/main", "-m", "Merge", at=competition.clone)
    git("push", "-q", "origin", "HEAD:main", at=competition.clone)
    competition.tick()
    assert sorted(competition.hook.titles) == ["Round 5: open", "Round 5: source audit passed"]


def test_a_wrong_address_is_said_by_the_sensor(competition: Competition) -> None:
    assert "address 1 is not one" in competition.tick(competition.notifier(addresses="nonsense"))


FAULTS: dict[str, Exception] = {
    "unavailable": JudgeUnavailable("the judge at @everyone did not answer"),
    "operator": StateFileError("rounds/5/winner.json: is no JSON\nsecond line"),
    "program": KeyError("stem"),
    "refused": dg.Failure("round 5 is not to be finalized: its stage is duels"),
}


@dg.op(config_schema=str)
def breaks(context: dg.OpExecutionContext) -> None:
    try:
        raise FAULTS[context.op_config]
    except Gen404Error as error:
        raise RuntimeError("a step of the run") from error


@dg.job
def judge() -> None:
    breaks()


def fail(instance: dg.DagsterInstance, fault: str, tags: dict[str, str]) -> dg.RunFailureSensorContext:
    """Run a job that fails, and what Dagster hands to the sensor then."""
    config = {"ops": {"breaks": {"config": fault}}}
    result = judge.execute_in_process(config, instance=instance, raise_on_error=False, tags=tags)
    assert not result.success
    event = next(event for event in result.all_events if event.is_run_failure)
    return dg.build_run_status_sensor_context("failed_runs", event, instance, result.dagster_run).for_run_failure()


def test_a_failed_run_is_told_with_its_error_what_to_do_and_a_link(competition: Competition) -> None:
    notifier = competition.notifier()
    competition.tick()
    with dg.DagsterInstance.ephemeral() as instance:
        work = {TOKEN_TAG: "5/judge/abc", "dagster/partition": "5"}
        for fault in FAULTS:
            failed_runs(fail(instance, fault, work if fault == "unavailable" else {}), notifier=notifier)
            competition.tick(notifier)
    outage, mistake, bug, refused = competition.hook.got
    assert outage["title"] == "judge (5) failed"
    assert outage["message"].startswith("the judge at ?everyone did not answer\nNothing to do: it is tried again")
    assert "\nhttp://ui.example:3000/runs/" in outage["message"]
    assert mistake["message"].startswith("rounds/5/winner.json: is no JSON\nChange what the error names, then open")
    assert refused["message"].startswith("round 5 is not to be finalized: its stage is duels\nChange what")
    assert bug["message"].startswith("KeyError: 'stem'\nLook at the run's log, then open the run")


def test_the_same_work_that_keeps_failing_is_told_ever_more_seldom(competition: Competition) -> None:
    notifier = competition.notifier()
    competition.tick()
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(5):
            context = fail(instance, "unavailable", {TOKEN_TAG: "5/judge/abc"})
            failed_runs(context, notifier=notifier)
            failed_runs(context, notifier=notifier)  # Dagster gives an event again after a kill
    competition.tick()
    assert competition.hook.titles == ["judge failed", "judge failed, 2 times now", "judge failed, 4 times now"]


def test_failures_are_not_queued_when_nobody_wants_them(competition: Competition) -> None:
    notifier = competition.notifier([Kind.STAGE])
    competition.tick(notifier)
    with dg.DagsterInstance.ephemeral() as instance:
        failed_runs(fail(instance, "program", {}), notifier=notifier)
    competition.tick(notifier)
    assert competition.hook.got == []


def test_an_operators_fault_is_known_by_every_name_of_its_branch() -> None:
    assert {"OperatorError", "StateFileError"} <= module._names(OperatorError)

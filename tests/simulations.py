"""Plays simulations as a person does, with the console script, kills them at chosen moments and looks at what is left.

Belongs here: what the tests of whole simulations share. A simulation runs in its own process group, as from a shell;
where a kill fell is read from its log, the remote's commits and Dagster's books.
"""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from PIL import Image
from pydantic import TypeAdapter

from gen404_dagster.assets.describe import DESCRIPTIONS
from gen404_dagster.competition import models
from gen404_dagster.resources.judge import Reply
from gen404_dagster.resources.object_store import LocalObjectStore
from gen404_dagster.sensors.round_sensor import ACTIVE

SMALL = ("--miners", "3", "--prompts", "4", "--seed", "7")
FULL = ("--seed", "7")
PLAY_SECONDS = 900
"""Longest a simulation may play, or take to reach a moment."""
END_SECONDS = 60
"""Longest that the world and the pods may outlive the simulation that was killed."""

ASSET_OF_STEP = {
    "open": "seed",
    "baseline": "leader_baseline",
    "advance": "stage",
    "outputs": "renders",
    "match": "match_matrix",
    "request": "audit_requests",
    "builds": "builds",
    "audit": "generation_audits",
    "crown": "winner",
    "finalize": "leader",
}
STATE_FILES: dict[str, TypeAdapter[Any]] = {
    **models.ROOT_FILES,
    **models.ROUND_FILES,
    **models.HOTKEY_FILES,
    "duels.json": models.MATCH_REPORT,
}


@dataclass(frozen=True)
class Event:
    """A line of `simulation.log`."""

    time: float
    event: str
    detail: str

    @property
    def job(self) -> str:
        return self.detail.split()[0]


@dataclass(frozen=True)
class Commit:
    sha: str
    step: str
    run_id: str

    @property
    def name(self) -> str:
        """The step without the hash of its inputs, which holds the port of this world."""
        return self.step.rpartition("/")[0]

    @property
    def kind(self) -> str:
        return self.step.split("/")[1]


@dataclass(frozen=True)
class Moment:
    """When to kill: `delay` after that many commits or, with `job`, after that job's next start from then on, if it
    starts once more before there are `until` commits.

    With `at_push` at the first push of one of these kinds that makes at least so many commits, as soon as it is seen.
    """

    time: float
    commits: int
    job: str | None = None
    until: int = sys.maxsize
    delay: float = 0.0
    at_push: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fell:
    """Where a kill fell. `job`: the one at work; `unrecorded`: the last push, if Dagster had no event of it yet."""

    job: str | None
    active_runs: tuple[str, ...]
    unrecorded: str | None
    orphans: tuple[psutil.Process, ...]


class Simulation:
    """One workdir, and the processes that play in it one after the other."""

    def __init__(self, workdir: Path, *options: str) -> None:
        self.workdir, self.options = workdir, options
        self.remote, self.dagster, self.store = workdir / "remote.git", workdir / "dagster", workdir / "data" / "store"
        self.pushes: list[tuple[float, Commit]] = []
        self._seen: str | None = None

    # Playing

    @contextmanager
    def _launched(self) -> Iterator["subprocess.Popen[bytes]"]:
        """The command in its own process group; when a test fails, nothing of it lives on."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        script = Path(sys.executable).with_name("gen404")
        command = [str(script), "simulate", *self.options, "--workdir", str(self.workdir), "--json"]
        with open(self._beside("out"), "wb") as out, open(self._beside("err"), "wb") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def finish(self) -> dict[str, Any]:
        """The same command until it ends: its result, without the port in the URLs."""
        with self._launched() as process:
            deadline = time.monotonic() + PLAY_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                self._look_for_pushes()
                time.sleep(0.005)
            assert process.poll() == 0, f"{process.poll()}: {self._beside('err').read_text()[-3000:]}"
        result = json.loads(re.sub(r"127\.0\.0\.1:\d+", "world", self._beside("out").read_text()))
        assert isinstance(result, dict)
        return result

    def kill_at(self, moment: Moment) -> Fell | None:
        """Launch it and `kill -9` its process group at a moment; None when it ended before."""
        before, old_lines = len(self.steps()), len(self.log())
        with self._launched() as process:
            reached = self._wait_for(process, moment, before, old_lines)
            orphans = tuple(self._processes())
            if reached:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(END_SECONDS)
        return self._where(orphans) if reached else None

    def _wait_for(self, process: "subprocess.Popen[bytes]", moment: Moment, before: int, old_lines: int) -> bool:
        launched = time.monotonic()
        anchor = launched if moment.commits == 0 and moment.job is None and not moment.at_push else None
        while process.poll() is None:
            now = time.monotonic()
            assert now < launched + PLAY_SECONDS, f"{moment} was not reached"
            if moment.at_push:
                if self._pushed(process, moment, before):
                    return True
            elif anchor is None:
                self._look_for_pushes()
                new = self.log()[old_lines:]
                reached = len(self.steps()) >= moment.commits
                if moment.job:
                    ready = bool(new) and new[-1].event == "start" and new[-1].job == moment.job
                    ready = ready or len(self.steps()) >= moment.until
                else:
                    ready = moment.commits > before or any(event.event == "start" for event in new)
                anchor = now if reached and ready else None
            elif now >= anchor + moment.delay:
                return True
            time.sleep(0.001)
        return False

    def _pushed(self, process: "subprocess.Popen[bytes]", moment: Moment, before: int) -> bool:
        """Whether a push that is waited for has just arrived; the simulation then stands still, to be killed."""
        if self.head() in (self._seen, None):
            return False
        os.killpg(process.pid, signal.SIGSTOP)
        commits = self.commits()
        own = len(commits) > before and commits[-1].sha == self.head()  # not the source auditor's
        if own and len(commits) >= moment.commits and commits[-1].kind in moment.at_push:
            return True
        self._look_for_pushes()
        os.killpg(process.pid, signal.SIGCONT)
        return False

    def _beside(self, suffix: str) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}.{suffix}")

    # Looking

    def log(self) -> list[Event]:
        try:
            lines = (self.workdir / "simulation.log").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [Event(**json.loads(line)) for line in lines]

    def head(self) -> str | None:
        try:
            return (self.remote / "refs" / "heads" / "main").read_text().strip() or None
        except FileNotFoundError:
            return None

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.remote), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout

    def commits(self) -> list[Commit]:
        """The pipeline's own commits, oldest first."""
        if self.head() is None:
            return []
        trailers = "%(trailers:key=Gen404-Step,valueonly,separator=)%x00%(trailers:key=Gen404-Run,valueonly,separator=)"
        lines = self.git("log", "--reverse", f"--format=%H%x00{trailers}", "main").splitlines()
        return [Commit(*line.split("\0")) for line in lines if line.split("\0")[1]]

    def steps(self) -> list[str]:
        if self._seen is None or self._seen != self.head():
            self._look_for_pushes()
        return [commit.name for _, commit in self.pushes]

    def _look_for_pushes(self) -> None:
        head = self.head()
        if head is None or head == self._seen:
            return
        known, now = {commit.sha for _, commit in self.pushes}, time.time()
        self.pushes += [(now, commit) for commit in self.commits() if commit.sha not in known]
        self._seen = head

    def _processes(self) -> Iterator[psutil.Process]:
        """Every process that plays in this workdir: command line, world, pods and what they started."""
        marks = [str(self.workdir)]
        if (self.workdir / "world.json").exists():
            marks.append(f"127.0.0.1:{json.loads((self.workdir / 'world.json').read_text())['port']}")
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                if process.pid != os.getpid() and any(mark in words for mark in marks):
                    yield process
                    yield from process.children(recursive=True)
            except psutil.Error:
                continue

    def _where(self, orphans: tuple[psutil.Process, ...]) -> Fell:
        at_work = None
        for event in self.log():
            if event.event == "start":
                at_work = event.job
            elif event.event in ("end", "failed", "clock", "buried"):
                at_work = None
        active, unrecorded = [], None
        if (self.dagster / "dagster.yaml").exists():
            with dg.DagsterInstance.from_config(str(self.dagster)) as instance:
                active = [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=ACTIVE))]
                last = self.commits()[-1:]
                if last and last[0].run_id in active and not self._is_recorded(instance, last[0]):
                    unrecorded = last[0].name
        return Fell(at_work if active else None, tuple(active), unrecorded, orphans)

    def _is_recorded(self, instance: dg.DagsterInstance, commit: Commit) -> bool:
        of_type = dg.DagsterEventType.ASSET_MATERIALIZATION
        records = instance.get_records_for_run(commit.run_id, of_type=of_type).records
        keys = {record.event_log_entry.get_dagster_event().asset_key for record in records}
        return dg.AssetKey(ASSET_OF_STEP[commit.kind]) in keys

    def materialized(self) -> dict[str, set[str]]:
        """Partitions of every asset that Dagster knows of."""
        with dg.DagsterInstance.from_config(str(self.dagster)) as instance:
            names = [*DESCRIPTIONS, "downloads", "renders"]
            return {name: set(instance.get_materialized_partitions(dg.AssetKey(name))) for name in names}

    def partitions(self) -> dict[str, list[str]]:
        with dg.DagsterInstance.from_config(str(self.dagster)) as instance:
            return {name: sorted(instance.get_dynamic_partitions(name)) for name in ("round", "round_miner")}

    def objects(self) -> dict[str, str]:
        """Hash of every object by key; prompts are kept by URL, which holds the port of this world.

        Without the judge's answers, which say how long they took.
        """
        store = LocalObjectStore(self.store, "")
        hashes = {
            key: hashlib.sha256(store.path(key).read_bytes()).hexdigest()
            for key in store.list()
            if not key.startswith("judge/")
        }
        return {f"prompts/{value}" if key.startswith("prompts/") else key: value for key, value in hashes.items()}

    def unfinished(self) -> set[str]:
        """Folders of rejected miners' regenerations: they end at the decisive mismatch, whichever prompt comes first."""
        verdicts = {
            path.split("/")[1]: json.loads(self.git("show", f"main:{path}"))
            for path in self.git("ls-tree", "-r", "--name-only", "main").splitlines()
            if path.endswith("/generation_audits.json")
        }
        return {
            f"rounds/{number}/{hotkey}/generated"
            for number, audits in verdicts.items()
            for hotkey, audit in audits.items()
            if audit["outcome"] == "rejected"
        }

    # Asserting

    def assert_whole(self) -> None:
        """Nothing is half written: repositories, state files, objects, journal of events."""
        for repository in (self.remote, self.workdir / "data" / "state.git"):
            assert_sound(repository)
        for path in self.git("ls-tree", "-r", "--name-only", "main").splitlines():
            text = self.git("show", f"main:{path}")
            if path.endswith(".json"):
                adapter = STATE_FILES[re.sub(r"^duels_.*", "duels.json", Path(path).name)]
                value = models.read_json(adapter, text)
                assert models.write_json(adapter, value) == text, f"{path} is not as written"
                if adapter is models.RESULTS:
                    self._assert_objects_whole(value)
        for key in LocalObjectStore(self.store, "").list():
            if key.endswith(".json"):
                Reply.model_validate(json.loads((self.store / key).read_bytes())["reply"])
            elif not key.endswith(".glb"):
                with Image.open(self.store / key) as picture:
                    picture.load()  # raises for a truncated one
        assert not list((self.store / ".partial").glob("*.part")), "a partial object was not swept"

    def _assert_objects_whole(self, results: models.Results) -> None:
        """Miners may send rubbish, but what was recorded of it is there to the last byte."""
        for result in results.values():
            if result.glb is None:
                continue
            data = (self.store / result.glb.partition("/store/")[2]).read_bytes()
            assert result.size == len(data), f"{result.glb} has {len(data)} bytes"
            if result.png is not None:
                assert (data[:4], int.from_bytes(data[8:12], "little")) == (b"glTF", len(data)), (
                    f"{result.glb}: not whole"
                )
                assert (self.store / result.png.partition("/store/")[2]).is_file()

    def assert_equals(self, other: "Simulation") -> None:
        """The same steps, each once, the same files, and the same known to Dagster."""
        trailers = [commit.step for commit in self.commits()]
        assert len(set(trailers)) == len(trailers), "a step was committed twice"
        # Miners' outputs and audits are worked on side by side: their order is not fixed.
        assert sorted(commit.name for commit in self.commits()) == sorted(commit.name for commit in other.commits())
        mine, others, unfinished = self.objects(), other.objects(), self.unfinished()
        assert {key for key in mine if mine[key] != others.get(key, mine[key])} == set()
        assert {key for key in mine.keys() ^ others.keys() if key.rpartition("/")[0] not in unfinished} == set()
        assert self.partitions() == other.partitions()
        assert self.materialized() == other.materialized()

    def assert_buried(self, kills: list[Fell]) -> None:
        """Every run that a kill left active was reported failed, and nothing of a killed group lives on."""
        killed = {run_id for fell in kills for run_id in fell.active_runs}
        with dg.DagsterInstance.from_config(str(self.dagster)) as instance:
            statuses = {run_id: run.status for run_id in killed if (run := instance.get_run_by_id(run_id))}
            assert statuses == dict.fromkeys(killed, dg.DagsterRunStatus.FAILURE)
            assert instance.get_runs(dg.RunsFilter(statuses=ACTIVE)) == []
        assert {event.detail for event in self.log() if event.event == "buried"} == killed
        orphans = {process for fell in kills for process in fell.orphans}
        _, alive = psutil.wait_procs(orphans, timeout=END_SECONDS)
        assert [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        assert list(self._processes()) == []


def assert_sound(repository: Path) -> None:
    command = ["git", "-C", str(repository), "fsck", "--strict", "--no-dangling", "--no-progress"]
    check = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (check.returncode, check.stdout) == (0, ""), f"{repository.name} is damaged: {check.stdout}{check.stderr}"


@dataclass(frozen=True)
class Played:
    """An undisturbed simulation and its result."""

    simulation: Simulation
    result: dict[str, Any]

    def windows(self) -> list[tuple[str, float, float]]:
        """Jobs with the times at which they started and ended."""
        log = self.simulation.log()
        starts = [(i, event) for i, event in enumerate(log) if event.event == "start"]
        return [(event.job, event.time, log[i + 1].time) for i, event in starts]


def play_side_by_side(*simulations: Simulation) -> list[Played]:
    with ThreadPoolExecutor(len(simulations)) as pool:
        results = list(pool.map(Simulation.finish, simulations))
    return [Played(*pair) for pair in zip(simulations, results, strict=True)]


def draw_moments(played: Played, dice: random.Random, count: int) -> list[Moment]:
    """Random moments of a simulation in order, at least one each in download, judging, verification and after a push."""
    pushes = played.simulation.pushes
    begin, end = pushes[0][0] - 2.0, pushes[-1][0]

    def after(moment: float) -> tuple[int, float]:
        done = [at for at, _ in pushes if at <= moment]
        return len(done), moment - (done[-1] if done else begin)

    moments = []
    for job, kind in (("download", "outputs"), ("judge", "match"), ("verify", "audit")):
        busy = [
            (start, stop)
            for name, start, stop in played.windows()
            if name == job and any(start < at < stop and commit.kind == kind for at, commit in pushes)
        ]
        start, stop = dice.choice(busy)
        delay = dice.uniform(0, 0.4) * (stop - start)
        until = after(stop)[0] + 1
        moments.append(Moment(start + delay, after(start)[0], job, until, delay))
    kinds = ("match", "audit", "crown")
    at = dice.choice([at for at, commit in pushes if commit.kind in kinds])
    moments.append(Moment(at, after(at)[0], at_push=(*kinds, "finalize")))
    while len(moments) < count:
        when = dice.uniform(begin, end)
        commits, delay = after(when)
        moments.append(Moment(when, commits, delay=delay))
    return sorted(moments, key=lambda moment: moment.time)

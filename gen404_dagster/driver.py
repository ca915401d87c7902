"""Plays the daemon's part in one process: ticks the real sensor, runs the real jobs, lets the clock jump.

Belongs here: turning a sensor's answer into registered partitions, adopted events and runs, one after the other, so
that equal simulations end equally. Does not: any decision (the sensor's), the world (its own process).
"""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from gen404_dagster.competition.stages import RoundState, Wait, next_step
from gen404_dagster.definitions import build_defs
from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.configured import LANE_TAG, build_resources
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.sensors.decision import Hold, Launch
from gen404_dagster.sensors.round_sensor import ACTIVE, Look, bury_dead_runs, look
from gen404_dagster.settings import Settings

_QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_MOST_FAILURES = 3


@dataclass
class Driver:
    """Drives one pipeline. `log` receives what happens as (event, detail).

    What is launched next follows from git alone: one run at a time, then another look. `resume` is the lane whose run
    was killed with an earlier driver: it goes first, as if that run had gone on.
    """

    settings: Settings
    instance: dg.DagsterInstance
    log: Callable[[str, str], None] = lambda event, detail: None
    resume: str = ""
    failures: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.defs = build_defs(self.settings)
        self.resources = build_resources(self.settings)
        self.repository = self.resources["state"].get()  # type: ignore[attr-defined]
        self.chain = self.resources["chain"].get()  # type: ignore[attr-defined]
        # Nobody else drives this instance: what still runs in its books is dead.
        locks = self.resources["lane"].locks()  # type: ignore[attr-defined]
        for run_id in bury_dead_runs(self.instance, locks, 0.0, ACTIVE, forgive=True):
            self.log("buried", run_id)

    def round(self) -> RoundState:
        return read_round(self.repository.head())

    def tick(self) -> int:
        """Ask the sensor once and do what it says, of its runs only the first. Returns how much was done."""
        sensor = self.defs.resolve_sensor_def("round_sensor")
        needed = {name: self.resources[name] for name in ("state", "chain", "lane")}
        with dg.build_sensor_context(instance=self.instance, resources=needed) as context:
            result = sensor(context)
        if isinstance(result, dg.SkipReason):
            raise OperatorError(result.skip_message or "the sensor skipped")
        assert isinstance(result, dg.SensorResult)
        done = 0
        for request in result.dynamic_partitions_requests or ():
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
                done += 1
        for event in result.asset_events or ():
            self.instance.report_runless_asset_event(event)
            done += 1
        launches = sorted(result.run_requests or (), key=lambda launch: launch.tags.get(LANE_TAG) != self.resume)
        if launches:
            self.resume = ""
            self._run(launches[0])
            done += 1
        return done

    def _run(self, request: dg.RunRequest) -> None:
        job = self.defs.resolve_job_def(request.job_name or "")
        self.log(
            "start", f"{request.job_name} {request.tags.get('gen404/lane', '')}: {request.tags.get('gen404/why', '')}"
        )
        began = time.monotonic()
        result = job.execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            tags=dict(request.tags),
            run_config=_QUIET,
            raise_on_error=False,
        )
        seconds = f"{time.monotonic() - began:.1f} s"
        if result.success:
            self.log("end", f"{request.job_name} after {seconds}")
            return
        reason = failure_of(self.instance, result.run_id)
        work = request.run_key.rsplit("/", 1)[0] if request.run_key else request.job_name or ""
        self.failures[work] = self.failures.get(work, 0) + 1
        self.log("failed", f"{request.job_name} after {seconds}: {reason}")
        if self.failures[work] >= _MOST_FAILURES:
            raise OperatorError(f"{request.job_name} failed {_MOST_FAILURES} times: {reason}")

    def look(self) -> Look:
        return look(self.instance, self.round(), self.chain.head().block)

    def next_block(self) -> int | None:
        """The nearest block that a lane waits for, None when no block changes anything."""
        waits = [
            decision
            for decision in next_step(self.round(), self.chain.head().block).values()
            if isinstance(decision, Wait)
        ]
        return min((wait.until for wait in waits if wait.until is not None), default=None)

    def play(self, rounds: int, advance: Callable[[int], object], review: Callable[[], list[str]]) -> None:
        """Play until `rounds` rounds have ended, or the competition has.

        The clock stands still while work is due, then jumps to the block that the decision waits for. `review` lets
        the source auditor look; it returns whose verdicts it entered.
        """
        while True:
            now = self.round()
            if now.number >= rounds or now.state.stage == "finished":
                while self.tick():  # adopt what the finale wrote: first its partitions, then its files
                    pass
                return
            entered = review()
            if entered:
                self.log("reviewed", ", ".join(hotkey[:10] for hotkey in entered))
            if self.tick() or entered:
                continue
            pauses = [answer.retry_in for answer in self.look().answers if isinstance(answer, Hold) and answer.retry_in]
            if pauses:
                time.sleep(min(*pauses, 1.0))  # work is due: the clock stands still
                continue
            block = self.next_block()
            if block is not None:
                self.log("clock", f"block {block}")
                advance(block)
                continue
            answers = self.look().answers
            if not any(isinstance(answer, Launch) for answer in answers):
                words = "; ".join(f"{answer.lane}: {answer.why}" for answer in answers if isinstance(answer, Hold))
                raise OperatorError(f"round {now.number} does not go on: {words}")


def failure_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """The innermost message of a failed run, in one line."""
    for record in instance.get_records_for_run(run_id, ascending=False).records:
        data = getattr(record.event_log_entry.dagster_event, "event_specific_data", None)
        error = getattr(data, "error", None)
        if error is not None:
            while error.cause is not None:
                error = error.cause
            return " ".join(error.message.split())[:500]
    return f"no reason recorded: look at run {run_id}"


class EventLog:
    """What a simulation did, as JSON lines beside its world; the last lines are shown on the screen."""

    def __init__(self, path: Path, show: Callable[[str, str], None] = lambda event, detail: None) -> None:
        self._path, self._show = path, show
        self._lock = threading.Lock()

    def unfinished_lane(self) -> str:
        """Lane of the run that was at work when an earlier simulation was killed; "" when none was."""
        lane = ""
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            entry = json.loads(line)
            if entry["event"] == "start":
                lane = entry["detail"].split()[1].removesuffix(":")
            elif entry["event"] in ("end", "failed"):
                lane = ""
        return lane

    def __call__(self, event: str, detail: str) -> None:
        line = json.dumps({"time": time.time(), "event": event, "detail": detail}).encode() + b"\n"
        with self._lock, self._path.open("ab") as file:
            file.write(line)
        self._show(event, detail)

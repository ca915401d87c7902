"""The UI's backfill dialog, as its requests: daemon, webserver and run processes on a repository that holds history."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from gen404_dagster.assets.describe import DESCRIPTIONS
from gen404_dagster.simulate import INSTANCE_CONFIG
from tests.backfill.recorded import Pipeline
from tests.simulations import Played

LAUNCH = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on Error { message } } }"""
STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
  ... on PartitionBackfill { status error { message } } } }"""
KEYS = """query($name: String!) { assetNodes(assetKeys: [{path: [$name]}]) { partitionKeys } }"""

Ask = Callable[..., Any]


@contextmanager
def dagster_dev(pipeline: Pipeline, repository: Path) -> Iterator[Ask]:
    """A UI and its daemon without world or chain; yields a way to ask it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipeline.home.mkdir(parents=True)
    (pipeline.home / "dagster.yaml").write_text(INSTANCE_CONFIG.read_text())
    environment = {"DAGSTER_HOME": str(pipeline.home), "GEN404_STATE_REPO": str(repository)}
    command = [str(Path(sys.executable).with_name("dagster")), "dev", "-m", "gen404_dagster.definitions"]

    def ask(query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    log = pipeline.folder / "dagster.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "-p", str(port)],
            env=pipeline.environment() | environment,
            cwd=pipeline.folder,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield ask
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(what: str, look: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except OSError:
            pass
        time.sleep(1)
    raise AssertionError(f"{what} took more than {seconds:.0f} s")


def backfill(ask: Ask, assets: list[str], keys: list[str]) -> None:
    chosen = {"assetSelection": [{"path": [name]} for name in assets], "partitionNames": keys}
    launched = ask(LAUNCH, p=chosen)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def ended() -> Any:
        now = ask(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
        return now if now["status"] not in ("REQUESTED", "CANCELING") else None

    assert wait_for("the backfill", ended, 200) == {"status": "COMPLETED_SUCCESS", "error": None}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_backfill_through_the_daemon_adopts_and_does_nothing_else(tmp_path: Path, undisturbed: list[Played]) -> None:
    simulation = undisturbed[0].simulation
    head, pipeline = simulation.head(), Pipeline(tmp_path)
    with dagster_dev(pipeline, simulation.remote) as ask:

        def keys(asset: str) -> list[str]:
            found = ask(KEYS, name=asset)["assetNodes"]
            return [key for key in found[0]["partitionKeys"] if key.split("|")[0] == "0"] if found else []

        played = wait_for("registering rounds", lambda: keys("winner"), 120)
        miners = wait_for("registering miners", lambda: keys("renders"), 60)
        backfill(ask, list(DESCRIPTIONS), played)
        backfill(ask, ["downloads", "renders"], miners)
    with pipeline.instance() as instance:
        runs = instance.get_runs()
        assert len(runs) == 2
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    known = pipeline.materialized()
    assert all("0" in known[name] for name in DESCRIPTIONS)
    assert known["renders"] == set(miners)
    assert simulation.head() == head
    data = pipeline.folder / "data"
    assert not [path for path in (data / "store").rglob("*") if path.suffix in (".glb", ".png")]
    assert not list((data / "pods").rglob("*"))

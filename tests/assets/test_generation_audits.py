"""The asset of generation audits, with real files, previews, distances and image processes: verdicts, pages, outages."""

import base64
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from gen404_dagster.assets import verification
from gen404_dagster.assets.audit_pages import MOST_MINERS, audit_pages
from gen404_dagster.assets.describe import recorded
from gen404_dagster.competition import models, paths
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    AuditOutcome,
    AuditRequest,
    Build,
    BuildStatus,
    GenerationAudit,
    GenerationResult,
    LeaderTransition,
    MatchRow,
    PodStats,
    Results,
    Schedule,
    Submission,
)
from gen404_dagster.resources.configured import build_resources
from gen404_dagster.resources.object_store import LocalObjectStore
from gen404_dagster.resources.recorded_folder import RecordedFolder
from gen404_dagster.settings import Settings
from gen404_dagster.simulation.making import make_model
from tests.state_remote import WHO, git, make_remote

BASE = "http://127.0.0.1:9/store"
HONEST, CHEATER, MIXED = HOTKEYS = [f"5{letter}" + "x" * 46 for letter in "HCM"]
STEMS = [f"{n:03}" for n in range(4)]
LIMITS = Limits(
    pod_start_interval_seconds=0, pod_visible_seconds=5, pod_healthy_seconds=5, pods_to_start=1, pods_at_once=1,
    download_retry_seconds=0.01, max_mismatches=1,
)  # fmt: skip

IMAGE = """
import re, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
folder = Path(sys.argv[1])

class Image(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"ok")
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        stem = re.search(rb'filename="(\\d+)', body)[1].decode()
        with (folder / "asked").open("a") as log:
            log.write(stem + "\\n")
        self.answer((folder / f"{stem}.glb").read_bytes())
    def answer(self, data):
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Image).serve_forever()
"""


def state_files(hotkeys: list[str], images: dict[str, str], submitted: dict[str, Results]) -> dict[str, str]:
    """Round 0 in DUELS: everybody beat the leader, everybody's audit is asked for."""
    entry = {"repo": "a/b", "commit": "c" * 40, "revealed_at_block": 1}
    return {
        paths.CONFIG: '{"name": "t", "first_evaluation_date": "2026-01-01", "last_competition_date": "2027-01-01", '
        '"round_start_time": "08:00:00", "generation_stage_minutes": 1, "prompts_per_round": 4, "carryover_prompts": 0}',
        paths.STATE: '{"current_round": 0, "stage": "duels", "next_stage_eta": null}',
        paths.LEADERS: models.LEADERS.dump_json(
            [LeaderTransition(hotkey="5L", repo="l/l", weight=1.0, effective_block=0)]
        ).decode(),
        paths.schedule(0): models.write_json(
            models.SCHEDULE, Schedule(earliest_reveal_block=0, latest_reveal_block=5, generation_deadline_block=9)
        ),
        paths.seed(0): '{"seed": 7}',
        paths.prompts(0): "\n".join(f"https://prompts.test/{stem}.png" for stem in STEMS),
        paths.submissions(0): models.write_json(
            models.SUBMISSIONS, {h: Submission(cdn_url="https://c.t", round="t-0", **entry) for h in hotkeys}
        ),
        paths.builds(0): models.write_json(
            models.BUILDS,
            {h: Build(tag="t", status=BuildStatus.SUCCESS, docker_image=images[h], **entry) for h in hotkeys},
        ),
        paths.matrix(0): models.write_matrix([MatchRow(left="leader", right=h, margin=0.2) for h in hotkeys]),
        paths.audit_requests(0): models.write_json(
            models.AUDIT_REQUESTS, [AuditRequest(hotkey=h, critical_prompts=STEMS[:1]) for h in hotkeys]
        ),
        **{
            paths.results(0, h, "submitted"): models.write_json(models.RESULTS, results)
            for h, results in submitted.items()
        },
    }


class Round:
    """Three miners: an honest one, one whose image makes other objects, one with a prompt that its image refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.remote = folder, folder / "remote.git"
        self.settings = Settings(
            data=folder / "data", state_repo=str(self.remote), CDN_URL=BASE, limits=LIMITS,
            local_image_command=f"{shlex.quote(sys.executable)} {shlex.quote(str(folder / 'image.py'))} {{image}} {{port}}",
        )  # fmt: skip
        self.resources: dict[str, Any] = build_resources(self.settings)
        self.store = LocalObjectStore(folder / "data" / "store", BASE)
        (folder / "image.py").write_text(IMAGE)
        for n, stem in enumerate(STEMS):
            key = hashlib.sha256(f"https://prompts.test/{stem}.png".encode()).hexdigest()
            self.store.put(f"prompts/{key}", _png(np.full((8, 8, 3), n, np.uint8)), "image/png")
        images = {hotkey: str(folder / hotkey[1]) for hotkey in HOTKEYS}
        files = state_files(HOTKEYS, images, {hotkey: self._submitted(hotkey) for hotkey in HOTKEYS})
        make_remote(folder, files)

    def _submitted(self, hotkey: str) -> Results:
        """Store a miner's submission, and beside it what its image makes. Its last prompt was never rendered."""
        folder, results = self.folder / hotkey[1], {}
        folder.mkdir()
        for n, stem in enumerate(STEMS):
            glb = make_model(1, hotkey, 0.9, 7, stem, "submitted", index=n).glb()
            made = make_model(1, hotkey, 0.9, 7, stem, "regenerated", index=n + 50 * (hotkey == CHEATER)).glb()
            (folder / f"{stem}.glb").write_bytes(b"glTF rubbish" if (hotkey, stem) == (MIXED, "001") else made)
            key = paths.object_key(0, hotkey, "submitted", stem, "glb")
            png_key = paths.object_key(0, hotkey, "submitted", stem, "png")
            self.store.put(key, glb, "model/gltf-binary")
            valid = stem != STEMS[-1]
            if valid:
                self.store.put(png_key, self.resources["renderer"].get().preview(glb), "image/png")
            results[stem] = GenerationResult(
                glb=self.store.url(key), png=self.store.url(png_key) if valid else None, size=len(glb), attempts=1
            )
        return results

    def set_builds(self, status: BuildStatus) -> None:
        """As the registry would have it; before anything else is committed."""
        entries = self.read(paths.builds(0), models.BUILDS)
        changed = {hotkey: build.model_copy(update={"status": status}) for hotkey, build in entries.items()}
        (self.folder / "work" / paths.builds(0)).write_text(models.write_json(models.BUILDS, changed))
        work = "-C", str(self.folder / "work")
        git(*work, *WHO, "commit", "-qam", f"Builds: {status}")
        git(*work, "push", "-q", str(self.remote), "main")

    def has(self, path: str) -> bool:
        command = ["git", "-C", str(self.remote), "cat-file", "-e", f"main:{path}"]
        return not subprocess.run(command, capture_output=True, timeout=300).returncode

    def read(self, path: str, adapter: Any) -> Any:
        return models.read_json(adapter, git("-C", str(self.remote), "show", f"main:{path}"))

    def asked(self, hotkey: str) -> Counter[str]:
        """How often a miner's image was asked for each prompt."""
        log = self.folder / hotkey[1] / "asked"
        return Counter(log.read_text().split()) if log.exists() else Counter()

    def run(self) -> dg.ExecuteInProcessResult:
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("round", ["0"])
            return dg.materialize(
                [verification.generation_audits],
                instance=instance,
                partition_key="0",
                resources=self.resources,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def failure(result: dg.ExecuteInProcessResult) -> str:
    data: Any = next(event.event_specific_data for event in result.all_events if event.is_step_failure)
    return str(data.error.to_string())


def shown(page: str) -> Image.Image:
    """The decoded picture of a page."""
    data = re.findall(r"!\[[^]]*\]\(data:image/jpeg;base64,([^)]+)\)", page)
    assert len(data) == 1
    picture = Image.open(io.BytesIO(base64.b64decode(data[0])))
    picture.load()
    return picture


def test_verdicts_pages_and_a_lost_preview(tmp_path: Path) -> None:
    """A preview that our store has lost keeps that miner's audit open; the others' end, and nothing is made twice.

    While images are still being built there is no verdict on anybody.
    """
    round_ = Round(tmp_path)
    round_.set_builds(BuildStatus.IN_PROGRESS)
    assert f"the build of {HONEST}'s image has not ended. The audit stays open" in failure(round_.run())
    assert not round_.has(paths.generation_audits(0))
    round_.set_builds(BuildStatus.SUCCESS)

    (tmp_path / "data" / "arrivals" / "12" / "called-off").mkdir(parents=True)
    lost = round_.store.path(paths.object_key(0, HONEST, "submitted", "001", "png"))
    kept = lost.read_bytes()
    lost.unlink()
    first = round_.run()
    assert not first.success
    told = failure(first)
    assert f"{HONEST}'s preview of 001 is recorded, but lost in the store" in told
    assert "execute the job `render`" in told
    assert "execute the job `verify` of round 0 again" in told
    verdicts = round_.read(paths.generation_audits(0), models.GENERATION_AUDITS)
    assert {hotkey: str(audit.outcome) for hotkey, audit in verdicts.items()} == {CHEATER: "rejected", MIXED: "passed"}
    assert not round_.has(paths.results(0, HONEST, "generated"))

    lost.write_bytes(b"\x89PNG damaged on disk")
    second = round_.run()
    assert "001 is recorded, but lost in the store (not a picture" in failure(second)

    lost.write_bytes(kept)
    third = round_.run()
    assert third.success, failure(third)
    assert round_.asked(HONEST) == Counter(STEMS[:3]), "no prompt again, and none without a valid submission"
    verdicts = round_.read(paths.generation_audits(0), models.GENERATION_AUDITS)
    assert (verdicts[HONEST].checked_prompts, verdicts[HONEST].failed_prompts) == (3, 0)
    made = round_.read(paths.results(0, HONEST, "generated"), models.RESULTS)
    assert [(stem, result.attempts) for stem, result in made.items()] == [(stem, 1) for stem in STEMS[:3]]
    assert all(0 < result.distance < 0.03 for result in made.values())
    refused = round_.read(paths.results(0, MIXED, "generated"), models.RESULTS)["001"]
    assert (refused.glb is None, refused.png, refused.attempts) == (False, None, LIMITS.prompt_attempts)
    assert list((tmp_path / "data" / "arrivals").iterdir()) == [tmp_path / "data" / "arrivals" / "0"]
    assert not list((tmp_path / "data" / "arrivals" / "0").iterdir())

    (event,) = third.asset_materializations_for_node("generation_audits")
    metadata = {name: value.value for name, value in event.metadata.items()}
    assert metadata["largest_distance"] > 0.03
    cheater, mixed, honest = (str(metadata[f"audit_{hotkey[:10]}"]) for hotkey in (CHEATER, MIXED, HONEST))
    assert "rejected: Non-critical mismatches (2) exceed tolerance (1)" in cheater
    assert "mismatches: 1 non-critical (1 tolerated), 0 critical (1 tolerated)" in mixed
    assert "3 of 4 prompts checked, 1 of them critical" in honest
    for page in (cheater, mixed, honest):
        assert len(page) < 150_000
        assert shown(page).width > 400
        assert re.search(r"\| gen404-\w+-0-5\w+-\d+ \| \d+ \| \d+ \|", page)


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """Ten audits whose previews are noise, which no JPEG makes small, as a plain folder of records."""
    hotkeys = [f"5{n}" + "x" * 46 for n in range(10)]
    store = LocalObjectStore(tmp_path / "store", BASE)
    store.put("noise.png", _png(np.random.default_rng(1).integers(0, 255, (256, 256, 3), np.uint8)), "image/png")
    result = GenerationResult(
        glb=BASE + "/a.glb", png=BASE + "/noise.png", generation_time=9, size=1, attempts=1, distance=0.2
    )
    audit = {"outcome": AuditOutcome.REJECTED, "checked_prompts": 4, "failed_prompts": 4, "reason": "r"}
    pod = PodStats(
        pod_id="gen404-a-0-b-0", processed=4, successful=4, hard_failed=0, hard_overtime=0, time_min=1.0, time_max=9.0,
        time_avg=4.0, time_median=3.0, marked_bad=True, termination_reason="rolling | median",
    )  # fmt: skip
    each = dict.fromkeys(STEMS, result)
    files = state_files(hotkeys, dict.fromkeys(hotkeys, "i"), dict.fromkeys(hotkeys, each))
    files[paths.generation_audits(0)] = models.write_json(
        models.GENERATION_AUDITS, {h: GenerationAudit(hotkey=h, **audit) for h in hotkeys}
    )
    for hotkey in hotkeys:
        files[paths.results(0, hotkey, "generated")] = files[paths.results(0, hotkey, "submitted")]
        files[paths.pod_stats(0, hotkey)] = models.write_json(models.POD_STATS, {pod.pod_id: pod})
    for path, text in files.items():
        (tmp_path / "state" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "state" / path).write_text(text)
    return tmp_path


def test_pages_are_bounded_in_number_and_bytes(crowded: Path) -> None:
    at = recorded(RecordedFolder(crowded / "state"), 0)
    pages = audit_pages(at, LocalObjectStore(crowded / "store", BASE), Limits())
    entries = {name: value for name, value in pages.items() if name.startswith("audit_")}
    assert list(entries) == [f"audit_5{n}xxxxxxxx" for n in range(10 - MOST_MINERS, 10)]
    assert sum(len(str(value.value)) for value in entries.values()) < MOST_MINERS * 300_000
    page = str(entries["audit_59xxxxxxxx"].value)
    assert "| gen404-a-0-b-0 | 4 | 4 | 0 | 0 | 1.00 | 3.00 | 9.00 | yes | rolling / median |" in page


def test_a_damaged_preview_is_none_on_the_page(crowded: Path) -> None:
    (crowded / "store" / "noise.png").write_bytes(b"\x89PNG damaged on disk")
    at = recorded(RecordedFolder(crowded / "state"), 0)
    pages = audit_pages(at, LocalObjectStore(crowded / "store", BASE), Limits())
    assert len(pages) == MOST_MINERS + 1
    assert "data:image" not in json.dumps([str(value.value) for value in pages.values()])


def test_pages_of_a_round_that_was_played_elsewhere_have_no_pictures(crowded: Path) -> None:
    at = recorded(RecordedFolder(crowded / "state"), 0)
    pages = audit_pages(at, LocalObjectStore(crowded / "empty", BASE), Limits())
    assert "data:image" not in json.dumps([str(value.value) for value in pages.values()])
    assert pages["largest_distance"].value == 0.2

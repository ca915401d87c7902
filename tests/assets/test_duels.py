"""The asset of matches, against a server that decodes what it is sent: order, questions, failures, early exit."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from gen404_dagster.assets import duels
from gen404_dagster.competition import models, paths
from gen404_dagster.competition.models import GenerationResult, LeaderTransition, Schedule, Submission
from gen404_dagster.resources import configured
from gen404_dagster.resources.configured import build_resources
from gen404_dagster.resources.judge import OpenAIJudge
from gen404_dagster.resources.object_store import LocalObjectStore
from gen404_dagster.settings import Settings
from tests.resources.vlm_server import VisionServer, serving
from tests.state_remote import git, make_remote

BASE = "http://127.0.0.1:9/store"
MINERS = {f"5{letter}" + "x" * 46: shade for letter, shade in zip("ABCD", (150, 80, 165, 180), strict=True)}
A, B, C, D = MINERS
STEMS = [f"{n:03}" for n in range(4)]


def png(value: int, mark: int) -> bytes:
    pixels = np.full((24, 24, 3), value, np.uint8)
    pixels[0, 0] = mark
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Round:
    """Round 0 in DUELS: prompts of shade 190, a leader of shade 120, miners of others: the nearer the better."""

    def __init__(self, folder: Path, server: VisionServer) -> None:
        self.folder, self.server = folder, server
        store = LocalObjectStore(folder / "data" / "store", BASE)
        urls = [f"https://prompts.test/{stem}.png" for stem in STEMS]
        for n, url in enumerate(urls):
            store.put(f"prompts/{hashlib.sha256(url.encode()).hexdigest()}", png(190, n), "image/png")
        files = {
            paths.CONFIG: '{"name": "t", "first_evaluation_date": "2026-01-01", "last_competition_date": "2027-01-01", '
            '"round_start_time": "08:00:00", "generation_stage_minutes": 1, "prompts_per_round": 4, "carryover_prompts": 0}',
            paths.STATE: '{"current_round": 0, "stage": "duels", "next_stage_eta": null}',
            paths.LEADERS: models.LEADERS.dump_json(
                [LeaderTransition(hotkey="5L", repo="l/l", weight=1.0, effective_block=0)]
            ).decode(),
            paths.schedule(0): models.write_json(
                models.SCHEDULE,
                Schedule(earliest_reveal_block=0, latest_reveal_block=5, generation_deadline_block=9),
            ),
            paths.seed(0): '{"seed": 7}',
            paths.prompts(0): "\n".join(urls),
            paths.submissions(0): models.write_json(
                models.SUBMISSIONS,
                {
                    h: Submission(repo="a/b", commit="c" * 40, cdn_url="https://c.t", revealed_at_block=1, round="t-0")
                    for h in MINERS
                },
            ),
        }
        for side, kind, shade in (("leader", "generated", 120), *((h, "submitted", s) for h, s in MINERS.items())):
            results = {}
            for n, stem in enumerate(STEMS):
                key = f"rounds/0/{side}/{kind}/{stem}.png"
                store.put(key, png(shade, n), "image/png")
                results[stem] = GenerationResult(glb="https://c.t/x.glb", png=f"{BASE}/{key}", size=1)
            files[paths.results(0, side, kind)] = models.write_json(models.RESULTS, results)  # type: ignore[arg-type]
        self.remote = make_remote(folder, files)

    def log(self, form: str = "%s") -> list[str]:
        """Of the matches, in order."""
        told = git("-C", str(self.remote), "log", "--reverse", f"--format={form}%x00", "main").split("\0")
        return [one.strip() for one in told if "Play" in one or "Early" in one]

    def read(self, path: str) -> str:
        return git("-C", str(self.remote), "show", f"main:{path}")

    def run(self, asset: Any, **values: Any) -> dg.ExecuteInProcessResult:
        settings = Settings(
            data=self.folder / "data", state_repo=str(self.remote), judge="openai",
            OPENAI_BASE_URL=self.server.base_url, OPENAI_API_KEY="key", **{"CDN_URL": BASE, **values},
        )  # fmt: skip
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("round", ["0"])
            return dg.materialize(
                [asset],
                instance=instance,
                partition_key="0",
                resources={**build_resources(settings)},
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )


@pytest.fixture
def round_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Round]:
    monkeypatch.setenv("OPENAI_API_KEY", "key")

    def quick(settings: Settings, embedder: object) -> OpenAIJudge:
        return OpenAIJudge(
            [settings.openai_base_url], ["key"], "tiny-vlm", as_urls=False, concurrency=4, waits=(0.01, 0.02)
        )

    monkeypatch.setattr(configured, "make_judge", quick)
    with serving(VisionServer("key")) as server:
        yield Round(tmp_path, server)


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node("match_matrix")
    return {name: value.value for name, value in event.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    data: Any = next(event.event_specific_data for event in result.all_events if event.is_step_failure)
    return str(data.error.to_string())


def play_qualification(round_: Round) -> list[dg.ExecuteInProcessResult]:
    """Matches until an audit is due, the request, and matches again, until nothing is due."""
    done = []
    for _ in range(6):
        done.append(round_.run(duels.match_matrix))
        assert done[-1].success, failure(done[-1])
        requested = round_.run(duels.audit_requests)
        assert requested.success
        if not done[-1].asset_materializations_for_node("match_matrix"):
            break
        if metadata(done[-1])["missing_matches"] == 0:
            break
    return done


def test_matches_are_committed_in_canonical_order_and_no_question_is_asked_twice(round_: Round) -> None:
    """The first run ends when A qualifies. What it asked ahead belongs to qualifications: these are certain."""
    assert round_.run(duels.match_matrix).success
    assert len(round_.log()) == 1
    assert 8 < round_.server.arrived.total() <= 4 * 8  # the leader's four matches, and no other
    runs = play_qualification(round_)
    rows = [(row.left[:2], row.right[:2]) for row in models.read_matrix(round_.read(paths.matrix(0)))]
    assert rows == [("le", "5A"), ("le", "5B"), ("le", "5C"), ("le", "5D"), ("5A", "5C"), ("5C", "5D"), ("5A", "5D")]
    assert set(round_.server.arrived.values()) == {1}
    assert round_.server.arrived.total() == 7 * 4 * 2
    shown = metadata(runs[-1])
    assert (shown["judge_questions"], shown["judge_calls"]) == (56, 56)
    assert (shown["judge_prompt_tokens"], shown["judge_completion_tokens"]) == (56_000, 1_120)
    assert "judge_cost" not in shown
    assert shown["judge_disagreement"] == 0.0
    assert 0 < shown["judge_seconds_p50"] <= shown["judge_seconds_p99"]
    assert "early_exit" not in shown


def test_an_unavailable_judge_leaves_the_match_open_and_keeps_what_was_judged(round_: Round) -> None:
    round_.server.plan = ["good"] * 5 + ["status 503"] * 200
    result = round_.run(duels.match_matrix)
    assert not result.success
    assert "HTTP 503" in failure(result)
    assert "execute the job `judge` of round 0 again" in failure(result)
    assert "stays open" in failure(result)
    assert round_.log() == []
    answered = round_.server.arrived.total()
    assert answered == 5
    round_.server.plan = []
    play_qualification(round_)
    assert set(round_.server.arrived.values()) == {1}
    assert len(round_.log()) == 7


def test_previews_of_another_store_are_the_operators_to_mend(round_: Round) -> None:
    result = round_.run(duels.match_matrix, CDN_URL="http://127.0.0.1:9/elsewhere")
    assert not result.success
    assert "OperatorError: preview http://127.0.0.1:9/store/rounds/0/leader/" in failure(result)
    assert "set CDN_URL" in failure(result)
    assert round_.server.arrived.total() == 0


def test_a_price_makes_the_cost_of_judging_known(round_: Round) -> None:
    shown = metadata(round_.run(duels.match_matrix, judge_prompt_price=2.0, judge_completion_price=10.0))
    assert shown["judge_cost"] == pytest.approx(8 * (1000 * 2 + 20 * 10) / 1e6)


def test_an_early_exit_is_said_in_the_commit_the_report_and_the_metadata(round_: Round) -> None:
    round_.run(duels.match_matrix, early_exit=True)
    round_.run(duels.audit_requests)
    result = round_.run(duels.match_matrix, early_exit=True)
    assert result.success, failure(result)
    report = models.read_json(models.MATCH_REPORT, round_.read(paths.match_report(0, "leader", B)))
    assert [duel.winner for duel in report.duels] == ["left", "left", "skipped", "skipped"]
    assert report.duels[3].issues == "Not judged: win_margin 0.05 was out of reach"
    assert report.margin == -0.5
    (told,) = [body for body in round_.log("%b") if "Early exit" in body]
    assert "2 of 4 duels were not judged" in told
    assert "at most +0.0000" in told
    shown = metadata(result)
    assert shown["early_exit"] is True
    assert shown["judge_left_out"] >= 2
    rows = (
        {row.data["right"]: row.data["interval"] for row in shown["matrix"]}
        if isinstance(shown["matrix"], list)
        else {}
    )
    assert rows == {} or rows[B[:10]] == "at most +0.000"

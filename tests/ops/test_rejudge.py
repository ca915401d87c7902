"""`gen404 ops rejudge`: a recorded match is judged again beside its record, and what changed is shown."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from gen404_dagster.cli import app
from gen404_dagster.competition import models, paths
from gen404_dagster.competition.duels import match_report
from gen404_dagster.competition.models import Duel, DuelWinner, MatchRow, Submission
from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.object_store import LocalObjectStore

BASE = "http://127.0.0.1:9/store"
HOTKEY = "5ABCDEFGHJ" + "k" * 38
STEMS = ["000", "001", "002"]


def png(colour: str, *, grid: bool) -> bytes:
    picture = Image.new("RGB", (1041, 1041) if grid else (256, 256), "white")
    draw = ImageDraw.Draw(picture)
    for x, y, size in [(0, 0, 518), (523, 0, 518), (0, 523, 518), (523, 523, 518)] if grid else [(0, 0, 256)]:
        draw.ellipse((x + size // 4, y + size // 5, x + 3 * size // 4, y + 4 * size // 5), fill=colour)
    if grid:
        draw.rectangle((518, 0, 522, 1040), fill="black")
        draw.rectangle((0, 518, 1040, 522), fill="black")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A round with one match, recorded as 1 right, 1 "Internal error", 1 without a preview: right's pictures are better."""
    monkeypatch.setenv("GEN404_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CDN_URL", BASE)
    store = LocalObjectStore(tmp_path / "data" / "store", BASE)
    prompts = [f"https://prompts.test/{stem}.png" for stem in STEMS]
    for url in prompts:
        store.put(f"prompts/{hashlib.sha256(url.encode()).hexdigest()}", png("orange", grid=False), "image/png")
    store.put("l.png", png("blue", grid=True), "image/png")
    store.put("r.png", png("orange", grid=True), "image/png")
    left, right = f"{BASE}/l.png", f"{BASE}/r.png"
    outcomes = [
        (left, right, DuelWinner.RIGHT, "First is blue."),
        (left, right, DuelWinner.DRAW, "Internal error"),
        (left, None, DuelWinner.LEFT, "No preview for 002 from right"),
    ]
    duels = [
        Duel(name=stem, prompt=url, left_png=a, right_png=b, winner=winner, issues=issues)
        for stem, url, (a, b, winner, issues) in zip(STEMS, prompts, outcomes, strict=True)
    ]
    report = match_report("leader", HOTKEY, duels)
    submission = Submission(repo="a/b", commit="c" * 40, cdn_url="https://c.test", revealed_at_block=1, round="t-0")
    files = {
        paths.CONFIG: json.dumps(
            {
                "name": "t",
                "first_evaluation_date": "2026-01-01",
                "last_competition_date": "2027-01-01",
                "round_start_time": "08:00:00",
                "generation_stage_minutes": 1,
                "prompts_per_round": 3,
                "carryover_prompts": 0,
            }
        ),
        paths.STATE: '{"current_round": 0, "stage": "duels", "next_stage_eta": null}',
        paths.LEADERS: "[]",
        paths.seed(0): '{"seed": 7}',
        paths.prompts(0): "\n".join(prompts),
        paths.submissions(0): models.write_json(models.SUBMISSIONS, {HOTKEY: submission}),
        paths.matrix(0): models.write_matrix([MatchRow(left="leader", right=HOTKEY, margin=report.margin)]),
        paths.match_report(0, "leader", HOTKEY): models.write_json(models.MATCH_REPORT, report),
    }
    for path, text in files.items():
        (tmp_path / "state" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "state" / path).write_text(text)
    return tmp_path / "state"


def rejudge(record: Path, *options: str) -> str:
    match = ["--round", "0", "--left", "leader", "--right", "5ABC"]
    result = CliRunner().invoke(app, ["ops", "rejudge", str(record), *match, *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_changed_is_shown_and_the_record_stays(record: Path) -> None:
    before = contents(record)
    result = json.loads(rejudge(record, "--compare", "--json"))
    assert contents(record) == before
    assert (result["duels"], result["judged_again"]) == (3, 2)
    assert result["recorded"]["margin"] == 0.0
    assert result["again"]["margin"] == pytest.approx(1 / 3)
    assert result["turned"] is True
    (changed,) = result["changed"]
    assert (changed["prompt"], changed["recorded"], changed["again"]) == ("001", "draw", "right")
    assert changed["right_penalty"] + 1 < changed["left_penalty"]
    assert "1 of 2 duels changed, the outcome of the match turns" in rejudge(record, "--compare")


def test_its_answers_are_kept_apart_and_go_on_where_they_were_left(record: Path) -> None:
    store = record.parent / "data" / "store"

    def kept(take: int) -> int:
        return len(list((store / "judge-again" / str(take)).rglob("*.json")))

    rejudge(record, "--compare")
    first = kept(1)
    assert first == 2  # both prompts show the same pictures: two orders
    rejudge(record, "--compare")
    assert (kept(1), kept(2)) == (first, 0)
    rejudge(record, "--compare", "--take", "2")
    assert (kept(1), kept(2)) == (first, first)
    assert not (store / "judge").exists()


def test_a_dry_run_says_what_would_be_asked_and_asks_nothing(record: Path) -> None:
    plan = json.loads(rejudge(record, "--compare", "--dry-run", "--json"))
    assert (plan["duels"], plan["questions"]) == (2, 4)
    assert (plan["previews_in_the_store"], plan["previews_to_fetch"]) == (2, 0)
    assert "would ask 4 questions about 2 duels" in rejudge(record, "--compare", "--dry-run")
    assert not (record.parent / "data" / "store" / "judge-again").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--left", "leader", "--right", "5ABC"], "add --compare"),
        (["--left", "leader", "--right", "6", "--compare"], "--right 6 fits 0"),
        (["--left", "5ABC", "--right", "5ABC", "--compare"], "no report of 5ABC against 5ABC; played were: 5ABCDEFGHJ"),
    ],
)
def test_a_match_that_is_not_on_record_is_refused_by_name(record: Path, options: list[str], said: str) -> None:
    with pytest.raises(OperatorError, match=said):
        CliRunner().invoke(app, ["ops", "rejudge", str(record), "--round", "0", *options], catch_exceptions=False)

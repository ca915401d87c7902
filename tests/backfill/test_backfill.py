"""`gen404 backfill`: recorded rounds become explorable, nothing is computed again, a second time changes nothing."""

import json
import shutil
from pathlib import Path

import pytest

from gen404_dagster.assets.describe import DESCRIPTIONS
from gen404_dagster.assets.insights import INSIGHTS
from gen404_dagster.competition import models, paths
from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.recorded_folder import FolderSnapshot, RecordedFolder, is_recorded_folder
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.resources.state_repo import Change, Step
from tests.backfill.recorded import STAMP, Pipeline, git, make_repository
from tests.simulations import Played


@pytest.fixture(scope="module")
def history(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four recorded rounds as a git repository."""
    folder = tmp_path_factory.mktemp("history") / "repository"
    shutil.copytree(shared / "history" / "competition-1", folder)
    return make_repository(folder)


@pytest.fixture(scope="module")
def backfilled(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Backfilled in two commands: they add up."""
    pipeline = Pipeline(tmp_path_factory.mktemp("pipeline"))
    first = pipeline.backfill(history, "--rounds", "0-0")
    assert list(first["rounds"]) == ["0"]
    assert pipeline.partitions()["round"] == ["0"]
    rest = pipeline.backfill(history)
    assert rest["complete"]
    assert rest["rounds"]["0"]["assets"] == []
    (pipeline.folder / "checks.json").write_text(json.dumps({**rest["rounds"], **first["rounds"]}))
    return pipeline


@pytest.mark.shared
def test_recorded_rounds_become_partitions_with_every_asset(backfilled: Pipeline, history: Path) -> None:
    keys = backfilled.partitions()
    assert keys["round"] == ["0", "1", "2", "3", "4"]
    submitted = [len(json.loads((history / paths.submissions(n)).read_text())) for n in range(4)]
    assert [sum(key.startswith(f"{n}|") for key in keys["round_miner"]) for n in range(4)] == submitted
    known = backfilled.materialized()
    assert {name for name in DESCRIPTIONS if {"0", "1", "2", "3"} <= known[name]} == set(DESCRIPTIONS)
    assert {name for name in DESCRIPTIONS if "4" in known[name]} == {"schedule"}
    assert known["downloads"] == known["renders"] == set(keys["round_miner"])


@pytest.mark.shared
def test_a_second_backfill_changes_nothing(backfilled: Pipeline, history: Path) -> None:
    head, keys, events = git(history, "rev-parse", "HEAD"), backfilled.partitions(), backfilled.events()
    again = backfilled.backfill(history)
    assert again["complete"]
    assert not any(one["assets"] or one["miners"] or one["partitions"] for one in again["rounds"].values())
    assert again["insights"] == []
    assert git(history, "rev-parse", "HEAD") == head
    assert git(history, "status", "--porcelain") == ""
    assert (backfilled.partitions(), backfilled.events()) == (keys, events)
    assert not list((backfilled.folder / "data" / "store").rglob("*.[gp][ln][bg]"))


@pytest.mark.shared
def test_a_historical_page_has_what_a_live_one_has(backfilled: Pipeline, history: Path) -> None:
    matrix = backfilled.metadata("match_matrix", "0")
    assert (matrix["matches"], matrix["missing_matches"]) == (107, 0)
    assert matrix["heat_map"].startswith("![match matrix](data:image/png;base64,")
    assert "took the lead" in matrix["timeline"]
    assert matrix["commit"] == git(history, "rev-parse", "HEAD")
    assert matrix["committed_at"] == STAMP
    winner = backfilled.metadata("winner", "0")
    assert winner["winner"] == json.loads((history / paths.winner(0)).read_text())["winner_hotkey"]

    submitted = json.loads((history / paths.results(0, winner["winner"], "submitted")).read_text())
    for asset in ("downloads", "renders"):
        page = backfilled.metadata(asset, f"0|{winner['winner']}")
        assert page["files"] == sum(bool(one["glb"]) for one in submitted.values())
        assert page["previews"] == sum(bool(one["png"]) for one in submitted.values())
        assert f"](<{next(iter(submitted.values()))['glb']}>)" in page["links"]
        assert "previews_gallery" not in page
    assert backfilled.metadata("source_audits", "1")["recorded"] == "nothing: round 1 ended without it"


@pytest.mark.shared
def test_checks_show_what_history_has_wrong(backfilled: Pipeline) -> None:
    rounds = json.loads((backfilled.folder / "checks.json").read_text())
    wrong = {(number, name): words for number, one in rounds.items() for name, words in one["checks"].items()}
    by_hand = ("0", "generation_audits: verdicts_are_consistent")  # a verdict typed by hand, see the spec
    close = {(number, "winner: no_close_match_decided") for number in "0123"}  # every round hung on close matches
    twins = {
        (number, "submissions: payloads_are_distinct"): groups for number, groups in (("0", 6), ("1", 7), ("3", 3))
    }
    assert set(wrong) == {by_hand, *close, *twins}
    assert all(wrong[key].startswith(f"{groups} payloads are shared") for key, groups in twins.items())
    assert "5FP3qpaSyR" in wrong[by_hand]
    assert "5GGsuLzc5a against 5GgpGaDxzT: +0.0234" in wrong["0", "winner: no_close_match_decided"]
    assert all(one["passed"] >= 20 for number, one in rounds.items() if number != "4")


@pytest.mark.shared
def test_insights_are_tables_and_plots(backfilled: Pipeline) -> None:
    for name in INSIGHTS:
        page = backfilled.metadata(name)
        assert page["rows"] > 0 or name == "judging"  # nobody kept what judging took then
        assert page["plot"].startswith("![")
        lines = (backfilled.folder / "data" / "insights" / f"{name}.csv").read_text().splitlines()
        assert len(lines) == page["rows"] + 1
    assert backfilled.metadata("margin_distribution")["matches"] == 208
    assert backfilled.metadata("round_funnel")["submissions"] == 45 + 36 + 24 + 41


@pytest.mark.shared
def test_a_damaged_record_is_shown_and_stops_nothing(shared: Path, tmp_path: Path) -> None:
    """Round 2, in a plain folder: an edited margin, an unreadable report, a miner's file cut short; round 3 without
    its submissions."""
    record = tmp_path / "record"
    shutil.copytree(shared / "history" / "competition-1", record)
    matrix = models.read_matrix((record / paths.matrix(2)).read_text())
    edited = [matrix[0].model_copy(update={"margin": 0.04}), *matrix[1:]]
    (record / paths.matrix(2)).write_text(models.write_matrix(edited))
    (record / paths.match_report(2, matrix[1].left, matrix[1].right)).write_text('{"left": 1')
    (record / paths.results(2, matrix[2].right, "submitted")).write_text("{")
    (record / paths.submissions(3)).write_text("no json")
    pipeline = Pipeline(tmp_path)
    done = pipeline.gen404("backfill", str(record), "--rounds", "2-3", "--instance", str(pipeline.home), "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)["rounds"]
    assert paths.submissions(3) in result["3"]["fault"]
    assert result["2"]["fault"] == ""
    assert (
        paths.match_report(2, matrix[1].left, matrix[1].right)
        in result["2"]["checks"]["match_matrix: margins_follow_from_reports"]
    )
    assert "deviate" in result["2"]["checks"]["match_matrix: replays"]
    assert "submitted.json" in pipeline.metadata("renders", f"2|{matrix[2].right}")["unreadable"]
    assert "commit" not in pipeline.metadata("match_matrix", "2")
    assert set(pipeline.metadata("prompt_draws")) >= {"plot", "unreadable"}


def test_a_simulated_round_is_adopted_as_it_was_played(tmp_path: Path, undisturbed: list[Played]) -> None:
    simulation = undisturbed[0].simulation
    head, known, keys = simulation.head(), simulation.materialized(), simulation.partitions()
    pipeline = Pipeline(tmp_path)
    result = pipeline.backfill(simulation.remote)
    assert result["rounds"]["0"]["checks"] == {}
    assert simulation.head() == head
    assert {name: {key for key in pipeline.materialized()[name] if key[0] == "0"} for name in known} == {
        name: {key for key in keys if key[0] == "0"} for name, keys in known.items()
    }
    assert {name: sorted(found) for name, found in pipeline.partitions().items()} == keys
    assert pipeline.backfill(simulation.remote)["insights"] == []


def test_rounds_are_chosen_or_refused_in_one_line(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    for options in (("--rounds", "x"), ("--rounds", "3-1")):
        done = pipeline.gen404("backfill", str(tmp_path), "--instance", str(pipeline.home), *options)
        assert done.returncode == 1
        assert done.stderr.startswith("gen404: --rounds")
        assert done.stderr.count("\n") == 1
    done = pipeline.gen404("backfill", str(tmp_path), "--instance", str(pipeline.home))
    assert done.returncode == 1
    assert "not a git repository" in done.stderr


def test_a_plain_folder_is_read_and_never_written(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"current_round": 0, "stage": "open", "next_stage_eta": null}')
    (tmp_path / "link.json").symlink_to(tmp_path / "state.json")
    assert is_recorded_folder(str(tmp_path))
    folder = RecordedFolder(tmp_path)
    files = folder.head()
    assert files.names("") == ["link.json", "state.json"]
    assert (files.read("missing"), files.read("../state.json"), files.last_commit("state.json")) == (None, None, None)
    with pytest.raises(OperatorError, match=r"config\.json is missing"):
        read_round(files)
    with pytest.raises(OperatorError, match="is a link"):
        files.read("link.json")
    with pytest.raises(OperatorError, match="plain folder"):
        folder.at("abc")
    with pytest.raises(OperatorError, match="only read"):
        folder.commit(Step(0, "open", "x"), lambda _: Change({"a": "b"}, "Write"))
    assert folder.commit(Step(0, "open", "x"), lambda _: None) is None
    before = FolderSnapshot(tmp_path).fingerprint()
    (tmp_path / "state.json").write_text("{}")
    assert FolderSnapshot(tmp_path).fingerprint() != before
    git(tmp_path, "init", "--quiet")
    assert not is_recorded_folder(str(tmp_path))

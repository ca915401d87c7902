"""Nothing is explained by default: each explanation names its evidence, and altering that file ends it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.duels import match_report
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import MatchReport, MatchRow
from gen404_dagster.replay import RoundReplay, replay_round
from gen404_dagster.replay.findings import Finding, Status
from gen404_dagster.replay.record import Parsed, Record
from tests.replay.memory import MemorySnapshot, read_texts, text_of, values_of

pytestmark = pytest.mark.shared

VOIDED = "5GgVxYJS3RsZtdhCVkW9DwBcjojAkcSpZXz6AnefsThrhPJf"
BY_HAND = "5FP3qpaSyRrmpEcFstA3NbCDFvRB6GErTrwTX93zNPJvwXfr"
AGAIN = "5F4HaNQJAXDhirU51GTz4vBvcEuUo3YSfhKuBT7qix35DkHP"
UNBUILT = "5Ef8XtevYiZXPdNRoQyVCgnqqs9WkhA3BNFfBoL9yb5a3ixA"
WINNER = "5GgpGaDxzTyBAME1Ju9ZhUstWj2VTm1n4tAUkRHLi4birQZg"


@pytest.fixture(scope="module")
def texts(shared: Path) -> dict[str, str]:
    return read_texts(shared / "history" / "competition-1")


@pytest.fixture(scope="module")
def cache() -> dict[str, Parsed]:
    return {}


@pytest.fixture
def look(texts: dict[str, str], cache: dict[str, Parsed]) -> Callable[..., RoundReplay]:
    def look(number: int, changes: dict[str, str | None] | None = None) -> RoundReplay:
        altered = {**texts, **(changes or {})}
        present = {path: text for path, text in altered.items() if text is not None}
        return replay_round(Record(MemorySnapshot(present), dict(cache)), number, Limits())[0]

    return look


def altered(texts: dict[str, str], path: str, change: Callable[[Any], Any]) -> dict[str, str]:
    value = values_of(path, texts[path])
    return {path: text_of(path, change(value) or value)}


def of(result: RoundReplay, cell: str, status: Status) -> list[Finding]:
    return [found for found in result.cell(cell).findings if found.status == status]


def first_success(results: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(result for result in results.values() if result["png"])
    return found


LEADER_RESULTS = "rounds/3/leader/generated.json"
EVIDENCE: dict[str, tuple[int, str, str, Callable[[Any], Any]]] = {
    "the first schedule": (0, "schedule", "leader.json", lambda entries: entries[0].update(effective_block=7454000)),
    "an early stop by hand": (
        0,
        "generation audits",
        paths.results(0, BY_HAND, "generated"),
        lambda results: first_success(results).update(glb=None, png=None, size=0, generation_time=0.0, distance=0.0),
    ),
    "a voided match": (
        1,
        "requests",
        paths.results(1, VOIDED, "generated"),
        lambda results: first_success(results).update(png=None, distance=0.0),
    ),
    "a failed build": (
        2,
        "generation audits",
        paths.builds(2),
        lambda builds: builds[UNBUILT].update(status="success", docker_image="registry/image:1"),
    ),
    "a request by hand": (
        3,
        "requests",
        paths.results(3, AGAIN, "generated"),
        lambda results: first_success(results).update(png=None, distance=0.0),
    ),
    "the leader regenerated": (
        3,
        "duels",
        paths.match_report(3, "leader", AGAIN),
        lambda report: report["duels"][0].update(left_glb=None, left_png=None),
    ),
    "a match played again": (
        3,
        "matrix",
        paths.match_report(3, "leader", AGAIN),
        lambda report: report["duels"][0].update(left_glb=None, left_png=None),
    ),
}


@pytest.mark.parametrize("name", EVIDENCE)
def test_altering_the_evidence_turns_the_explanation_into_a_deviation(
    look: Callable[..., RoundReplay], texts: dict[str, str], name: str
) -> None:
    number, cell, evidence, change = EVIDENCE[name]
    before = look(number)
    assert evidence in [found.evidence for found in of(before, cell, Status.EXPLAINED)]
    assert of(before, cell, Status.DEVIATES) == []
    after = look(number, altered(texts, evidence, change))
    assert of(after, cell, Status.DEVIATES)


def test_every_explanation_of_the_four_rounds_is_tried_above(look: Callable[..., RoundReplay]) -> None:
    explained = {
        (number, found.cell, found.evidence) for number in range(5) for found in look(number).findings if found.evidence
    }
    assert explained == {(number, cell, evidence) for number, cell, evidence, _ in EVIDENCE.values()}


# --- rounds built from repairs ---


def repaired(shared: Path, number: str, when: str, *skip: str) -> dict[str, str | None]:
    found = read_texts(shared / "history" / "repairs" / number / when)
    return {path: text for path, text in found.items() if path not in skip}


def test_while_a_match_is_removed_the_matrix_deviates_and_names_it(
    look: Callable[..., RoundReplay], shared: Path
) -> None:
    result = look(3, repaired(shared, "12", "after", "state.json"))
    assert [found.hotkey for found in of(result, "matrix", Status.DEVIATES)] == [AGAIN]


def test_rows_of_voided_matches_do_not_follow_from_the_reports_made_since(
    look: Callable[..., RoundReplay], shared: Path
) -> None:
    result = look(1, repaired(shared, "08", "before", "rounds/1/leader/generated.json"))
    assert len(of(result, "margins", Status.DEVIATES)) == 13
    assert of(result, "winner", Status.DEVIATES)


def test_a_removed_result_of_the_leader_is_named(look: Callable[..., RoundReplay], shared: Path) -> None:
    result = look(1, repaired(shared, "07", "after"))
    assert of(result, "results", Status.DEVIATES)[0].file == "rounds/1/leader/generated.json"


def test_the_leaders_results_of_before_the_repair_follow_the_matches_of_then(
    look: Callable[..., RoundReplay], shared: Path
) -> None:
    result = look(3, repaired(shared, "11", "before", "state.json"))
    assert {found.hotkey for found in of(result, "duels", Status.DEVIATES)} == {AGAIN}


def test_the_allowance_of_before_14_february_is_read_off_the_matches_that_followed_it(
    look: Callable[..., RoundReplay], texts: dict[str, str], shared: Path
) -> None:
    # On the results of before the repair seven prompts were overtime: six are free today, twelve were then.
    then = repaired(shared, "11", "before", "state.json")
    result = look(3, then)
    (found,) = of(result, "duels", Status.EXPLAINED)
    assert "10%" in found.what
    assert found.evidence is not None

    def lose_all_by_time(report: dict[str, Any]) -> None:
        for duel in report["duels"]:
            if duel["winner"] == "right" and duel["left_png"]:
                duel.update(issues="Generation time exceeded for left")

    altered_report = altered(texts, found.evidence, lose_all_by_time)
    assert len(of(look(3, then | altered_report), "duels", Status.DEVIATES)) > len(of(result, "duels", Status.DEVIATES))


def test_image_names_of_the_wrong_template_do_not_make_the_winner(
    look: Callable[..., RoundReplay], shared: Path
) -> None:
    result = look(0, repaired(shared, "02", "before"))
    assert "docker_image" in of(result, "winner", Status.DEVIATES)[0].what


def test_a_round_that_moved_on_without_a_winner_deviates(look: Callable[..., RoundReplay]) -> None:
    result = look(1, {paths.winner(1): None})
    assert [found.file for found in of(result, "winner", Status.DEVIATES)] == [paths.winner(1)]


def test_a_transition_that_was_rolled_back_is_missing(look: Callable[..., RoundReplay], shared: Path) -> None:
    result = look(0, repaired(shared, "05", "after", "config.json", "state.json"))
    (found,) = of(result, "leader", Status.DEVIATES)
    assert (found.file, found.hotkey) == ("leader.json", WINNER)


def judged_again(texts: dict[str, str], left: str, right: str, flips: dict[str, str]) -> dict[str, str]:
    """The match judged again with some other verdicts: report and matrix, as the services write them."""
    path = paths.match_report(0, left, right)
    report = models.read_json(models.MATCH_REPORT, texts[path])
    wanted = {
        old: iter([d.name for d in report.duels if d.winner == old and d.left_png and d.right_png]) for old in flips
    }
    changed = {next(wanted[old]): new for old, new in flips.items()}
    duels = [
        duel.model_copy(update={"winner": models.DuelWinner(changed.get(duel.name, duel.winner))})
        for duel in report.duels
    ]
    again: MatchReport = match_report(left, right, duels)
    rows = models.read_matrix(texts[paths.matrix(0)])
    rows = [
        MatchRow(left=left, right=right, margin=again.margin) if (r.left, r.right) == (left, right) else r for r in rows
    ]
    return {path: models.write_json(models.MATCH_REPORT, again), paths.matrix(0): models.write_matrix(rows)}


def maker(texts: dict[str, str]) -> str:
    """Whom the winner of round 0 beat in the match that its critical prompts were drawn from."""
    rows = models.read_matrix(texts[paths.matrix(0)])
    wins = [row.left for row in rows if row.right == WINNER and 0.05 <= row.margin < 0.1]
    assert "leader" in wins or wins
    return "leader" if "leader" in wins else wins[0]


def test_critical_prompts_drawn_before_a_match_was_judged_again_are_explained_by_the_seed(
    look: Callable[..., RoundReplay], texts: dict[str, str]
) -> None:
    again = judged_again(texts, maker(texts), WINNER, {"right": "draw", "left": "right"})
    result = look(0, again)
    (found,) = of(result, "requests", Status.EXPLAINED)
    assert (found.hotkey, found.evidence) == (WINNER, paths.seed(0))
    other_seed = {paths.seed(0): json.dumps({"seed": 3035696320})}
    assert of(look(0, again | other_seed), "requests", Status.DEVIATES)


def test_a_winner_of_before_the_matches_were_judged_again_deviates(
    look: Callable[..., RoundReplay], texts: dict[str, str]
) -> None:
    rows = [row for row in models.read_matrix(texts[paths.matrix(0)]) if row.right == WINNER]
    changes: dict[str, str] = {}
    for row in rows:
        lost = altered(texts | changes, paths.match_report(0, row.left, WINNER), all_lost)
        report = models.read_json(models.MATCH_REPORT, next(iter(lost.values())))
        matrix = [
            MatchRow(
                left=r.left,
                right=r.right,
                margin=report.margin if (r.left, r.right) == (row.left, WINNER) else r.margin,
            )
            for r in models.read_matrix((texts | changes)[paths.matrix(0)])
        ]
        changes |= lost | {paths.matrix(0): models.write_matrix(matrix)}
    result = look(0, changes)
    assert of(result, "margins", Status.DEVIATES) == []
    assert of(result, "winner", Status.DEVIATES)


def all_lost(report: dict[str, Any]) -> dict[str, Any]:
    duels = [duel | {"winner": "left"} if duel["right_png"] and duel["left_png"] else duel for duel in report["duels"]]
    made = match_report(report["left"], report["right"], [models.Duel(**duel) for duel in duels])
    return models.MATCH_REPORT.dump_python(made, mode="json")


def test_a_config_typed_by_hand_is_read_and_its_difference_reported(
    texts: dict[str, str],
) -> None:
    from gen404_dagster.replay import replay
    from gen404_dagster.replay.rounds import as_json

    typed = json.dumps(json.loads(texts["config.json"]) | {"note": "unknown"}, indent=4) + "\n\n"
    result = as_json(replay(Record(MemorySnapshot(texts | {"config.json": typed})), Limits()))
    assert result["files"] == {"total": 408, "exact": 407, "different": ["config.json"]}
    assert not result["deviates"]
    assert any(found["file"] == "config.json" for found in result["competition"]["findings"])


@pytest.mark.parametrize("broken", ["", "{", "[]", "left,right\n", "\x00", '{"seed": -1}'])
@pytest.mark.parametrize("name", ["seed.json", "submissions.json", "matches_matrix.csv", "generation_audits.json"])
def test_a_file_that_cannot_be_read_is_a_deviation_that_names_it(
    look: Callable[..., RoundReplay], name: str, broken: str
) -> None:
    result = look(2, {f"rounds/2/{name}": broken})
    assert f"rounds/2/{name}" in {found.file for found in result.findings if found.status == Status.DEVIATES}

"""What people are told, and what of a stranger's words may stand in it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen404_dagster.competition.news import FailedRun, FileChange, Kind, failure_news, is_news, news_of, plain


def state(stage: str, number: int = 3) -> str:
    return json.dumps({"current_round": number, "stage": stage, "next_stage_eta": None})


def audit(hotkey: str, outcome: str, reason: str = "") -> dict[str, object]:
    return {"hotkey": hotkey, "outcome": outcome, "checked_prompts": 12, "generation_time": 41.26, "reason": reason}


def titles(*changes: FileChange) -> list[str]:
    return [news.title for news in news_of(changes)]


def test_a_change_of_stage_is_told_once_and_another_expected_time_is_not() -> None:
    assert titles(FileChange("state.json", state("duels"), state("finalizing"))) == ["Round 3: finalizing (from duels)"]
    assert titles(FileChange("state.json", state("finalizing"), state("open", 4))) == ["Round 4: open"]
    later = state("duels").replace("null", '"2026-03-01T12:00:00Z"')
    assert titles(FileChange("state.json", state("duels"), later)) == []


def test_a_pause_says_how_to_go_on() -> None:
    (paused,) = news_of([FileChange("state.json", state("duels"), state("paused"))])
    assert "state.json" in paused.text


def test_the_winner_comes_before_the_stage_of_the_same_commit() -> None:
    winner = json.dumps({"winner_hotkey": "5Abc", "repo": "owner/model", "commit": "0" * 40, "docker_image": None})
    told = titles(
        FileChange("state.json", state("duels"), state("finalizing")),
        FileChange("rounds/3/winner.json", None, winner),
    )
    assert told == ["Round 3: 5Abc wins", "Round 3: finalizing (from duels)"]
    defended = winner.replace("5Abc", "leader")
    assert titles(FileChange("rounds/3/winner.json", None, defended)) == ["Round 3: the leader defends"]
    assert titles(FileChange("rounds/3/winner.json", winner, winner)) == []
    assert titles(FileChange("rounds/3/winner.json", winner, None)) == ["Round 3: the winner is withdrawn"]


def test_only_new_leaders_of_the_list_are_told() -> None:
    first = {"hotkey": "5Old", "weight": 1.0, "effective_block": 10}
    second = {"hotkey": "5New", "weight": 0.6000000000000001, "effective_block": 20, "repo": "a/b", "commit": "f" * 40}
    (news,) = news_of([FileChange("leader.json", json.dumps([first]), json.dumps([first, second]))])
    assert (news.title, news.text) == ("Next leader: 5New", "Weight 0.6 from block 20. a/b at ffffffffff")


def test_each_verdict_is_told_once_and_a_pending_audit_not_at_all() -> None:
    before = {"5A": audit("5A", "passed"), "5B": audit("5B", "pending")}
    after = {**before, "5B": audit("5B", "rejected", "Critical mismatches (2) exceed tolerance (1)")}
    path = "rounds/3/generation_audits.json"
    (news,) = news_of([FileChange(path, json.dumps(before), json.dumps(after))])
    assert news.kind is Kind.VERDICT
    assert news.title == "Round 3: generation audit rejected"
    assert news.text == "5B: Critical mismatches (2) exceed tolerance (1). 12 prompts checked, 41.3 s each."
    (passed,) = news_of(
        [FileChange(path, None, json.dumps({"5A": audit("5A", "passed"), "5B": audit("5B", "pending")}))]
    )
    assert "source_audit.json" in passed.text, "a passed miner still needs a human's verdict"


def test_a_reviewers_verdict_is_told() -> None:
    known = {"hotkey": "5A", "verdict": "passed", "reason": ""}
    new = {"hotkey": "5B", "verdict": "failed", "reason": "copies 5A"}
    (news,) = news_of([FileChange("rounds/3/source_audit.json", json.dumps([known]), json.dumps([known, new]))])
    assert (news.title, news.text) == ("Round 3: source audit failed", "5B: copies 5A.")


@pytest.mark.parametrize("text", ["{", "[]", '{"current_round": -1}', "null", "\ufffd"])
def test_a_file_that_cannot_be_read_is_a_failure_that_names_it(text: str) -> None:
    (news,) = news_of([FileChange("state.json", state("duels"), text)])
    assert news.kind is Kind.FAILURE
    assert "state.json" in news.title


def test_only_files_that_people_wait_for_are_news() -> None:
    assert is_news("state.json")
    assert is_news("rounds/12/winner.json")
    assert not is_news("rounds/12/5ABC/generated.json")
    assert not is_news("rounds/12/matches_matrix.csv")
    assert not is_news("x/rounds/12/winner.json")


ATTACKS = [
    "@everyone",
    "<@!1234>",
    "<!channel>",
    "[click](https://evil.example)",
    "a\nb\r\nRound 9: 5Evil wins",
    "`code` **bold** ~~gone~~ ||spoiler||",
    "\u202egnp.exe",
    "\u200b\x00\x1b[31m",
    "＠everyone",
    "https://evil.example/x",
    "&lt;!here&gt;",
    "# heading",
    "x" * 100_000,
]


@given(st.one_of(st.sampled_from(ATTACKS), st.text(max_size=400)))
def test_a_strangers_words_hold_no_mark_up_mention_link_or_second_line(text: str) -> None:
    shown = plain(text, 120)
    assert re.fullmatch(r"[ A-Za-z0-9.,:;!?'\"()+=%/_-]{0,120}", shown), shown
    assert "://" not in shown


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_field_of_a_miner_reaches_a_message_as_it_is(attack: str) -> None:
    winner = json.dumps({"winner_hotkey": attack, "repo": attack, "commit": attack, "docker_image": attack})
    audits = json.dumps({attack: audit(attack, "rejected", attack)})
    review = json.dumps([{"hotkey": attack, "verdict": "failed", "reason": attack}])
    leaders = json.dumps([{"hotkey": attack, "repo": attack, "commit": attack, "weight": 1, "effective_block": 1}])
    told = news_of(
        [
            FileChange("rounds/3/winner.json", None, winner),
            FileChange("rounds/3/generation_audits.json", None, audits),
            FileChange("rounds/3/source_audit.json", None, review),
            FileChange("leader.json", None, leaders),
        ]
    )
    assert len(told) == 4
    for news in told:
        for line in (news.title, news.text):
            assert len(line) < 600
            assert not set(line) & set("@<>[]`*~|#&\n\r\x00\x1b\u202e")
            assert "://" not in line


def failed(fault: str, times: int = 1, again: bool = True, error: str = "it broke") -> FailedRun:
    return FailedRun("judge", "7", fault, error, times, again)


def test_a_failed_run_says_what_to_do_by_whose_fault_it_is() -> None:
    told = {fault: failure_news(failed(fault)) for fault in ("unavailable", "operator", "")}
    assert told["unavailable"] is not None
    assert told["unavailable"].title == "judge (7) failed"
    assert "Nothing to do" in told["unavailable"].text
    assert told["operator"] is not None
    assert "Change what the error names" in told["operator"].text
    assert told[""] is not None
    assert "log" in told[""].text
    by_hand = failure_news(failed("operator", again=False))
    assert by_hand is not None
    assert "Re-execute" in by_hand.text


def test_an_outage_of_a_night_is_a_handful_of_messages() -> None:
    told = [times for times in range(1, 50) if failure_news(failed("unavailable", times))]
    assert told == [1, 2, 4, 8, 16, 32]
    again = failure_news(failed("unavailable", 4))
    assert again is not None
    assert "4 times" in again.title


def test_an_error_that_quotes_a_miner_is_one_bounded_line() -> None:
    news = failure_news(failed("", error="x\n@everyone " + "y" * 10_000))
    assert news is not None
    error, _ = news.text.split("\n")
    assert len(error) <= 300
    assert "@" not in error

"""State files: read tolerantly, written to the byte."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.models import (
    BUILDS,
    CONFIG,
    GENERATION_AUDITS,
    LEADERS,
    MATCH_REPORT,
    POD_STATS,
    RESULTS,
    SCHEDULE,
    SEED,
    SOURCE_AUDITS,
    STATE,
    SUBMISSIONS,
    WINNER,
    CompetitionStage,
    GenerationResult,
    LeaderTransition,
    MatchRow,
    Seed,
    SourceAudit,
    Stage,
    Submission,
    read_json,
    read_leaders,
    read_matrix,
    read_prompts,
    stem_of,
    write_json,
    write_matrix,
    write_prompts,
)

CONFIG_TEXT = """{
  "name": "mesh",
  "description": "",
  "first_evaluation_date": "2026-02-02",
  "last_competition_date": "2027-01-26",
  "round_start_time": "08:00:00",
  "generation_stage_minutes": 120,
  "finalization_buffer_hours": 1,
  "win_margin": 0.05,
  "weight_decay": 0.2,
  "weight_floor": 0.2,
  "prompts_per_round": 128,
  "carryover_prompts": 32,
  "round_duration_days": 3
}
"""


@pytest.mark.parametrize("buffer", ["1", "1.5", "0"])
def test_the_hand_written_configuration_keeps_its_form(buffer: str) -> None:
    text = CONFIG_TEXT.replace('hours": 1', f'hours": {buffer}')
    assert write_json(CONFIG, read_json(CONFIG, text)) == text


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"08:00:00"', '"8 o\'clock"', "round_start_time"),
        ('"08:00:00"', '"08:00:00+02:00"', "round_start_time"),
        ('"mesh"', '"../mesh"', "name"),
        ("0.05", "NaN", "win_margin"),
        ("0.05", "1e999", "win_margin"),
        ("128", "-1", "prompts_per_round"),
        ("3\n", "0\n", "round_duration_days"),
        ('"2026-02-02"', '"2026-02-30"', "first_evaluation_date"),
    ],
)
def test_a_wrong_configuration_names_the_field(old: str, new: str, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        read_json(CONFIG, CONFIG_TEXT.replace(old, new))


@pytest.mark.parametrize("suffix", ["", "Z", "+00:00"])
def test_a_start_time_is_utc_however_it_says_so(suffix: str) -> None:
    read = read_json(CONFIG, CONFIG_TEXT.replace("08:00:00", f"08:00:00{suffix}"))
    assert read == read_json(CONFIG, CONFIG_TEXT)


def test_unknown_fields_are_tolerated_and_dropped() -> None:
    text = '{"current_round": 4, "stage": "open", "next_stage_eta": null, "note": [1, {"a": NaN}]}'
    assert write_json(STATE, read_json(STATE, text)) == (
        '{\n  "current_round": 4,\n  "stage": "open",\n  "next_stage_eta": null\n}'
    )


def test_fields_are_written_in_the_order_of_the_competition_whatever_was_read() -> None:
    text = '{"next_stage_eta": null, "stage": "duels", "current_round": 1}'
    assert write_json(STATE, read_json(STATE, text)).splitlines()[1] == '  "current_round": 1,'


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 2, 14, 8, tzinfo=UTC), "2026-02-14T08:00:00Z"),
        (datetime(2026, 2, 14, 8, 0, 0, 120000, tzinfo=UTC), "2026-02-14T08:00:00.120000Z"),
        (datetime(2026, 2, 14, 8, 0, 1, 7, tzinfo=UTC), "2026-02-14T08:00:01.000007Z"),
    ],
)
def test_times_end_in_z_and_keep_microseconds(moment: datetime, text: str) -> None:
    written = write_json(STATE, CompetitionStage(current_round=1, stage=Stage.OPEN, next_stage_eta=moment))
    assert f'"next_stage_eta": "{text}"' in written
    assert read_json(STATE, written).next_stage_eta == moment


@pytest.mark.parametrize("text", ["0.0000699758529663086", "8.2e-6", "1e16", "0.6000000000000001", "57.67609970388003"])
def test_floats_have_their_recorded_form(text: str) -> None:
    results = f'{{\n  "p": {{\n    "glb": null,\n    "png": null,\n    "generation_time": 0.0,\n    "size": 0,\n    "attempts": 0,\n    "distance": {text}\n  }}\n}}'
    assert write_json(RESULTS, read_json(RESULTS, results)) == results


def test_a_large_float_is_told_from_text_that_looks_like_one() -> None:
    results = {'a"e+1\\': GenerationResult(glb="1e+16", png='\\"e+', generation_time=-2.5e300)}
    text = write_json(RESULTS, results)
    assert '"glb": "1e+16"' in text
    assert '"generation_time": -2.5e300' in text
    assert read_json(RESULTS, text) == results


def test_the_seed_is_one_line() -> None:
    assert write_json(SEED, Seed(seed=3035696319)) == '{"seed": 3035696319}'
    assert write_json(SEED, {"seed": 7}) == '{"seed": 7}'


@pytest.mark.parametrize("seed", ["-1", "4294967296", "1.5", "null", '"x"', "NaN"])
def test_a_seed_outside_of_32_bits_is_refused(seed: str) -> None:
    with pytest.raises(ValueError, match="seed"):
        read_json(SEED, f'{{"seed": {seed}}}')


def test_submissions_escape_what_is_not_ascii_and_other_files_do_not() -> None:
    submission = Submission(repo="o/n", commit="c", cdn_url="https://é", revealed_at_block=1, round="mesh-0")
    text = write_json(SUBMISSIONS, {"5A": submission})
    assert text.isascii()
    assert read_json(SUBMISSIONS, text) == {"5A": submission}
    assert '"reason": "é"' in write_json(SOURCE_AUDITS, [SourceAudit(hotkey="5A", verdict="failed", reason="é")])


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (STATE, ""),
        (STATE, "{"),
        (STATE, "[]"),
        (STATE, "<<<<<<< HEAD"),
        (STATE, '{"current_round": 1, "stage": "opened"}'),
        (STATE, '{"current_round": -1, "stage": "open"}'),
        (STATE, '{"current_round": 1, "stage": "open", "x": ' + "[" * 5000 + "]" * 5000 + "}"),
        (SCHEDULE, '{"earliest_reveal_block": -1, "latest_reveal_block": 1, "generation_deadline_block": 2}'),
        (SCHEDULE, '{"earliest_reveal_block": 1}'),
        (SOURCE_AUDITS, '[{"hotkey": "5A", "verdict": "maybe"}]'),
        (GENERATION_AUDITS, '{"5A": {"hotkey": "5A", "outcome": "passed", "generation_time": Infinity}}'),
        (RESULTS, '{"p": {"distance": NaN}}'),
        (MATCH_REPORT, '{"left": "a", "right": "b", "score": 0, "margin": -Infinity, "duels": []}'),
        (BUILDS, '{"5A": {"repo": "o/n"}}'),
        (WINNER, '{"winner_hotkey": "5A"}'),
        (POD_STATS, '{"pod": {}}'),
    ],
)
def test_a_broken_file_is_a_value_error(adapter: TypeAdapter[Any], text: str) -> None:
    with pytest.raises(ValueError):
        read_json(adapter, text)
    with pytest.raises(ValueError):
        read_json(adapter, text.encode())


TRANSITION = LeaderTransition(hotkey="5A", repo="o/n", commit="c", docker="i", weight=0.8, effective_block=7)


def test_the_leaders_are_a_list_and_the_readmes_object_is_read_too() -> None:
    text = write_json(LEADERS, [TRANSITION])
    assert text.startswith("[\n  {\n")
    assert read_leaders(text) == read_leaders(f'{{"transitions": {text}}}') == [TRANSITION]
    assert read_leaders("[]") == read_leaders("{}") == []


def test_the_readmes_own_example_of_leaders_is_read() -> None:
    text = '{"transitions": [{"hotkey": "5ABC123...", "effective_block": 12345, "weight": 1.0}]}'
    (leader,) = read_leaders(text)
    assert (leader.hotkey, leader.repo, leader.docker, leader.weight) == ("5ABC123...", "", "", 1.0)


@pytest.mark.parametrize("text", ["", "7", "null", '{"transitions": {}}', '[{"hotkey": "5A"}]', '[{"weight": NaN}]'])
def test_broken_leaders_are_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        read_leaders(text)


MATRIX = "left,right,margin\nleader,5A,-1.0\nleader,5B,0.0078125\n5A,5B,100.0"


def test_the_matrix_keeps_its_order_and_has_no_final_newline() -> None:
    assert write_matrix(read_matrix(MATRIX)) == MATRIX
    assert write_matrix(read_matrix(MATRIX.replace("\n", "\r\n") + "\r\n\r\n")) == MATRIX
    assert write_matrix([]) == "left,right,margin"
    assert read_matrix("left,right,margin") == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "line 1"),
        ("left;right;margin", "line 1"),
        ("leader,5A,0.1", "line 1"),
        ("left,right,margin\nleader,5A,0.1\nleader,5B", "line 3"),
        ("left,right,margin\nleader,5A,0.1,7", "line 2"),
        ("left,right,margin\nleader,5A,much", "line 2"),
        ("left,right,margin\nleader,5A,nan", "line 2"),
        ("left,right,margin\nleader,5A,inf", "line 2"),
        ("left,right,margin\n\n=======\n", "line 3"),
    ],
)
def test_a_broken_matrix_names_the_line(text: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        read_matrix(text)


def test_prompts_are_lines_without_a_last_newline() -> None:
    assert read_prompts(" https://a/1.png \r\n\nhttps://a/2.png\n") == ["https://a/1.png", "https://a/2.png"]
    assert write_prompts(["https://a/1.png", "https://a/2.png"]) == "https://a/1.png\nhttps://a/2.png"
    assert read_prompts(write_prompts([])) == []


@pytest.mark.parametrize(
    ("url", "stem"),
    [
        ("https://prompts.example/a/b/0f-1.png", "0f-1"),
        ("https://prompts.example/b.tar.gz", "b.tar"),
        ("https://prompts.example/b.png?width=5&x=a.b/c#top", "b"),
        ("https://prompts.example/b.png#top/c.d", "b"),
        ("https://prompts.example/b/", "b"),
        ("b", "b"),
    ],
)
def test_the_id_of_a_prompt_is_its_stem(url: str, stem: str) -> None:
    assert stem_of(url) == stem


def test_paths_are_those_of_the_public_repository() -> None:
    hotkey = "5GgpGaDxzTyBAME1Ju9ZhUstWj2VTm1n4tAUkRHLi4birQZg"
    assert paths.match_report(3, "leader", hotkey) == f"rounds/3/{hotkey}/duels_leader.json"
    assert paths.match_report(3, hotkey, "5A") == "rounds/3/5A/duels_5GgpGaDxzT.json"
    assert paths.results(0, "leader", "generated") == "rounds/0/leader/generated.json"
    assert paths.object_key(0, "leader", "generated", "p", "png") == "rounds/0/leader/generated/p.png"
    assert paths.source_audits(0) == "rounds/0/source_audit.json"


TEXT = st.text(max_size=12)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(0, 2**63)
RECORDS: dict[TypeAdapter[Any], st.SearchStrategy[Any]] = {
    RESULTS: st.dictionaries(
        TEXT,
        st.builds(
            GenerationResult,
            glb=st.none() | TEXT,
            png=st.none() | TEXT,
            generation_time=FINITE,
            size=INTEGERS,
            attempts=INTEGERS,
            distance=FINITE,
        ),
        max_size=3,
    ),
    LEADERS: st.lists(
        st.builds(
            LeaderTransition, hotkey=TEXT, repo=TEXT, commit=TEXT, docker=TEXT, weight=FINITE, effective_block=INTEGERS
        ),
        max_size=3,
    ),
    SUBMISSIONS: st.dictionaries(
        TEXT,
        st.builds(Submission, repo=TEXT, commit=TEXT, cdn_url=TEXT, revealed_at_block=INTEGERS, round=TEXT),
        max_size=3,
    ),
    STATE: st.builds(
        CompetitionStage,
        current_round=INTEGERS,
        stage=st.sampled_from(Stage),
        next_stage_eta=st.none() | st.datetimes(timezones=st.just(UTC)),
    ),
    SEED: st.builds(Seed, seed=st.integers(0, 2**32 - 1)),
}


@given(st.data())
def test_what_was_written_is_read_again_and_writes_the_same(data: st.DataObject) -> None:
    adapter = data.draw(st.sampled_from(list(RECORDS)))
    value = data.draw(RECORDS[adapter])
    text = write_json(adapter, value)
    assert read_json(adapter, text) == value
    assert read_json(adapter, text.encode()) == value
    assert write_json(adapter, read_json(adapter, text)) == text
    assert not text.endswith("\n")


HOTKEYS = st.text(alphabet="leadr5ABC", min_size=1, max_size=8)


@given(st.lists(st.builds(MatchRow, left=HOTKEYS, right=HOTKEYS, margin=FINITE), max_size=6))
def test_any_matrix_round_trips(played: list[MatchRow]) -> None:
    assert read_matrix(write_matrix(played)) == played


ADAPTERS = [value for value in vars(models).values() if isinstance(value, TypeAdapter)]


@given(st.sampled_from(ADAPTERS), st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_no_bytes_raise_anything_but_a_value_error(adapter: TypeAdapter[Any], data: bytes) -> None:
    for read in (lambda: read_json(adapter, data), lambda: read_leaders(data), lambda: read_matrix(data.decode())):
        try:
            read()
        except ValueError:
            continue

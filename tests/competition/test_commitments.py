"""Revealed text becomes submissions; whatever a miner reveals costs at most that miner's commitment."""

import json
import time
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen404_dagster.competition.commitments import Collected, Revealed, collect_submissions, parse_commitment, url_fault
from gen404_dagster.competition.models import Schedule

A, B, C = ("5" + letter * 47 for letter in "ABC")
WINDOW = Schedule(earliest_reveal_block=100, latest_reveal_block=200, generation_deadline_block=300)
COMMIT, OTHER_COMMIT = "0f" * 20, "a1" * 20


def commitment(**changes: object) -> str:
    return json.dumps({"repo": "owner/name", "commit": COMMIT, "cdn_url": "https://cdn.example/r"} | changes)


def collect(revealed: Revealed) -> Collected:
    return collect_submissions(revealed, WINDOW, "mesh-7")


def test_a_complete_commitment_is_a_submission_of_the_named_round() -> None:
    found = collect({A: [(150, commitment(cdn_url="https://cdn.example/r//"))]})
    assert found.submissions[A].model_dump() == {
        "repo": "owner/name",
        "commit": COMMIT,
        "cdn_url": "https://cdn.example/r",
        "revealed_at_block": 150,
        "round": "mesh-7",
    }
    assert not found.refused
    assert not found.ignored


def test_nobody_revealing_anything_is_no_submission() -> None:
    assert collect({}).submissions == {}
    assert collect({A: []}).refused == {A: "no valid repo, commit, cdn_url"}


def test_single_quotes_are_read_as_double_quotes() -> None:
    assert collect({A: [(150, commitment().replace('"', "'"))]}).submissions[A].repo == "owner/name"


def test_an_apostrophe_within_double_quotes_stays() -> None:
    text = commitment(note="it's mine")
    assert collect({A: [(150, text)]}).submissions[A].commit == COMMIT


def test_fields_may_arrive_in_separate_commitments_and_the_latest_commit_dates_the_submission() -> None:
    entries = [
        (180, '{"cdn_url": "https://cdn.example/late"}'),
        (120, '{"repo": "owner/name"}'),
        (150, json.dumps({"commit": COMMIT})),
        (130, json.dumps({"commit": OTHER_COMMIT, "cdn_url": "https://cdn.example/early"})),
    ]
    for order in permutations(entries):
        submission = collect({A: order}).submissions[A]
        assert (submission.commit, submission.cdn_url) == (COMMIT, "https://cdn.example/late")
        assert submission.revealed_at_block == 150


def test_of_two_values_at_one_block_the_greater_string_wins_in_any_order() -> None:
    entries = [(150, commitment()), (150, commitment(commit=OTHER_COMMIT)), (150, commitment(repo="a/a"))]
    for order in permutations(entries):
        submission = collect({A: order}).submissions[A]
        assert (submission.repo, submission.commit) == ("owner/name", OTHER_COMMIT)


def test_a_later_malformed_value_does_not_displace_an_earlier_valid_one() -> None:
    found = collect({A: [(110, commitment()), (190, '{"commit": "HEAD"}'), (191, "[]")]})
    assert (found.submissions[A].commit, found.submissions[A].revealed_at_block) == (COMMIT, 110)
    assert found.ignored == {
        A: ["block 190: commit is not 40 lower-case hex digits", "block 191: a JSON list, not an object"]
    }


@pytest.mark.parametrize(("block", "inside"), [(99, False), (100, True), (200, True), (201, False)])
def test_the_window_includes_both_of_its_ends(block: int, inside: bool) -> None:
    found = collect({A: [(block, commitment())]})
    assert (A in found.submissions) == inside
    assert inside or found.refused == {A: "no valid repo, commit, cdn_url; 1 outside the window"}


def test_a_value_from_before_the_window_does_not_complete_a_submission() -> None:
    found = collect({A: [(99, commitment()), (150, json.dumps({"repo": "owner/name", "commit": COMMIT}))]})
    assert found.refused == {A: "no valid cdn_url; 1 outside the window"}


def test_submissions_are_ordered_by_block_and_ties_by_hotkey_however_the_chain_answers() -> None:
    revealed = {C: [(150, commitment())], B: [(150, commitment())], A: [(160, commitment())]}
    for order in permutations(revealed):
        assert list(collect({h: revealed[h] for h in order}).submissions) == [B, C, A]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"repo": "name"}, "repo is not owner/name"),
        ({"repo": "https://github.com/owner/name"}, "repo is not owner/name"),
        ({"repo": "owner/name/../../other"}, "repo is not owner/name"),
        ({"repo": "../name"}, "repo is not owner/name"),
        ({"repo": "./name"}, "repo is not owner/name"),
        ({"repo": "owner/."}, "repo is not owner/name"),
        ({"repo": "owner/na me"}, "repo is not owner/name"),
        ({"repo": "owner/name\n"}, ""),
        ({"repo": "owner/na\nme"}, "repo is not owner/name"),
        ({"repo": "öwner/name"}, "repo is not owner/name"),
        ({"repo": "owner/name.with.dots"}, ""),
        ({"repo": 7}, "repo is a int"),
        ({"repo": None}, "repo is a NoneType"),
        ({"repo": ["owner/name"]}, "repo is a list"),
        ({"commit": "0F" * 20}, "commit is not 40 lower-case hex digits"),
        ({"commit": "0f" * 19}, "commit is not 40 lower-case hex digits"),
        ({"commit": "٠" * 40}, "commit is not 40 lower-case hex digits"),
        ({"commit": 1.5}, "commit is a float"),
        ({"commit": {"sha": COMMIT}}, "commit is a dict"),
        ({"cdn_url": True}, "cdn_url is a bool"),
    ],
)
def test_a_malformed_field_is_refused_by_name(changes: dict[str, object], reason: str) -> None:
    refused = collect({A: [(150, commitment(**changes))]}).refused
    assert refused == ({A: f"no valid {next(iter(changes))}; block 150: {reason}"} if reason else {})


@pytest.mark.parametrize(
    "url",
    [
        "http://cdn.example/r",
        "ftp://cdn.example/r",
        "file:///etc/passwd",
        "//cdn.example/r",
        "cdn.example/r",
        "javascript:alert(1)",
        "https://",
        "https:///r",
        "https://user@cdn.example/r",
        "https://user:password@cdn.example/r",
        "https://@cdn.example/r",
        "https://cdn.example@169.254.169.254/r",
        "https://cdn.example/r?token=1",
        "https://cdn.example/r?",
        "https://cdn.example/r#part",
        "https://cdn.example/r#",
        "https://cdn.example:99999/r",
        "https://cdn.example:port/r",
        "https://[::1/r",
        "https://cdn.example/a b",
        "https://cdn.example\\@evil.example/r",
        "https://cdn.example/r\\..\\s",
        "https://cdn.example/r\r\nHost: evil.example",
        "https://cdn.example/\u202egnp",
        "https://cdn.exämple/r",
        "https://cdn.example/\x00",
        "https://cdn.example/\ud800",
        "",
    ],
)
def test_a_hostile_url_is_refused_with_a_one_line_reason(url: str) -> None:
    fault = url_fault(url, allow_http=False)
    assert fault.startswith("cdn_url ")
    assert fault.isprintable()


def test_http_is_allowed_only_in_simulations() -> None:
    assert url_fault("http://127.0.0.1:8080/cdn", allow_http=True) == ""
    assert url_fault("ftp://127.0.0.1/cdn", allow_http=True) == "cdn_url is not https"
    assert url_fault("https://cdn.example:8443/a/b", allow_http=False) == ""


BOMBS = [
    *(
        opening * 2000
        for opening in ("(", "[", "{", '{"a":[', "{'repo':", "-", "~", "not ", "lambda:", "a.", "1+", "f'{")
    ),
    '{"a":' * 300 + "1" + "}" * 300,
    "9" * 2048,
    '{"repo": ' + "9" * 2000 + "}",
    "1e999999999",
    "'" * 2048,
    '"\\ud800"',
    "\x00" * 100,
    "\ufeff" + commitment(),
    "NaN",
    "null",
    "",
]


@pytest.mark.parametrize("text", BOMBS, ids=lambda text: ascii(text[:12]))
def test_a_bomb_costs_only_its_commitment_and_no_time(text: str) -> None:
    begun = time.process_time()  # the machine may be busy with more
    found = collect({A: [(150, text)], B: [(150, commitment())]})
    assert time.process_time() - begun < 0.5
    assert list(found.submissions) == [B]
    assert "block 150: " in found.refused[A]
    assert len(found.refused[A]) <= 500


@pytest.mark.parametrize(
    "text",
    [
        "{'repo': 'a\\d/b'}",
        "{'repo': b'a/b'}",
        "{'repo': ('a' '/b')}",
        "{'repo': 'a/b'} # note",
        "{'repo': 1if 1else 2}",
    ],
)
def test_only_json_is_read_and_no_python(text: str) -> None:
    assert parse_commitment(text, allow_http=False, max_chars=2048) == ({}, "not JSON")


def test_a_text_over_the_limit_is_not_even_parsed() -> None:
    text = commitment(padding="x" * 2048)
    assert parse_commitment(text, allow_http=False, max_chars=2048) == ({}, "longer than 2048 characters")
    assert not parse_commitment(text, allow_http=False, max_chars=len(text))[1]


def test_a_thousand_bad_commitments_of_one_hotkey_give_a_short_reason() -> None:
    assert len(collect({A: [(100 + n % 100, "]") for n in range(1000)]}).refused[A]) == 500


@pytest.mark.parametrize(
    "hotkey", ["", "leader", "../../state.json", "5" + "A" * 400, "5" + "l" * 47, "5" + "A" * 46 + "\n"]
)
def test_what_is_no_hotkey_plays_no_part_whatever_it_reveals(hotkey: str) -> None:
    found = collect({hotkey: [(150, commitment())]})
    assert not found.submissions
    assert found.refused == {hotkey[:64]: "not a hotkey"}


FIELDS = {"repo", "commit", "cdn_url"}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def check_parsed(text: str) -> None:
    fields, fault = parse_commitment(text, allow_http=False, max_chars=2048)
    assert fields.keys() <= FIELDS
    assert fields or fault
    assert fault.isprintable()
    assert len(fault) < 300
    for name, value in fields.items():
        again, fault = parse_commitment(json.dumps({name: value}), allow_http=False, max_chars=4096)
        assert (again, fault) == ({name: value}, "")


@given(st.text(alphabet=st.characters(codec=None), max_size=300))
def test_no_text_can_raise(text: str) -> None:
    check_parsed(text)


@given(st.text(alphabet="{}[]()'\":, \\repocmituldn_/.0123456789af\n", max_size=200))
def test_no_text_that_looks_like_a_commitment_can_raise(text: str) -> None:
    check_parsed(text)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(), JSON_VALUES, max_size=5))
def test_no_object_can_raise(value: dict[str, object]) -> None:
    check_parsed(json.dumps(value))


@given(st.binary(max_size=300))
def test_no_bytes_decoded_as_latin_can_raise(data: bytes) -> None:
    check_parsed(data.decode("latin-1"))

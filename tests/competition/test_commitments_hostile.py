"""Thousands of hostile commitments, seeded: none gets through, none raises, each is reported by hotkey and reason.

Each payload is hostile in at least one field that a submission needs, or is no commitment at all; it is put on chain as
bytes, with and without its SCALE length, beside an honest one that must not suffer.
"""

import json
import random
from collections.abc import Iterator

import pytest

from gen404_dagster.competition.commitments import Unreadable, collect_submissions, parse_commitment, revealed_text
from gen404_dagster.competition.models import Schedule
from gen404_dagster.resources.dump import read_dump

WINDOW = Schedule(earliest_reveal_block=100, latest_reveal_block=200, generation_deadline_block=300)
COMMIT = "0f" * 20
GOOD = {"repo": "owner/name", "commit": COMMIT, "cdn_url": "https://cdn.example/r"}
MOST = 2048
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def scale(raw: bytes) -> bytes:
    size = len(raw)
    if size < 64:
        return bytes([size << 2]) + raw
    return (
        (size << 2 | 1).to_bytes(2, "little") + raw if size < 1 << 14 else (size << 2 | 2).to_bytes(4, "little") + raw
    )


def other_types() -> Iterator[bytes]:
    """Every JSON type in every field, and as the whole."""
    values = [
        "null", "true", "false", "0", "-1", "1e9", "1.5", "NaN", "Infinity", "-Infinity", "1e999", "-0", '""', '" "',
        "[]", "{}", '["owner/name"]', '{"repo": "owner/name"}', "[" * 50 + "]" * 50, "9" * 1200, "-" + "9" * 1200,
        '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', f'"{"x" * 900}"',
    ]  # fmt: skip
    for value in values:
        yield value.encode()
        for name in GOOD:
            fields = [f'"{key}": {value if key == name else json.dumps(good)}' for key, good in GOOD.items()]
            yield f"{{{', '.join(fields)}}}".encode()


def not_utf8(draw: random.Random) -> Iterator[bytes]:
    """A good commitment with bytes in it that are not UTF-8: bare, cut, overlong, surrogates, beyond Unicode."""
    good = json.dumps(GOOD).encode()
    for bad in (
        b"\xff",
        b"\xfe\xff",
        b"\x80",
        b"\xc3",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8",
    ):
        for _ in range(12):
            at = draw.randrange(1, len(good))
            yield good[:at] + bad + good[at:]
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7"):
        yield json.dumps(GOOD | {"repo": "ö/ö"}, ensure_ascii=False).encode(encoding)


def lengths() -> Iterator[bytes]:
    """Every length around the limits of a commit, a repository's name and the whole."""
    for size in [*range(40), *range(41, 100)]:
        yield json.dumps(GOOD | {"commit": "a" * size}).encode()
    for extra in range(1, 40):
        yield json.dumps(GOOD | {"note": "x" * (MOST - len(json.dumps(GOOD)) - 12 + extra)}).encode()
    yield from (b"", b" ", b"\n" * 60, b"{}", b"{" * 900, b'{"a":' * 300, b"[" * 1500, b"'" * 1500, b'"' * 1500)


def look_alikes(draw: random.Random) -> Iterator[bytes]:
    """Characters that look like those of a name, a digest or an address, or are not seen at all."""
    twins = "аесорхуіԁԛһοΑΒΕ０１ａｆ／．‐‑–—﹣－⁄∕⧸․。｡\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\u2066\u00a0\u2003\u3000\u0301\x7f\x00\x1b\x85\u2028"
    for twin in twins:
        for name in GOOD:
            for _ in range(5):
                value, at = GOOD[name], draw.randrange(len(GOOD[name]) + 1)
                cut = draw.random() < 0.5
                bad = value[:at] + twin + value[at + cut :]
                yield json.dumps(GOOD | {name: bad}, ensure_ascii=draw.random() < 0.5).encode()


def repeated_keys() -> Iterator[bytes]:
    """A key twice: which was meant cannot be known."""
    for name, value in GOOD.items():
        for other in (value, "", "evil/twin", None, 7):
            for first, second in ((value, other), (other, value)):
                rest = json.dumps({key: good for key, good in GOOD.items() if key != name})[1:]
                yield f'{{"{name}": {json.dumps(first)}, "{name}": {json.dumps(second)}, {rest}'.encode()
    escaped = '{"commit": "%s", "\\u0063ommit": "%s", "repo": "owner/name", "cdn_url": "https://cdn.example/r"}'
    yield (escaped % (COMMIT, "a1" * 20)).encode()


def constants_beside_good_fields() -> Iterator[bytes]:
    """What Python reads and JSON does not have."""
    good = json.dumps(GOOD)[:-1]
    for constant in ("NaN", "Infinity", "-Infinity", "nan", "undefined", "None", "True", "0x10", "01", "1_000", ".5"):
        yield f'{good}, "note": {constant}}}'.encode()
        yield f'{good}, "note": [{{"deep": {constant}}}]}}'.encode()


def bad_names() -> Iterator[bytes]:
    repos = [
        "owner", "/", "//", "owner/", "/name", "a/b/c", "../name", "owner/..", "./name", "owner/.", "a..b/c", "a/b..c",
        "owner/name/", "/owner/name", "https://github.com/owner/name", "git@github.com:owner/name", "owner\\name",
        "owner/na me", "owner/name\n", "owner/name;rm", "owner/$(id)", "owner/`id`", "-/--upload-pack=x y", "owner/name#x",
        "owner/name?x", "owner%2fname", "owner/name@main", "~/name", "owner/*", "", "owner:name/x", "owner/<script>",
    ]  # fmt: skip
    for repo in repos:
        if repo.strip(" \t\r\n") != "owner/name":
            yield json.dumps(GOOD | {"repo": repo}).encode()
    for commit in (
        "HEAD", "main", "0F" * 20, COMMIT.upper(), "g" * 40, "0x" + "a" * 38, "a" * 39 + "\n", "a" * 39 + "G",
        "refs/heads/" + "a" * 29, "-" + "a" * 39, "a" * 20 + "\n" + "a" * 19, " " * 40, "٠" * 40, "０" * 40,
    ):  # fmt: skip
        yield json.dumps(GOOD | {"commit": commit}).encode()
    for url in (
        "http://cdn.example", "ftp://cdn.example", "file:///etc/passwd", "https:cdn.example", "https:/cdn.example",
        "//cdn.example", "https://", "https://?", "https://u@cdn.example", "https://u:p@cdn.example", "https://@cdn.example",
        "https://cdn.example?x", "https://cdn.example#x", "https://cdn.example/a b", "https://cdn.example\\x",
        "https://cdn.example:99999", "https://cdn.example:x", "https://[::1", "https://cdn.exämple", "javascript:alert(1)",
        "data:text/html,x", "gopher://cdn.example", "https\u2024//cdn.example", "https://cdn.example/\r\nX: y",
    ):  # fmt: skip
        yield json.dumps(GOOD | {"cdn_url": url}).encode()


def not_json(draw: random.Random) -> Iterator[bytes]:
    """Random bytes, random JSON-like text, and a good commitment with its braces, commas or quotes damaged."""
    for _ in range(400):
        yield draw.randbytes(draw.randrange(1, 700))
    for _ in range(400):
        yield "".join(draw.choices("{}[]()'\":, \\repocmituldn_/.0123456789af\n", k=draw.randrange(1, 200))).encode()
    good = json.dumps(GOOD).encode()
    for at, byte in enumerate(good):
        if byte in b'{}":,':
            yield good[:at] + good[at + 1 :]
            yield good[: at + 1]
    for name in GOOD:
        rest = {key: value for key, value in GOOD.items() if key != name}
        for wrong in (name.upper(), name + " ", name.replace("o", "о"), f"\u200b{name}", name[:-1]):
            yield json.dumps(rest | {wrong: GOOD[name]}, ensure_ascii=False).encode()
    for python in ("{'repo': b'a/b'}", "{'repo': 'a' 'b'}", "__import__('os')", "{**{}}", "dict(repo='a/b')"):
        yield python.encode()


def suite() -> list[bytes]:
    draw = random.Random(404)
    generators = (
        other_types(), not_utf8(draw), lengths(), look_alikes(draw), repeated_keys(), constants_beside_good_fields(),
        bad_names(), not_json(draw),
    )  # fmt: skip
    good = json.dumps(GOOD).encode()
    return [raw for generator in generators for raw in generator if raw not in (good, good[:-1])]


PAYLOADS = list(dict.fromkeys(suite()))


def hotkeys(count: int) -> list[str]:
    draw = random.Random(1)
    return ["5" + "".join(draw.choices(BASE58, k=47)) for _ in range(count)]


def test_there_are_enough_of_them() -> None:
    assert len(PAYLOADS) >= 2000


@pytest.mark.parametrize("wrap", [bytes, scale], ids=["bare", "with its length"])
def test_no_hostile_commitment_gets_through_or_raises_and_each_is_reported(wrap: type[bytes]) -> None:
    honest, *names = hotkeys(len(PAYLOADS) + 1)
    revealed = {name: [(150, revealed_text(wrap(raw)))] for name, raw in zip(names, PAYLOADS, strict=True)}
    found = collect_submissions({honest: [(150, json.dumps(GOOD))], **revealed}, WINDOW, "mesh-1", max_chars=MOST)
    through = {PAYLOADS[names.index(hotkey)] for hotkey in found.submissions if hotkey != honest}
    assert not through
    assert list(found.submissions) == [honest]
    assert set(found.refused) == set(names)
    for reason in found.refused.values():
        assert reason.startswith("no valid ")
        assert len(reason) <= 500
        assert reason.isprintable()


def test_none_of_them_changes_an_earlier_good_one_but_by_values_that_are_valid_themselves() -> None:
    for raw in PAYLOADS:
        text = revealed_text(scale(raw))
        found = collect_submissions(
            {"5" + "A" * 47: [(110, json.dumps(GOOD)), (150, text)]}, WINDOW, "mesh-1", max_chars=MOST
        )
        submission = found.submissions["5" + "A" * 47]
        if isinstance(text, str):
            taken, _ = parse_commitment(text, allow_http=False, max_chars=MOST)
            assert submission.model_dump(include={*GOOD}) == GOOD | taken


def test_a_dump_of_them_all_is_read_as_the_chain_is() -> None:
    names = hotkeys(len(PAYLOADS))
    dump = {name: [[150, "0x" + scale(raw).hex()]] for name, raw in zip(names, PAYLOADS, strict=True)}
    revealed, unreadable = read_dump(json.dumps(dump).encode())
    assert not unreadable
    assert revealed == {n: [(150, revealed_text(scale(raw)))] for n, raw in zip(names, PAYLOADS, strict=True)}
    assert not collect_submissions(revealed, WINDOW, "mesh-1", max_chars=MOST).submissions


ENTRIES: list[object] = [
    None,
    7,
    "x",
    [],
    {},
    [150],
    [150, None],
    ["150", "x"],
    [150, 7],
    [True, "x"],
    [150, "x", 1],
    [1.5, "x"],
    [[150, "x"]],
]


@pytest.mark.parametrize("entry", ENTRIES, ids=ascii)
def test_an_entry_of_a_dump_that_is_no_pair_is_reported_beside_the_good_ones(entry: object) -> None:
    name = hotkeys(1)[0]
    revealed, unreadable = read_dump(json.dumps({name: [entry, [150, json.dumps(GOOD)]]}).encode())
    assert "is no [block, text]" in unreadable[name]
    assert list(collect_submissions(revealed, WINDOW, "mesh-1").submissions) == [name]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x08{}", "{}"),
        (b"{}", "{}"),
        (scale(b"x" * 63), "x" * 63),
        (scale(b"x" * 64), "x" * 64),
        (scale(b"x" * 16383), "x" * 16383),
        (scale(b"x" * 16384), "x" * 16384),
        (b"\x0c{}", "\x0c{}"),  # a length that does not fit is none
        (b"", ""),
        (b"\x00", ""),
        (b"\x04\xff", Unreadable("not UTF-8")),
    ],
)
def test_a_length_is_taken_off_only_where_it_fits(raw: bytes, text: object) -> None:
    assert revealed_text(raw) == text

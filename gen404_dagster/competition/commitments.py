"""From revealed text to submissions: strict, total, one hostile commitment costs that commitment.

Belongs here: what a valid commitment is and which of several counts. Does not: reading the chain (`resources.chain`).
Source: spec section "Submissions".
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gen404_dagster.competition.models import Block, Hotkey, Schedule, Submission, Submissions


@dataclass(frozen=True)
class Unreadable:
    """In place of a revealed text: why it does not count."""

    reason: str


Revealed = Mapping[Hotkey, Iterable[tuple[Block, str | Unreadable]]]

_FIELDS = ("repo", "commit", "cdn_url")
# The public rule drops names with a dot without a word; accepting them is our deliberate difference.
_REPO = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_HOTKEY = re.compile(r"[1-9A-HJ-NP-Za-km-z]{40,60}", re.ASCII)


@dataclass(frozen=True)
class Collected:
    """`submissions` in order of play; `refused` says why a hotkey that revealed something has none;
    `ignored` lists single commitments that did not count although the hotkey has a submission; `same_payload` names
    hotkeys that revealed the very same commit with the very same other fields, whoever was first in front."""

    submissions: Submissions
    refused: dict[Hotkey, str]
    ignored: dict[Hotkey, list[str]] = field(default_factory=dict)
    same_payload: tuple[tuple[Hotkey, ...], ...] = ()


def collect_submissions(
    revealed: Revealed, schedule: Schedule, round_name: str, *, allow_http: bool = False, max_chars: int = 2048
) -> Collected:
    """Submissions of a round: within the window, the latest value of each field counts.

    The submission's block is that of the latest `commit`. Two values of a field at one block: the greater string wins.
    Ties between hotkeys are broken by hotkey, so that the order does not depend on how a node answers.
    """
    found: list[tuple[Block, Hotkey, Submission]] = []
    payloads: dict[frozenset[tuple[str, str]], dict[Hotkey, Block]] = {}
    refused: dict[Hotkey, str] = {}
    ignored: dict[Hotkey, list[str]] = {}
    for hotkey, entries in revealed.items():
        latest: dict[str, tuple[Block, str]] = {}
        faults: list[str] = []
        outside = 0
        for block, text in entries:
            if not schedule.earliest_reveal_block <= block <= schedule.latest_reveal_block:
                outside += 1
                continue
            if isinstance(text, Unreadable):
                faults.append(f"block {block}: {text.reason}")
                continue
            fields, fault = parse_commitment(text, allow_http=allow_http, max_chars=max_chars)
            if fault:
                faults.append(f"block {block}: {fault}")
            for name, value in fields.items():
                latest[name] = max(latest.get(name, (-1, "")), (block, value))
            if "commit" in fields and _HOTKEY.fullmatch(hotkey):
                who = payloads.setdefault(frozenset(fields.items()), {})
                who[hotkey] = min(who.get(hotkey, block), block)
        missing = [name for name in _FIELDS if name not in latest]
        if not _HOTKEY.fullmatch(hotkey):
            refused[hotkey[:64]] = "not a hotkey"
        elif missing:
            reasons = faults + ([f"{outside} outside the window"] if outside else [])
            refused[hotkey] = "; ".join([f"no valid {', '.join(missing)}", *reasons])[:500]
        else:
            block = latest["commit"][0]
            found.append((block, hotkey, _submission(latest, block, round_name)))
            if faults:
                ignored[hotkey] = faults
    found.sort(key=lambda entry: entry[:2])
    submissions = {hotkey: submission for _, hotkey, submission in found}
    return Collected(submissions, refused, ignored, _shared(payloads.values()))


def _shared(payloads: Iterable[Mapping[Hotkey, Block]]) -> tuple[tuple[Hotkey, ...], ...]:
    """Groups of two or more, each in order of block and hotkey."""
    groups = (sorted(who, key=lambda hotkey: (who[hotkey], hotkey)) for who in payloads if len(who) > 1)
    return tuple(sorted({tuple(group) for group in groups}))


def revealed_text(raw: bytes) -> str | Unreadable:
    """Text of a revealed commitment: UTF-8, with or without the SCALE length before it (both occur)."""
    try:
        return raw[_length_prefix(raw) :].decode("utf-8")
    except UnicodeDecodeError:
        return Unreadable("not UTF-8")


def _length_prefix(raw: bytes) -> int:
    """Bytes of a SCALE compact length that fits the rest exactly; 0: there is none.

    No JSON object begins with one: `{` belongs to neither mode, and a blank that does is no loss.
    https://docs.polkadot.com/polkadot-protocol/parachain-basics/data-encoding/
    """
    for mode, size in ((0, 1), (1, 2), (2, 4)):
        if len(raw) >= size and raw[0] & 3 == mode and int.from_bytes(raw[:size], "little") >> 2 == len(raw) - size:
            return size
    return 0


def _submission(latest: Mapping[str, tuple[Block, str]], block: Block, round_name: str) -> Submission:
    return Submission(
        repo=latest["repo"][1],
        commit=latest["commit"][1],
        cdn_url=latest["cdn_url"][1],
        revealed_at_block=block,
        round=round_name,
    )


def parse_commitment(text: str, *, allow_http: bool, max_chars: int) -> tuple[dict[str, str], str]:
    """Valid fields of one revealed text, and what was wrong with the rest ("" if nothing). Never raises.

    Single quotes instead of double quotes are tolerated, as the public service does.
    """
    if len(text) > max_chars:
        return {}, f"longer than {max_chars} characters"
    try:
        value = _loads(text)
    except _Repeated:
        return {}, "a key occurs twice"
    except (ValueError, RecursionError):
        return {}, "not JSON"
    if not isinstance(value, dict):
        return {}, f"a JSON {type(value).__name__}, not an object"
    fields: dict[str, str] = {}
    faults: list[str] = []
    for name in _FIELDS:
        if name in value:
            clean, fault = _check(name, value[name], allow_http)
            if fault:
                faults.append(fault)
            else:
                fields[name] = clean
    if not fields and not faults:
        faults.append("none of repo, commit, cdn_url")
    return fields, "; ".join(faults)


class _Repeated(Exception):
    """An object has a key twice: which value was meant cannot be known."""


def _loads(text: str) -> object:
    """JSON without repeated keys, and without the NaN and Infinity that Python would take."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except ValueError:
        return json.loads(text.replace("'", '"'), object_pairs_hook=_once, parse_constant=_refuse)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Repeated
    return found


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _check(name: str, value: object, allow_http: bool) -> tuple[str, str]:
    if not isinstance(value, str):
        return "", f"{name} is a {type(value).__name__}"
    value = value.strip(" \t\r\n")
    if name == "repo":
        bad = not _REPO.fullmatch(value) or ".." in value or "." in value.split("/")
        return value, "repo is not owner/name" if bad else ""
    if name == "commit":
        return value, "" if _COMMIT.fullmatch(value) else "commit is not 40 lower-case hex digits"
    value = value.rstrip("/")
    return value, url_fault(value, allow_http=allow_http)


def url_fault(url: str, *, allow_http: bool) -> str:
    """Why a miner's URL is refused by its form alone, "" if it is not. Addresses are checked when connecting."""
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return "cdn_url has characters that no URL has"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "cdn_url is not a URL"
    if parts.scheme not in ({"https", "http"} if allow_http else {"https"}):
        return "cdn_url is not https"
    if "@" in parts.netloc:
        return "cdn_url carries credentials"
    if not host:
        return "cdn_url has no host"
    if "?" in url or "#" in url:  # an empty query too: what is appended to it would be no path
        return "cdn_url has a query or fragment"
    return ""

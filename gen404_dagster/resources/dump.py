"""Reading a dump of revealed commitments: {hotkey: [[block, text or 0x-hex], ...]}."""

import json

from gen404_dagster.competition.models import Block, Hotkey
from gen404_dagster.errors import OperatorError


def read_dump(data: bytes) -> tuple[dict[Hotkey, list[tuple[Block, str]]], dict[Hotkey, str]]:
    """What each hotkey revealed, and why a hotkey's entries cannot be read. Raises OperatorError: not a dump at all."""
    try:
        dump = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"the dump is not JSON: {error}") from error
    if not isinstance(dump, dict):
        raise OperatorError("the dump must be an object: {hotkey: [[block, text or 0x-hex], ...]}")
    revealed: dict[Hotkey, list[tuple[Block, str]]] = {}
    unreadable: dict[Hotkey, str] = {}
    for hotkey, entries in dump.items():
        good: list[tuple[Block, str]] = []
        faults = []
        for entry in entries if isinstance(entries, list) else [entries]:
            text = _text(entry[1]) if _is_pair(entry) else None
            if text is None:
                faults.append(f"{json.dumps(entry)[:60]} is no [block, text]")
            else:
                good.append((entry[0], text))
        revealed[hotkey] = good
        if faults and not good:
            unreadable[hotkey] = "; ".join(faults)[:500]
            del revealed[hotkey]
    return revealed, unreadable


def _is_pair(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], int)
        and not isinstance(entry[0], bool)
        and isinstance(entry[1], str)
    )


def _text(value: str) -> str | None:
    """Text, or hex of SCALE bytes: a compact length before the text. None: invalid hex or UTF-8."""
    if not value.startswith("0x"):
        return value
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError:
        return None
    for skip in _prefixes(raw):
        try:
            return raw[skip:].decode("utf-8")
        except UnicodeDecodeError:
            continue
    return None


def _prefixes(raw: bytes) -> list[int]:
    """Bytes to skip: a SCALE compact length that fits the rest exactly, else none."""
    if raw and raw[0] & 3 == 0 and raw[0] >> 2 == len(raw) - 1:
        return [1, 0]
    if len(raw) > 1 and raw[0] & 3 == 1 and int.from_bytes(raw[:2], "little") >> 2 == len(raw) - 2:
        return [2, 0]
    return [0]

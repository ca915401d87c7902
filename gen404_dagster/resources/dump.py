"""Reading a dump of revealed commitments: {hotkey: [[block, text or 0x-hex], ...]}."""

import json

from gen404_dagster.competition.commitments import Unreadable, revealed_text
from gen404_dagster.competition.models import Block, Hotkey
from gen404_dagster.errors import OperatorError


def read_dump(data: bytes) -> tuple[dict[Hotkey, list[tuple[Block, str | Unreadable]]], dict[Hotkey, str]]:
    """What each hotkey revealed, and why a hotkey has entries without a block. Raises OperatorError: not a dump at all."""
    try:
        dump = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"the dump is not JSON: {error}") from error
    if not isinstance(dump, dict):
        raise OperatorError("the dump must be an object: {hotkey: [[block, text or 0x-hex], ...]}")
    revealed: dict[Hotkey, list[tuple[Block, str | Unreadable]]] = {}
    unreadable: dict[Hotkey, str] = {}
    for hotkey, entries in dump.items():
        entries = entries if isinstance(entries, list) else [entries]
        faults = [f"{json.dumps(entry)[:60]} is no [block, text]" for entry in entries if not _is_pair(entry)]
        revealed[hotkey] = [(entry[0], _text(entry[1])) for entry in entries if _is_pair(entry)]
        if faults:
            unreadable[hotkey] = "; ".join(faults)[:500]
    return revealed, unreadable


def _is_pair(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], int)
        and not isinstance(entry[0], bool)
        and isinstance(entry[1], str)
    )


def _text(value: str) -> str | Unreadable:
    """A text as it is, or as the chain has it: with a length before it, or as hex."""
    if value.startswith("0x"):
        try:
            return revealed_text(bytes.fromhex(value[2:]))
        except ValueError:
            return Unreadable("not hexadecimal")
    try:
        return revealed_text(value.encode())
    except UnicodeEncodeError:
        return value

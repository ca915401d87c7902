"""Where chance comes from in the embedded world: generators that are named, never shared, and always the same."""

import hashlib

import numpy as np

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def generator(*names: object) -> np.random.Generator:
    """A generator that depends on nothing but its names."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(names)[:16])))


def hex_digest(*names: object) -> str:
    """40 lower-case hex digits, shaped like a git commit."""
    return hashlib.sha1(_joined(names), usedforsecurity=False).hexdigest()


def hotkey_of(*names: object) -> str:
    """An address shaped like ss58: "5" and 47 base58 characters."""
    number = int.from_bytes(_digest(names) + _digest((*names, "more")))
    characters = ""
    for _ in range(47):
        number, digit = divmod(number, 58)
        characters += _BASE58[digit]
    return "5" + characters


def _digest(names: tuple[object, ...]) -> bytes:
    return hashlib.sha256(_joined(names)).digest()


def _joined(names: tuple[object, ...]) -> bytes:
    return "\x1f".join(str(name) for name in names).encode()

"""Where a round's seed comes from: a cryptographic source, or, in simulations, a given number."""

import hashlib
import random
import secrets
from typing import Protocol


class Entropy(Protocol):
    def round_seed(self, number: int) -> int:
        """A number in [0, 2^32)."""
        ...

    def generator(self, purpose: str) -> random.Random:
        """A generator for pauses and orders that decide nothing."""
        ...


class SecretEntropy:
    """`secrets`: nobody can know a round's seed before it is committed."""

    def round_seed(self, number: int) -> int:
        return secrets.randbelow(2**32)

    def generator(self, purpose: str) -> random.Random:
        return random.Random(secrets.randbits(128))


class DerivedEntropy:
    """Derived from a number: equal simulations draw equally. Never for real rounds."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def round_seed(self, number: int) -> int:
        return int.from_bytes(self._digest(f"round {number}")[:4])

    def generator(self, purpose: str) -> random.Random:
        return random.Random(self._digest(purpose))

    def _digest(self, purpose: str) -> bytes:
        return hashlib.sha256(f"{self._seed}: {purpose}".encode()).digest()

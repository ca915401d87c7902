"""What an embedder gives: vectors, and distances that know whose they are.

Belongs here: the types that cross from a network to a verdict. Does not: any network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.pictures import RGB

Vectors = NDArray[np.float32]  # [N, D]


class Model(NamedTuple):
    """A network for people, and all that its vectors follow from: weights and preparation."""

    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name} {self.revision}"


@dataclass(frozen=True)
class Distance:
    """A cosine distance under one model: 0 same, 2 opposite. A threshold is a distance too.

    Comparing distances of two models raises OperatorError: they say nothing about each other.
    """

    value: float
    model: Model

    def __lt__(self, other: "Distance") -> bool:
        return self.value < self._as_comparable(other)

    def __le__(self, other: "Distance") -> bool:
        return self.value <= self._as_comparable(other)

    def _as_comparable(self, other: "Distance") -> float:
        if other.model != self.model:
            raise OperatorError(f"a distance under {self.model} is not comparable with one under {other.model}")
        return other.value


class Embedder(Protocol):
    @property
    def model(self) -> Model:
        """Another model, other distances. May have to load the network to know."""

    @property
    def source(self) -> str:
        """Where the weights come from, for people."""

    @property
    def device(self) -> str:
        """What computes: cpu or cuda."""

    def embed(self, pngs: Sequence[bytes]) -> Vectors:
        """[N, D] unit vectors. A picture's vector does not depend on what it is embedded with.

        Raises UnreadablePicture (a ValueError) for bytes that are no picture.
        """

    def embed_pictures(self, pictures: Sequence[RGB]) -> Vectors:
        """[N, D] unit vectors of decoded pictures, which are not remembered."""

    def distance(self, a: bytes, b: bytes) -> Distance:
        """Cosine distance of two pictures; exactly 0 for identical bytes."""

    def distances(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[Distance]:
        """The same for many pairs at once."""

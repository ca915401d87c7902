"""What all networks share: batches, threads and devices, and vectors that are computed once.

Belongs here: from pictures to remembered unit vectors. Does not: a network's layers, weights or preparation.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.embedder.cache import EmbeddingCache
from gen404_dagster.resources.embedder.protocol import Distance, Model, Vectors
from gen404_dagster.resources.pictures import RGB, Array, decode

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda"]

REMEMBERED = 4096
"""Vectors kept in memory, of 1.5 to 5 KB."""

BATCH = 32
"""Pictures at once on a GPU."""


class NetworkEmbedder(ABC):
    """A torch network as an embedder. Thread-safe.

    On a CPU each picture is inferred alone, on one thread, as many at once as `gpu_kernels.threads` has: a vector is
    the same to the bit whatever it is embedded with, and larger batches are slower (two Xeon cores, pictures a second,
    two threads: EfficientNet-Lite0 123 one by one, 35 in batches of 32; DINOv3 ViT-S/16 17 and 15).
    On a GPU batches have one size, the last filled up with zeros, in full float32 precision.
    """

    SIDE = 224  # pixels that the network takes
    DIMENSION: int

    def __init__(
        self,
        cache: EmbeddingCache | None = None,
        device: Device = "auto",
        batch: int = BATCH,
        remembered: int = REMEMBERED,
    ) -> None:
        self._cache = cache
        self._wanted_device = device
        self._batch = batch
        self._remembered = remembered
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = Lock()
        self._loading = Lock()
        self._network: torch.nn.Module | None = None

    # --- what a network says of itself ---

    @property
    @abstractmethod
    def model(self) -> Model: ...

    @property
    @abstractmethod
    def source(self) -> str: ...

    @abstractmethod
    def prepare(self, picture: RGB) -> Array:
        """[3, 224, 224] what the network takes of a picture."""

    @abstractmethod
    def _load(self) -> "torch.nn.Module":
        """The network on the CPU, for inference."""

    @abstractmethod
    def _infer(self, network: "torch.nn.Module", batch: "torch.Tensor") -> "torch.Tensor":
        """[B, 3, 224, 224] -> [B, D]"""

    # --- an embedder ---

    def embed(self, pngs: Sequence[bytes]) -> Vectors:
        keys = [hashlib.sha256(png).digest() for png in pngs]
        known = {key: vector for key in keys if (vector := self._recalled(key)) is not None}
        missing = {key: png for key, png in zip(keys, pngs, strict=True) if key not in known}
        for start in range(0, len(missing), self._batch):  # decoded pictures are large: no more than a batch of them
            part = dict(list(missing.items())[start : start + self._batch])
            vectors = self.embed_pictures([decode(png) for png in part.values()])
            for key, vector in zip(part, vectors, strict=True):
                self._remember(key, vector)
                if self._cache is not None:
                    self._cache.put(str(self.model), key, vector)
                known[key] = vector
        return np.stack([known[key] for key in keys]) if keys else self._none

    def embed_pictures(self, pictures: Sequence[RGB]) -> Vectors:
        from gpu_kernels import threads

        if not pictures:
            return self._none
        prepared = threads.each(self.prepare, pictures)
        filling = [np.zeros_like(prepared[0])] * (-len(prepared) % self.at_once)
        padded = np.stack(prepared + filling)
        batches = np.split(padded, len(padded) // self.at_once)
        vectors = np.concatenate(threads.each(self._inferred, batches))[: len(prepared)]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise Unavailable(
                f"{self.model.name} gave a vector without direction: its weights or the device are broken"
            )
        return (vectors / lengths).astype(np.float32)

    def distance(self, a: bytes, b: bytes) -> Distance:
        return self.distances([(a, b)])[0]

    def distances(self, pairs: Sequence[tuple[bytes, bytes]]) -> list[Distance]:
        from gpu_kernels.distances import paired_cosine_distances

        vectors = self.embed([picture for pair in pairs for picture in pair])
        return [Distance(float(value), self.model) for value in paired_cosine_distances(vectors[0::2], vectors[1::2])]

    @cached_property
    def device(self) -> str:
        import torch

        if self._wanted_device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self._wanted_device == "cuda" and not torch.cuda.is_available():
            raise OperatorError("GEN404_EMBEDDER_DEVICE is cuda, but torch sees no CUDA device: set auto or cpu")
        return self._wanted_device

    @property
    def at_once(self) -> int:
        """Pictures in one batch."""
        return 1 if self.device == "cpu" else self._batch

    @property
    def _none(self) -> Vectors:
        return np.empty((0, self.DIMENSION), np.float32)

    # --- vectors that are known ---

    def _recalled(self, key: bytes) -> Vectors | None:
        with self._lock:
            if key in self._vectors:
                self._vectors.move_to_end(key)
                return self._vectors[key]
        vector = self._cache.get(str(self.model), key, self.DIMENSION) if self._cache is not None else None
        if vector is not None:
            self._remember(key, vector)
        return vector

    def _remember(self, key: bytes, vector: Vectors) -> None:
        vector.flags.writeable = False
        with self._lock:
            self._vectors[key] = vector
            while len(self._vectors) > self._remembered:
                self._vectors.popitem(last=False)

    # --- the network ---

    def _inferred(self, batch: Array) -> NDArray[np.float64]:
        """[B, 3, 224, 224] -> [B, D] of any length."""
        import torch

        network = self._loaded()
        with torch.inference_mode():
            vectors = self._infer(network, torch.from_numpy(batch).to(self.device))
        found: NDArray[np.float64] = vectors.double().cpu().numpy()
        return found

    def _loaded(self) -> "torch.nn.Module":
        """The network on its device, loaded once."""
        with self._loading:
            if self._network is None:
                import torch

                torch.set_num_threads(1)  # pictures are inferred side by side: together they use `threads.count()`
                torch.backends.cudnn.allow_tf32 = False  # its 10 bits of mantissa are too few for a distance of 1e-6
                self._network = self._load().eval().to(self.device)
            return self._network

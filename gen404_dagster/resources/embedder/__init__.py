"""The network behind distances: pictures in, unit vectors out, two forms behind one protocol.

Belongs here: which network, how a picture is prepared for it, the distance of two pictures and whose it is. Does not:
which distance is acceptable (`competition.limits`), which pictures are compared (assets), the arithmetic
(`gpu_kernels.distances`). `docs/calibration.md` has measured distances.
"""

from gen404_dagster.resources.embedder.choice import make_embedder
from gen404_dagster.resources.embedder.dinov3 import DINOv3Embedder
from gen404_dagster.resources.embedder.efficientnet import EfficientNetEmbedder
from gen404_dagster.resources.embedder.protocol import Distance, Embedder, Model, Vectors

__all__ = ["DINOv3Embedder", "Distance", "EfficientNetEmbedder", "Embedder", "Model", "Vectors", "make_embedder"]

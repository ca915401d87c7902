"""Which embedder the settings choose."""

from typing import TYPE_CHECKING, Any

from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.embedder.cache import EmbeddingCache
from gen404_dagster.resources.embedder.dinov3 import DINOv3Embedder
from gen404_dagster.resources.embedder.efficientnet import EfficientNetEmbedder
from gen404_dagster.resources.embedder.protocol import Embedder

if TYPE_CHECKING:
    from gen404_dagster.settings import Settings


def make_embedder(settings: "Settings") -> Embedder:
    """The embedder that the settings choose, with its cache under GEN404_DATA. Nothing is loaded yet."""
    options: dict[str, Any] = {
        "cache": EmbeddingCache(settings.data.absolute() / "embeddings"),
        "device": settings.embedder_device,
        "batch": settings.embedder_batch,
    }
    if settings.embedder == "efficientnet":
        return EfficientNetEmbedder(**options)
    if settings.embedder == "dinov3":
        return DINOv3Embedder(settings.embedder_path, settings.embedder_revision, settings.hf_token, **options)
    raise OperatorError(f"GEN404_EMBEDDER names {settings.embedder!r}: known are efficientnet, dinov3")

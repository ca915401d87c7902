"""DINOv3 ViT-S/16 through transformers: the network of the public competition.

Belongs here: where its weights come from and that they are whole, its preparation. Does not: torchvision.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import SecretStr

from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.embedder.network import NetworkEmbedder
from gen404_dagster.resources.embedder.protocol import Model
from gen404_dagster.resources.pictures import RGB, Array
from gen404_dagster.settings import DINOV3_REVISION

if TYPE_CHECKING:
    import torch

REPOSITORY = "facebook/dinov3-vits16-pretrain-lvd1689m"
CONFIG, WEIGHTS, PREPARATION = "config.json", "model.safetensors", "preprocessor_config.json"

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, of values in [0, 1]
PREPARED_AS: Mapping[str, Any] = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,  # bilinear
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": list(MEAN),
    "image_std": list(DEVIATION),
}
"""What `prepare` does, in the words of the file that comes with the weights: one that says otherwise is refused."""

INSTALL = "install it with `pip install 'gen404-dagster[validator]'`"


class DINOv3Embedder(NetworkEmbedder):
    """DINOv3 ViT-S/16, its class token (`pooler_output`, 384 values).

    Weights come from the Hugging Face hub at one commit (the repository is gated: a token), or from a folder, which is
    then identified by the sha256 of configuration and weights. Only safetensors, no code of the repository.

    Preparation follows `DINOv3ViTImageProcessor` of transformers 5.23: values to [0, 1], then squeezed to 224 x 224
    (bilinear, antialiased, of floats), then ImageNet's mean and deviation. Equal to torch's interpolation, which that
    processor reaches through torchvision, to 1e-4 in tests. Not verified: the processor itself (torchvision is not to
    be had here), and distances under the real weights (the hub cannot be reached here).
    """

    DIMENSION = 384

    def __init__(
        self,
        path: Path | None = None,
        revision: str = DINOV3_REVISION,
        token: SecretStr | None = None,
        **options: Any,
    ) -> None:
        """`path` names a folder of the weights; else `revision` is a commit of the hub's repository."""
        super().__init__(**options)
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise OperatorError(
                f"GEN404_EMBEDDER_REVISION is {revision!r}: distances need the 40 hex digits of one commit, "
                f"see https://huggingface.co/{REPOSITORY}/commits/main"
            )
        self._path = path
        self._revision = revision
        self._token = token

    @cached_property
    def model(self) -> Model:
        if self._path is None:
            identity = self._revision
        else:
            digest = hashlib.sha256()
            for name in (CONFIG, WEIGHTS):
                with (self._folder / name).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            identity = f"sha256-{digest.hexdigest()}"
        return Model("dinov3-vits16", f"{identity}/class-token/224-bilinear")

    @property
    def source(self) -> str:
        return str(self._path) if self._path is not None else f"hub, {REPOSITORY}"

    def prepare(self, picture: RGB) -> Array:
        from PIL import Image

        values = picture.astype(np.float32) / 255
        prepared = np.empty((3, self.SIDE, self.SIDE), np.float32)
        for channel in range(3):
            plane = Image.fromarray(np.ascontiguousarray(values[..., channel]))
            squeezed = np.asarray(plane.resize((self.SIDE, self.SIDE), Image.Resampling.BILINEAR))
            prepared[channel] = (squeezed - MEAN[channel]) / DEVIATION[channel]
        return prepared

    def _load(self) -> "torch.nn.Module":
        try:
            from transformers import DINOv3ViTModel
            from transformers.utils import logging
        except ImportError as error:
            raise OperatorError(f"GEN404_EMBEDDER=dinov3 needs transformers: {INSTALL}") from error
        folder = self._folder
        _refuse_other_preparation(folder)
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # what would be warned of is refused below
        load: Any = DINOv3ViTModel.from_pretrained
        try:
            network, found = load(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # transformers raises whatever a broken file leads it to
            raise OperatorError(f"the weights in {folder} cannot be loaded: {type(error).__name__}: {error}") from error
        for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
            if found[kind]:  # transformers would go on with random values
                fault = f"{kind.replace('_', ' ')}, {min(map(str, found[kind]))}"
                raise OperatorError(f"the weights in {folder} are not those of its {CONFIG}: {fault}")
        if network.config.hidden_size != self.DIMENSION:
            raise OperatorError(
                f"the network in {folder} has vectors of {network.config.hidden_size} values: ViT-S/16 has {self.DIMENSION}"
            )
        return network

    def _infer(self, network: "torch.nn.Module", batch: "torch.Tensor") -> "torch.Tensor":
        pooled: torch.Tensor = network(pixel_values=batch).pooler_output
        return pooled

    @cached_property
    def _folder(self) -> Path:
        """Where configuration and weights lie, downloaded when they have to be."""
        if self._path is None:
            return Path(_download(self._revision, self._token)).parent
        for name in (CONFIG, WEIGHTS):
            if not (self._path / name).is_file():
                raise OperatorError(
                    f"GEN404_EMBEDDER_PATH: {self._path} has no {name}; it needs {CONFIG} and {WEIGHTS}"
                )
        return self._path


def _download(revision: str, token: SecretStr | None) -> str:
    """Path of the weights in the hub's local cache. A commit that is there already is not asked for again."""
    try:
        from huggingface_hub import errors, hf_hub_download
        from huggingface_hub.constants import HF_HUB_OFFLINE
    except ImportError as error:
        raise OperatorError(f"GEN404_EMBEDDER=dinov3 needs huggingface_hub: {INSTALL}") from error
    instead = f"or put {CONFIG} and {WEIGHTS} in a folder that GEN404_EMBEDDER_PATH names"
    secret = token.get_secret_value() if token else None
    try:
        for name in (CONFIG, PREPARATION, WEIGHTS):
            path = hf_hub_download(REPOSITORY, name, revision=revision, token=secret or False)
        return path
    except errors.GatedRepoError as error:
        raise OperatorError(
            f"{REPOSITORY} is gated: accept its licence at https://huggingface.co/{REPOSITORY} and set HF_TOKEN to a "
            f"token of that account, {instead}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise OperatorError(f"GEN404_EMBEDDER_REVISION: {REPOSITORY} has no commit {revision}") from error
    except errors.RepositoryNotFoundError as error:  # also what the hub says to a wrong token
        raise OperatorError(f"the hub does not show {REPOSITORY}: check HF_TOKEN, {instead}") from error
    except errors.LocalEntryNotFoundError as error:
        if HF_HUB_OFFLINE:
            raise OperatorError(
                f"{REPOSITORY} at {revision} is not in the hub's cache, and HF_HUB_OFFLINE is set: unset it once, {instead}"
            ) from error
        raise Unavailable(f"the hub did not give {REPOSITORY} at {revision}: try again, {instead}") from error
    except errors.EntryNotFoundError as error:
        raise OperatorError(f"{REPOSITORY} at {revision} lacks {name}: {instead[3:]}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise Unavailable(f"the hub did not give {REPOSITORY}: {type(error).__name__}; try again, {instead}") from error


def _refuse_other_preparation(folder: Path) -> None:
    """Raises OperatorError when the weights come with a preparation that is not ours."""
    file = folder / PREPARATION
    if not file.is_file():
        return
    try:
        said = json.loads(file.read_bytes())
        other = [name for name, value in PREPARED_AS.items() if said.get(name, value) != value]
    except (ValueError, AttributeError) as error:
        raise OperatorError(f"{file} is no JSON object") from error
    if other:
        raise OperatorError(f"{file} prepares pictures otherwise: {other[0]} is {said[other[0]]}")

"""DINOv3 by the code path of production: a tiny random one, saved and loaded offline, and a hub that is asked for it."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.embedder import DINOv3Embedder, EfficientNetEmbedder, make_embedder
from gen404_dagster.resources.embedder.cache import EmbeddingCache
from gen404_dagster.resources.embedder.dinov3 import REPOSITORY
from gen404_dagster.settings import DINOV3_REVISION as REVISION
from gen404_dagster.settings import Settings
from gpu_kernels.distances import paired_cosine_distances


def png(number: int, size: int = 300) -> bytes:
    """Colours that run into each other, others for each number."""
    coarse = np.random.default_rng(number).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def save_random(folder: Path, seed: int, **changes: int) -> Path:
    """Two layers of random weights, as wide as ViT-S/16, saved as the hub has them."""
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    sizes = {"hidden_size": 384, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6} | changes
    DINOv3ViTModel(DINOv3ViTConfig(patch_size=16, num_register_tokens=4, image_size=224, **sizes)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("dinov3"), seed=0)


def copied(weights: Path, folder: Path, **changes: bytes) -> Path:
    """The folder again, some of its files (named without extension) replaced."""
    folder.mkdir()
    for file in weights.iterdir():
        (folder / file.name).write_bytes(changes.get(file.stem, file.read_bytes()))
    return folder


def test_vectors_are_the_class_token_of_the_saved_network(weights: Path) -> None:
    import torch
    from transformers import DINOv3ViTModel

    embedder = DINOv3Embedder(weights)
    pictures = [np.asarray(Image.open(io.BytesIO(png(n)))) for n in range(3)]
    network = DINOv3ViTModel.from_pretrained(weights).eval()
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack([embedder.prepare(picture) for picture in pictures]))
        tokens = network(pixel_values=batch).last_hidden_state[:, 0].numpy()
    vectors = embedder.embed([png(n) for n in range(3)])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(vectors, tokens / np.linalg.norm(tokens, axis=1, keepdims=True), rtol=0, atol=1e-6)


def test_preparation_is_that_of_the_processor_with_torchs_interpolation(weights: Path) -> None:
    import torch

    for height, width in ((1041, 1041), (100, 333), (224, 224)):
        picture = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
        values = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        squeezed = torch.nn.functional.interpolate(values, (224, 224), mode="bilinear", antialias=True)[0]
        expected = (squeezed - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
            [0.229, 0.224, 0.225]
        )[:, None, None]
        np.testing.assert_allclose(DINOv3Embedder(weights).prepare(picture), expected.numpy(), rtol=0, atol=1e-4)


def test_the_same_picture_is_at_zero_and_no_vector_depends_on_its_company(weights: Path) -> None:
    embedder = DINOv3Embedder(weights)
    assert embedder.distance(png(1), png(1)).value == 0.0
    assert embedder.distance(png(1), png(2)).value > 1e-6
    pngs = [png(n) for n in range(5)]
    together = DINOv3Embedder(weights).embed(pngs)
    alone = np.concatenate([DINOv3Embedder(weights).embed([one]) for one in reversed(pngs)])[::-1]
    assert paired_cosine_distances(together, alone).max() < 1e-6
    np.testing.assert_array_equal(together, alone)


def test_weights_and_configuration_are_the_identity_of_a_folder(weights: Path, tmp_path: Path) -> None:
    model = DINOv3Embedder(weights).model
    assert model.name == "dinov3-vits16"
    assert DINOv3Embedder(copied(weights, tmp_path / "same")).model == model
    tensors = bytearray((weights / "model.safetensors").read_bytes())
    tensors[-1] ^= 1
    tampered = DINOv3Embedder(copied(weights, tmp_path / "tampered", model=bytes(tensors)))
    config = (weights / "config.json").read_bytes().replace(b'"rope_theta": 100.0', b'"rope_theta": 99.0')
    turned = DINOv3Embedder(copied(weights, tmp_path / "turned", config=config))
    assert len({model, tampered.model, turned.model, EfficientNetEmbedder().model}) == 4
    with pytest.raises(OperatorError, match="not comparable"):
        _ = DINOv3Embedder(weights).distance(png(1), png(2)) < tampered.distance(png(1), png(2))


def test_networks_share_a_cache_without_mixing(weights: Path, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    first = DINOv3Embedder(weights, cache=cache).embed([png(1)])
    assert EfficientNetEmbedder(cache).embed([png(1)]).shape == (1, 1280)
    other = DINOv3Embedder(save_random(tmp_path / "other", seed=1), cache=cache).embed([png(1)])
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(DINOv3Embedder(weights, cache=cache).embed([png(1)]), first)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_file_is_refused_by_its_name(weights: Path, tmp_path: Path, missing: str) -> None:
    folder = copied(weights, tmp_path / "copy")
    (folder / missing).unlink()
    with pytest.raises(OperatorError, match=f"GEN404_EMBEDDER_PATH.*has no {missing}"):
        _ = DINOv3Embedder(folder).model


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    settings = Settings(embedder="dinov3", embedder_path=tmp_path / "nowhere", data=tmp_path)
    with pytest.raises(OperatorError, match=r"GEN404_EMBEDDER_PATH.*nowhere has no config\.json"):
        make_embedder(settings).distance(png(1), png(2))


def other_preparation(weights: Path, folder: Path) -> None:
    copied(weights, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 256, "width": 256}}))


def deeper(weights: Path, folder: Path) -> None:
    config = (weights / "config.json").read_bytes().replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 3')
    copied(weights, folder, config=config)


def cut_off(weights: Path, folder: Path) -> None:
    copied(weights, folder, model=(weights / "model.safetensors").read_bytes()[:-1000])


def pickled(weights: Path, folder: Path) -> None:
    import torch

    copied(weights, folder)
    torch.save({"not": "tensors"}, folder / "model.safetensors")


def narrower(weights: Path, folder: Path) -> None:
    save_random(folder, 0, hidden_size=48, num_attention_heads=3)


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (other_preparation, "prepares pictures otherwise: size is"),
        (deeper, "not those of its config.json: missing keys"),
        (cut_off, "cannot be loaded"),
        (pickled, "cannot be loaded"),
        (narrower, "vectors of 48 values: ViT-S/16 has 384"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_weights_that_would_measure_otherwise_are_refused_in_one_line(
    weights: Path, tmp_path: Path, broken: object, fault: str
) -> None:
    broken(weights, tmp_path / "broken")  # type: ignore[operator]
    with pytest.raises(OperatorError, match=fault):
        DINOv3Embedder(tmp_path / "broken").embed([png(1)])


@pytest.mark.parametrize("revision", ["main", "", "114c137", REVISION.upper()])
def test_a_revision_that_is_no_commit_is_refused(revision: str) -> None:
    with pytest.raises(OperatorError, match=r"GEN404_EMBEDDER_REVISION.*40 hex digits"):
        DINOv3Embedder(revision=revision)


# --- the hub ---


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """A server that answers as the hub does for one gated repository; yields its address and what it was asked."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, whole: bool) -> None:
            token = self.headers.get("Authorization", "nobody").removeprefix("Bearer ")
            asked.append(f"{self.path} {token}")
            file = folder / self.path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/")
            refusal = {"hf_right": "", "hf_blind": "RepoNotFound"}.get(token, "GatedRepo")
            if not refusal and not file.is_file():
                refusal = "EntryNotFound" if REVISION in self.path else "RevisionNotFound"
            if refusal:
                self.send_response(403 if refusal == "GatedRepo" else 404)
                self.send_header("X-Error-Code", refusal)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{sha1(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if whole:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


MEASURE = """
import sys
from gen404_dagster.resources.embedder import make_embedder
from gen404_dagster.settings import load_settings
found = make_embedder(load_settings(embedder="dinov3")).distance(*[open(path, "rb").read() for path in sys.argv[1:]])
print(found.value, "|", found.model)
"""

REFUSED = """
import sys
from pydantic import SecretStr
from gen404_dagster.errors import Gen404Error
from gen404_dagster.resources.embedder import DINOv3Embedder
from gen404_dagster.settings import DINOV3_REVISION as REVISION
for case in sys.argv[1:]:
    token, _, revision = case.partition("@")
    try:
        DINOv3Embedder(revision=revision or REVISION, token=SecretStr(token))._folder
    except Gen404Error as error:
        print(type(error).__name__, error)
"""


def with_hub(tmp_path: Path, address: str, program: str, *arguments: str, **environment: str) -> list[str]:
    """Lines that a process prints. A process of its own: the hub's address is read when its client is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GEN404_"))}
    names = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "GEN404_DATA": str(tmp_path / "data")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=kept | names | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_hub_is_asked_once_with_the_token_for_one_commit(weights: Path, tmp_path: Path) -> None:
    folder = copied(weights, tmp_path / "repository")
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 224, "width": 224}}))
    paths = [tmp_path / "1.png", tmp_path / "2.png"]
    for number, path in enumerate(paths):
        path.write_bytes(png(number))
    with hub(folder) as (address, asked):
        (said,) = with_hub(tmp_path, address, MEASURE, *map(str, paths), HF_TOKEN="hf_right")
    value, _, model = said.partition(" | ")
    assert model == f"dinov3-vits16 {REVISION}/class-token/224-bilinear"
    assert float(value) == DINOv3Embedder(weights).distance(png(0), png(1)).value
    files = [line for line in asked if REPOSITORY in line]
    assert files
    assert all(REVISION in line and line.endswith(" hf_right") for line in files)
    # The hub is gone, and so is the token: the weights are there.
    assert with_hub(tmp_path, address, REFUSED, "", HF_HUB_OFFLINE="1") == []


def test_what_the_hub_refuses_is_said_in_one_line_with_what_to_do(weights: Path, tmp_path: Path) -> None:
    cases = ["", "hf_wrong", "hf_blind", f"hf_right@{'0' * 40}", "hf_right"]
    with hub(weights) as (address, _):  # which has no preprocessor_config.json
        said = with_hub(tmp_path, address, REFUSED, *cases)
        said += with_hub(tmp_path, address, REFUSED, "hf_right", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    expected = [
        "OperatorError .* is gated: accept its licence at .* set HF_TOKEN .* GEN404_EMBEDDER_PATH names",
        "OperatorError .* is gated: ",
        "OperatorError the hub does not show .*: check HF_TOKEN",
        f"OperatorError GEN404_EMBEDDER_REVISION: .* has no commit {'0' * 40}",
        f"OperatorError {REPOSITORY} at {REVISION} lacks preprocessor_config.json",
        "OperatorError .* HF_HUB_OFFLINE is set: unset it once, or put config.json",
    ]
    assert len(said) == len(expected)
    for line, pattern in zip(said, expected, strict=True):
        assert re.match(pattern, line)
        assert "hf_" not in line


@pytest.mark.slow  # the hub's client tries for a minute
def test_a_hub_that_cannot_be_reached_is_worth_another_try(tmp_path: Path) -> None:
    with hub(tmp_path) as (address, _):
        pass
    (said,) = with_hub(tmp_path, address, REFUSED, "hf_right")
    assert said.startswith("Unavailable the hub did not give")

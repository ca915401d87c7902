"""Pictures in, unit vectors out: the same ones everywhere, whatever else is embedded, whoever sends the bytes."""

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image, ImageDraw

from gen404_dagster.errors import Gen404Error, OperatorError
from gen404_dagster.resources.embedder import Distance, EfficientNetEmbedder, Embedder, Model, make_embedder
from gen404_dagster.resources.embedder.cache import EmbeddingCache
from gen404_dagster.resources.pictures import cut_out, decode, lab, views
from gen404_dagster.settings import Settings
from gpu_kernels.distances import paired_cosine_distances


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def drawing(number: int, size: int = 300) -> Image.Image:
    """Some shapes on white, others for each number."""
    rng = np.random.default_rng(number)
    picture = Image.new("RGB", (size, size), "white")
    canvas = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y, w, h = (int(v * size) for v in rng.uniform(0.1, 0.5, 4))
        colour = tuple(int(v) for v in rng.integers(0, 255, 3))
        (canvas.rectangle if rng.random() < 0.5 else canvas.ellipse)((x, y, x + w, y + h), fill=colour)
    return picture


def noisy(picture: Image.Image, sigma: float) -> Image.Image:
    values = np.asarray(picture, float) + np.random.default_rng(0).normal(0, sigma, (*picture.size[::-1], 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    import zlib

    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def claimed(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x\x9c\x03\x00\x00\x00\x00\x01")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return make_embedder(Settings(embedder="efficientnet", data=tmp_path_factory.mktemp("data")))


def unable(cache: EmbeddingCache) -> EfficientNetEmbedder:
    """An embedder that only remembers."""

    class Unable(EfficientNetEmbedder):
        def _inferred(self, batch: object) -> NoReturn:
            raise AssertionError("would infer")

    return Unable(cache)


def test_vectors_are_unit_float32_of_1280_values(embedder: Embedder) -> None:
    vectors = embedder.embed([encoded(drawing(n)) for n in range(3)])
    assert vectors.shape == (3, 1280)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert embedder.embed([]).shape == (0, 1280)


def test_a_vector_does_not_depend_on_what_it_is_embedded_with() -> None:
    pngs = [encoded(drawing(n)) for n in range(5)]
    together = EfficientNetEmbedder().embed(pngs)
    alone = np.concatenate([EfficientNetEmbedder().embed([png]) for png in reversed(pngs)])[::-1]
    np.testing.assert_array_equal(together, alone)


def test_batches_of_one_size_give_the_same_vectors_in_their_order() -> None:
    class Batched(EfficientNetEmbedder):
        at_once = 3

    pictures = [decode(encoded(drawing(n))) for n in range(7)]
    alone = EfficientNetEmbedder().embed_pictures(pictures)
    together = Batched().embed_pictures(pictures)
    assert together.shape == alone.shape
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    assert paired_cosine_distances(together, alone).max() < 1e-6


def test_a_second_process_computes_the_same_vector(embedder: Embedder) -> None:
    png = encoded(drawing(7, 1041))
    program = (
        "import sys; from gen404_dagster.resources.embedder import EfficientNetEmbedder as E;"
        "sys.stdout.buffer.write(E().embed([sys.stdin.buffer.read()]).tobytes())"
    )
    other = subprocess.run([sys.executable, "-c", program], input=png, capture_output=True, check=True, timeout=600)
    assert other.stdout == embedder.embed([png]).tobytes()


def test_threads_compute_the_same_vectors() -> None:
    pngs = [encoded(drawing(n)) for n in range(6)]
    fresh = EfficientNetEmbedder()
    with ThreadPoolExecutor(6) as pool:
        in_threads = np.concatenate(list(pool.map(lambda png: fresh.embed([png]), pngs * 2)))
    np.testing.assert_array_equal(in_threads, EfficientNetEmbedder().embed(pngs * 2))


def test_identical_bytes_are_at_exactly_zero_and_the_same_picture_within_a_millionth(embedder: Embedder) -> None:
    picture = drawing(1)
    png = encoded(picture)
    assert embedder.distance(png, png).value == 0.0
    again = encoded(picture, compress_level=0)
    assert again != png
    assert embedder.distance(png, again).value == pytest.approx(0.0, abs=1e-6)


def test_a_little_noise_is_near_and_another_picture_far_whichever_comes_first(embedder: Embedder) -> None:
    picture, other = drawing(1), encoded(drawing(2))
    png, near = encoded(picture), encoded(noisy(picture, 4))
    assert embedder.distance(png, png) < embedder.distance(png, near) < embedder.distance(png, other)
    assert embedder.distance(png, other) == embedder.distance(other, png)
    assert embedder.distances([(png, near), (png, other)]) == [
        embedder.distance(png, near),
        embedder.distance(png, other),
    ]


def test_a_distance_carries_its_model_and_is_judged_by_no_other(embedder: Embedder) -> None:
    png, other = encoded(drawing(1)), encoded(drawing(2))
    found = embedder.distance(png, other)
    assert found.model == embedder.model == EfficientNetEmbedder().model
    assert "efficientnet-lite0" in str(found.model)
    assert found <= Distance(2.0, embedder.model)
    assert not found <= Distance(0.0, embedder.model)
    for stranger in (Model("dinov3-vits16", found.model.revision), Model(found.model.name, "other")):
        with pytest.raises(OperatorError, match="is not comparable with one under"):
            _ = found <= Distance(2.0, stranger)
        with pytest.raises(OperatorError, match="is not comparable with one under"):
            max(found, Distance(0.0, stranger))


def test_no_more_vectors_are_remembered_than_agreed() -> None:
    small = EfficientNetEmbedder(remembered=2)
    first = small.embed([encoded(drawing(n)) for n in range(4)])
    assert len(small._vectors) == 2
    np.testing.assert_array_equal(first, small.embed([encoded(drawing(n)) for n in range(4)]))


def test_a_picture_is_embedded_once_also_by_another_process(tmp_path: Path) -> None:
    pngs = [encoded(drawing(n)) for n in range(3)]
    first = EfficientNetEmbedder(EmbeddingCache(tmp_path)).embed(pngs)
    again = unable(EmbeddingCache(tmp_path))
    np.testing.assert_array_equal(again.embed(pngs + pngs), np.concatenate([first, first]))
    with pytest.raises(AssertionError, match="would infer"):
        again.embed([encoded(drawing(4))])


@pytest.mark.parametrize("damage", ["cut off", "flipped", "empty", "a folder"])
def test_a_damaged_vector_is_computed_again(tmp_path: Path, damage: str) -> None:
    png = encoded(drawing(1))
    vector = EfficientNetEmbedder(EmbeddingCache(tmp_path)).embed([png])
    (file,) = tmp_path.glob("*/*/*")
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"cut off": bytes(data[:-4]), "flipped": bytes(data), "empty": b""}[damage])
    np.testing.assert_array_equal(EfficientNetEmbedder(EmbeddingCache(tmp_path)).embed([png]), vector)
    if damage != "a folder":
        np.testing.assert_array_equal(unable(EmbeddingCache(tmp_path)).embed([png]), vector)


def test_vectors_of_two_models_are_kept_apart(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.put("one", b"k" * 32, np.ones(8, np.float32))
    assert cache.get("two", b"k" * 32, 8) is None
    assert cache.get("one", b"k" * 32, 16) is None
    np.testing.assert_array_equal(cache.get("one", b"k" * 32, 8), np.ones(8, np.float32))


def test_the_oldest_vectors_leave_when_they_outgrow_their_bytes(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, most_bytes=10_000)  # 62 files of 160 bytes
    keys = [n.to_bytes(32, "big") for n in range(400)]
    for number, key in enumerate(keys):
        cache.put("m", key, np.full(32, number, np.float32))
        newest = cache._path("m", key)
        os.utime(newest, (number, number))  # files of one instant have no order
        held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert held <= 10_000 + 160
    assert cache.get("m", keys[0], 32) is None
    np.testing.assert_array_equal(cache.get("m", keys[-1], 32), np.full(32, 399, np.float32))


def test_a_disk_that_refuses_costs_memory_not_results(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    embedder = EfficientNetEmbedder(EmbeddingCache(tmp_path / "file"))
    assert embedder.embed([encoded(drawing(1))]).shape == (1, 1280)
    assert "embedding cache" in caplog.text


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "not a picture that can be decoded"),
        (b"glTF" + bytes(100), "not a picture that can be decoded"),
        (encoded(drawing(1))[:900], "not a picture that can be decoded"),
        (encoded(drawing(1), "GIF"), "not a picture that can be decoded"),
        (claimed(8000, 6000), "8000 x 6000 pixels: at most"),
        (claimed(60000, 60000), "not a picture that can be decoded: DecompressionBomb"),
        (claimed(100, 100), "not a picture that can be decoded"),
    ],
    ids=["empty", "a model", "cut off", "GIF", "large", "bomb", "no pixels"],
)
def test_hostile_bytes_are_refused_in_one_line(embedder: Embedder, data: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault) as refused:
        embedder.distance(data, data)
    assert isinstance(refused.value, Gen404Error)
    assert "\n" not in str(refused.value)


def test_kinds_of_pictures_decode_to_the_same_pixels() -> None:
    picture = drawing(3)
    for same in (
        encoded(picture),
        encoded(picture.convert("RGBA")),
        encoded(picture, "WEBP", lossless=True),
    ):
        np.testing.assert_array_equal(decode(same), np.asarray(picture))
    assert decode(encoded(picture.convert("L"))).shape == (300, 300, 3)
    assert (decode(encoded(Image.new("RGBA", (8, 8), (200, 0, 0, 0)))) == 255).all()


def test_a_grid_falls_apart_into_its_four_views_and_nothing_else_does() -> None:
    grid = np.zeros((1041, 1041, 3), np.uint8)
    for number, (top, left) in enumerate([(0, 0), (0, 523), (523, 0), (523, 523)]):
        grid[top : top + 518, left : left + 518] = 50 * (number + 1)
    assert [(view.shape, int(view[0, 0, 0])) for view in views(grid)] == [((518, 518, 3), 50 * n) for n in (1, 2, 3, 4)]
    for other in (grid + 1, grid[:, :1000], np.asarray(drawing(1))):
        assert len(views(other)) == 1


@pytest.mark.parametrize("background", ["white", "gradient"])
def test_an_object_is_cut_out_of_its_background(background: str) -> None:
    shade = np.linspace(110, 200, 256)[:, None, None] + np.linspace(0, 30, 256)[None, :, None]
    canvas = np.full((256, 256, 3), 255.0) if background == "white" else np.repeat(shade, 3, axis=2)
    canvas[60:200, 100:140] = (200, 30, 30)
    cut = cut_out(canvas.astype(np.uint8), 224)
    assert cut.share == pytest.approx(140 * 40 / 256**2, rel=0.15)
    rows, columns = (np.flatnonzero(cut.mask.max(axis=axis) > 0.5) for axis in (1, 0))
    assert len(rows) / 224 == pytest.approx(1 / 1.12, abs=0.05)
    assert len(columns) / len(rows) == pytest.approx(40 / 140, abs=0.05)
    assert (cut.picture[0, 0] == 255).all()
    assert (abs(cut.picture[112, 112].astype(int) - (200, 30, 30)) <= 2).all()


def test_a_plain_picture_shows_nothing_and_a_busy_one_is_kept_whole() -> None:
    assert cut_out(np.full((518, 518, 3), 255, np.uint8), 224).empty
    assert cut_out(np.full((30, 700, 3), 90, np.uint8), 224).empty
    busy = np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8)
    assert not cut_out(busy, 224).empty


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (1, 4000), (4000, 1), (5000, 4000)])
@pytest.mark.parametrize("busy", [False, True])
def test_any_size_can_be_cut(height: int, width: int, busy: bool) -> None:
    picture = np.full((height, width, 3), 255, np.uint8)
    if busy:
        picture[height // 3 : height // 2 + 1, width // 3 : width // 2 + 1] = (10, 80, 200)
    cut = cut_out(picture, 224)
    assert (cut.picture.shape, cut.mask.shape) == ((224, 224, 3), (224, 224))
    if not busy or min(height, width) > 3:  # a stripe of one pixel has no border to know its background from
        assert cut.empty is not busy


def test_colour_differences_are_those_of_cielab() -> None:
    red, white = lab(np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8))[0]
    assert red == pytest.approx([53.24, 80.09, 67.20], abs=0.05)
    assert white == pytest.approx([100, 0, 0], abs=0.02)


def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    settings = Settings(embedder="efficientnet").model_copy(update={"embedder": "other"})
    with pytest.raises(OperatorError, match=r"GEN404_EMBEDDER.*other.*known are efficientnet"):
        make_embedder(settings)


def test_the_limit_of_distances_is_that_of_the_configured_network_unless_one_is_set() -> None:
    assert Settings(embedder="efficientnet").limits.acceptable_distance == 0.03
    assert Settings(embedder="dinov3").limits.acceptable_distance == 0.1
    assert Settings(embedder="dinov3", limits={"max_mismatches": 3}).limits.acceptable_distance == 0.1
    assert Settings(embedder="efficientnet", limits={"acceptable_distance": 0.1}).limits.acceptable_distance == 0.1


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(OperatorError, match="GEN404_EMBEDDER_DEVICE is cuda"):
        EfficientNetEmbedder(device="cuda").embed([encoded(drawing(1))])

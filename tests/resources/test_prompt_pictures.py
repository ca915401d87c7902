"""Prompt pictures: fetched once, kept as they came, and never kept when they are none."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from gen404_dagster.competition.limits import Limits
from gen404_dagster.errors import Unavailable
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.object_store import LocalObjectStore
from gen404_dagster.resources.prompt_pictures import PromptPictures
from tests.resources.vlm_server import VisionServer, serving


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[VisionServer]:
    with serving(VisionServer("key")) as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path, "https://cdn.test")


def read(store: LocalObjectStore, url: str, times: int = 1) -> list[bytes]:
    limits = Limits(download_retry_seconds=0, download_jitter_seconds=0)

    async def story() -> list[bytes]:
        async with Downloads(limits, True) as downloads:
            pictures = PromptPictures(store, downloads, 1024)
            return await asyncio.gather(*[pictures.read(url) for _ in range(times)])

    return asyncio.run(story())


def test_a_picture_is_fetched_once(server: VisionServer, store: LocalObjectStore) -> None:
    server.pictures = {"p.png": png(1)}
    url = f"{server.root}/pictures/p.png"
    assert read(store, url, 3) == [png(1)] * 3
    server.pictures = {"p.png": png(2)}
    assert read(store, url) == [png(1)]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"<html>be right back</html>", "not a picture"),
        (png(1)[:48], "not a picture"),
        (b"", "not a picture"),
        (b"x" * 2048, "larger than"),
        (None, "HTTP 500"),
    ],
    ids=["page", "half", "empty", "large", "gone"],
)
def test_what_is_no_picture_is_named_and_not_kept(
    server: VisionServer, store: LocalObjectStore, data: bytes | None, fault: str
) -> None:
    server.pictures = {} if data is None else {"p.png": data}
    url = f"{server.root}/pictures/p.png"
    with pytest.raises(Unavailable, match=f"prompt picture {url}: .*{fault}"):
        read(store, url)
    server.pictures = {"p.png": png(3)}
    assert read(store, url) == [png(3)]


def test_of_two_processes_that_are_sent_other_bytes_the_first_decides(
    server: VisionServer, store: LocalObjectStore, tmp_path: Path
) -> None:
    class Slower(LocalObjectStore):
        """Another process stores the picture between our look and our write."""

        def exists(self, key: str) -> bool:
            store.put(key, png(4), "image/png")
            return False

    server.pictures = {"p.png": png(5)}
    assert read(Slower(tmp_path, "https://cdn.test"), f"{server.root}/pictures/p.png") == [png(4)]

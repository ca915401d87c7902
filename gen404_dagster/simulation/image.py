"""A miner's docker image as a local process: serves the image contract, generates as the registry says it does.

Belongs here: GET /health, POST /generate (multipart `prompt_image_file`, form `seed`) -> GLB stream, one request at a
time. Does not: who has which skill (the world's registry knows), starting and stopping it (`resources.pods`).
It starts in about a second: nothing heavy is imported.
"""

import argparse
import asyncio
import hashlib
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gen404_dagster.errors import MinerFault, OperatorError
from gen404_dagster.simulation.making import make_model, padded_glb
from gen404_dagster.simulation.reliefs import MAX_PICTURE_BYTES
from gen404_dagster.simulation.serving import serve

CHUNK = 64 * 1024
PULL_SECONDS = 20.0  # the world may be starting too
MAX_FILE_BYTES = 256 * 1024**2


class ImageRecipe(BaseModel):
    """What the registry says about an image."""

    hotkey: str
    skill: float
    simulation_seed: int
    objects: dict[str, int]
    files: bool = False


class ImageServer:
    def __init__(self, world: str, recipe: ImageRecipe) -> None:
        self._world = world
        self._recipe = recipe
        self._one_at_a_time = asyncio.Lock()

    def application(self) -> Starlette:
        return Starlette(
            routes=[Route("/health", self.health), Route("/generate", self.generate, methods=["POST"])],
            exception_handlers={HTTPException: _refusal},
        )

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def generate(self, request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_PICTURE_BYTES + CHUNK:
            raise HTTPException(413, f"send at most {MAX_PICTURE_BYTES} bytes, and their length")
        async with request.form(max_files=1, max_fields=8) as form:
            upload, seed = form.get("prompt_image_file"), form.get("seed", "0")
            if upload is None or isinstance(upload, str):
                raise HTTPException(422, "prompt_image_file is missing")
            if not isinstance(seed, str) or not seed.strip().lstrip("-").isdecimal() or len(seed) > 24:
                raise HTTPException(422, "seed is not a whole number")
            picture = await upload.read()
        async with self._one_at_a_time:
            try:
                data = await asyncio.to_thread(self._generated, picture, int(seed))
            except MinerFault as error:
                raise HTTPException(400, str(error)) from error
        headers = {"content-length": str(len(data))}
        return StreamingResponse(_pieces(data), media_type="model/gltf-binary", headers=headers)

    def _generated(self, picture: bytes, seed: int) -> bytes:
        recipe = self._recipe
        stem = hashlib.sha256(picture).hexdigest()
        if recipe.files:
            return self._file(stem)
        return make_model(
            recipe.simulation_seed,
            recipe.hotkey,
            recipe.skill,
            seed,
            stem,
            "regenerated",
            index=recipe.objects.get(stem),
            picture=picture,
        ).glb()

    def _file(self, stem: str) -> bytes:
        """What this miner's CDN serves for the prompt, in other bytes."""
        answer = httpx.get(f"{self._world}/cdn/{self._recipe.hotkey}/{stem}.glb", timeout=30, trust_env=False)
        if answer.status_code != 200 or len(answer.content) > MAX_FILE_BYTES:
            raise MinerFault(f"no file for prompt {stem[:12]}")
        return padded_glb(answer.content)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK):
        yield data[start : start + CHUNK]


def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, status_code=error.status_code)


def pull(world: str, image: str) -> ImageRecipe:
    """The image's recipe from the registry. Raises OperatorError for an unknown image or a silent registry."""
    deadline = time.monotonic() + PULL_SECONDS
    while True:
        try:
            answer = httpx.get(f"{world}/registry/images/{image}", timeout=5, trust_env=False)
            if answer.status_code == 404:
                raise OperatorError(f"image {image} is unknown to the registry at {world}")
            answer.raise_for_status()
            return ImageRecipe.model_validate_json(answer.content)
        except httpx.HTTPError as error:
            if time.monotonic() > deadline:
                raise OperatorError(f"the registry at {world} does not answer: {error}") from error
            time.sleep(0.2)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gen404_dagster.simulation.image", description=__doc__)
    parser.add_argument("--world", required=True, help="address of the embedded world")
    parser.add_argument("--image", required=True, help="name of the docker image")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--host", default="127.0.0.1")
    options: Any = parser.parse_args(arguments)
    try:
        recipe = pull(options.world.rstrip("/"), options.image)
    except OperatorError as error:
        print(error, file=sys.stderr)
        return 2
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
        listener.listen(64)
    except OSError as error:
        print(f"port {options.port} on {options.host}: {error.strerror}", file=sys.stderr)
        return 2
    serve(ImageServer(options.world.rstrip("/"), recipe).application(), listener, end_with_stdin=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

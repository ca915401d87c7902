"""A docker image that behaves as a test wants it to: `python image_server.py PLAN PORT`.

PLAN is a JSON file: a list with the behaviour of each pod, in the order they start (the last one goes on). Beside it
lie `<n>.pid` and `<n>.jsonl`, what pod n was asked, how many prompts it generated then and how many files it was
sending. A behaviour: {"seconds", "body_seconds", "warm_up", "mode", "only"}.
`mode` is what it does wrong: to every prompt, or to those in `only`; "gone": from then on 503 is all that is said, as by a
router whose pod is lost. A provider's router may stand before it: under the
path IMAGE_PREFIX, refusing requests without IMAGE_AUTHORIZATION.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

plan = Path(sys.argv[1])
started = time.monotonic()


def claim() -> int:
    """Which pod of the plan this is."""
    index = 0
    while True:
        try:
            with (plan.parent / f"{index}.pid").open("x") as file:
                file.write(str(os.getpid()))
            return index
        except FileExistsError:
            index += 1


index = claim()
behaviours = json.loads(plan.read_text())
behaviour = behaviours[min(index, len(behaviours) - 1)]
generating = sending = 0
gone = False


def note(**entry: object) -> None:
    with (plan.parent / f"{index}.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


async def health(request: Request) -> Response:
    warm = time.monotonic() - started >= behaviour.get("warm_up", 0) and not gone
    return PlainTextResponse("ok" if warm else "warming up", 200 if warm else 503)


async def body(stem: str, seed: str, mode: str) -> AsyncIterator[bytes]:
    global sending
    sending += 1
    try:
        yield b"junk" if mode == "garbage" else b"glTF"
        await asyncio.sleep(behaviour.get("body_seconds", 0))
        if mode == "oversize":
            for _ in range(64):
                yield bytes(65536)
        if mode == "cut":
            raise ConnectionResetError
        if mode == "stall":
            await asyncio.sleep(60)
        yield f"{stem}/{seed}".encode()
    finally:
        sending -= 1


async def generate(request: Request) -> Response:
    global generating, gone
    async with request.form() as form:
        upload, seed = form["prompt_image_file"], str(form["seed"])
        picture = await upload.read()  # type: ignore[union-attr]
    stem = upload.filename.split(".")[0]  # type: ignore[union-attr]
    generating += 1
    note(stem=stem, picture=len(picture), type=upload.content_type, at_once=generating, sending=sending)  # type: ignore[union-attr]
    try:
        mode = behaviour.get("mode", "") if stem in behaviour.get("only", [stem]) else ""
        if mode == "crash":
            while sending:  # noqa: ASYNC110 - the file before it is to be out
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            os._exit(3)
        await asyncio.sleep(60 if mode == "hang" else behaviour.get("seconds", 0.01))
    finally:
        generating -= 1
    gone = gone or mode == "gone"
    if gone:
        return PlainTextResponse("no healthy upstream", 503)
    if mode == "500":
        return PlainTextResponse("out of memory", 500)
    if mode == "redirect":
        return Response(status_code=302, headers={"location": "/health"})
    if mode == "empty":
        return Response(b"")
    if mode == "compressed":
        return Response(b"glTF", headers={"content-encoding": "gzip"})
    return StreamingResponse(body(stem, seed, mode), media_type="model/gltf-binary")


async def end_with_parent() -> None:
    await asyncio.to_thread(sys.stdin.buffer.read)
    os._exit(0)


async def main() -> None:
    prefix, wanted = os.environ.get("IMAGE_PREFIX", ""), os.environ.get("IMAGE_AUTHORIZATION")
    routes = Starlette(
        routes=[Route(prefix + "/health", health), Route(prefix + "/generate", generate, methods=["POST"])]
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        refused = wanted and scope["type"] == "http" and Headers(scope=scope).get("authorization") != wanted
        await (PlainTextResponse("no key", 401) if refused else routes)(scope, receive, send)

    leash = asyncio.create_task(end_with_parent())
    await uvicorn.Server(uvicorn.Config(app, "127.0.0.1", int(sys.argv[2]), log_level="critical")).serve()
    leash.cancel()


asyncio.run(main())

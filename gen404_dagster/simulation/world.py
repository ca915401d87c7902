"""The embedded world as a process: chain, prompts, CDNs, store, registry and source auditor on one loopback port.

Belongs here: the HTTP surface and the order of a start that may follow a kill -9 at any line.
Does not: what happens in the world (`cast`, `objects`, `remote`), starting it from other processes (`launch`).
"""

import argparse
import errno
import mimetypes
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gen404_dagster.competition import models, paths
from gen404_dagster.errors import Gen404Error, OperatorError
from gen404_dagster.simulation.cast import Cast, Miner, messy_files
from gen404_dagster.simulation.chain import Clock, WeightsLedger, time_of
from gen404_dagster.simulation.making import garbage, make_model
from gen404_dagster.simulation.parameters import (
    Workdir,
    WorldParameters,
    WorldRecord,
    parse_parameters,
    read_record,
    refuse_other_parameters,
    write_atomic,
)
from gen404_dagster.simulation.prompts import Pool, make_pool, real_pictures
from gen404_dagster.simulation.remote import Remote, SourceAuditor, open_competition, wait_out_dead_locks
from gen404_dagster.simulation.serving import serve

LOCK_SECONDS = 10.0  # a world whose parent has just died needs a moment to end
BIND_SECONDS = 10.0
GLB = "model/gltf-binary"


class EmbeddedWorld:
    """Answers every request from (parameters, block, state repository at its head)."""

    def __init__(self, workdir: Workdir, record: WorldRecord, pool: Pool) -> None:
        self.workdir = workdir
        self.parameters = record.parameters
        self.pool = pool
        self.cast = Cast(record.parameters, record.port)
        self.clock = Clock(workdir.block)
        self.ledger = WeightsLedger(workdir.weights, record.parameters.weights_reveal_blocks)
        self.remote = Remote(workdir.remote)
        self.auditor = SourceAuditor(self.remote, workdir.scratch, self.cast)
        folder = record.parameters.miner_from
        self.files = glb_files(Path(folder)) if folder else []

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", self.health),
                Route("/chain/head", self.head),
                Route("/chain/commitments", self.commitments),
                Route("/chain/subnet", self.subnet),
                Route("/chain/weights", self.set_weights, methods=["POST"]),
                Route("/clock", self.set_clock, methods=["POST"]),
                Route("/prompts/{name}", self.prompt),
                Route("/cdn/{hotkey}/{stem}.glb", self.cdn),
                Route("/store/{key:path}", self.store),
                Route("/registry/builds", self.builds),
                Route("/registry/images/{name:path}", self.image),
                Route("/auditor/review", self.review, methods=["POST"]),
                Route("/cast", self.describe_cast),
            ],
            exception_handlers={HTTPException: _refusal},
        )

    # --- chain ---

    def health(self, request: Request) -> Response:
        return JSONResponse(
            {"status": "ok", "seed": self.parameters.seed, "block": self.clock.block, "pid": os.getpid()}
        )

    def head(self, request: Request) -> Response:
        return JSONResponse(_at(self.clock.block))

    def commitments(self, request: Request) -> Response:
        block = self.clock.block
        return JSONResponse({**_at(block), "commitments": self.cast.revealed(block)})

    def subnet(self, request: Request) -> Response:
        block = self.clock.block
        row = self.ledger.row(request.query_params.get("validator", ""))
        return JSONResponse(
            {
                **_at(block),
                "uids": self.cast.uids,
                "owner": self.cast.owner,
                "last_update": row.update if row else None,
                "weights": row.at(block) if row else {},
                "commit_pending": row is not None and block < row.reveal,
            }
        )

    async def set_weights(self, request: Request) -> Response:
        try:
            asked = await request.json()
            validator, weights = asked["validator"], {int(uid): float(w) for uid, w in asked["weights"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HTTPException(400, 'send {"validator": <hotkey>, "weights": {<uid>: <share>}}') from None
        unknown = weights.keys() - set(self.cast.uids.values())
        total = sum(weights.values())
        if validator not in self.cast.uids or unknown or not total > 0 or min(weights.values()) < 0:
            raise HTTPException(409, "who is not on the subnet sets no weights, and gets none")
        self.ledger.set(validator, {uid: w / total for uid, w in weights.items() if w > 0}, self.clock.block)
        return JSONResponse({"detail": f"set at block {self.clock.block}"})

    async def set_clock(self, request: Request) -> Response:
        try:
            block = (await request.json())["block"]
        except (ValueError, KeyError, TypeError):
            block = None
        if not isinstance(block, int) or isinstance(block, bool):
            raise HTTPException(400, 'send {"block": <number>}')
        try:
            self.clock.advance(block)
        except ValueError as error:
            raise HTTPException(409, str(error)) from error
        return JSONResponse({"block": self.clock.block})

    # --- files ---

    def prompt(self, request: Request) -> Response:
        stem, _, suffix = request.path_params["name"].partition(".")
        if suffix != "png" or stem not in self.pool.stems:
            raise HTTPException(404, "no such prompt")
        return FileResponse(self.workdir.prompts / f"{stem}.png", media_type="image/png")

    def store(self, request: Request) -> Response:
        root = self.workdir.store.resolve()
        try:
            path = (root / request.path_params["key"]).resolve()
            found = path.is_relative_to(root) and path.is_file()
        except (OSError, ValueError):
            found = False
        if not found:
            raise HTTPException(404, "no such object")
        known = {".glb": GLB, ".json": "application/json", ".png": "image/png"}
        kind = known.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return FileResponse(path, media_type=kind)

    def cdn(self, request: Request) -> Response:
        """A miner's file for the current round: 404 before the round's seed is in the state repository."""
        miner = self.cast.miners.get(request.path_params["hotkey"])
        stem = request.path_params["stem"]
        commit = self.remote.head()
        number = self.remote.current_round(commit)
        seed_file = self.remote.read(paths.seed(number), commit)
        prompts = self.remote.read(paths.prompts(number), commit)
        if miner is None or miner.role.cdn_down or seed_file is None or prompts is None:
            raise HTTPException(404, "nothing here yet")
        stems = [models.stem_of(url) for url in models.read_prompts(prompts)]
        if stem not in stems:
            raise HTTPException(404, "not a prompt of this round")
        if miner.files:
            return FileResponse(self.files[stems.index(stem) % len(self.files)], media_type=GLB)
        seed = models.read_json(models.SEED, seed_file).seed
        return self._model(miner, self._submitted_version(miner, number, commit), seed, stem, stems)

    def _submitted_version(self, miner: Miner, number: int, commit: str) -> int:
        """The version that the round knows of this miner, or the newest."""
        text = self.remote.read(paths.submissions(number), commit)
        submission = models.read_json(models.SUBMISSIONS, text).get(miner.hotkey) if text else None
        version = miner.version_of(submission.commit) if submission else None
        return miner.version_at(self.clock.block) if version is None else version

    def _model(self, miner: Miner, version: int, seed: int, stem: str, stems: list[str]) -> Response:
        simulation = self.parameters.seed
        bad = messy_files(simulation, miner.hotkey, seed, stems).get(stem) if miner.role.bad_files else None
        if bad == "garbage":
            return Response(garbage(simulation, miner.hotkey, stem), media_type=GLB)
        if bad == "oversized":
            return StreamingResponse(_zeros(self.parameters.oversize_bytes), media_type=GLB)
        index = self.pool.objects.get(stem)
        picture = b"" if index is not None else (self.workdir.prompts / f"{stem}.png").read_bytes()
        skill = miner.role.skills[version][0]
        shaped = make_model(simulation, miner.hotkey, skill, seed, stem, "submitted", index=index, picture=picture)
        if bad == "outside the cube":
            shaped.positions[:] *= 3.0
        return Response(shaped.glb(), media_type=GLB)

    # --- registry ---

    def builds(self, request: Request) -> Response:
        try:
            number = int(request.query_params["round"])
        except (KeyError, ValueError):
            raise HTTPException(400, "give ?round=N") from None
        if not self.remote.has_submissions_commit(number):
            return JSONResponse({"run_found": False, "jobs": {}})
        text = self.remote.read(paths.submissions(number))
        submissions = models.read_json(models.SUBMISSIONS, text) if text else {}
        jobs = {hotkey: self._built(hotkey, submission.commit) for hotkey, submission in submissions.items()}
        return JSONResponse({"run_found": True, "jobs": jobs})

    def _built(self, hotkey: str, commit: str) -> str:
        miner = self.cast.miners.get(hotkey)
        return miner.role.build if miner and miner.version_of(commit) is not None else "failure"

    def image(self, request: Request) -> Response:
        """What an image process needs to generate as this miner's image does."""
        image = self.cast.image(request.path_params["name"])
        if image is None:
            raise HTTPException(404, "no such image")
        miner = image.miner
        return JSONResponse(
            {
                "image": request.path_params["name"],
                "hotkey": miner.hotkey,
                "name": miner.name,
                "version": image.version,
                "skill": image.skill,
                "simulation_seed": self.parameters.seed,
                "objects": self.pool.objects,
                "files": miner.files,
            }
        )

    # --- people ---

    def review(self, request: Request) -> Response:
        return JSONResponse({"entered": self.auditor.review(time_of(self.clock.block))})

    def describe_cast(self, request: Request) -> Response:
        return JSONResponse(self.cast.describe())

    def pass_time(self, blocks_per_second: float) -> None:
        """Blocks come by themselves, and the source auditor looks every second. Never returns."""
        started, passed, looked = time.monotonic(), 0, 0.0
        while True:
            time.sleep(min(1.0, max(0.05, 1 / blocks_per_second)))
            now = time.monotonic()
            due = int((now - started) * blocks_per_second)
            if due > passed:
                self.clock.pass_blocks(due - passed)
                passed = due
            if now - looked >= 1:
                looked = now
                try:
                    self.auditor.review(time_of(self.clock.block))
                except Exception as error:  # the auditor looks again; the world goes on
                    print(f"source auditor: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def _at(block: models.Block) -> dict[str, object]:
    return {"block": block, "timestamp": time_of(block).strftime("%Y-%m-%dT%H:%M:%SZ")}


def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, status_code=error.status_code)


async def _zeros(length: int) -> AsyncIterator[bytes]:
    """A body of this length that is never held in memory."""
    piece = bytes(64 * 1024)
    while length > 0:
        yield piece[:length]
        length -= len(piece)


def glb_files(folder: Path) -> list[Path]:
    """GLB files of a folder in name order. Raises OperatorError when there are none."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".glb" and path.is_file())
    except OSError as error:
        raise OperatorError(f"--miner-from {folder}: {error.strerror}") from error
    if not found:
        raise OperatorError(f"--miner-from {folder}: holds no .glb file")
    return found


# --- start ---


def run_world(
    root: Path | str,
    parameters: WorldParameters,
    blocks_per_second: float = 0.0,
    end_with_stdin: bool = False,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Open, or re-open, the world of a workdir and serve it in the foreground.

    Every step leaves what it made whole or not at all, and looks at what is there: a start may follow a kill at any
    line of an earlier one. Raises OperatorError for other parameters, a busy workdir, or a port that is taken.
    """
    if not 0 <= blocks_per_second < 1e6:
        raise OperatorError(f"--blocks-per-second {blocks_per_second} is not within 0..1000000")
    workdir = Workdir(root)
    _check_sources(parameters)
    for folder in (workdir.root, workdir.store, workdir.dagster):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workdir.lock)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise OperatorError(
            f"{workdir.root} is served by another process: end that, or use another --workdir"
        ) from None
    try:
        shutil.rmtree(workdir.scratch, ignore_errors=True)
        record = read_record(workdir)
        if record:
            refuse_other_parameters(workdir, record.parameters, parameters)
        listener = _bind(record.port if record else 0)
        if record is None:
            record = WorldRecord(port=listener.getsockname()[1], parameters=parameters)
            write_atomic(workdir.record, record.model_dump_json(indent=2))
        pool = make_pool(workdir, record.parameters)
        open_competition(workdir.remote, workdir.scratch, Cast(record.parameters, record.port), pool)
        wait_out_dead_locks(workdir.remote)
        world = EmbeddedWorld(workdir, record, pool)
        if blocks_per_second > 0:
            threading.Thread(target=world.pass_time, args=(blocks_per_second,), name="time", daemon=True).start()
        if on_ready:
            on_ready(f"http://127.0.0.1:{record.port}")
        serve(world.application(), listener, end_with_stdin=end_with_stdin)
    finally:
        lock.release()


def _check_sources(parameters: WorldParameters) -> None:
    """Refuse a cast or folders that cannot be played, before anything is written."""
    _ = Cast(parameters, 1).miners
    if parameters.prompts_from:
        real_pictures(Path(parameters.prompts_from))
    if parameters.miner_from:
        glb_files(Path(parameters.miner_from))


def _bind(port: int) -> socket.socket:
    """A listening socket on loopback. The port of a world that has just been killed may need a moment."""
    deadline = time.monotonic() + BIND_SECONDS
    while True:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(512)
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise OperatorError(
                    f"port {port} of this workdir is taken ({error.strerror}): end the process that listens there"
                ) from error
            time.sleep(0.1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gen404_dagster.simulation.world", description=__doc__)
    parser.add_argument("--workdir", required=True, type=Path)
    parser.add_argument("--parameters", default="{}", help="WorldParameters as JSON")
    parser.add_argument("--blocks-per-second", type=float, default=0.0)
    parser.add_argument("--end-with-stdin", action="store_true", help="end when stdin closes")
    options: Any = parser.parse_args(arguments)
    try:
        run_world(
            options.workdir, parse_parameters(options.parameters), options.blocks_per_second, options.end_with_stdin
        )
    except Gen404Error as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

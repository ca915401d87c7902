"""A process that turns model files into previews for a parent: a file that breaks it breaks nothing else.

Belongs here: the process's main, its limits, and the frames that both sides write and read.
Does not: what a failure means, starting and replacing processes (their owner does), pictures (`preview`).

The parent writes requests to standard input, this process answers on its standard output; it ends with that input, or
with the parent. A request is `_REQUEST` (what, bytes that follow) and a model's bytes. An answer is `_ANSWER` (bytes of
JSON, bytes of PNG), a JSON object with `status`, and the PNG. Nothing is pickled: the parent reads bounded plain data
from a process that has handled a stranger's file.

The first answer is "ready" (`backends` that there are, `chosen` and why for each kind of model, `alone`: one process is
enough for this machine, kinds `tried`) or "unavailable". A rendering is answered by "begun" once what draws it has been loaded and
tried on a model made here (time for compiling kernels is no file's fault), then by one of
  picture      the PNG follows
  refused      `reason`: the file is refused; this process goes on
  memory       `reason`: the limit on memory was hit
  failed       `reason`: an error that no file should be able to cause
  unavailable  `reason`: this machine cannot draw such a model, whatever the file; `named`: with the backend asked for
After the last three the process is not to be trusted any more.
"""

import argparse
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
import warnings
from typing import IO, TYPE_CHECKING, Any

from gpu_kernels import threads
from gpu_kernels.errors import UnreadableModel

if TYPE_CHECKING:
    from gpu_kernels.registry import Kind

RENDER, SELF_TEST = 1, 2
KINDS: tuple["Kind", ...] = ("mesh", "splats")
MAX_JSON_BYTES = 1 << 16
MAX_PNG_BYTES = 16 << 20  # a grid of noise is 3.3 MB

_REQUEST = struct.Struct("<BQ")
_ANSWER = struct.Struct("<II")
_SPLAT_FILES = (b"ply", b"\x28\xb5\x2f\xfd", b"\x1f\x8b")
# How libraries say that an allocation failed: zstd, OpenCV, Python's threads.
_NO_MEMORY = ("not enough memory", "insufficient memory", "failed to allocate", "can't start new thread")
_PR_SET_PDEATHSIG = 1


class BrokenAnswer(ValueError):
    """The worker ended, or sent what is no answer."""


def write_request(to: IO[bytes], what: int, model: bytes = b"") -> None:
    """Ask a worker for something. Raises OSError when it has ended."""
    to.write(_REQUEST.pack(what, len(model)))
    to.write(model)
    to.flush()


def read_answer(source: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """One answer: the JSON object, with a text as `status`, and the PNG (empty unless it is a picture).

    Raises BrokenAnswer when the worker has ended or answers with anything else.
    """
    head = source.read(_ANSWER.size)
    if len(head) < _ANSWER.size:
        raise BrokenAnswer("the worker ended")
    json_bytes, png_bytes = _ANSWER.unpack(head)
    if json_bytes > MAX_JSON_BYTES or png_bytes > MAX_PNG_BYTES:
        raise BrokenAnswer(f"an answer of {json_bytes} and {png_bytes} bytes")
    text, png = source.read(json_bytes), source.read(png_bytes)
    if len(text) < json_bytes or len(png) < png_bytes:
        raise BrokenAnswer("the worker ended in the middle of an answer")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BrokenAnswer(f"an answer that is not JSON: {error}") from None
    if not isinstance(answer, dict) or not isinstance(answer.get("status"), str):
        raise BrokenAnswer("an answer without a status")
    if (answer["status"] == "picture") != png.startswith(b"\x89PNG\r\n\x1a\n"):
        raise BrokenAnswer("an answer whose picture is no PNG")
    return answer, png


def kind_of(model: bytes | bytearray) -> "Kind":
    """What a file's first bytes say it is; a file that is neither is called a mesh."""
    return "splats" if model.startswith(_SPLAT_FILES) else "mesh"


def main(arguments: list[str] | None = None) -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m gpu_kernels.worker", description="Renders for a parent process.")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=threads.count())
    parser.add_argument("--memory", type=int, required=True, help="bytes")
    options = parser.parse_args(arguments)
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _limit(options.memory)
    warnings.simplefilter("ignore")
    _Worker(options.backend, options.threads, answers).serve(requests)


def _limit(memory: int) -> None:
    """Bound this process, and tie its life to the parent's.

    RLIMIT_DATA counts private writable memory, whoever maps it, and fails the allocation that goes beyond. RLIMIT_AS
    would also count what is only reserved: thread arenas, a GPU's address space.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Worker:
    """One process's answers to its requests."""

    def __init__(self, backend: str, thread_count: int, answers: IO[bytes]) -> None:
        self.backend = backend
        self.threads = thread_count
        self.answers = answers
        self.tried: set[Kind] = set()

    def serve(self, requests: IO[bytes]) -> None:
        from gpu_kernels.registry import choose

        try:
            chosen = {kind: choose(kind, self.backend) for kind in KINDS}
        except ValueError as error:
            self.answer("unavailable", reason=str(error), named=self.backend != "auto")
            return
        alone = any(choice.backend.name != "cpu" for choice in chosen.values())
        if not alone:  # a worker that owns a graphics card decodes textures with all cores
            threads.configure(self.threads)
        if self.is_tried(KINDS[0]):
            reasons = {kind: choice.reason for kind, choice in chosen.items()}
            self.answer("ready", chosen=reasons, alone=alone, tried=sorted(self.tried))
        while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
            what, size = _REQUEST.unpack(head)
            try:
                model = bytearray(size)
            except MemoryError as error:
                self.answer("memory", reason=_words(error))
                return
            if requests.readinto(model) < size:  # type: ignore[attr-defined]
                return
            if what == SELF_TEST:
                self.test()
            else:
                self.render(model)

    def is_tried(self, kind: "Kind") -> bool:
        """Load what draws a kind of model and draw a small one. What fails here is the machine's fault, and answered."""
        if kind in self.tried:
            return True
        try:
            self.try_out(kind)
        except Exception as error:
            self.answer("unavailable", reason=_words(error), named=False)
            return False
        self.tried.add(kind)
        return True

    def try_out(self, kind: "Kind") -> None:
        """Draw a small model made here through all that a file goes through."""
        import numpy as np

        from gpu_kernels import Splats, draw_preview, encode_png, load_glb, write_glb

        corners = np.array([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 0.5, 0.0]], np.float32)
        if kind == "mesh":
            for alpha in (1.0, 0.5):
                mesh = load_glb(write_glb(corners, [[0, 1, 2]], base_colour=(1, 1, 1, alpha)))
                encode_png(draw_preview(mesh, self.backend))
        else:
            turns = np.array([[1.0, 0.0, 0.0, 0.0]] * 3, np.float32)
            encode_png(draw_preview(Splats(corners, corners - 4, turns, corners[:, 0].copy(), corners), self.backend))

    def render(self, model: bytearray) -> None:
        kind = kind_of(model)
        if not self.is_tried(kind):
            return
        self.answer("begun")
        began = time.perf_counter()
        try:
            from gpu_kernels.models import load_model
            from gpu_kernels.preview import draw_preview, encode_png
            from gpu_kernels.registry import choose

            decoded = load_model(memoryview(model).toreadonly())
            loaded = time.perf_counter()
            grid = draw_preview(decoded, self.backend)
            drawn = time.perf_counter()
            png = encode_png(grid)
        except Exception as error:
            refused = isinstance(error, UnreadableModel)
            status = "memory" if _wants_memory(error) else "refused" if refused else "failed"
            self.answer(status, reason=str(error) if refused else _words(error))
        else:
            seconds = {"load": loaded - began, "draw": drawn - loaded, "encode": time.perf_counter() - drawn}
            self.answer("picture", png, seconds=seconds, backend=choose(kind, self.backend).backend.name)

    def test(self) -> None:
        """The hash of the backend's self-test."""
        from gpu_kernels.preview import self_test

        try:
            self.answer("tested", hash=self_test(self.backend))
        except Exception as error:
            self.answer("unavailable", reason=_words(error), named=False)

    def answer(self, status: str, png: bytes = b"", **values: Any) -> None:
        """Write one answer, with this process's peak of resident memory in bytes."""
        values["peak_memory"] = _peak_memory()
        text = json.dumps({"status": status, **values}).encode()
        self.answers.write(_ANSWER.pack(len(text), len(png)) + text)
        self.answers.write(png)
        self.answers.flush()


def _peak_memory() -> int:
    """Most bytes that were resident since this program began; `ru_maxrss` would begin with what the parent had."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wants_memory(error: BaseException | None) -> bool:
    """Whether an error came of the limit on memory, also where a reader took it for the file's."""
    while error is not None:
        if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
            return True
        error = error.__context__
    return False


def _words(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


if __name__ == "__main__":
    main()

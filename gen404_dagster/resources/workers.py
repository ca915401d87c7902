"""Processes that render miners' files, so that a file costs at most itself.

Belongs here: starting, limiting, replacing and ending `gpu_kernels.worker` processes, and what each way to fail means.
Does not: the work (`gpu_kernels.worker`), the version of the pictures (`resources.renderer`), the values of the limits
(`competition.limits`).

A file that is refused leaves its worker as it was. After anything else that is no picture the worker is replaced and
the file tried once more, in a fresh one that has just drawn a model of our own; only what happens there too is held
against the file. Two exceptions: a file that computes past its time is not given that time again; and what kills two
workers from outside (the machine's out-of-memory killer) is an outage, not a fault of the miner.
"""

import atexit
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gpu_kernels import worker as protocol

logger = logging.getLogger(__name__)

START_SECONDS = 300.0
"""Longest time to load what draws, which may include compiling every kernel on a busy machine, in seconds."""
END_SECONDS = 1.0
"""A worker that has not ended so long after its input was closed is killed, in seconds."""
_MOST_REASON = 300
_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "memoryerror", "cannot allocate")  # last words of C++, LLVM, Python
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# What a worker gets of the environment: where things lie and how its libraries behave. Never a credential.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "CC", "CXX")
_ENVIRONMENT_OF = (
    "LC_",
    "NUMBA_",
    "CUDA_",
    "NVIDIA_",
    "TORCH_",
    "LIBGL_",
    "MESA_",
    "GALLIUM_",
    "LP_",
    "EGL_",
    "__EGL_",
)
# The kernels have threads of their own; a BLAS that nobody calls would start as many again.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Drawn:
    """A preview and what it took."""

    png: bytes
    backend: str
    seconds: dict[str, float]  # load, draw, encode
    peak_memory: int  # resident memory of the worker so far, in bytes


@dataclass(frozen=True)
class _Failure:
    """How a file failed in one worker. `final`: it is not tried again. `outage`: nothing that a file does."""

    reason: str
    final: bool = False
    outage: bool = False


class Workers:
    """Up to `count` processes that render with a backend, each within `memory` bytes and `seconds` a file.

    Usable from any thread. Processes start when they are first needed, or in the background after `start`, and live
    until `close` or the end of this process, whichever way it ends. A graphics card gets one worker.
    """

    def __init__(
        self, backend: str = "auto", count: int = 2, memory_bytes: int = 4 * 1024**3, seconds: float = 60.0
    ) -> None:
        self.backend = backend
        self.count = max(1, min(count, _CORES))
        self.memory_bytes = memory_bytes
        self.seconds = seconds
        self.chosen: dict[str, str] = {}
        """Kind of model ("mesh", "splats") to the backend that draws it and why that one; empty until one is ready."""
        self._free: queue.LifoQueue[_Slot] = queue.LifoQueue()
        self._free.put(_Slot())
        self._grown = False
        self._closed = False
        self._lock = threading.Lock()
        self._living: set[_Process] = set()
        self._keeper = _Keeper()
        atexit.register(self.close)

    def start(self) -> None:
        """Begin to start the workers in the background. What goes wrong is told to who renders first."""

        def open_first() -> None:
            with suppress(queue.Empty):  # empty: somebody renders already
                slot = self._free.get_nowait()
                try:
                    with suppress(OperatorError, Unavailable):
                        slot.process = slot.process or self._open()
                finally:
                    self._free.put(slot)

        self._keeper.submit(open_first)

    def render(self, model: bytes) -> Drawn:
        """The preview of a GLB, PLY or SPZ file.

        Raises MinerFault with the reason when the file is refused, breaks the renderer or goes beyond a limit,
        OperatorError when the configured backend cannot draw it here, Unavailable when no worker can be had.
        """
        with self._slot() as slot:
            found = self._attempt(slot, model)
            if isinstance(found, _Failure) and not found.final:
                logger.warning("a file %s: it is tried again in a fresh worker", found.reason)
                found = self._attempt(slot, model)
        if isinstance(found, Drawn):
            return found
        if found.outage:
            raise Unavailable(f"rendering failed twice: a file {found.reason}")
        raise MinerFault(found.reason)

    def self_test(self) -> str:
        """The hash of the self-test's pictures; `chosen` is known then. Raises as `render`."""
        with self._slot() as slot:
            process = self._ready(slot)
            try:
                with process.deadline(START_SECONDS):
                    answer, _ = process.ask(protocol.SELF_TEST)
            except protocol.BrokenAnswer as error:
                self._drop(slot)
                raise Unavailable(f"the renderer's self-test failed: {process.end_in_words() or error}") from error
        if answer["status"] != "tested":
            raise Unavailable(f"the renderer's self-test failed: {_reason(answer)}")
        return str(answer["hash"])

    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        with self._lock:
            return sorted(process.pid for process in self._living)

    def close(self) -> None:
        """End all workers, and with them what they are at."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed, living = True, list(self._living)
            self._living.clear()
        for process in living:
            process.close_input()
        for process in living:
            process.end()
        self._keeper.stop()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _slot(self) -> Iterator["_Slot"]:
        slot = self._free.get()
        try:
            yield slot
        finally:
            if slot.process is not None and slot.process.overdue is not None:
                self._drop(slot)  # its answer and its deadline came together
            self._free.put(slot)

    def _ready(self, slot: "_Slot") -> "_Process":
        """The slot's worker; started when there is none, or when it was killed while it waited."""
        if slot.process is not None and not slot.process.alive():
            self._drop(slot)
        if slot.process is None:
            slot.process = self._keeper.submit(self._open).result()
        return slot.process

    def _open(self) -> "_Process":
        """Start a worker and wait until it is ready. Only the keeper's thread does this."""
        process = _Process(self.backend, max(1, _CORES // self.count), self.memory_bytes)
        with self._lock:
            self._living.add(process)
            closed = self._closed
        try:
            if closed:
                raise Unavailable("the renderer is closed")
            with process.deadline(START_SECONDS):
                answer, _ = process.answer()
            if answer["status"] != "ready":
                raise _not_available(answer)
            process.tried.update(answer["tried"])
        except BaseException as error:
            self._end(process)
            if isinstance(error, protocol.BrokenAnswer):
                why = process.end_in_words() or str(error)
                raise Unavailable(f"the renderer cannot be started: {why}") from error
            raise
        self.chosen = answer["chosen"]
        with self._lock:
            missing = 0 if self._grown or answer["alone"] else self.count - 1
            self._grown = True
        for _ in range(missing):  # the others only now: what the first one compiled, they load
            self._keeper.submit(self._grow)
        return process

    def _grow(self) -> None:
        slot = _Slot()
        try:
            with suppress(OperatorError, Unavailable):
                slot.process = self._open()
        finally:
            self._free.put(slot)

    def _attempt(self, slot: "_Slot", model: bytes) -> Drawn | _Failure:
        """One try in the slot's worker, which is gone afterwards unless it drew or refused the file."""
        process, kind = self._ready(slot), protocol.kind_of(model)
        begun = False
        try:
            with process.deadline(self.seconds if kind in process.tried else START_SECONDS) as deadline:
                answer, png = process.ask(protocol.RENDER, model)
                if answer["status"] == "begun":
                    begun = True
                    process.tried.add(kind)
                    deadline.restart(self.seconds)
                    answer, png = process.answer()
        except protocol.BrokenAnswer as error:
            self._drop(slot)
            return self._failure(process, begun or kind in process.tried, error)
        status = answer["status"]
        if status == "picture":
            return Drawn(png, answer["backend"], answer["seconds"], answer["peak_memory"])
        if status == "refused":
            return _Failure(_reason(answer), final=True)
        self._drop(slot)
        if status == "memory":
            return _Failure(f"needed more than {in_words(self.memory_bytes)} of memory")
        if status == "failed":
            return _Failure(f"could not be rendered: {_reason(answer)}")
        if status == "unavailable":
            raise _not_available(answer)
        return _Failure("confused the renderer")

    def _failure(self, process: "_Process", begun: bool, error: protocol.BrokenAnswer) -> _Failure:
        """What it means that a worker gave no answer."""
        if process.overdue is not None:
            if not begun:
                return _Failure("waited for a renderer that did not get ready", outage=True)
            # On a machine that stood still, or gave its cores to others, time proves nothing.
            computed = process.overdue >= self.seconds / 2
            return _Failure(f"took longer than {self.seconds:g} s to render", final=computed)
        process.end()
        if any(sign in process.last_words.lower() for sign in _OUT_OF_MEMORY):
            return _Failure(f"needed more than {in_words(self.memory_bytes)} of memory")
        code = process.code
        if code == -signal.SIGKILL:
            return _Failure(
                "was being rendered when its process was killed from outside: is memory short?", outage=True
            )
        if code < 0:
            return _Failure(f"crashed the renderer (signal {-code})")
        return _Failure(f"crashed the renderer ({error})")

    def _drop(self, slot: "_Slot") -> None:
        if slot.process is not None:
            self._end(slot.process)
        slot.process = None

    def _end(self, process: "_Process") -> None:
        process.end()
        with self._lock:
            self._living.discard(process)


@dataclass
class _Slot:
    """Room for one worker: whoever holds the slot, and nobody else, talks to it."""

    process: "_Process | None" = None


class _Process:
    """One worker process, and its ends of the pipes."""

    def __init__(self, backend: str, threads: int, memory_bytes: int) -> None:
        self.tried: set[str] = set()  # kinds of model that it has drawn
        self.overdue: float | None = None  # killed for being late; the CPU seconds since its deadline was set
        self.code = 0  # when it has ended: the exit code; below 0 the signal
        self.last_words = ""  # when it has ended: what it wrote last to standard error
        self._ending = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed when the process has ended)
        command = [sys.executable, "-P", "-m", "gpu_kernels.worker", "--backend", backend]
        command += ["--threads", str(threads), "--memory", str(memory_bytes)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=_environment()
            )
        except OSError as error:
            self._errors.close()
            raise Unavailable(f"the renderer cannot be started: {error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._output: IO[bytes] = self._process.stdout
        self.pid = self._process.pid

    def ask(self, what: int, model: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Write a request, read one answer. Raises BrokenAnswer."""
        with suppress(OSError):  # it has ended, and may have said why
            protocol.write_request(self._input, what, model)
        return self.answer()

    def answer(self) -> tuple[dict[str, Any], bytes]:
        """The next answer. Raises BrokenAnswer."""
        return protocol.read_answer(self._output)

    @contextmanager
    def deadline(self, seconds: float) -> Iterator["_Deadline"]:
        """Kill the process unless the block ends in time."""
        deadline = _Deadline(self)
        deadline.restart(seconds)
        try:
            yield deadline
        finally:
            deadline.cancel()

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far; 0 where the machine does not tell."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def close_input(self) -> None:
        """Tell it to end."""
        with suppress(OSError):
            self._input.close()

    def end(self) -> None:
        """End it, kindly if it can be had so, and keep its last words. Does nothing the second time."""
        self.close_input()
        with self._ending:
            if self._errors.closed:
                return
            try:
                self.code = self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._output.close()
            self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
            self.last_words = self._errors.read().decode(errors="replace").strip()
            self._errors.close()

    def end_in_words(self) -> str:
        """How it ended: being late, its last line of standard error, or its exit code."""
        self.end()
        if self.overdue is not None:
            return "it took too long"
        return (self.last_words.splitlines() or [f"exit code {self.code}"])[-1][:_MOST_REASON]


class _Deadline:
    """Kills a process when it comes, and notes how much that had computed since it was set."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        self._timer: threading.Timer | None = None

    def restart(self, seconds: float) -> None:
        self.cancel()
        self._began = self._process.cpu_seconds()
        self._timer = threading.Timer(seconds, self._come)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _come(self) -> None:
        self._process.overdue = self._process.cpu_seconds() - self._began
        self._process.kill()


class _Keeper:
    """One thread that starts all workers of a pool.

    Linux ends a worker with the thread that started it (PR_SET_PDEATHSIG): with this one that is when the pool is
    closed or the process ends, not when some thread that wanted a picture has it.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def submit(self, task: Callable[[], Any]) -> "Future[Any]":
        """Do it in the thread, in order. Raises Unavailable when it was stopped."""
        done: Future[Any] = Future()
        with self._lock:
            if self._stopped:
                raise Unavailable("the renderer is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="render-workers", daemon=True)
                self._thread.start()
            self._tasks.put((task, done))
        return done

    def stop(self) -> None:
        """End the thread when what was submitted is done."""
        with self._lock:
            self._stopped = True
            self._tasks.put(None)

    def _work(self) -> None:
        while (job := self._tasks.get()) is not None:
            task, done = job
            try:
                done.set_result(task())
            except BaseException as error:
                done.set_exception(error)


def in_words(size: int) -> str:
    """A number of bytes for people: 4 GiB, 512 MiB."""
    return f"{size / 1024**3:g} GiB" if size >= 1024**3 else f"{size / 1024**2:g} MiB"


def _environment() -> dict[str, str]:
    """What a worker is told: the same packages as here, where its libraries' things lie, and no more."""
    known = {
        name: value for name, value in os.environ.items() if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_OF)
    }
    # Not this process's sys.path: while another thread imports cv2, that stands at its head, and no worker can start.
    paths = [str(Path(protocol.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return known | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(paths)}


def _reason(answer: dict[str, Any]) -> str:
    """What a worker says, as one line that any file can hold."""
    words = " ".join(str(answer.get("reason")).encode(errors="replace").decode().split())
    return "".join(letter for letter in words if letter.isprintable())[:_MOST_REASON]


def _not_available(answer: dict[str, Any]) -> OperatorError | Unavailable:
    if answer.get("named"):
        return OperatorError(f"{_reason(answer)}: set GEN404_RENDER_BACKEND to auto, or install what is missing")
    return Unavailable(f"the renderer does not work here: {_reason(answer)}")

"""Worker processes: what a hostile file costs, what is held against its miner and what is not."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np
import psutil
import pytest
from PIL import Image

from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.workers import Workers
from gpu_kernels import Splats, write_glb
from gpu_kernels import worker as protocol
from gpu_kernels.ply import write_ply
from tests.waiting import wait_for

MEMORY = 1024**3
CORNERS = np.array([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.0], [0.0, 0.5, 0.0]], np.float32)
TRIANGLE = write_glb(CORNERS, [[0, 1, 2]], base_colour=(0.2, 0.5, 0.9, 1.0))


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers("cpu", count=1, memory_bytes=MEMORY, seconds=30.0) as pool:
        pool.render(TRIANGLE)
        yield pool


def test_a_worker_starts_whatever_this_process_does_to_its_module_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cv2 puts its own folder, with a module cv2 in it, in front while it is imported: perhaps by another thread."""
    (tmp_path / "cv2.py").write_text("raise ImportError('half of a module')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Workers("cpu", count=1, memory_bytes=MEMORY, seconds=30.0) as pool:
        assert is_preview(pool.render(TRIANGLE).png)


def is_preview(png: bytes) -> bool:
    with Image.open(io.BytesIO(png)) as picture:
        return picture.size == (1041, 1041) and len(set(picture.convert("L").tobytes())) > 2


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid greyscale PNG, small in the file and `width * height` bytes when decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeezed, row = zlib.compressobj(9), bytes(width + 1)
    data = b"".join(squeezed.compress(row) for _ in range(height)) + squeezed.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def textured(png: bytes) -> bytes:
    return write_glb(CORNERS, [[0, 1, 2]], uv=np.zeros((3, 2), np.float32), base_colour_png=png)


SLOW = textured(png_of_zeros(8192, 8192))  # some tenths of a second to decode


def with_json(glb: bytes, **numbers: object) -> bytes:
    """The GLB with entries of its JSON replaced; a key names the place, as `accessors__0__count`."""
    size = struct.unpack_from("<I", glb, 12)[0]
    document = json.loads(glb[20 : 20 + size])
    for name, value in numbers.items():
        *path, last = [int(step) if step.isdigit() else step for step in name.split("__")]
        part = document
        for step in path:
            part = part[step]
        part[last] = value
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    rest = glb[20 + size :]
    return struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest


def no_splats(count: int, zeros: int) -> bytes:
    """An SPZ (zstd) that declares `count` splats, and goes on with so many zeros, whatever it declares."""
    import zstandard

    squeezed = zstandard.ZstdCompressor(level=1).compressobj()
    head = struct.pack("<4sIIBBBB", b"NGSP", 2, count, 0, 12, 0, 0)
    return (
        squeezed.compress(head)
        + b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(zeros >> 20))
        + squeezed.flush()
    )


@cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Name to a file, and words of the reason with which it is refused; no words: it may become a picture."""
    uv = np.zeros((3, 2), np.float32)
    flat = write_glb(np.zeros((300_000, 3), np.float32), np.arange(3_000_000).reshape(-1, 3) % 300_000)
    wild = write_glb(CORNERS, [[0, 1, 2]])
    wild = wild[:-12] + struct.pack("<3I", 0, 1, 0x7FFFFFFF) if wild.endswith(struct.pack("<3I", 0, 1, 2)) else b""
    ply = write_ply(Splats(CORNERS, CORNERS, np.ones((3, 4), np.float32), CORNERS[:, 0].copy(), CORNERS))
    huge = png_of_zeros(60_000, 16)[:16] + struct.pack(">II", 60_000, 60_000) + png_of_zeros(60_000, 16)[24:]
    huge = huge[:29] + struct.pack(">I", zlib.crc32(huge[12:29])) + huge[33:]
    return {
        "a texture of 60000 x 60000": (write_glb(CORNERS, [[0, 1, 2]], uv=uv, base_colour_png=huge), "too large"),
        "an index out of range": (wild, "past"),
        "NaN": (write_glb(CORNERS * np.float32("nan"), [[0, 1, 2]]), "finite"),
        "infinity": (write_glb(CORNERS + np.float32("inf"), [[0, 1, 2]]), "finite"),
        "a million triangles without an area": (flat, ""),
        "a count that lies": (with_json(TRIANGLE, accessors__0__count=1 << 39), "vertices"),
        "a PLY count that lies": (ply.replace(b"element vertex 3", b"element vertex 4000000000"), "splats"),
        "zeros without end after few splats": (no_splats(1000, 1 << 29), ""),
        "zeros for more splats than there may be": (no_splats(4_000_000_000, 1 << 29), "splats"),
        "zeros for as many splats as there may be": (no_splats(5_000_000, 1 << 29), ""),
    }


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_costs_that_one_file_and_leaves_its_worker(workers: Workers, name: str) -> None:
    model, words = bombs()[name]
    before = workers.pids()
    reason = refusal(workers, model)
    assert bool(reason) or not words, "was drawn"
    assert words in reason
    assert "memory" not in reason
    assert workers.pids() == before
    drawn = workers.render(TRIANGLE)
    assert is_preview(drawn.png)
    assert drawn.peak_memory < MEMORY


def refusal(workers: Workers, model: bytes) -> str:
    """The reason why a file is refused; none when a preview comes of it."""
    try:
        with Image.open(io.BytesIO(workers.render(model).png)) as picture:
            assert picture.size == (1041, 1041)
    except MinerFault as fault:
        return str(fault)
    return ""


def test_a_file_that_needs_too_much_memory_is_refused_and_its_worker_replaced() -> None:
    with Workers("cpu", count=1, memory_bytes=320 * 1024**2) as pool:
        assert is_preview(pool.render(TRIANGLE).png)
        before = pool.pids()
        with pytest.raises(MinerFault, match="needed more than 320 MiB of memory"):
            pool.render(SLOW)
        assert is_preview(pool.render(TRIANGLE).png)
        assert pool.pids() != before
        assert len(pool.pids()) == 1


def test_a_file_that_computes_past_its_time_is_refused_once(caplog: pytest.LogCaptureFixture) -> None:
    with Workers("cpu", count=1) as pool:
        for _ in range(5):  # on a machine that gives its cores to others a file rightly gets a second try
            pool.seconds = 60.0
            assert is_preview(pool.render(TRIANGLE).png)
            pool.seconds = 0.1
            caplog.clear()
            with pytest.raises(MinerFault, match=r"took longer than 0.1 s to render"):
                pool.render(SLOW)
            assert pool.pids() == []
            if "tried again" not in caplog.text:
                break
        else:
            pytest.fail("the file was always given its time again")
        pool.seconds = 60.0
        assert is_preview(pool.render(TRIANGLE).png)


def test_a_worker_that_stands_still_is_replaced_and_the_file_is_drawn() -> None:
    with Workers("cpu", count=1, seconds=3.0) as pool:
        pool.render(TRIANGLE)
        (before,) = pool.pids()
        os.kill(before, signal.SIGSTOP)
        assert is_preview(pool.render(TRIANGLE).png)
        assert pool.pids() != [before]
        assert not psutil.pid_exists(before)


@pytest.fixture
def when_begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Call it with a pool and signals: its worker gets the next one each time that it has begun with a file.

    Have it render SLOW, so that the signal is not late.
    """
    due: list[tuple[Workers, signal.Signals]] = []
    read = protocol.read_answer

    def watched(source: IO[bytes]) -> tuple[dict[str, object], bytes]:
        answer = read(source)
        if answer[0]["status"] == "begun" and due:
            pool, sent = due.pop(0)
            for pid in pool.pids():
                os.kill(pid, sent)
        return answer

    monkeypatch.setattr(protocol, "read_answer", watched)
    yield lambda pool, *signals: due.extend((pool, sent) for sent in signals)
    assert not due


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
def test_one_crash_is_not_held_against_a_file(
    when_begun: Callable[..., None], sent: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    with Workers("cpu", count=1) as pool:
        pool.render(TRIANGLE)
        when_begun(pool, sent)
        assert is_preview(pool.render(SLOW).png)
        assert "tried again in a fresh worker" in caplog.text


def test_two_crashes_are_the_files_fault(when_begun: Callable[..., None]) -> None:
    with Workers("cpu", count=1) as pool:
        pool.render(TRIANGLE)
        when_begun(pool, signal.SIGSEGV, signal.SIGSEGV)
        with pytest.raises(MinerFault, match=r"crashed the renderer \(signal 11\)"):
            pool.render(SLOW)
        assert is_preview(pool.render(TRIANGLE).png)


def test_what_kills_two_workers_from_outside_is_an_outage(when_begun: Callable[..., None]) -> None:
    with Workers("cpu", count=1) as pool:
        pool.render(TRIANGLE)
        when_begun(pool, signal.SIGKILL, signal.SIGKILL)
        with pytest.raises(Unavailable, match="killed from outside"):
            pool.render(SLOW)
        assert is_preview(pool.render(TRIANGLE).png)


def test_workers_are_kept_and_shared_by_threads() -> None:
    models = [write_glb(CORNERS * (0.5 + n / 20), [[0, 1, 2]]) for n in range(8)]
    with Workers("cpu", count=2) as pool:
        pool.start()
        one_by_one = [pool.render(model).png for model in models]
        before = pool.pids()
        with ThreadPoolExecutor(8) as threads:
            at_once = list(threads.map(lambda model: pool.render(model).png, models * 2))
        assert at_once == one_by_one * 2
        assert set(before) <= set(pool.pids())
        assert len(pool.pids()) <= 2
        pids = pool.pids()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_worker_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_TOKEN", "OPENAI_API_KEY", "R2_SECRET_ACCESS_KEY", "GEN404_STATE_REPO"):
        monkeypatch.setenv(name, "a-secret-value")
    with Workers("cpu", count=1) as pool:
        pool.render(TRIANGLE)
        (pid,) = pool.pids()
        assert "a-secret-value" not in str(psutil.Process(pid).environ())


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(0)", "time.sleep(60)"])
def test_no_worker_outlives_its_parent(tmp_path: Path, end: str) -> None:
    (tmp_path / "triangle.glb").write_bytes(TRIANGLE)
    program = f"""
import os, pathlib, sys, threading, time
from gen404_dagster.resources.workers import Workers
pool = Workers("cpu", count=1)
model = pathlib.Path("triangle.glb").read_bytes()
thread = threading.Thread(target=pool.render, args=(model,))  # a worker does not end with the thread that wanted it
thread.start()
thread.join()
pool.render(model)
print(*pool.pids(), flush=True)
{end}
"""
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path, env=environment, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if "sleep" in end:
            parent.send_signal(signal.SIGTERM)
        parent.wait(60)
    assert len(pids) == 1
    wait_for(lambda: not any(is_running(pid) for pid in pids))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_backend_that_cannot_draw_here_is_the_operators_mistake() -> None:
    with Workers("no-such-backend", count=1) as pool:
        pool.start()
        with pytest.raises(OperatorError, match=r"no-such-backend.*GEN404_RENDER_BACKEND"):
            pool.render(TRIANGLE)
        assert pool.pids() == []


def test_a_closed_pool_says_so() -> None:
    pool = Workers("cpu", count=1)
    pool.close()
    with pytest.raises(Unavailable, match="closed"):
        pool.render(TRIANGLE)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x01",
        struct.pack("<II", 1 << 31, 0),
        struct.pack("<II", 2, 1 << 31),
        struct.pack("<II", 2, 0) + b"[]",
        struct.pack("<II", 2, 0) + b"{}",
        struct.pack("<II", 9, 0) + b"not JSON!",
        struct.pack("<II", 20, 4) + b'{"status":"picture"}GIF8',
        struct.pack("<II", 20, 0) + b'{"status":"picture"}',
        struct.pack("<II", 3 << 14, 0) + b"[" * (3 << 14),
    ],
)
def test_an_answer_that_is_none_is_never_believed(answer: bytes) -> None:
    with pytest.raises(protocol.BrokenAnswer):
        protocol.read_answer(io.BytesIO(answer))

"""Previews and embeddings: how equal to pyrender's, and how fast, measured in one run.

    python benchmarks/previews.py [--quick] [-o docs/benchmarks.md]

The first run makes pyrender's own environment and two large models in .gen404/bench. Where pyrender cannot be installed
its columns are empty and the rest is measured; without a CUDA device the last table says that it was not run.

Belongs here: what is measured and how (rivals by turns in one loop, warm, medians). Does not: limits of what is right
(tests), the models and the peer (`peers`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from peers.material_meshes import ball, bumps, clouds, encoded, make_meshes, sheet
from rich.console import Console
from rich.table import Table

from gpu_kernels import encode_png, load_glb, render_preview, warm_up, write_glb
from gpu_kernels.models import load_model
from gpu_kernels.ply import write_ply
from gpu_kernels.preview import draw_preview
from gpu_kernels.registry import backends
from gpu_kernels.splats import Splats

FOLDER = Path(__file__).resolve().parents[1] / ".gen404" / "bench"
PEERS = Path(__file__).resolve().parent / "peers"
LARGE = {"205k triangles, 20 MB": 320, "819k triangles, 37 MB": 640}  # quads a side
SPLATS = {"50k": 50_000, "200k": 200_000, "1M": 1_000_000}
CORES = len(os.sched_getaffinity(0))


@dataclass
class Report:
    """Tables, printed as they come and written as Markdown at the end."""

    text: list[str] = field(default_factory=list)

    def table(self, title: str, columns: list[str], rows: list[list[str]], note: str = "") -> None:
        console = Console(width=150)
        shown = Table(*columns, title=title, caption=note or None, title_justify="left", caption_justify="left")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
        line = "| {} |".format
        body = [line(" | ".join(cells)) for cells in (columns, ["---", *["---:"] * (len(columns) - 1)], *rows)]
        self.text += [f"## {title}", "", *([note, ""] if note else []), *body, ""]


# --- pyrender, in its own environment ---


class Peer:
    """pyrender in a process of its own, one file at a time."""

    def __init__(self, python: Path, name: str) -> None:
        self.name = name
        environment = {**os.environ, "PYOPENGL_PLATFORM": name}
        self.process = subprocess.Popen(
            [python, PEERS / "pyrender_peer.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.renderer = self._answer()["renderer"]

    def _answer(self) -> dict[str, Any]:
        limit = threading.Timer(300, self.process.kill)
        limit.start()
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            limit.cancel()
        if not line:
            raise RuntimeError(f"pyrender on {self.name} ended")
        return json.loads(line)

    def draw(self, glb: Path, out: Path | None = None) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"glb": str(glb), "out": str(out) if out else None}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise RuntimeError(f"pyrender on {self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def peer_python() -> Path:
    """The Python of pyrender's environment, made if need be. Raises CalledProcessError with what pip says."""
    home, wanted = FOLDER / "pyrender", PEERS / "requirements-pyrender.txt"
    python, done = home / "bin" / "python", home / "installed.txt"
    if not done.exists() or done.read_text() != wanted.read_text():
        for command in (
            [sys.executable, "-m", "venv", "--clear", home],
            [python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", wanted],
        ):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=900)
        done.write_text(wanted.read_text())
    return python


@contextmanager
def peers() -> Iterator[list[Peer]]:
    """pyrender on each of its two software backends that starts here; what does not is said and left out."""
    with ExitStack() as stack:
        found = []
        try:
            python = peer_python()
        except (subprocess.SubprocessError, OSError) as error:
            print(f"pyrender cannot be installed, it is left out: {error} {getattr(error, 'stderr', '') or ''}")
            yield []
            return
        for name in ("osmesa", "egl"):
            try:
                found.append(Peer(python, name))
                stack.callback(found[-1].close)
            except RuntimeError as error:
                print(f"{error}: it is left out")
        yield found


# --- models ---


def large_glb(quads: int) -> Path:
    """A textured ball of 2 quads^2 triangles: three textures of 2048 x 2048, 14 MB as PNG."""
    path = FOLDER / f"ball-{quads}.glb"
    if not path.exists():
        shape = sheet(ball, quads, quads)
        # Without the lowest bit, so that files have the sizes that others were measured with.
        colour, surface, normal = (
            encoded(layer // 2 * 2) for layer in (clouds(1, 2048), clouds(4, 2048, low=40), bumps(2048))
        )
        data = write_glb(
            shape.positions,
            shape.indices,
            shape.normals,
            shape.uv,
            base_colour_png=colour,
            metallic=1.0,
            images={"metallicRoughnessTexture": surface, "normalTexture": normal},
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_bytes(data)
        partial.replace(path)
    return path


def without_textures(quads: int) -> bytes:
    shape = sheet(ball, quads, quads)
    return write_glb(shape.positions, shape.indices, shape.normals, shape.uv, metallic=1.0)


def large_ply(count: int) -> bytes:
    """Splats on a bumpy ball, flat to its surface, as large as closes it about three times over."""
    random = np.random.default_rng(count)
    u, v = random.random(count), np.arccos(random.uniform(-0.98, 0.98, count)) / np.pi
    size = np.log(1.5 / np.sqrt(count))
    logs = np.stack([np.full(count, size), np.full(count, size), np.full(count, size - 2)], axis=1)
    splats = Splats(
        ball(u, v).astype(np.float32),
        (logs + random.normal(0, 0.3, (count, 3))).astype(np.float32),
        random.normal(size=(count, 4)).astype(np.float32),
        random.normal(1, 2, count).astype(np.float32),
        random.normal(size=(count, 3)).astype(np.float32),
    )
    return write_ply(splats)


# --- measuring ---


def by_turns(rivals: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """What each gave in each round; all take turns in every round, after one that does not count."""
    given: dict[str, list[Any]] = {name: [] for name in rivals}
    for number in range(rounds + 1):
        for name, run in rivals.items():
            result = run()
            if number:
                given[name].append(result)
    return given


def seconds(run: Callable[[], Any]) -> float:
    started = perf_counter()
    run()
    return perf_counter() - started


def median(values: list[float]) -> float:
    return statistics.median(values)


def psnr(a: Any, b: Any) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * np.log10(255**2 / max(error, 1e-9))


def gl_backend() -> bool:
    return any(backend.name == "gl" and backend.available for backend in backends())


# --- tables ---


def equality(report: Report, drawn_by: list[Peer]) -> None:
    """PSNR of whole grids."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, data in make_meshes().items():
            path, out = Path(folder) / "mesh.glb", Path(folder) / "grid.npy"
            path.write_bytes(data)
            ours = {"cpu": render_preview(data, "cpu")}
            if gl_backend():
                ours["gl"] = render_preview(data, "gl")
                ours["gl4"] = draw_four_samples(data)
            row = {"cpu gl": psnr(ours["cpu"], ours["gl"]) if "gl" in ours else np.nan}
            for peer in drawn_by:
                peer.draw(path, out)
                theirs = np.load(out)
                row |= {f"{mine} {peer.name}": psnr(picture, theirs) for mine, picture in ours.items()}
            rows.append((name, row))
    columns = ["cpu osmesa", "cpu egl", "gl osmesa", "gl4 egl", "cpu gl"]
    table = [[name, *(decibels(row.get(column)) for column in columns)] for name, row in rows]
    least = [decibels(min((row.get(column, np.nan) for _, row in rows), default=np.nan)) for column in columns]
    report.table(
        "Equal to pyrender",
        ["mesh", "cpu, pyrender OSMesa", "cpu, pyrender EGL", "gl, OSMesa", "gl with 4 samples, EGL", "cpu, gl"],
        [*table, ["**least**", *least]],
        "PSNR of the whole grid in dB. pyrender has 4 coverage samples a pixel on EGL and 1 on OSMesa; ours have 1.",
    )


def draw_four_samples(data: bytes) -> Any:
    from gpu_kernels.camera import AZIMUTHS, ELEVATION, GAP, GRID_SIZE, VIEW_SIZE, mesh_view
    from gpu_kernels.gl.renderer import renderer

    grid = np.zeros((GRID_SIZE, GRID_SIZE, 3), np.uint8)
    corners = [tuple(place * (VIEW_SIZE + GAP) for place in divmod(number, 2)) for number in range(4)]
    parts = [grid[top : top + VIEW_SIZE, left : left + VIEW_SIZE] for top, left in corners]
    renderer().draw(load_glb(data), [mesh_view(azimuth, ELEVATION, VIEW_SIZE) for azimuth in AZIMUTHS], parts, 4)
    return grid


def decibels(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.1f}"


def mesh_speed(report: Report, drawn_by: list[Peer], rounds: int) -> None:
    """Against pyrender, end to end and without what is only decoding."""
    rows, shares = [], []
    for name, quads in LARGE.items():
        path = large_glb(quads)
        data, bare = path.read_bytes(), without_textures(quads)
        label = f"{name} ({2 * quads**2:,} triangles, {len(data) / 1e6:.1f} MB)"
        given = by_turns(mesh_rivals(path, data, bare, drawn_by), rounds)
        theirs = {
            f"pyrender, {peer.name}": {
                "all": median([one["total"] for one in given[peer.name]]),
                "core": median([one["parse"] + one["draw"] for one in given[peer.name]]),
            }
            for peer in drawn_by
        }
        for backend in ("cpu", "gl"):
            if f"{backend} all" in given:
                cells = []
                for what in ("all", "core"):
                    taken = median(given[f"{backend} {what}"])
                    fastest = min((each[what] for each in theirs.values()), default=float("nan"))
                    cells.append(f"{taken:.3f} s, {fastest / taken:.1f}x")
                rows.append([label, backend, *cells])
        rows += [[label, peer, *(f"{each[what]:.3f} s" for what in ("all", "core"))] for peer, each in theirs.items()]
        load, geometry, draw, encode = (median(given[what]) for what in ("load", "geometry", "draw", "encode"))
        parts = (geometry, max(load - geometry, 0.0), draw, encode)
        shares.append([label, *(f"{part:.3f} s, {part / sum(parts):.0%}" for part in parts)])
    report.table(
        "Meshes: seconds per preview",
        ["model", "drawn by", "bytes to PNG", "without texture decoding and PNG"],
        rows,
        f"Median of {rounds} rounds by turns, warm; x: against the faster of pyrender's two backends.",
    )
    report.table(
        "Meshes: where the time of cpu goes",
        ["model", "load geometry", "textures, beyond that", "render", "encode PNG"],
        shares,
        "Textures are decoded beside the geometry: the second column is what they add.",
    )


def mesh_rivals(path: Path, data: bytes, bare: bytes, drawn_by: list[Peer]) -> dict[str, Callable[[], Any]]:
    """All that is timed on one model; bare: the same geometry in a file without textures."""
    mesh = load_glb(data)
    picture = draw_preview(mesh, "cpu")

    def whole(backend: str) -> Callable[[], float]:
        return lambda: seconds(lambda: encode_png(render_preview(data, backend)))

    def core(backend: str) -> Callable[[], float]:
        return lambda: seconds(lambda: (load_glb(bare), draw_preview(mesh, backend)))

    def peer_draws(peer: Peer) -> Callable[[], dict[str, Any]]:
        return lambda: peer.draw(path)

    rivals: dict[str, Callable[[], Any]] = {peer.name: peer_draws(peer) for peer in drawn_by}
    for backend in ("cpu", *(["gl"] if gl_backend() else [])):
        rivals |= {f"{backend} all": whole(backend), f"{backend} core": core(backend)}
    return rivals | {
        "load": lambda: seconds(lambda: load_glb(data)),
        "geometry": lambda: seconds(lambda: load_glb(bare)),
        "draw": lambda: seconds(lambda: draw_preview(mesh, "cpu")),
        "encode": lambda: seconds(lambda: encode_png(picture)),
    }


def splat_speed(report: Report, rounds: int) -> None:
    rows = []
    for name, count in SPLATS.items():
        data = large_ply(count)
        splats = load_model(data)
        picture = draw_preview(splats, "cpu")
        given = by_turns(
            {
                "all": lambda data=data: seconds(lambda: encode_png(render_preview(data, "cpu"))),
                "load": lambda data=data: seconds(lambda: load_model(data)),
                "draw": lambda splats=splats: seconds(lambda: draw_preview(splats, "cpu")),
                "encode": lambda picture=picture: seconds(lambda: encode_png(picture)),
            },
            rounds,
        )
        taken = {what: median(values) for what, values in given.items()}
        whole = sum(taken[what] for what in ("load", "draw", "encode"))
        shares = (f"{taken[what]:.3f} s, {taken[what] / whole:.0%}" for what in ("load", "draw", "encode"))
        rows.append([f"{name} ({len(data) / 1e6:.1f} MB PLY)", f"{taken['all']:.3f}", *shares])
    report.table(
        "Splats: seconds per preview", ["Gaussians", "bytes to PNG", "load", "render", "encode PNG"], rows, "cpu, warm."
    )


PEAK = """
import re, sys
from pathlib import Path
from gpu_kernels import encode_png, render_preview, warm_up

def peak():  # not ru_maxrss: that of a parent is inherited
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

warm_up("cpu")
before = peak()
encode_png(render_preview(Path(sys.argv[1]).read_bytes(), "cpu"))
print(before, peak())
"""
COLD = """
from time import perf_counter
started = perf_counter()
from gpu_kernels import warm_up
warm_up("cpu")
print(perf_counter() - started)
"""


def run_apart(code: str, *arguments: str, **environment: str) -> list[float]:
    """The numbers that a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return [float(number) for number in done.stdout.split()]


def memory(report: Report) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {name: large_glb(quads) for name, quads in LARGE.items()}
        for name, count in SPLATS.items():
            files[f"{name} Gaussians"] = Path(folder) / f"{count}.ply"
            files[f"{name} Gaussians"].write_bytes(large_ply(count))
        for name, path in files.items():
            before, peak = run_apart(PEAK, str(path))
            rows.append([name, f"{peak:.0f}", f"{peak - before:.0f}"])
    report.table(
        "Peak memory of a process that draws one preview",
        ["model", "MiB", "beyond what the warmed-up process has"],
        rows,
        "cpu, resident.",
    )


def cold_start(report: Report) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cold, warm, again = (run_apart(COLD, NUMBA_CACHE_DIR=folder)[0] for _ in range(3))
    report.table(
        "Start of a process until it can draw",
        ["compilation cache", "seconds"],
        [["empty", f"{cold:.1f}"], ["filled", f"{min(warm, again):.2f}"]],
        "Import and `warm_up` of cpu.",
    )


def throughput(report: Report, previews: int) -> None:
    """The pipeline's own worker processes, as many as cores."""
    from gen404_dagster.resources.workers import Workers

    models = {
        "material mesh, 9k triangles, 5 textures": make_meshes()["everything"],
        "205k triangles, 20 MB": large_glb(320).read_bytes(),
        "200k Gaussians": large_ply(200_000),
    }
    rows = []
    workers = Workers("cpu", CORES)
    try:
        with ThreadPoolExecutor(CORES) as pool:
            for name, data in models.items():
                list(pool.map(workers.render, [data] * CORES))
                taken = seconds(lambda data=data: list(pool.map(workers.render, [data] * previews)))
                rows.append([name, f"{60 * previews / taken:.0f}"])
    finally:
        workers.close()
    report.table(
        "Previews a minute", ["model", "a minute"], rows, f"{CORES} isolated worker processes on {CORES} cores, cpu."
    )


def embeddings(report: Report, rounds: int) -> None:
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel
    from transformers.utils import logging

    from gen404_dagster.resources.embedder import DINOv3Embedder, EfficientNetEmbedder
    from gen404_dagster.resources.embedder.dinov3 import PREPARATION, PREPARED_AS

    random = np.random.default_rng(0)
    pictures = list(random.integers(0, 256, (32, 1041, 1041, 3)).astype(np.uint8))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        logging.disable_progress_bar()
        torch.manual_seed(0)
        DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4)).save_pretrained(folder)
        (Path(folder) / PREPARATION).write_text(json.dumps(PREPARED_AS))
        for name, embedder in (
            ("EfficientNet-Lite0", EfficientNetEmbedder()),
            ("DINOv3 ViT-S/16 (random weights)", DINOv3Embedder(Path(folder))),
        ):
            given = by_turns(
                {
                    str(batch): lambda batch=batch, embedder=embedder: seconds(
                        lambda: embedder.embed_pictures(pictures[:batch])
                    )
                    for batch in (1, 32)
                },
                rounds,
            )
            rows.append([name, embedder.device, *(f"{int(batch) / median(given[batch]):.1f}" for batch in ("1", "32"))])
    report.table(
        "Embeddings a second",
        ["network", "device", "1 picture a call", "32 pictures a call"],
        rows,
        "Grids of 1041 x 1041, their preparation included, PNG decoding and caches not.",
    )


def graphics_card(report: Report, rounds: int) -> None:
    """Every backend on CUDA or a graphics card, against gsplat and pyrender as the public service uses them."""
    title = "On a graphics card"
    drawing = [backend for backend in backends() if backend.available and backend.name != "cpu"]
    try:
        import torch

        card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    except ImportError:
        card = None
    if card is None:
        report.text += [f"## {title}", "", "Not run: this machine has no CUDA device.", ""]
        print(f"{title}: not run, this machine has no CUDA device.")
        return
    block = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    copy = torch.empty_like(block)

    def move() -> float:
        torch.cuda.synchronize()
        started = perf_counter()
        for _ in range(10):
            copy.copy_(block)
        torch.cuda.synchronize()
        return 10 * 2 * len(block) / (perf_counter() - started)

    ceiling = max(move() for _ in range(5))
    rows = []
    for name, count in SPLATS.items():
        splats = load_model(large_ply(count))
        # Each splat's 14 floats are read once, its record of 40 bytes a view is written and read, pixels are written.
        least = count * (14 * 4 + 4 * 2 * 40) + 4 * 518 * 518 * 3
        rows += measure_card(
            {b.name: b for b in drawing if b.draw_splats}, f"{name} Gaussians", splats, least, ceiling, rounds
        )
    for name, quads in LARGE.items():
        mesh = load_glb(large_glb(quads).read_bytes())
        arrays = (mesh.positions, mesh.indices, mesh.normals, mesh.uv)
        # Geometry is read for each view, textures once, samples are written and read.
        least = 4 * sum(array.nbytes for array in arrays if array is not None) + 3 * (2048**2) * 4 + 4 * 2 * 1036**2 * 4
        rows += measure_card({b.name: b for b in drawing if b.draw_mesh}, name, mesh, least, ceiling, rounds)
    report.table(
        title,
        ["model", "backend", "seconds, arrays to picture", "of the bandwidth's ceiling"],
        rows,
        f"{card}; copying moves {ceiling / 1e9:.0f} GB/s. The ceiling counts the bytes that must move at least.",
    )


def measure_card(
    drawing: dict[str, Any], label: str, model: Any, least: int, ceiling: float, rounds: int
) -> list[list[str]]:
    rivals = {name: lambda name=name: seconds(lambda: draw_preview(model, name)) for name in drawing}
    given = by_turns(rivals, rounds)
    return [
        [label, name, f"{median(values):.4f}", f"{least / ceiling / median(values):.1%}"]
        for name, values in given.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("-o", "--output", type=Path, help="write the tables as Markdown, too")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else 7
    FOLDER.mkdir(parents=True, exist_ok=True)
    warm_up("cpu")
    report = Report()
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    machine = f"{CORES} cores, {cpu}, Python {platform.python_version()}, {platform.system()}"
    print(machine)
    with peers() as drawn_by:
        equality(report, drawn_by)
        mesh_speed(report, drawn_by, rounds)
    splat_speed(report, rounds)
    throughput(report, 6 if arguments.quick else 30)
    embeddings(report, rounds)
    memory(report)
    cold_start(report)
    graphics_card(report, rounds)
    if arguments.output:
        head = [
            "# Benchmarks of previews",
            "",
            f"Generated by `python {' '.join(['benchmarks/previews.py', *sys.argv[1:]])}`.",
        ]
        arguments.output.write_text("\n".join([*head, f"{machine}.", "", *report.text]).rstrip() + "\n")


if __name__ == "__main__":
    main()

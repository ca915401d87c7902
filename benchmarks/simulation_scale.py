"""What a whole simulated round costs, and how much of it is not the miners' images.

    python benchmarks/simulation_scale.py [--miners 9] [--prompts 12] [--seed 404] [--workdir DIR]

The issue's size is `--miners 32 --prompts 32`: minutes on two cores. Plays `gen404 simulate` and looks at its processes
meanwhile. Processor time of images, world and drawing is what these processes have used when last seen, that of all
together what the kernel counted at the end; git and other short processes are the difference. Memory is PSS, so that
shared pages count once. An image works in an interval between two looks when one has used processor time in it.
Belongs here: one round as a whole. Does not: single parts (`previews.py`, `judge.py`, `downloads.py`).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOK_SECONDS, MEMORY_SECONDS = 0.2, 1.0
IMAGES, WORLD, DRAWING, PIPELINE, SHORT = (
    "miners' images",
    "world (chain, CDNs, registry)",
    "drawing workers",
    "pipeline",
    "git and other short processes",
)
MARKS = {
    "gen404_dagster.simulation.image": IMAGES,
    "gen404_dagster.simulation.world": WORLD,
    "gpu_kernels.worker": DRAWING,
}


@dataclass
class Watch:
    """What the processes below a root have used so far."""

    root: psutil.Process
    seconds: dict[tuple[int, float], float] = field(default_factory=dict)  # processor time by (pid, started)
    roles: dict[tuple[int, float], str] = field(default_factory=dict)
    images_at_work: float = 0.0  # wall seconds
    most_images: int = 0
    peak: Counter[str] = field(default_factory=Counter)  # bytes by role, when the sum was highest

    def processes(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return [self.root, *self.root.children(recursive=True)]
        return []

    def look(self, interval: float) -> None:
        before = self.of(IMAGES)
        images = 0
        for process in self.processes():
            with suppress(psutil.Error):
                key = process.pid, process.create_time()
                if self.roles.get(key, SHORT) == SHORT:  # one that was just forked still looks like its parent
                    self.roles[key] = self._role(process)
                images += self.roles[key] == IMAGES and "-S" not in process.cmdline()  # guards are not images
                used = process.cpu_times()
                self.seconds[key] = used.user + used.system
        self.most_images = max(self.most_images, images)
        if self.of(IMAGES) > before:
            self.images_at_work += interval

    def weigh(self) -> None:
        now: Counter[str] = Counter()
        for process in self.processes():
            with suppress(psutil.Error):
                role = self.roles.get((process.pid, process.create_time()), SHORT)
                now[role] += process.memory_full_info().pss
        if now.total() > self.peak.total():
            self.peak = now

    def of(self, role: str) -> float:
        return sum(used for key, used in self.seconds.items() if self.roles[key] == role)

    def _role(self, process: psutil.Process) -> str:
        words = process.cmdline()
        if process == self.root:
            return PIPELINE
        return next((role for mark, role in MARKS.items() if mark in words), SHORT)


def play(workdir: Path, options: argparse.Namespace) -> tuple[Watch, float, float]:
    """The watch, wall seconds, and processor seconds of all processes together."""
    command = [str(Path(sys.executable).with_name("gen404")), "simulate", "--json", "--workdir", str(workdir)]
    for name in ("miners", "prompts", "seed"):
        command += [f"--{name}", str(getattr(options, name))]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watch = Watch(psutil.Process(process.pid))
    looked = weighed = began
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        watch.look(now - looked)
        looked = now
        if now - weighed >= MEMORY_SECONDS:
            watch.weigh()
            weighed = time.monotonic()
    wall = time.monotonic() - began
    if process.returncode:
        sys.exit(f"the simulation ended with code {process.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return watch, wall, used.ru_utime + used.ru_stime


def seconds_by_job(workdir: Path) -> dict[str, tuple[int, float]]:
    """Runs and wall seconds of each job, from the simulation's own log."""
    took: dict[str, tuple[int, float]] = {}
    started, job = 0.0, ""
    for line in (workdir / "simulation.log").read_text().splitlines():
        entry = json.loads(line)
        if entry["event"] == "start":
            started, job = entry["time"], entry["detail"].split()[0]
        elif entry["event"] in ("end", "failed"):
            runs, seconds = took.get(job, (0, 0.0))
            took[job] = runs + 1, seconds + entry["time"] - started
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--miners", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=404)
    parser.add_argument("--workdir", type=Path, help="kept; without it a temporary folder is played in")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        workdir = options.workdir or Path(folder) / "simulation"
        watch, wall, total = play(workdir, options)
        jobs = seconds_by_job(workdir)
    cores = len(os.sched_getaffinity(0))
    used = {role: watch.of(role) for role in (IMAGES, WORLD, DRAWING, PIPELINE)}
    used[SHORT] = max(0.0, total - sum(used.values()))
    print(f"{options.miners} miners x {options.prompts} prompts on {cores} cores (load before: {load:.1f})")
    print(f"wall {wall:.1f} s; processor {total:.1f} s ({total / wall / cores:.0%} of the cores)")
    for role, seconds in used.items():
        print(f"  {role:32} {seconds:8.1f} s processor {seconds / total:6.1%}   {watch.peak[role] / 2**20:7.0f} MiB")
    print(
        f"peak memory {watch.peak.total() / 2**20:.0f} MiB (PSS of all processes); images at once: {watch.most_images}"
    )
    print(
        f"not the miners' images: {1 - used[IMAGES] / total:.1%} of processor time, "
        f"{1 - watch.images_at_work / wall:.1%} of wall time"
    )
    for job, (runs, seconds) in sorted(jobs.items(), key=lambda entry: -entry[1][1]):
        print(f"  {job:12} {runs:3} runs {seconds:8.1f} s {seconds / wall:6.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

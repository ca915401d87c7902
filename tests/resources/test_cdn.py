"""The guarded downloader against a real server that misbehaves, on loopback."""

import asyncio
import hashlib
import ipaddress
import random
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gen404_dagster.competition.limits import Limits
from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.cdn import Downloads, download_file, is_refused, public_hosts
from gen404_dagster.resources.object_store import GLB, LocalObjectStore, StoredObject
from gen404_dagster.resources.object_store.local import LocalWriter
from tests.resources import download_nursery
from tests.resources.download_nursery import FILES, open_store
from tests.resources.seaweed import ACCESS_KEY_ID, SECRET_ACCESS_KEY, Seaweed, unfinished_uploads

Answer = Callable[[asyncio.StreamWriter], Awaitable[object]]

LIMITS = Limits(
    download_jitter_seconds=0,
    download_retry_seconds=0,
    download_stall_seconds=20,
    download_timeout_seconds=40,
    max_file_bytes=256 * 1024,
)
# For servers that are too slow: so much longer than an answer takes that a busy machine is not taken for one.
HASTY = LIMITS.model_copy(update={"download_stall_seconds": 1.0})


class Miner:
    """A CDN: answers by path, each a function that writes to the socket as it likes. Counts what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.at_once = self.most_at_once = 0
        self.port = 0

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def asked(self, path: str) -> int:
        return sum(1 for asked, _ in self.requests if asked == path)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            path = first.split(" ")[1]
            self.requests.append((path, {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            answers = self.answers[path]
            await (answers.pop(0) if len(answers) > 1 else answers[0])(writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.at_once -= 1
            writer.close()


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None, **answers: list[Answer] | Answer) -> AsyncIterator[Miner]:
    miner = Miner()
    miner.answers = {f"/{path}": given if isinstance(given, list) else [given] for path, given in answers.items()}
    server = await asyncio.start_server(miner.serve, "127.0.0.1", 0, ssl=context)
    miner.port = server.sockets[0].getsockname()[1]
    try:
        yield miner
    finally:
        server.close()


def sends(*parts: bytes | float) -> Answer:
    """Write bytes, pause for numbers."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            if isinstance(part, bytes):
                writer.write(part)
                await writer.drain()
            else:
                await asyncio.sleep(part)

    return answer


def page(status: str, body: bytes = b"", **headers: str) -> Answer:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body)}",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    return sends("\r\n".join([*lines, "Connection: close", "", ""]).encode() + body)


def endless(writer_part: bytes, pause: float, headers: str = "") -> Answer:
    """A body without an end, and without a length unless `headers` claim one."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\n{headers}Connection: close\r\n\r\n".encode())
        for _ in range(100_000):
            writer.write(writer_part)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


OK = page("200 OK", b"glTF-bytes", Content_Type="model/gltf-binary")


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store", "https://cdn.example.org")


def left_over(store: LocalObjectStore) -> list[str]:
    return [*store.list(), *(path.name for path in store.root.glob(".partial/*"))]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


async def fault_of(
    store: LocalObjectStore, url: str, limits: Limits = LIMITS, allow_private_network: bool = True
) -> str:
    """The reason for which a download failed; nothing may be left of it."""
    async with Downloads(limits, allow_private_network) as downloads:
        with pytest.raises(MinerFault) as caught:
            await downloads.fetch(url, store, "a.glb")
    assert left_over(store) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_stored_whole(store: LocalObjectStore) -> None:
    body = random.Random(1).randbytes(200_000)

    async def test() -> None:
        async with serving(file=page("200 OK", body)) as miner, Downloads(LIMITS, True) as downloads:
            stored = await downloads.fetch(miner.url("/file"), store, "rounds/1/5ABC/submitted/p.glb")
            assert (stored.size, stored.content_type) == (200_000, "model/gltf-binary")
            assert store.read(stored.key) == body
            ((_, headers),) = miner.requests
            assert headers["accept-encoding"] == "identity"
            assert headers["host"] == f"127.0.0.1:{miner.port}"

    run(test())


def test_what_is_stored_is_not_fetched_again(store: LocalObjectStore) -> None:
    async def test() -> None:
        async with serving(file=[page("200 OK", b"first"), page("200 OK", b"second")]) as miner:
            async with Downloads(LIMITS, True) as downloads:
                first = await downloads.fetch(miner.url("/file"), store, "a.glb")
                assert await downloads.fetch(miner.url("/file"), store, "a.glb") == first
            assert len(miner.requests) == 1

    run(test())


def test_a_second_try_succeeds(store: LocalObjectStore) -> None:
    """404, a dropped connection, a stall: each may be an accident."""
    accidents = [
        page("404 Not Found"),
        page("503 Busy"),
        sends(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"),
        sends(9.0),
    ]

    async def test() -> None:
        for number, accident in enumerate(accidents):
            async with serving(file=[accident, OK]) as miner, Downloads(HASTY, True) as downloads:
                await downloads.fetch(miner.url("/file"), store, f"{number}.glb")
                assert store.read(f"{number}.glb") == b"glTF-bytes"
                assert miner.asked("/file") == 2

    run(test())


@pytest.mark.parametrize(
    ("answer", "reason", "tries"),
    [
        (page("404 Not Found"), "HTTP 404", 2),
        (page("500 <script>\x1b[31m"), "HTTP 500", 2),
        (page("204 No Content"), "HTTP 204", 2),
        (page("206 Partial", b"x"), "HTTP 206", 2),
        (page("302 Found", Location="http://169.254.169.254/"), "redirect: refused address 169.254.169.254", 1),
        (page("302 Found", Location="ftp://127.0.0.1/x"), "redirect: only https is fetched", 1),
        (page("302 Found", Location="https://user@127.0.0.1/x"), "redirect: URL with credentials", 1),
        (page("302 Found", Location="//[::1"), "broken HTTP answer", 2),
        (page("302 Found", Location="/file"), "more than 3 redirects", 4),
        (page("302 Found"), "HTTP 302", 2),
        (page("304 Not Modified"), "HTTP 304", 2),
        (page("200 OK", b"\x1f\x8b", Content_Encoding="gzip"), "sent in an encoding that was not asked for", 2),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 262145\r\n\r\n"), "larger than 0.2 MiB", 1),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n"), "broken HTTP answer", 2),
        (endless(b"x" * 65536, 0), "larger than 0.2 MiB", 1),
        (endless(b"10000\r\n" + b"x" * 65536 + b"\r\n", 0, "Transfer-Encoding: chunked\r\n"), "larger than 0.2 MiB", 1),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\nshort"), "connection closed early", 2),
        (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", 9.0), "stalled for 1 s", 2),
        (sends(9.0), "stalled for 1 s", 2),
        (sends(b"HTTP/1.1 200"), "broken HTTP answer", 2),
        (sends(b"\x00\xff" * 1000), "broken HTTP answer", 2),
        (sends(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000), "broken HTTP answer", 2),
        (sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"), "broken HTTP answer", 2),
    ],
)  # fmt: skip
def test_a_fault_is_named_in_a_line(store: LocalObjectStore, answer: Answer, reason: str, tries: int) -> None:
    async def test() -> None:
        async with serving(file=answer) as miner:
            limits = HASTY if "stalled" in reason else LIMITS
            assert await fault_of(store, miner.url("/file"), limits) == reason
            assert miner.asked("/file") == tries

    run(test())


def test_a_body_longer_than_its_stated_length_is_cut_there(store: LocalObjectStore) -> None:
    async def test() -> None:
        lying = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + b"glTF" + b"more" * 100_000)
        async with serving(file=lying) as miner, Downloads(LIMITS, True) as downloads:
            assert (await downloads.fetch(miner.url("/file"), store, "a.glb")).size == 4

    run(test())


@pytest.mark.parametrize("headers", ["", "Content-Length: 200000\r\n"])
def test_a_trickle_ends_at_the_total_time(store: LocalObjectStore, headers: str) -> None:
    async def test() -> None:
        limits = LIMITS.model_copy(update={"download_timeout_seconds": 0.6, "download_least_rate": 0})
        async with serving(file=endless(b"x", 0.05, headers)) as miner:
            assert await fault_of(store, miner.url("/file"), limits) == "not complete after 0.6 s"
            assert miner.asked("/file") == 1

    run(test())


def test_one_byte_after_another_is_too_slow(store: LocalObjectStore) -> None:
    """Every byte comes in time, and yet the file never would."""

    async def test() -> None:
        async with serving(file=endless(b"x", 0.05, "Content-Length: 200000\r\n")) as miner:
            assert await fault_of(store, miner.url("/file"), HASTY) == "slower than 16384 bytes/s for 1 s"
            assert miner.asked("/file") == 1

    run(test())


def test_headers_one_after_another_are_no_answer(store: LocalObjectStore) -> None:
    async def test() -> None:
        parts = [part for _ in range(100) for part in (b"X: y\r\n", 0.05)]
        async with serving(file=sends(b"HTTP/1.1 200 OK\r\n", *parts)) as miner:
            limits = HASTY.model_copy(update={"download_attempts": 1})
            assert await fault_of(store, miner.url("/file"), limits) == "no answer within 2 s"

    run(test())


def in_chunks(size: int, count: int, end: bytes = b"0\r\n\r\n") -> Answer:
    chunk = b"%x\r\n" % size + b"x" * size + b"\r\n"
    return sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[chunk * 1000] * (count // 1000), end)


def test_a_body_in_crumbs_is_refused(store: LocalObjectStore) -> None:
    """Each piece takes time of the one loop that all downloads share, so theirs would look slow."""

    async def test() -> None:
        async with serving(crumbs=in_chunks(1, 100_000), lines=in_chunks(50, 5000)) as miner:
            assert (await fault_of(store, miner.url("/crumbs"))).startswith("sent in 42")
            assert miner.asked("/crumbs") == 1
            async with Downloads(LIMITS, True) as downloads:
                assert (await downloads.fetch(miner.url("/lines"), store, "a.glb")).size == 250_000

    run(test())


def test_the_work_for_a_body_grows_with_its_pieces_and_no_faster(store: LocalObjectStore) -> None:
    async def seconds(miner: Miner, path: str) -> float:
        """Of this process alone, so that others on the machine do not count."""
        took = []
        for turn in range(2):
            start = time.process_time()
            async with Downloads(LIMITS.model_copy(update={"max_file_bytes": 1024**2}), True) as downloads:
                await downloads.fetch(miner.url(path), store, f"{path[1:]}{turn}.glb")
            took.append(time.process_time() - start)
        return min(took)

    async def test() -> None:
        async with serving(few=in_chunks(40, 5000), many=in_chunks(40, 25_000)) as miner:
            assert await seconds(miner, "/many") < 12 * await seconds(miner, "/few")

    run(test())


def test_a_hostile_server_costs_only_its_own_file(store: LocalObjectStore) -> None:
    async def reset(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\nhalf")
        await writer.drain()
        linger = struct.pack("ii", 1, 0)  # close with a reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    hostile = {
        "trickle": (endless(b"x", 0.05), "slower than 16384 bytes/s for 1 s"),
        "endless": (endless(b"x" * 65536, 0), "larger than 0.2 MiB"),
        "short": (sends(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\nshort"), "connection closed early"),
        "reset": (reset, "connection closed early"),
        "silent": (sends(9.0), "stalled for 1 s"),
    }
    body = random.Random(2).randbytes(200_000)

    async def test() -> None:
        limits = HASTY.model_copy(update={"download_host_concurrency": 10})
        answers = {name: answer for name, (answer, _) in hostile.items()}
        async with serving(file=page("200 OK", body), **answers) as miner, Downloads(limits, True) as downloads:
            good = [downloads.fetch(miner.url("/file"), store, f"good/{n}.glb") for n in range(10)]
            bad = [downloads.fetch(miner.url(f"/{name}"), store, f"bad/{name}.glb") for name in hostile]
            stored = await asyncio.gather(*good)
            ends = await asyncio.gather(*bad, return_exceptions=True)
            assert {file.sha256 for file in stored} == {hashlib.sha256(body).hexdigest()}
            assert {name: str(end) for name, end in zip(hostile, ends, strict=True)} == {
                name: reason for name, (_, reason) in hostile.items()
            }
        assert left_over(store) == [f"good/{n}.glb" for n in range(10)]

    run(test())


def test_one_host_does_not_take_all_slots(store: LocalObjectStore) -> None:
    """Ten files of a host that stalls wait for each other; those of another host do not wait for them."""

    async def test() -> None:
        limits = LIMITS.model_copy(update={"download_concurrency": 3, "download_host_concurrency": 2})
        async with (
            serving(file=sends(60.0)) as slow,
            serving(file=OK) as quick,
            Downloads(limits, True) as downloads,
        ):
            stalled = [asyncio.create_task(downloads.fetch(slow.url("/file"), store, f"s{n}.glb")) for n in range(10)]
            while slow.at_once < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await asyncio.gather(*(downloads.fetch(quick.url("/file"), store, f"q{n}.glb") for n in range(10)))
            assert not any(task.done() for task in stalled), "the other host was waited for"
            assert slow.most_at_once == 2
            for task in stalled:
                task.cancel()
            await asyncio.gather(*stalled, return_exceptions=True)

    run(test())


def test_the_store_s_time_is_not_the_miner_s(tmp_path: Path) -> None:
    class SlowDisk(LocalWriter):
        def write(self, chunk: bytes) -> None:
            time.sleep(0.8 * len(chunk) / 1024**2)  # the network decides how large a chunk is
            super().write(chunk)

    class SlowStore(LocalObjectStore):
        def writer(self, key: str, content_type: str, overwrite: bool = False) -> LocalWriter:
            return SlowDisk(self, key, content_type, overwrite)

    async def test() -> None:
        limits = LIMITS.model_copy(update={"download_timeout_seconds": 2.0, "max_file_bytes": 4 * 1024**2})
        async with serving(file=page("200 OK", bytes(3 * 1024**2))) as miner, Downloads(limits, True) as downloads:
            start = time.monotonic()
            stored = await downloads.fetch(miner.url("/file"), SlowStore(tmp_path, "https://x"), "a.glb")
            assert stored.size == 3 * 1024**2
            assert time.monotonic() - start > 2.2

    run(test())


@pytest.mark.parametrize("mebibytes", [1, 20])
def test_a_file_goes_straight_into_s3(s3_server: Seaweed, mebibytes: int) -> None:
    store = s3_server.store()
    body = random.Random(3).randbytes(mebibytes * 1024**2 + 5)

    async def test() -> None:
        limits = LIMITS.model_copy(update={"max_file_bytes": len(body), "download_timeout_seconds": 60})
        answers = {"file": page("200 OK", body), "endless": endless(bytes(65536), 0)}
        async with serving(**answers) as miner, Downloads(limits, True) as downloads:
            stored = await downloads.fetch(miner.url("/file"), store, "a.glb")
            assert stored == StoredObject("a.glb", len(body), hashlib.sha256(body).hexdigest(), GLB)
            with pytest.raises(MinerFault, match="larger than"):
                await downloads.fetch(miner.url("/endless"), store, "b.glb")
        assert store.read("a.glb") == body
        assert list(store.list()) == ["a.glb"]
        assert unfinished_uploads(store) == []

    run(test())


@pytest.mark.parametrize("form", ["local", "s3"])
def test_after_a_kill_only_what_is_missing_is_fetched(
    form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Killed with files in flight, then started twice: what is stored is not asked for again, nor what failed for good."""
    s3: list[str] = []
    if form == "s3":
        server: Seaweed = request.getfixturevalue("s3_server")
        s3 = [server.endpoint, ACCESS_KEY_ID, SECRET_ACCESS_KEY, server.make_bucket()]
    store = open_store(tmp_path, s3)
    slow = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngl", 0.1, b"TF")
    answers = {f"p{number}.glb": slow for number in range(FILES)} | {"p3.glb": page("404 No")}
    paths = {f"/p{number}.glb" for number in range(FILES)} - {"/p3.glb"}

    async def test() -> None:
        async with serving(**answers) as miner:
            command = [sys.executable, download_nursery.__file__, miner.url(""), str(tmp_path), *s3]
            child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            while len(miner.requests) < FILES // 2 and child.returncode is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            child.kill()
            await child.communicate()
            kept = {f"/{key.rpartition('/')[2]}" for key in store.list()}
            assert 0 < len(kept) < FILES - 4
            before = len(miner.requests)
            await asyncio.to_thread(download_nursery.download, miner.url(""), tmp_path, s3)
            again = {path for path, _ in miner.requests[before:]}
            assert not again & kept
            assert len(list(store.list())) == len(paths)
            before = len(miner.requests)
            await asyncio.to_thread(download_nursery.download, miner.url(""), tmp_path, s3)
            assert len(miner.requests) == before

    run(test())


def test_a_trickle_of_headers_ends_at_the_total_time(store: LocalObjectStore) -> None:
    async def test() -> None:
        limits = LIMITS.model_copy(update={"download_timeout_seconds": 0.6})
        parts = [part for _ in range(100) for part in (b"X: y\r\n", 0.05)]
        async with serving(file=sends(b"HTTP/1.1 200 OK\r\n", *parts)) as miner:
            assert await fault_of(store, miner.url("/file"), limits) == "not complete after 0.6 s"

    run(test())


def test_a_port_where_nobody_listens(store: LocalObjectStore) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        assert asyncio.run(fault_of(store, url)) == "connection refused"


def test_a_name_that_does_not_exist(store: LocalObjectStore) -> None:
    for host in ("does-not-exist.invalid", "a" * 64 + ".invalid", "xn--a.invalid"):
        assert asyncio.run(fault_of(store, f"https://{host}/x")) in ("host not found", "not a URL")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "127.1", "0.0.0.0"])  # fmt: skip
def test_our_own_network_is_refused_under_every_name(store: LocalObjectStore, host: str) -> None:
    async def test() -> None:
        async with serving(file=OK) as miner:
            reason = await fault_of(store, miner.url("/file", host, "https"), allow_private_network=False)
            assert reason.startswith("refused address ")
            assert miner.requests == []

    run(test())


@pytest.mark.parametrize("allow_private_network", [False, True])
def test_metadata_services_are_refused_even_in_simulations(
    store: LocalObjectStore, allow_private_network: bool
) -> None:
    reason = asyncio.run(
        fault_of(store, "https://169.254.169.254/latest/meta-data", allow_private_network=allow_private_network)
    )
    assert reason == "refused address 169.254.169.254"


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        ("1.1.1.1", True, True),
        ("2606:4700::1111", True, True),
        ("::ffff:1.1.1.1", True, True),
        ("127.0.0.1", False, True),
        ("127.255.1.2", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("10.1.2.3", False, True),
        ("192.168.1.1", False, True),
        ("172.16.0.1", False, True),
        ("fd12::1", False, True),
        ("fd00:ec2::254", False, False),
        ("fd20:ce::254", False, False),
        ("192.0.0.192", False, False),
        ("2001:0:7f00:1::1", False, False),
        ("2606:4700::5efe:127.0.0.1", False, True),
        ("2606:4700::200:5efe:169.254.169.254", False, False),
        ("fe80::5efe:1.1.1.1", False, False),
        ("::ffff:10.0.0.1", False, True),
        ("2002:7f00:1::", False, True),
        ("64:ff9b::a00:1", False, True),
        ("100.64.0.1", False, False),
        ("100.100.100.200", False, False),
        ("168.63.129.16", False, False),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("64:ff9b:1::1", False, False),
        ("fe80::1", False, False),
        ("fe80::1%eth0", False, False),
        ("fec0::1", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("::127.0.0.1", False, False),
        ("224.0.0.1", False, False),
        ("ff02::1", False, False),
        ("240.0.0.1", False, False),
        ("255.255.255.255", False, False),
    ],
)
def test_which_addresses_are_talked_to(address: str, public: bool, private: bool) -> None:
    parsed = ipaddress.ip_address(address)
    assert (not is_refused(parsed, False), not is_refused(parsed, True)) == (public, private)


@pytest.mark.parametrize(
    ("url", "allow_private_network", "reason"),
    [
        ("http://example.org/x", False, "only https is fetched"),
        ("ftp://example.org/x", True, "only https is fetched"),
        ("file:///etc/passwd", True, "only https is fetched"),
        ("/etc/passwd", True, "only https is fetched"),
        ("", False, "only https is fetched"),
        ("https://user:password@example.org/x", False, "URL with credentials"),
        ("https://user@example.org/x", False, "URL with credentials"),
        ("https:///x", False, "not a URL"),
        ("https://example.org:port/x", False, "not a URL"),
        ("https://example.org/\n", False, "not a URL"),
        ("https://[::1", False, "not a URL"),
        ("https://" + "x" * 3000, False, "URL longer than 2048 characters"),
    ],
)
def test_addresses_that_are_not_asked(
    store: LocalObjectStore, url: str, allow_private_network: bool, reason: str
) -> None:
    assert asyncio.run(fault_of(store, url, allow_private_network=allow_private_network)) == reason


def test_one_private_address_among_public_ones_refuses_the_name(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    assert asyncio.run(fault_of(store, "https://cdn.test/x", allow_private_network=False)) == "refused address 10.0.0.1"


def test_a_name_that_changes_its_address_gains_nothing(
    store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection resolves once, and goes to the address that was checked."""
    answers = ["127.0.0.1", "169.254.169.254", "169.254.169.254"]

    def rebinding(host: str, port: int, **_: object) -> list[object]:
        assert host == "cdn.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)

    async def test() -> None:
        async with serving(file=OK) as miner:
            async with Downloads(LIMITS, True) as downloads:
                stored = await downloads.fetch(miner.url("/file", "cdn.test"), store, "first.glb")
                assert stored.size == 10
                assert miner.requests[0][1]["host"] == f"cdn.test:{miner.port}"
                with pytest.raises(MinerFault, match="refused address 169"):
                    await downloads.fetch(miner.url("/file", "cdn.test"), store, "second.glb")
            assert len(miner.requests) == 1

    run(test())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key for the name localhost, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


def test_https_asks_for_the_name_and_checks_the_certificate(store: LocalObjectStore, certificate: Path) -> None:
    names: list[str | None] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    server.sni_callback = lambda _, name, __: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))

    async def test() -> None:
        async with serving(server, file=OK) as miner:
            url = miner.url("/file", "localhost", "https")
            async with Downloads(LIMITS, True, ssl_context=trusting) as downloads:
                await downloads.fetch(url, store, "a.glb")
                assert names == ["localhost"]
                with pytest.raises(MinerFault, match="TLS certificate refused"):
                    await downloads.fetch(miner.url("/file", "127.0.0.1", "https"), store, "b.glb")
            async with Downloads(LIMITS, True) as downloads:
                with pytest.raises(MinerFault, match="TLS certificate refused"):
                    await downloads.fetch(url, store, "b.glb")
            assert miner.asked("/file") == 1

    run(test())


def test_slots_are_shared_and_jitter_takes_none(store: LocalObjectStore) -> None:
    class ThreeForEver(random.Random):
        def uniform(self, a: float, b: float) -> float:
            pauses.append(b)
            return 3600.0 if len(pauses) <= 3 else 0.0

    pauses: list[float] = []

    async def test() -> None:
        slow = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n", 0.05, b"x")
        limits = LIMITS.model_copy(update={"download_concurrency": 3})
        async with serving(file=slow) as miner, Downloads(limits, True, ThreeForEver()) as downloads:

            def fetch(number: int) -> Coroutine[Any, Any, StoredObject]:
                return downloads.fetch(miner.url("/file"), store, f"{number}.glb")

            pausing = [asyncio.create_task(fetch(number)) for number in range(3)]
            while len(pauses) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await asyncio.gather(*map(fetch, range(3, 24)))  # as many pauses as slots, and yet these end
            assert miner.most_at_once == 3
            for task in pausing:
                task.cancel()
            await asyncio.gather(*pausing, return_exceptions=True)

    run(test())


def test_jitter_is_drawn_from_the_given_source(store: LocalObjectStore) -> None:
    class Recorded(random.Random):
        def uniform(self, a: float, b: float) -> float:
            drawn.append((a, b))
            return 0.0

    drawn: list[tuple[float, float]] = []

    async def test() -> None:
        limits = LIMITS.model_copy(update={"download_jitter_seconds": 300.0})
        async with serving(file=OK) as miner, Downloads(limits, True, Recorded()) as downloads:
            await downloads.fetch(miner.url("/file"), store, "a.glb")
            await downloads.fetch_bytes(miner.url("/file"), 100)
            assert drawn == [(0, 300.0)]

    run(test())


def test_memory_is_bounded_however_large_the_file(store: LocalObjectStore) -> None:
    size = 24 * 1024**2
    limits = LIMITS.model_copy(update={"max_file_bytes": size, "download_timeout_seconds": 50})

    async def test() -> None:
        body = sends(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode(), *[b"x" * 65536] * (size // 65536))
        async with serving(file=body) as miner, Downloads(limits, True) as downloads:
            tracemalloc.start()
            try:
                assert (await downloads.fetch(miner.url("/file"), store, "a.glb")).size == size
                assert tracemalloc.get_traced_memory()[1] < 12 * 1024**2
            finally:
                tracemalloc.stop()

    run(test())


def test_prompt_pictures_come_as_bytes() -> None:
    async def test() -> None:
        small, gone = page("200 OK", b"png"), page("404 No")
        async with serving(small=small, gone=gone) as miner, Downloads(LIMITS, True) as downloads:
            assert await downloads.fetch_bytes(miner.url("/small"), 3) == b"png"
            with pytest.raises(MinerFault, match=r"larger than 0\.0 MiB"):
                await downloads.fetch_bytes(miner.url("/small"), 2)
            with pytest.raises(MinerFault, match="HTTP 404"):
                await downloads.fetch_bytes(miner.url("/gone"), 2)

    run(test())


def test_a_cancelled_download_leaves_nothing(store: LocalObjectStore) -> None:
    async def test() -> None:
        async with serving(file=endless(b"x" * 1000, 0.02)) as miner, Downloads(LIMITS, True) as downloads:
            task = asyncio.create_task(downloads.fetch(miner.url("/file"), store, "a.glb"))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert left_over(store) == []

    run(test())


def test_no_cookie_is_kept_between_requests(store: LocalObjectStore) -> None:
    async def test() -> None:
        baking = page("200 OK", b"x", Set_Cookie="track=me; Path=/")
        async with serving(file=baking) as miner, Downloads(LIMITS, True) as downloads:
            for key in ("a.glb", "b.glb"):
                await downloads.fetch(miner.url("/file"), store, key)
            assert all("cookie" not in headers for _, headers in miner.requests)

    run(test())


def test_a_proxy_of_the_environment_is_not_used(store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve names itself, unguarded."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def test() -> None:
        async with serving(file=OK) as miner, Downloads(LIMITS, True) as downloads:
            assert (await downloads.fetch(miner.url("/file"), store, "a.glb")).size == 10

    run(test())


def test_one_file_is_downloaded_for_the_command_line(tmp_path: Path) -> None:
    """`download_file` runs a loop of its own, so the server runs in a thread."""

    async def test() -> None:
        async with serving(file=OK, gone=page("404 No")) as miner:
            target = tmp_path / "out.glb"
            limits = LIMITS.model_copy(update={"download_jitter_seconds": 300.0})
            stored = await asyncio.to_thread(download_file, miner.url("/file"), target, limits, True)
            assert (stored.size, stored.content_type) == (10, "model/gltf-binary")
            assert target.read_bytes() == b"glTF-bytes"
            with pytest.raises(MinerFault, match="HTTP 404"):
                await asyncio.to_thread(download_file, miner.url("/gone"), target, limits, True)
            assert target.read_bytes() == b"glTF-bytes"
            with pytest.raises(OperatorError, match="cannot be written"):
                await asyncio.to_thread(download_file, miner.url("/file"), tmp_path / "no" / "folder", limits, True)

    run(test())
    assert [path.name for path in tmp_path.iterdir()] == ["out.glb"]


def test_too_many_open_files_here_is_not_the_miner_s_fault() -> None:
    async def test() -> None:
        async with Downloads(LIMITS, True) as downloads:
            with pytest.raises(MinerFault, match="connection refused"):
                await downloads.fetch_bytes("http://127.0.0.1:9/x", 100)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                with pytest.raises(Unavailable, match="no more connections can be opened here"):
                    await downloads.fetch_bytes("http://127.0.0.1:9/x", 100)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    run(test())


def test_silence_of_everybody_is_nobody_s_fault(store: LocalObjectStore) -> None:
    silent = "127.0.0.1:9"

    async def fetch(url: str, known_hosts: list[str]) -> None:
        async with Downloads(LIMITS, True, known_hosts=known_hosts) as downloads:
            await downloads.fetch(url, store, "a.glb")

    async def test() -> None:
        async with serving(gone=page("404 Not Found"), file=OK) as miner:
            alive = f"127.0.0.1:{miner.port}"
            with pytest.raises(Unavailable, match=r"neither 127.0.0.1 nor 127.0.0.1:9 nor no.invalid:443 answers"):
                await fetch("http://127.0.0.1:9/x", [silent, "no.invalid:443"])
            with pytest.raises(MinerFault, match="connection refused"):
                await fetch("http://127.0.0.1:9/x", [silent, alive])
            with pytest.raises(MinerFault, match="HTTP 404"):  # which is an answer
                await fetch(miner.url("/gone"), [silent])
            async with Downloads(LIMITS, True, known_hosts=[silent]) as downloads:
                await downloads.fetch(miner.url("/file"), store, "b.glb")
                with pytest.raises(Unavailable):  # who answered before has not answered meanwhile
                    await downloads.fetch("http://127.0.0.1:9/x", store, "a.glb")

    run(test())


def test_who_answered_while_a_file_waited_for_its_turn_proves_nothing(store: LocalObjectStore) -> None:
    one_at_a_time = LIMITS.model_copy(update={"download_concurrency": 1, "download_attempts": 1})

    async def test() -> None:
        asked = asyncio.Event()

        async def slow(writer: asyncio.StreamWriter) -> None:
            asked.set()
            await sends(0.3, b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")(writer)

        async with (
            serving(file=slow) as miner,
            Downloads(one_at_a_time, True, known_hosts=["127.0.0.1:9"]) as downloads,
        ):
            answered = asyncio.create_task(downloads.fetch_bytes(miner.url("/file"), 10))
            await asked.wait()
            with pytest.raises(Unavailable):
                await downloads.fetch_bytes("http://127.0.0.1:9/x", 10)
            assert await answered == b"x"

    run(test())


def test_known_hosts_are_those_of_the_internet() -> None:
    assert public_hosts(
        "https://github.com/404/rounds.git", "git@gitlab.com:404/rounds.git", "ssh://git@codeberg.org:2222/x/y",
        "https://cdn.example.org/objects", "https://github.com/other",
    ) == ["github.com:443", "gitlab.com:22", "codeberg.org:2222", "cdn.example.org:443"]  # fmt: skip
    assert public_hosts(
        "", "/srv/rounds.git", "./rounds", "file:///srv/rounds.git", "http://127.0.0.1:8333", "http://[::1]:9000",
        "http://10.0.0.3/x", "http://seaweed:8333", "https://[broken", "https://host.example:port/x",
    ) == []  # fmt: skip

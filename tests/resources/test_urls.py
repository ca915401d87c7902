"""A miner's address never leads into our own network, however it is written: refused, for a reason that is recorded."""

import asyncio
import random
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen404_dagster.assets import outputs
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import Submission
from gen404_dagster.errors import MinerFault
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.object_store import LocalObjectStore
from tests.resources.dns_double import AAAA, A, Dns, dns
from tests.resources.download_nursery import Shown
from tests.resources.test_cdn import OK, page, run, serving

LIMITS = Limits(
    download_jitter_seconds=0, download_retry_seconds=0, download_stall_seconds=20, download_timeout_seconds=40
)
REASON = re.compile(
    r"refused address [0-9a-f.:%]+|not a URL|only https is fetched|URL with credentials|host not found|"
    r"URL longer than 2048 characters"
)
ZONE: dict[str, list[list[str]]] = {
    "localhost": [["127.0.0.1", "::1"]],
    "localtest.test": [["127.0.0.1"]],
    "six.test": [["::1"]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "nat64.test": [["64:ff9b::7f00:1"]],
    "6to4.test": [["2002:7f00:1::"]],
    "mixed.test": [["1.1.1.1", "127.0.0.1"]],
    "mixed-six.test": [["1.1.1.1", "::1"]],
    "shared.test": [["100.64.0.1"]],
    "zero.test": [["0.0.0.0"]],
    "private.test": [["192.168.0.1"]],
    "127.0.0.1.nip.test": [["127.0.0.1"]],
    "7f000001.nip.test": [["127.0.0.1"]],
    "10-0-0-1.nip.test": [["10.0.0.1"]],
    "169-254-169-254.nip.test": [["169.254.169.254"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "instance-data.ec2.internal": [["169.254.169.254"]],
    "metadata-six.test": [["fd00:ec2::254"]],
    "xn--80ak6aa92e.test": [["127.0.0.1"]],
    "many.test": [["127.0.0.1"] * 25],
    "empty.test": [[]],
}
ADDRESSES = [
    # IPv4, in every notation that inet_aton takes
    "https://127.0.0.1:{port}", "https://127.255.255.254:{port}", "https://127.1:{port}", "https://127.0.1:{port}",
    "https://2130706433:{port}", "https://0x7f000001:{port}", "https://0x7f.0x0.0x0.0x1:{port}",
    "https://0x7F.1:{port}", "https://017700000001:{port}", "https://0177.0.0.1:{port}", "https://0177.0.0.01:{port}",
    "https://0x7f.0.0x0.01:{port}", "https://127.000.000.001:{port}", "https://4294967297:{port}", "https://0:{port}",
    "https://0x0:{port}", "https://0.0.0.0:{port}", "https://127.0.0.1.:{port}", "https://10.0.0.1:{port}",
    "https://172.16.0.1:{port}", "https://192.168.1.1:{port}", "https://100.64.0.1:{port}", "https://198.18.0.1:{port}",
    "https://192.0.0.192:{port}", "https://224.0.0.1:{port}", "https://255.255.255.255:{port}",
    # Metadata services
    "https://169.254.169.254", "https://0xA9FEA9FE", "https://2852039166", "https://0251.0376.0251.0376",
    "https://168.63.129.16", "https://100.100.100.200", "https://[fd00:ec2::254]", "https://[::ffff:a9fe:a9fe]",
    # IPv6, and IPv4 inside it
    "https://[::1]:{port}", "https://[::]:{port}", "https://[0:0:0:0:0:0:0:1]:{port}",
    "https://[0000:0000:0000:0000:0000:0000:0000:0001]:{port}", "https://[::ffff:127.0.0.1]:{port}",
    "https://[::ffff:7f00:1]:{port}", "https://[::127.0.0.1]:{port}", "https://[::ffff:0:127.0.0.1]:{port}",
    "https://[64:ff9b::127.0.0.1]:{port}", "https://[64:ff9b:1::7f00:1]:{port}", "https://[2002:7f00:1::]:{port}",
    "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{port}", "https://[2606:4700::5efe:127.0.0.1]:{port}",
    "https://[fe80::1]:{port}", "https://[fe80::1%25lo]:{port}", "https://[fe80::1%lo]:{port}",
    "https://[::1%25lo]:{port}", "https://[::1%lo]:{port}", "https://[fec0::1]:{port}", "https://[fd12:3456::1]:{port}",
    "https://[ff02::1]:{port}", "https://[127.0.0.1]:{port}", "https://[v1.127.0.0.1]:{port}", "https://[::1:{port}",
    "https://::1:{port}",
    # Names
    "https://localhost:{port}", "https://LOCALHOST:{port}", "https://localhost.:{port}", "https://a.localhost:{port}",
    *(f"https://{name}:{{port}}" for name in ZONE),
    # Unicode
    "https://①②⑦.⓪.⓪.①:{port}", "https://127。0。0。1:{port}", "https://127．0．0．1:{port}", "https://127｡0｡0｡1:{port}",
    "https://１２７.0.0.1:{port}", "https://١٢٧.٠.٠.١:{port}", "https://\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1:{port}",
    "https://ⓛocalhost:{port}", "https://loc\u00adalhost:{port}", "https://lоcalhost:{port}", "https://аррӏе.test:{port}",
    "https://127.0.0.1\u200b:{port}", "https://\ufeff127.0.0.1:{port}", "https://\ud800:{port}",
    # Encodings, and where one reader ends the host and another does not
    "https://%31%32%37%2e%30%2e%30%2e%31:{port}", "https://127%2e0%2e0%2e1:{port}",
    "https://localhost%00.example.org:{port}", "https://127.0.0.1%23.example.org:{port}",
    "https://127.0.0.1#@example.org:{port}", "https://127.0.0.1?@example.org:{port}",
    "https://127.0.0.1:{port}\\@example.org", "https://example.org\\@127.0.0.1:{port}",
    "https:\\\\127.0.0.1:{port}", "https:/127.0.0.1:{port}", "https:127.0.0.1:{port}", "https:///127.0.0.1:{port}",
    "https:////127.0.0.1:{port}", "//127.0.0.1:{port}", "127.0.0.1:{port}", "https://127.0.0.1\t:{port}",
    "https://127.0.\n0.1:{port}", "https://127.0.0.1\r\nHost: x:{port}", "\thttps://127.0.0.1:{port}",
    " https://127.0.0.1:{port}", "https://127.0.0.1 :{port}", "https:// 127.0.0.1:{port}", "https://127.0.0.1\0:{port}",
    # Credentials
    "https://user@127.0.0.1:{port}", "https://user:secret@127.0.0.1:{port}", "https://example.org@127.0.0.1:{port}",
    "https://example.org%00@127.0.0.1:{port}", "https://:@127.0.0.1:{port}", "https://@127.0.0.1:{port}",
    "https://1.1.1.1 &@127.0.0.1:{port}", "https://a:b@c:d@127.0.0.1:{port}",
    # Ports
    "https://127.0.0.1:0", "https://127.0.0.1:99999", "https://127.0.0.1:-1", "https://127.0.0.1:٤٤٣",
    "https://127.0.0.1:", "https://127.0.0.1:{port}:{port}", "https://127.0.0.1:0x50", "https://127.0.0.1:+{port}",
    # Other schemes
    "http://127.0.0.1:{port}", "HTTP://127.0.0.1:{port}", "ftp://127.0.0.1:{port}", "gopher://127.0.0.1:{port}",
    "ws://127.0.0.1:{port}", "file:///etc/passwd", "unix:///run/docker.sock", "http+unix://%2Frun%2Fdocker.sock",
    "https+unix:///run/docker.sock", "data:text/plain,x", "javascript:alert(1)", "dict://127.0.0.1:{port}", "",
    # No names at all
    "https://", "https://-:{port}", "https://.:{port}", "https://..:{port}", "https://a..b:{port}", "https://xn--a:{port}",
    "https://" + "a." * 130 + ":{port}", "https://" + "a" * 64 + ".test:{port}", "https://" + "x" * 3000,
]  # fmt: skip


class Tripwire:
    """Ports of 127.0.0.1 and ::1 that nobody may reach. Counts who does."""

    def __init__(self) -> None:
        self.reached = 0
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._sockets[0].getsockname()[1]
        with suppress(OSError):  # no IPv6 here
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))

    def watch(self) -> None:
        for listener in self._sockets:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        for listener in self._sockets:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.reached += 1
                connection.close()


@pytest.fixture(scope="module")
def tripwire() -> Iterator[Tripwire]:
    wire = Tripwire()
    wire.watch()
    yield wire
    wire.close()


@pytest.fixture(scope="module")
def names() -> Iterator[Dns]:
    with dns(ZONE) as server:
        yield server


@pytest.fixture(scope="module")
def context() -> ssl.SSLContext:
    return ssl.create_default_context()


def test_the_tripwire_counts(tripwire: Tripwire) -> None:
    with socket.create_connection(("127.0.0.1", tripwire.port)) as connection:
        assert connection.recv(1) == b""
    assert tripwire.reached == 1
    tripwire.reached = 0


def test_the_list_is_long_enough() -> None:
    assert len(set(ADDRESSES)) >= 120


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_way_leads_in(address: str, tripwire: Tripwire, names: Dns, context: ssl.SSLContext, tmp_path: Path) -> None:
    url = address.replace("{port}", str(tripwire.port)) + "/x.glb"
    store = LocalObjectStore(tmp_path, "https://cdn.example.org")

    async def refusal() -> str:
        async with Downloads(LIMITS, ssl_context=context, resolve=names.resolve) as downloads:
            with pytest.raises(MinerFault) as caught:
                await downloads.fetch(url, store, "x.glb")
            return str(caught.value)

    reason = asyncio.run(refusal())
    assert REASON.fullmatch(reason), reason
    assert tripwire.reached == 0
    assert list(store.list()) == []


def test_each_refusal_is_recorded_and_stops_nobody(tripwire: Tripwire, names: Dns, tmp_path: Path) -> None:
    """All of them as miners of one round, through the asset's own download into the journal."""
    journal, store = (
        Journal(tmp_path / "journal.sqlite", "repository"),
        LocalObjectStore(tmp_path / "store", "https://x"),
    )
    limits = LIMITS.model_copy(update={"download_concurrency": 50, "download_host_concurrency": 50})
    submissions = {
        f"5{number:03}": Submission(
            repo="a/b",
            commit="c" * 40,
            cdn_url=address.replace("{port}", str(tripwire.port)),
            revealed_at_block=1,
            round="t-7",
        )
        for number, address in enumerate(ADDRESSES)
        if "\ud800" not in address  # a state file cannot hold it
    }
    files = [outputs.File(7, hotkey, "p1") for hotkey in submissions]
    downloads = Downloads(limits, resolve=names.resolve)
    asyncio.run(outputs._download(files, submissions, downloads, store, journal, Shown()))  # type: ignore[arg-type]
    for file in files:
        url = outputs._source(submissions, file)
        done = journal.get(7, file.unit("download"), url)
        assert done is not None, url
        assert REASON.fullmatch(str(done["fault"])), (url, done)
    assert tripwire.reached == 0
    assert list(store.list()) == []


def test_redirects_lead_nowhere_else(tripwire: Tripwire, tmp_path: Path) -> None:
    """Behind a first server that may be asked, each way as the target of a redirect: metadata, other schemes, loops."""
    inner = [address for address in ADDRESSES if "169.254" in address or "fd00" in address or "fe80" in address]
    inner += [
        "https://meta.test",
        "https://0xA9FEA9FE",
        "ftp://127.0.0.1:{port}",
        "file:///etc/passwd",
        "https://u@x.test",
    ]
    zone = {"cdn.test": [["127.0.0.1"]], "meta.test": [["169.254.169.254"]]}
    store = LocalObjectStore(tmp_path, "https://cdn.example.org")

    async def test() -> None:
        answers = {
            f"a{number}": page("302 Found", Location=address.replace("{port}", str(tripwire.port)) + "/x")
            for number, address in enumerate(inner)
        }
        answers["around"] = page("307 Temporary Redirect", Location="/around")
        answers["once"] = page("301 Moved Permanently", Location="../file")
        with dns(zone) as names:
            async with (
                serving(file=OK, **answers) as miner,
                Downloads(LIMITS, True, resolve=names.resolve) as downloads,
            ):
                for path in (*answers, "around"):
                    if path == "once":
                        continue
                    with pytest.raises(MinerFault) as caught:
                        await downloads.fetch(miner.url(f"/{path}", "cdn.test"), store, "x.glb")
                    assert re.match(
                        r"redirect: |more than 3 redirects$|broken HTTP answer$|host not found$", str(caught.value)
                    ), path
                assert miner.asked("/around") == 8
                assert (await downloads.fetch(miner.url("/once", "cdn.test"), store, "x.glb")).size == 10

    run(test())
    assert tripwire.reached == 0


def test_a_redirect_by_name_is_resolved_and_checked_like_the_first_address(tmp_path: Path) -> None:
    """A public service's open redirect does not help either: the name behind it is looked up, and refused."""
    store = LocalObjectStore(tmp_path, "https://cdn.example.org")

    async def test() -> None:
        inwards = page("302 Found", Location="http://inside.test/latest")
        with dns({"cdn.test": [["127.0.0.1"]], "inside.test": [["169.254.169.254"]]}) as names:
            async with serving(file=inwards) as miner, Downloads(LIMITS, True, resolve=names.resolve) as downloads:
                with pytest.raises(MinerFault, match=r"^redirect: refused address 169\.254\.169\.254$"):
                    await downloads.fetch(miner.url("/file", "cdn.test"), store, "x.glb")
            assert names.asked == [("cdn.test", A), ("cdn.test", AAAA), ("inside.test", A), ("inside.test", AAAA)]

    run(test())


def test_a_name_is_looked_up_once_for_each_connection(tmp_path: Path) -> None:
    """Rebinding: what was checked is what is connected to, and the next connection checks again."""
    store = LocalObjectStore(tmp_path, "https://cdn.example.org")

    async def test() -> None:
        with dns({"cdn.test": [["127.0.0.1"], ["169.254.169.254"], ["127.0.0.1"]]}) as names:
            async with serving(file=OK) as miner, Downloads(LIMITS, True, resolve=names.resolve) as downloads:
                url = miner.url("/file", "cdn.test")
                assert (await downloads.fetch(url, store, "first.glb")).size == 10
                assert names.asked == [("cdn.test", A), ("cdn.test", AAAA)]
                with pytest.raises(MinerFault, match=r"refused address 169"):
                    await downloads.fetch(url, store, "second.glb")
                assert len(miner.requests) == 1
                assert (await downloads.fetch(url, store, "third.glb")).size == 10

    run(test())


@pytest.mark.parametrize("first", ["127.0.0.1", "169.254.169.254", "10.0.0.1"])
def test_rebinding_to_our_own_network_gains_nothing(first: str, tripwire: Tripwire, tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path, "https://cdn.example.org")

    async def test() -> None:
        with dns({"cdn.test": [[first], ["127.0.0.1"], ["::1"]]}) as names:
            async with Downloads(LIMITS, resolve=names.resolve) as downloads:
                for _ in range(4):
                    with pytest.raises(MinerFault, match=r"^refused address "):
                        await downloads.fetch(f"https://cdn.test:{tripwire.port}/x", store, "x.glb")

    run(test())
    assert tripwire.reached == 0


SCHEMES = st.sampled_from(["https://", "HTTPS://", "https:", "https:\\\\", "http://", "https://a@", ""])
HOSTS = st.one_of(
    st.text(max_size=30),
    st.integers(0, 2**33).map(str),
    st.integers(0, 2**33).map(hex),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.lists(st.sampled_from(["127", "0", "1", "0x7f", "0177", ".", "。", "%2e", ":", "@", "\\", "#", "\t", "١"])).map(
        "".join
    ),
)
ENDS = st.one_of(st.just("/"), st.text(max_size=8), st.integers(-1, 70_000).map(lambda port: f":{port}/"))


@given(SCHEMES, HOSTS, ENDS)
def test_whatever_a_miner_writes_ends_in_a_refusal(scheme: str, host: str, end: str) -> None:
    """In a world where every name and every number leads to loopback."""

    def inwards(name: str, port: int) -> list[str]:
        return [random.Random(name).choice(["127.0.0.1", "::1", "169.254.169.254", "10.1.1.1"])]

    async def refusal() -> str:
        async with Downloads(LIMITS, ssl_context=CONTEXT, resolve=inwards) as downloads:
            with pytest.raises(MinerFault) as caught:
                await downloads.fetch_bytes(scheme + host + end, 10)
            return str(caught.value)

    assert REASON.fullmatch(asyncio.run(refusal()))


CONTEXT = ssl.create_default_context()

"""The guarded downloader: files from addresses that miners chose.

Belongs here: which addresses are talked to, and bounds of bytes, time and memory while a file arrives. Does not: which
file a miner owes (assets), what is in it (`resources.renderer`).

A host is resolved once for each connection, every address it has is checked, and the connection is made to a checked
address: a name that resolves differently a moment later gains nothing. A redirect is a new URL from the miner: it is
checked as the first one was. (The public service follows none.)

A fault is a miner's for good. So before a silent host is one, somebody else must have answered meanwhile: another miner,
or a host that the operator named. When this machine's own network is down nobody does.
"""

import asyncio
import errno
import hashlib
import ipaddress
import math
import os
import random
import re
import socket
import ssl
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpcore
import httpx

from gen404_dagster.competition.limits import Limits
from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.object_store import CHUNK_BYTES, ObjectExists, ObjectStore, StoredObject

T = TypeVar("T")
Take = Callable[[Sequence[bytes]], object]
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Sequence[str]]
"""Host and port to numeric addresses. It may block. Raises OSError for a name that has none."""

MAX_URL_CHARS = 2048
MAX_ADDRESSES = 4
MAX_REDIRECTS = 3
CONNECT_SECONDS = 10
READ_BYTES = 256 * 1024
LEAST_PIECE_BYTES, FREE_PIECES = 32, 4096
"""Each piece of a body costs all downloads the same time, whatever its size: past the free ones a mean is asked for."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ISATAP = {b"\0\0\x5e\xfe", b"\2\0\x5e\xfe"}  # RFC 5214, before the IPv4 address
# What `ipaddress` takes for public, or a simulation for private.
_NEVER = [
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's metadata service
        "192.0.0.0/24",  # protocol assignments, with Oracle's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "64:ff9b:1::/48",  # local NAT64
        "2001::/32",  # Teredo
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fd00:ec2::/32",  # Amazon's metadata service
        "fd20:ce::/32",  # Google's metadata service
        "fec0::/10",  # site-local
    )
]
_PORTS = {"https": 443, "http": 80, "ssh": 22}
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_CONNECTION_FAULTS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.ETIMEDOUT: "connection timed out",
}


class RefusedDownload(MinerFault):
    """Another try would end the same: a refused address, a file that is too large, too slow in all."""


def public_hosts(*addresses: str) -> list[str]:
    """`host:port` of those addresses (URLs, or git's `user@host:path`) that name a machine of the internet."""
    found = []
    for address in addresses:
        short = re.fullmatch(r"(?:[^/:@]+@)?([^/:@]+):(?!//).*", address)
        with suppress(ValueError):
            url = urlsplit(f"ssh://{short[1]}" if short else address)
            port = url.port or _PORTS.get(url.scheme)
            if url.hostname and port and not _is_internal(url.hostname):
                found.append(f"{url.hostname}:{port}")
    return list(dict.fromkeys(found))


def _is_internal(host: str) -> bool:
    try:
        return is_refused(ipaddress.ip_address(host), allow_private_network=False)
    except ValueError:
        return "." not in host  # a name of this network


def system_addresses(host: str, port: int) -> list[str]:
    """What the operating system resolves a name to."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Downloads:
    """Downloads of one run; use it as `async with Downloads(...) as downloads`.

    `download_concurrency` slots are shared by all miners, of which one host has at most `download_host_concurrency`.
    Each file starts after a pause of up to `download_jitter_seconds` drawn from `jitter`. A private network is only for
    simulations: then http and loopback or private addresses are allowed, link-local ones (metadata services) never.
    `known_hosts` ("host:port") are the operator's own: when they are as silent as a miner's is, nobody is at fault.
    """

    def __init__(
        self,
        limits: Limits,
        allow_private_network: bool = False,
        jitter: random.Random | None = None,
        ssl_context: ssl.SSLContext | None = None,
        resolve: Resolver = system_addresses,
        known_hosts: Sequence[str] = (),
    ) -> None:
        self.limits = limits
        self._known_hosts = known_hosts
        self._answered = -math.inf
        self._asking = asyncio.Lock()
        self.allow_private_network = allow_private_network
        self._jitter = jitter or random.Random()
        self._slots = asyncio.Semaphore(limits.download_concurrency)
        self._host_slots: defaultdict[bytes, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(limits.download_host_concurrency)
        )
        self._network = _GuardedNetwork(limits.download_concurrency, allow_private_network, resolve)
        self._client = httpx.AsyncClient(
            transport=_GuardedTransport(limits.download_concurrency, self._network, ssl_context),
            follow_redirects=False,
            trust_env=False,
            timeout=httpx.Timeout(limits.download_stall_seconds, pool=None),
            headers={"Accept-Encoding": "identity", "User-Agent": "gen404-dagster"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def fetch(
        self, url: str, store: ObjectStore, key: str, content_type: str = "model/gltf-binary"
    ) -> StoredObject:
        """Download a miner's file into the store; what the store has is not fetched again.

        Raises MinerFault with one line that says why when all tries failed, Unavailable when nobody can be reached.
        """
        present = await asyncio.to_thread(store.stat, key)
        if present is not None:
            return present
        checked = self._checked(url)
        await asyncio.sleep(self._jitter.uniform(0, self.limits.download_jitter_seconds))
        return await self._try(checked, lambda: self._into_store(checked, store, key, content_type))

    async def fetch_bytes(self, url: str, max_bytes: int) -> bytes:
        """A small file, whole in memory: a prompt's picture. Raises MinerFault."""
        checked = self._checked(url)
        return await self._try(checked, lambda: self._into_memory(checked, max_bytes))

    async def fetch_file(self, url: str, path: Path) -> StoredObject:
        """A miner's file, saved as `path`: whole, or not at all. Raises MinerFault."""
        checked = self._checked(url)
        return await self._try(checked, lambda: self._into_file(checked, path))

    async def _try(self, url: httpx.URL, once: Callable[[], Awaitable[T]]) -> T:
        """The tries of one file, each in a slot of its host and a shared one; the pauses between them take none."""
        for attempt in range(1, self.limits.download_attempts + 1):
            try:
                async with self._host_slots[url.netloc], self._slots:
                    begun = time.monotonic()  # who answered while this one waited for its turn proves nothing
                    return await once()
            except RefusedDownload:
                raise
            except MinerFault as fault:
                if attempt == self.limits.download_attempts:
                    if await self._is_cut_off(begun):
                        hosts = " nor ".join([url.host, *self._known_hosts])
                        raise Unavailable(f"neither {hosts} answers: is this machine's network up?") from fault
                    raise
            await asyncio.sleep(self.limits.download_retry_seconds)
        raise AssertionError

    async def _is_cut_off(self, since: float) -> bool:
        """Whether nobody has answered since then, and none of the known hosts takes a connection now."""
        if not self._known_hosts:
            return False
        async with self._asking:
            for host in self._known_hosts:
                if self._answered >= since:
                    break
                if await self._network.reaches(host):
                    self._answered = time.monotonic()
            return self._answered < since

    async def _into_store(self, url: httpx.URL, store: ObjectStore, key: str, content_type: str) -> StoredObject:
        sink = await asyncio.to_thread(store.writer, key, content_type)

        def take(pieces: Sequence[bytes]) -> None:
            for piece in pieces:
                sink.write(piece)

        try:
            await self._receive(url, self.limits.max_file_bytes, take)
            return await asyncio.to_thread(sink.commit)
        except ObjectExists:  # another process was faster
            present = await asyncio.to_thread(store.stat, key)
            if present is None:
                raise
            return present
        finally:
            await asyncio.to_thread(sink.abort)

    async def _into_memory(self, url: httpx.URL, max_bytes: int) -> bytes:
        content: list[bytes] = []
        await self._receive(url, max_bytes, content.extend)
        return b"".join(content)

    async def _into_file(self, url: httpx.URL, path: Path) -> StoredObject:
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        digest = hashlib.sha256()
        try:
            with open(part, "xb") as file:  # noqa: ASYNC230 (written in a thread)

                def take(pieces: Sequence[bytes]) -> None:
                    for piece in pieces:
                        digest.update(piece)
                        file.write(piece)

                size, content_type = await self._receive(url, self.limits.max_file_bytes, take)
            os.replace(part, path)  # noqa: PTH105
        except OSError as error:
            raise OperatorError(f"{path} cannot be written: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return StoredObject(path.name, size, digest.hexdigest(), content_type)

    async def _receive(self, url: httpx.URL, max_bytes: int, take: Take) -> tuple[int, str]:
        """One try: hand the body on, CHUNK_BYTES or so at a time, in a thread. Its size and type; MinerFault otherwise."""
        try:
            async with asyncio.timeout(self.limits.download_timeout_seconds) as deadline:
                for hop in range(MAX_REDIRECTS + 1):
                    response = await self._answer(url, redirected=hop > 0)
                    try:
                        if response.next_request is None:
                            _check_answer(response, max_bytes)
                            size = await self._body(response, max_bytes, take, deadline)
                            return size, response.headers.get("content-type", "application/octet-stream")[:100]
                        url = self._checked(str(response.next_request.url), redirected=True)
                    finally:
                        await response.aclose()
                raise RefusedDownload(f"more than {MAX_REDIRECTS} redirects")
        except TimeoutError as error:
            raise RefusedDownload(f"not complete after {self.limits.download_timeout_seconds:g} s") from error
        except httpx.ConnectTimeout as error:
            raise MinerFault(f"no connection within {self.limits.download_stall_seconds:g} s") from error
        except httpx.TimeoutException as error:
            raise MinerFault(f"stalled for {self.limits.download_stall_seconds:g} s") from error
        except httpx.ConnectError as error:
            raise _connection_fault(error) from error
        except httpx.RemoteProtocolError as error:
            raise MinerFault("broken HTTP answer") from error
        except httpx.HTTPError as error:
            raise MinerFault("connection closed early") from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise RefusedDownload("not a URL") from error

    async def _answer(self, url: httpx.URL, redirected: bool) -> httpx.Response:
        """Status and headers, which may take no longer than a connection and a silence."""
        seconds = 2 * self.limits.download_stall_seconds
        try:
            async with asyncio.timeout(seconds):
                response = await self._client.send(self._client.build_request("GET", url), stream=True)
                self._answered = time.monotonic()
                return response
        except TimeoutError as error:
            raise MinerFault(f"no answer within {seconds:g} s") from error
        except RefusedDownload as fault:
            if redirected:
                raise RefusedDownload(f"redirect: {fault}") from fault
            raise

    async def _body(self, response: httpx.Response, max_bytes: int, take: Take, deadline: asyncio.Timeout) -> int:
        """Size of a body, handed on. Each stretch of `download_stall_seconds` must bring enough."""
        stretch, least = self.limits.download_stall_seconds, self.limits.download_least_rate
        size, pieces, waiting, given, had, since = 0, 0, list[bytes](), 0, 0, time.monotonic()
        try:
            async for piece in response.aiter_raw():
                size += len(piece)
                pieces += 1
                if size > max_bytes:
                    raise _too_large(max_bytes)
                if pieces > FREE_PIECES + size // LEAST_PIECE_BYTES:
                    raise RefusedDownload(f"sent in {pieces} pieces of {size / pieces:.0f} bytes")
                waiting.append(piece)
                if size - given >= CHUNK_BYTES:
                    since += await _hand_on(waiting, take, deadline)
                    waiting, given = [], size
                elapsed = time.monotonic() - since
                if elapsed >= stretch:
                    if size - had < least * elapsed:
                        raise RefusedDownload(f"slower than {least} bytes/s for {stretch:g} s")
                    had, since = size, time.monotonic()
        except httpx.RemoteProtocolError as error:
            raise MinerFault("connection closed early" if size else "broken HTTP answer") from error
        await _hand_on(waiting, take, deadline)
        return size

    def _checked(self, url: str, redirected: bool = False) -> httpx.URL:
        """The address, if we would ask it at all."""
        where = "redirect: " if redirected else ""
        if len(url) > MAX_URL_CHARS:
            raise RefusedDownload(f"{where}URL longer than {MAX_URL_CHARS} characters")
        try:
            parsed = httpx.URL(url)
            host = parsed.host
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise RefusedDownload(f"{where}not a URL") from error
        if parsed.scheme not in (("https", "http") if self.allow_private_network else ("https",)):
            raise RefusedDownload(f"{where}only https is fetched")
        if not host:
            raise RefusedDownload(f"{where}not a URL")
        if parsed.userinfo:
            raise RefusedDownload(f"{where}URL with credentials")
        return parsed


async def _hand_on(pieces: list[bytes], take: Take, deadline: asyncio.Timeout) -> float:
    """Hand pieces on in a thread. The seconds that took are ours: they move the miner's deadline."""
    end, began = deadline.when(), time.monotonic()
    deadline.reschedule(None)
    await asyncio.to_thread(take, pieces)
    seconds = time.monotonic() - began
    deadline.reschedule(None if end is None else end + seconds)
    return seconds


def download_file(url: str, path: Path, limits: Limits, allow_private_network: bool = False) -> StoredObject:
    """One file as a round would fetch it, but at once. Raises MinerFault with the reason."""

    async def download() -> StoredObject:
        async with Downloads(limits, allow_private_network) as downloads:
            return await downloads.fetch_file(url, path)

    return asyncio.run(download())


def is_refused(address: IPAddress, allow_private_network: bool) -> bool:
    """Whether a miner's file is not fetched from this address, or from the IPv4 address inside it."""
    if isinstance(address, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(address.packed[-4:])
        if address.ipv4_mapped or address in _NAT64:
            return is_refused(last, allow_private_network)
        inner = address.sixtofour or (last if address.packed[8:12] in _ISATAP else None)
        if inner is not None and is_refused(inner, allow_private_network):
            return True
    if address.is_loopback:
        return not allow_private_network
    if address.is_multicast or address.is_link_local or address.is_unspecified or address.is_reserved:
        return True
    if any(address in network for network in _NEVER if network.version == address.version):
        return True
    return not (address.is_global or (allow_private_network and address.is_private))


class _GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over a network that checks addresses."""

    def __init__(self, connections: int, network: "_GuardedNetwork", context: ssl.SSLContext | None) -> None:
        context = context or httpx.create_ssl_context()
        super().__init__(verify=context, trust_env=False)
        self._network = network
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
            network_backend=network,
        )

    async def aclose(self) -> None:
        await super().aclose()
        self._network.close()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await super().__aexit__(exc_type, exc_value, traceback)
        self._network.close()


class _GuardedNetwork(httpcore.AnyIOBackend):
    """Resolves a name once, checks every address it has, and connects to what was checked."""

    def __init__(self, connections: int, allow_private_network: bool, resolve: Resolver) -> None:
        self._allow_private_network = allow_private_network
        self._addresses = resolve
        # Names that never resolve must not hold up the threads that write files.
        self._resolvers = ThreadPoolExecutor(connections, thread_name_prefix="resolve")

    def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port, timeout)
        for address in addresses:
            if is_refused(address, self._allow_private_network):
                raise RefusedDownload(f"refused address {address}")
        fault: Exception = httpcore.ConnectError("host not found")
        for address in addresses[:MAX_ADDRESSES]:
            try:
                stream = await super().connect_tcp(str(address), port, timeout, local_address, socket_options)
                return _LargeReads(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
        raise fault

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise RefusedDownload("refused address: a local socket")

    async def reaches(self, host: str) -> bool:
        """Whether `host:port`, an address of the operator's own, takes a connection."""

        def connect() -> None:
            name, _, port = host.rpartition(":")
            socket.create_connection((name, int(port)), CONNECT_SECONDS).close()

        try:
            await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._resolvers, connect), 2 * CONNECT_SECONDS
            )
        except (OSError, ValueError):  # TimeoutError is an OSError
            return False
        return True

    async def _resolve(self, host: str, port: int, timeout: float | None) -> list[IPAddress]:
        look_up = partial(self._addresses, host, port)
        try:
            found = await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._resolvers, look_up), timeout
            )
            return list(dict.fromkeys(map(ipaddress.ip_address, found)))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("no answer for the name") from error
        except (OSError, ValueError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise Unavailable(f"no more names can be resolved here: {error.strerror}") from error
            raise httpcore.ConnectError("host not found") from error


class _LargeReads(httpcore.AsyncNetworkStream):
    """Reads more at once than httpcore asks for: each piece costs the same, whatever its size."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max(max_bytes, READ_BYTES), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _LargeReads(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _check_answer(response: httpx.Response, max_bytes: int) -> None:
    if response.status_code != 200:
        raise MinerFault(f"HTTP {response.status_code}")
    if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise MinerFault("sent in an encoding that was not asked for")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> RefusedDownload:
    return RefusedDownload(f"larger than {max_bytes / 1024**2:.1f} MiB")


def _connection_fault(error: httpx.ConnectError) -> MinerFault | Unavailable:
    """The operating system's reason is at the end of the chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return MinerFault(
                "TLS certificate refused" if isinstance(cause, ssl.SSLCertVerificationError) else "TLS failed"
            )
        if isinstance(cause, socket.gaierror):
            return MinerFault("host not found")
        if isinstance(cause, OSError) and cause.errno in _OURS:
            return Unavailable(f"no more connections can be opened here: {cause.strerror}")
        if isinstance(cause, OSError) and cause.errno in _CONNECTION_FAULTS:
            return MinerFault(_CONNECTION_FAULTS[cause.errno])
        cause = cause.__cause__ or cause.__context__
    return MinerFault(str(error) if str(error) == "host not found" else "no connection")

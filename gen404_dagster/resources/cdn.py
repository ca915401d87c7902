"""The guarded downloader: files from addresses that miners chose.

Belongs here: which addresses are talked to, and bounds of bytes, time and memory while a file arrives. Does not: which
file a miner owes (assets), what is in it (`resources.renderer`).

A host is resolved once for each connection, every address it has is checked, and the connection is made to a checked
address: a name that resolves differently a moment later gains nothing. Redirects are not followed.
"""

import asyncio
import errno
import hashlib
import ipaddress
import os
import random
import socket
import ssl
import uuid
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpcore
import httpx

from gen404_dagster.competition.limits import Limits
from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.object_store import CHUNK_BYTES, ObjectExists, ObjectStore, StoredObject

T = TypeVar("T")
Take = Callable[[bytes], Awaitable[object]]

MAX_URL_CHARS = 2048
MAX_ADDRESSES = 4

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What `ipaddress` takes for public: local NAT64, site-local, 6to4 relays, Azure's metadata service.
_NEVER = [ipaddress.ip_network(n) for n in ("64:ff9b:1::/48", "fec0::/10", "192.88.99.0/24", "168.63.129.16/32")]
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


class Downloads:
    """Downloads of one run; use it as `async with Downloads(...) as downloads`.

    `download_concurrency` slots are shared by all miners. Each file starts after a pause of up to
    `download_jitter_seconds` drawn from `jitter`. A private network is only for simulations: then http and loopback or
    private addresses are allowed, link-local ones (metadata services) never.
    """

    def __init__(
        self,
        limits: Limits,
        allow_private_network: bool = False,
        jitter: random.Random | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits
        self.allow_private_network = allow_private_network
        self._jitter = jitter or random.Random()
        self._slots = asyncio.Semaphore(limits.download_concurrency)
        self._client = httpx.AsyncClient(
            transport=_GuardedTransport(limits.download_concurrency, allow_private_network, ssl_context),
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

        Raises MinerFault with one line that says why when all tries failed.
        """
        present = await asyncio.to_thread(store.stat, key)
        if present is not None:
            return present
        checked = self._checked(url)
        await asyncio.sleep(self._jitter.uniform(0, self.limits.download_jitter_seconds))
        return await self._try(lambda: self._into_store(checked, store, key, content_type))

    async def fetch_bytes(self, url: str, max_bytes: int) -> bytes:
        """A small file, whole in memory: a prompt's picture. Raises MinerFault."""
        checked = self._checked(url)
        return await self._try(lambda: self._into_memory(checked, max_bytes))

    async def fetch_file(self, url: str, path: Path) -> StoredObject:
        """A miner's file, saved as `path`: whole, or not at all. Raises MinerFault."""
        checked = self._checked(url)
        return await self._try(lambda: self._into_file(checked, path))

    async def _try(self, once: Callable[[], Awaitable[T]]) -> T:
        """The tries of one file, each in one of the shared slots; the pauses between them take none."""
        for attempt in range(1, self.limits.download_attempts + 1):
            try:
                async with self._slots:
                    return await once()
            except RefusedDownload:
                raise
            except MinerFault:
                if attempt == self.limits.download_attempts:
                    raise
            await asyncio.sleep(self.limits.download_retry_seconds)
        raise AssertionError

    async def _into_store(self, url: httpx.URL, store: ObjectStore, key: str, content_type: str) -> StoredObject:
        sink = await asyncio.to_thread(store.writer, key, content_type)
        try:
            await self._receive(url, self.limits.max_file_bytes, lambda chunk: asyncio.to_thread(sink.write, chunk))
            return await asyncio.to_thread(sink.commit)
        except ObjectExists:  # another process was faster
            present = await asyncio.to_thread(store.stat, key)
            if present is None:
                raise
            return present
        finally:
            sink.abort()

    async def _into_memory(self, url: httpx.URL, max_bytes: int) -> bytes:
        content = bytearray()

        async def take(chunk: bytes) -> None:
            content.extend(chunk)

        await self._receive(url, max_bytes, take)
        return bytes(content)

    async def _into_file(self, url: httpx.URL, path: Path) -> StoredObject:
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        digest = hashlib.sha256()
        try:
            with open(part, "xb") as file:  # noqa: ASYNC230 (written in a thread)

                async def take(chunk: bytes) -> None:
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)

                size, content_type = await self._receive(url, self.limits.max_file_bytes, take)
            os.replace(part, path)  # noqa: PTH105
        except OSError as error:
            raise OperatorError(f"{path} cannot be written: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return StoredObject(path.name, size, digest.hexdigest(), content_type)

    async def _receive(self, url: httpx.URL, max_bytes: int, take: Take) -> tuple[int, str]:
        """One try: hand the body on in pieces of about CHUNK_BYTES. Size and content type; MinerFault otherwise."""
        size = 0
        try:
            async with asyncio.timeout(self.limits.download_timeout_seconds):
                async with self._client.stream("GET", url) as response:
                    _check_answer(response, max_bytes)
                    waiting = bytearray()
                    async for piece in response.aiter_raw():
                        size += len(piece)
                        if size > max_bytes:
                            raise _too_large(max_bytes)
                        waiting += piece
                        if len(waiting) >= CHUNK_BYTES:
                            await take(bytes(waiting))
                            waiting.clear()
                    if waiting:
                        await take(bytes(waiting))
                    return size, response.headers.get("content-type", "application/octet-stream")[:100]
        except TimeoutError as error:
            raise RefusedDownload(f"not complete after {self.limits.download_timeout_seconds:g} s") from error
        except httpx.ConnectTimeout as error:
            raise MinerFault(f"no connection within {self.limits.download_stall_seconds:g} s") from error
        except httpx.TimeoutException as error:
            raise MinerFault(f"stalled for {self.limits.download_stall_seconds:g} s") from error
        except httpx.ConnectError as error:
            raise _connection_fault(error) from error
        except httpx.RemoteProtocolError as error:
            raise MinerFault("connection closed early" if size else "broken HTTP answer") from error
        except httpx.HTTPError as error:
            raise MinerFault("connection closed early") from error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise RefusedDownload("not a URL") from error

    def _checked(self, url: str) -> httpx.URL:
        """The address, if we would ask it at all."""
        if len(url) > MAX_URL_CHARS:
            raise RefusedDownload(f"URL longer than {MAX_URL_CHARS} characters")
        try:
            parsed = httpx.URL(url)
            host = parsed.host
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise RefusedDownload("not a URL") from error
        if parsed.scheme not in (("https", "http") if self.allow_private_network else ("https",)):
            raise RefusedDownload("only https is fetched")
        if not host:
            raise RefusedDownload("not a URL")
        if parsed.userinfo:
            raise RefusedDownload("URL with credentials")
        return parsed


def download_file(url: str, path: Path, limits: Limits, allow_private_network: bool = False) -> StoredObject:
    """One file as a round would fetch it, but at once. Raises MinerFault with the reason."""

    async def download() -> StoredObject:
        async with Downloads(limits, allow_private_network) as downloads:
            return await downloads.fetch_file(url, path)

    return asyncio.run(download())


def is_refused(address: IPAddress, allow_private_network: bool) -> bool:
    """Whether a miner's file is not fetched from this address, or from the IPv4 address inside it."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_refused(inner, allow_private_network)
    if address.is_loopback:
        return not allow_private_network
    if address.is_multicast or address.is_link_local or address.is_unspecified or address.is_reserved:
        return True
    if any(address in network for network in _NEVER if network.version == address.version):
        return True
    return not (address.is_global or (allow_private_network and address.is_private))


class _GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over a network that checks addresses."""

    def __init__(self, connections: int, allow_private_network: bool, context: ssl.SSLContext | None) -> None:
        context = context or httpx.create_ssl_context()
        super().__init__(verify=context, trust_env=False)
        self._network = _GuardedNetwork(connections, allow_private_network)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=5.0,
            network_backend=self._network,
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

    def __init__(self, connections: int, allow_private_network: bool) -> None:
        self._allow_private_network = allow_private_network
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
                return await super().connect_tcp(str(address), port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
        raise fault

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise RefusedDownload("refused address: a local socket")

    async def _resolve(self, host: str, port: int, timeout: float | None) -> list[IPAddress]:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.wait_for(
                asyncio.get_running_loop().run_in_executor(self._resolvers, look_up), timeout
            )
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("no answer for the name") from error
        except (OSError, UnicodeError) as error:
            if isinstance(error, OSError) and error.errno in _OURS:
                raise Unavailable(f"no more names can be resolved here: {error.strerror}") from error
            raise httpcore.ConnectError("host not found") from error
        return list(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in found))


def _check_answer(response: httpx.Response, max_bytes: int) -> None:
    if 300 <= response.status_code < 400:
        raise MinerFault("redirect refused")
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

"""Prompt pictures, fetched once and kept in the object store, so that judge and images see the same bytes."""

import asyncio
import hashlib
from contextlib import suppress

from gen404_dagster.errors import MinerFault, Unavailable
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.object_store import ObjectExists, ObjectStore
from gen404_dagster.resources.pictures import UnreadablePicture, decode


class PromptPictures:
    """Reads by URL. Enter `downloads` before use."""

    def __init__(self, store: ObjectStore, downloads: Downloads, most_bytes: int) -> None:
        self._store, self._downloads, self._most = store, downloads, most_bytes
        self._locks: dict[str, asyncio.Lock] = {}

    async def read(self, url: str) -> bytes:
        """Bytes of a prompt picture. Raises Unavailable, naming it, when it cannot be had or is none."""
        key = f"prompts/{hashlib.sha256(url.encode()).hexdigest()}"
        async with self._locks.setdefault(url, asyncio.Lock()):
            if not await asyncio.to_thread(self._store.exists, key):
                try:
                    data = await self._downloads.fetch_bytes(url, self._most)
                    await asyncio.to_thread(decode, data)  # a proxy's page, once kept, would be read ever after
                except (MinerFault, UnreadablePicture) as error:  # no miner's: the pool of prompts names it
                    raise Unavailable(f"prompt picture {url}: {error}") from None
                with suppress(ObjectExists):  # another process was faster: its bytes count
                    await asyncio.to_thread(self._store.put, key, data, "image/png")
            return await asyncio.to_thread(self._store.read, key)

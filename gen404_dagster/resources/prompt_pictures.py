"""Prompt pictures, fetched once and kept in the object store, so that judge and images see the same bytes."""

import asyncio
import hashlib

from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.object_store import ObjectStore


class PromptPictures:
    """Reads by URL. Enter `downloads` before use."""

    def __init__(self, store: ObjectStore, downloads: Downloads, most_bytes: int) -> None:
        self._store, self._downloads, self._most = store, downloads, most_bytes
        self._locks: dict[str, asyncio.Lock] = {}

    async def read(self, url: str) -> bytes:
        """Bytes of a prompt picture. Raises MinerFault or Unavailable when it cannot be had."""
        key = f"prompts/{hashlib.sha256(url.encode()).hexdigest()}"
        async with self._locks.setdefault(url, asyncio.Lock()):
            if not await asyncio.to_thread(self._store.exists, key):
                data = await self._downloads.fetch_bytes(url, self._most)
                await asyncio.to_thread(self._store.put, key, data, "image/png")
            return await asyncio.to_thread(self._store.read, key)

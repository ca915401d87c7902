"""Every reply of a judge, kept: asked once, read ever after.

Belongs here: a judge that looks before it asks, first in the journal, then in the object store, and writes what it was
told to both. Does not: asking (the judge inside). The store decides: an object is written once, and of two replies to
the same question, asked by two runs at a time, the first stored is the reply.
"""

import asyncio
import json
import logging
from collections import defaultdict
from datetime import UTC, datetime
from typing import Self

from pydantic import ValidationError

from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge.protocol import Judge, Question, Reply
from gen404_dagster.resources.object_store import ObjectExists, ObjectMissing, ObjectStore

log = logging.getLogger(__name__)

NAMESPACE = "judge"
JSON = "application/json"


class KeptJudge:
    """A judge whose replies are kept under `namespace`. Losing the journal costs reading them from the store again."""

    def __init__(
        self, judge: Judge, journal: Journal, store: ObjectStore, number: int, namespace: str = NAMESPACE
    ) -> None:
        self._judge, self._journal, self._store, self._number = judge, journal, store, number
        self._namespace = namespace
        self.reads_urls = judge.reads_urls
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.asked = self.remembered = 0

    @property
    def identity(self) -> str:
        return self._judge.identity

    @property
    def endpoints(self) -> tuple[str, ...]:
        return self._judge.endpoints

    @property
    def at_once(self) -> int:
        return self._judge.at_once

    async def __aenter__(self) -> Self:
        await self._judge.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._judge.__aexit__(*error)

    async def ask(self, question: Question) -> Reply:
        key = question.key(self.identity)
        async with self._locks[key]:  # copies of a model make the same question of several duels
            return await self._ask(question, key)

    async def _ask(self, question: Question, key: str) -> Reply:
        reply, stored = self.journalled(key)
        if reply is not None and stored:
            self.remembered += 1
            return reply
        path = object_key(self._namespace, key)
        known, readable = await asyncio.to_thread(self._stored, path, key)
        if known is not None:
            self.remembered += 1
            self._keep(key, known, stored=True)
            return known
        if reply is None:
            reply = await self._judge.ask(question)
            self.asked += 1
            self._keep(key, reply, stored=False)  # the store takes longer: a kill in between costs nothing
        else:
            self.remembered += 1
        record = self._record(question, key, reply)
        first = await asyncio.to_thread(self._store_once, path, record, not readable) or reply
        self._keep(key, first, stored=True)
        return first

    def journalled(self, key: str) -> tuple[Reply | None, bool]:
        """The reply in the journal, and whether the store has it: not after a kill or an outage in between."""
        value = self._journal.get(self._number, f"{self._namespace}/{key}", "")
        try:
            return (None, False) if value is None else (Reply.model_validate(value), value.get("stored", True))
        except ValidationError:  # of an earlier version
            return None, False

    def _keep(self, key: str, reply: Reply, *, stored: bool) -> None:
        value = {**reply.model_dump(mode="json"), "stored": stored}
        self._journal.put(self._number, f"{self._namespace}/{key}", "", value)

    def _record(self, question: Question, key: str, reply: Reply) -> bytes:
        """The object: the question in hashes, when it was stored, and the reply."""
        asked = {
            "key": key,
            "judge": self.identity,
            "prompt": question.prompt.sha256,
            "first": question.first.sha256,
            "second": question.second.sha256,
            "seed": question.seed,
            "repeat": question.repeat,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        return json.dumps({**asked, "reply": reply.model_dump(mode="json")}, indent=1).encode()

    def _stored(self, path: str, key: str) -> tuple[Reply | None, bool]:
        """The reply in the store, and False for an object that cannot be read: it is asked again and replaced."""
        try:
            data = self._store.read(path)
        except ObjectMissing:
            return None, True
        try:
            record = json.loads(data)
            if record["key"] != key:
                raise ValueError("it answers another question")
            return Reply.model_validate(record["reply"]), True
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("object %s is no answer of the judge (%s): it is asked again", path, str(error).split("\n")[0])
            return None, False

    def _store_once(self, path: str, data: bytes, overwrite: bool) -> Reply | None:
        """Write it, or say which reply is there already."""
        try:
            self._store.put(path, data, JSON, overwrite=overwrite)
        except ObjectExists:
            return self._stored(path, json.loads(data)["key"])[0]
        return None


def object_key(namespace: str, key: str) -> str:
    return f"{namespace}/{key[:2]}/{key}.json"

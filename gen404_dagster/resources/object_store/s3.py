"""Cloudflare R2, or any other S3, as an object store.

Belongs here: objects as S3 has them, and whose fault an answer of S3 is. Does not: where buckets and keys come from
(settings), serving objects to others (the bucket's public address).

What R2 and SeaweedFS both keep is used, and no more: `If-None-Match: *` on a put and on the end of a multipart upload
(objects are written once), Content-MD5 with each request that carries bytes (damage on the way is refused there), one
size for all parts of an upload. An object in one piece has its SHA-256 as metadata. That of an upload in parts is known
when the metadata is long written: it stands in an object of its own below `.facts/`, bound to the object's ETag; what is
missing there is computed. https://developers.cloudflare.com/r2/api/s3/api/

SeaweedFS (4.48) looks at the condition of an upload's end before it moves the object there, and not again: of writers
that end their uploads at the same moment several are told that theirs is the object. Of a put it keeps `If-None-Match`,
but not `If-Match`. So a writer puts a claim below `.claims/` before it ends its upload, and beside that of a dead writer
a second one. What remains open there is an object in one piece and one in parts that race for one key.
"""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from dagster_aws.s3 import S3Resource
from urllib3.exceptions import HTTPError

from gen404_dagster.errors import Gen404Error, OperatorError, Unavailable
from gen404_dagster.resources.object_store.protocol import (
    CHUNK_BYTES,
    ObjectExists,
    ObjectMissing,
    StoredObject,
    checked_key,
    checked_prefix,
    guessed_type,
    key_of_url,
    public_url,
)

PART_BYTES = 6 * 1024**2
"""Size of a part, all of which a writer holds in memory. S3 wants at least 5 MiB and takes 10,000 parts."""
ABANDONED_AFTER = timedelta(hours=1)
"""Age of an unfinished upload that belongs to nobody any more: more than a download may take."""
TRIES = 5
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
CONNECTIONS = 32
CLAIM_SECONDS = 600
"""Age at which a claim is that of a dead writer: more than the tries to end an upload may take."""
CLAIM_WAIT_SECONDS = 30

_FACTS = ".facts/"
_CLAIMS = ".claims/"
_TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_DROPPED = {"NoSuchUpload"}
_REFUSALS = {
    "NoSuchBucket": "R2_BUCKET: the object store has no bucket {bucket}",
    "InvalidBucketName": "R2_BUCKET: {bucket} is no name of a bucket",
    "InvalidAccessKeyId": "R2_ACCESS_KEY_ID: the object store does not know this key",
    "Unauthorized": "R2_ACCESS_KEY_ID: the object store does not know this key",
    "SignatureDoesNotMatch": "R2_SECRET_ACCESS_KEY does not belong to R2_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "this machine's clock is wrong, the object store refuses its requests: set it",
}


class TunedS3Resource(S3Resource):
    """dagster-aws' S3 with time-outs, a larger pool, and only the checksums that R2 knows."""

    def get_client(self) -> Any:
        return boto3.session.Session().client(
            "s3",
            region_name=self.region_name,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.aws_access_key_id,
            aws_secret_access_key=self.aws_secret_access_key,
            config=Config(
                retries={"total_max_attempts": self.max_attempts, "mode": "standard"},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=ANSWER_SECONDS,
                max_pool_connections=CONNECTIONS,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )


def open_s3(endpoint: str, access_key_id: str, secret_access_key: str, bucket: str, base_url: str) -> "S3ObjectStore":
    """The store of a bucket. Raises OperatorError that names the variable to change, or Unavailable."""
    try:
        client = TunedS3Resource(
            endpoint_url=endpoint,
            region_name="auto",
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            max_attempts=TRIES,
        ).get_client()
    except (ValueError, BotoCoreError):
        client = None
    if client is None:  # outside of `except`: tracebacks are stored
        raise OperatorError("R2_ENDPOINT is not an address: it looks like https://ACCOUNT.r2.cloudflarestorage.com")
    return S3ObjectStore(client, bucket, base_url)


class S3ObjectStore:
    """A bucket, served to others at `base_url`.

    Opening checks address, keys and bucket with one request, and ends uploads that were abandoned: what a killed writer
    leaves is invisible, and paid for.
    """

    def __init__(self, client: Any, bucket: str, base_url: str, abandoned_after: timedelta = ABANDONED_AFTER) -> None:
        self._client = client
        self.bucket = bucket
        self.base_url = base_url.rstrip("/")
        self.sweep(abandoned_after)

    def __repr__(self) -> str:
        return f"S3ObjectStore({self.bucket!r}, {self.base_url!r})"

    def put(self, key: str, data: bytes, content_type: str, overwrite: bool = False) -> StoredObject:
        with self.writer(key, content_type, overwrite) as sink:
            sink.write(data)
            return sink.commit()

    def writer(self, key: str, content_type: str, overwrite: bool = False) -> "S3Writer":
        return S3Writer(self, checked_key(key), content_type, overwrite)

    def read(self, key: str) -> bytes:
        for _ in range(TRIES - 1):
            with suppress(_Broken):
                return b"".join(self.chunks(key))
        return b"".join(self.chunks(key))

    def chunks(self, key: str, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """As the protocol says; Unavailable when the last piece shows that something was damaged on the way."""
        try:
            answer = self.ask("get_object", Key=checked_key(key))
        except _Missing:
            answer = None
        if answer is None:
            raise ObjectMissing(f"no object {key} in bucket {self.bucket}")
        expected = self._digest(key, answer)

        def pieces() -> Iterator[bytes]:
            digest = hashlib.sha256()
            with answer["Body"] as body:
                try:
                    while piece := body.read(size):
                        digest.update(piece)
                        yield piece
                except (BotoCoreError, HTTPError, OSError) as error:
                    raise _Broken(f"{key}: the object store broke off ({type(error).__name__})") from error
            if expected not in (None, digest.hexdigest()):
                raise _Broken(f"{key}: arrived damaged from the object store")

        return pieces()

    def stat(self, key: str) -> StoredObject | None:
        try:
            found = self.ask("head_object", Key=checked_key(key))
        except _Missing:
            return None
        return self._stored(key, found, self._digest(key, found) or self._computed(key, found["ETag"]))

    def exists(self, key: str) -> bool:
        try:
            self.ask("head_object", Key=checked_key(key))
        except _Missing:
            return False
        return True

    def url(self, key: str) -> str:
        return public_url(self.base_url, checked_key(key))

    def key_of(self, url: str) -> str | None:
        return key_of_url(self.base_url, url)

    def list(self, prefix: str = "") -> Iterator[str]:
        found: list[str] = []
        for page in self._pages("list_objects_v2", "ContinuationToken", Prefix=checked_prefix(prefix)):
            found += (entry["Key"] for entry in page.get("Contents", ()) if not entry["Key"].startswith("."))
        yield from sorted(found)  # SeaweedFS lists by folders

    def delete(self, key: str) -> None:
        self.ask("delete_object", Key=checked_key(key))

    def sweep(self, abandoned_after: timedelta = ABANDONED_AFTER) -> None:
        """End uploads that began so long ago, by the server's clock."""
        for page in self._pages("list_multipart_uploads", "KeyMarker", "UploadIdMarker"):
            now = _now(page)
            for upload in page.get("Uploads", ()):
                if now - upload["Initiated"] >= abandoned_after:
                    with suppress(_Dropped):
                        self.ask("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])

    def ask(self, operation: str, **parameters: object) -> dict[str, Any]:
        """One request, with its tries. Raises OperatorError, Unavailable, and for its callers here what S3 answered."""
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self.bucket, **parameters)
            return answer
        except ClientError as error:
            fault = self._fault(error)
        except ParamValidationError:
            fault = OperatorError(f"R2_BUCKET: {self.bucket} is no name of a bucket")
        except (BotoCoreError, HTTPError, OSError) as error:
            fault = Unavailable(f"the object store at R2_ENDPOINT does not answer ({type(error).__name__})")
        raise fault  # outside of `except`: tracebacks are stored, and what a server says may repeat the key

    def claim(self, key: str, sha256: str) -> Sequence[str]:
        """Be the only content that may come to a key: returns when it is, or when the object is there.

        Whoever has the same content shares the claim. Returns the claims to `release`: those of dead writers, and the
        last. Raises Unavailable while another holds it.
        """
        mine, places = sha256.encode(), [_claim_key(key, 0)]
        deadline = time.monotonic() + CLAIM_WAIT_SECONDS
        while time.monotonic() < deadline:
            try:  # R2 takes few writes to one key, and many reads
                found = self.ask("get_object", Key=places[-1])
                theirs = found["Body"].read(CHUNK_BYTES)
            except _Missing:
                if self._claimed(places[-1], mine):
                    return places
                continue
            except (HTTPError, BotoCoreError, OSError):  # broken off
                continue
            if _now(found) - found["LastModified"] >= timedelta(seconds=CLAIM_SECONDS):
                places.append(_claim_key(key, len(places)))
            elif theirs == mine or self.exists(key):
                return places
            else:
                time.sleep(0.2)
        raise Unavailable(f"object {key}: another writer is about to store it")

    def release(self, places: Sequence[str]) -> None:
        """End the claims to an object that is there."""
        for place in places:
            with suppress(Gen404Error):  # then it dies of age
                self.ask("delete_object", Key=place)

    def keep_digest(self, key: str, etag: str, sha256: str) -> None:
        """Remember the digest of an object that was stored in parts."""
        facts = json.dumps({"key": key, "etag": etag, "sha256": sha256}).encode()
        with suppress(Gen404Error):  # only saves computing it
            self.ask("put_object", Key=_facts_key(key), Body=facts, ContentType="application/json", **_md5(facts))

    def _claimed(self, place: str, mine: bytes) -> bool:
        try:
            self.ask("put_object", Key=place, Body=mine, ContentType="text/plain", IfNoneMatch="*", **_md5(mine))
        except _Taken:
            return False
        return True

    def _pages(self, operation: str, *markers: str, **parameters: object) -> Iterator[dict[str, Any]]:
        page: dict[str, Any] = {"IsTruncated": True}
        while page["IsTruncated"]:
            next_page = {marker: page[f"Next{marker}"] for marker in markers if page.get(f"Next{marker}")}
            page = {"IsTruncated": False} | self.ask(operation, **parameters, **next_page)
            yield page

    def _stored(self, key: str, found: dict[str, Any], sha256: str) -> StoredObject:
        return StoredObject(key, found["ContentLength"], sha256, found.get("ContentType") or guessed_type(key))

    def _digest(self, key: str, found: dict[str, Any]) -> str | None:
        """Recorded SHA-256 of an object."""
        known = found.get("Metadata", {}).get("sha256")
        if known or "-" not in found["ETag"]:  # an ETag of parts ends in their number
            return known
        with suppress(_Missing, ValueError, KeyError, TypeError, HTTPError, BotoCoreError, OSError):
            facts = json.loads(self.ask("get_object", Key=_facts_key(key))["Body"].read(CHUNK_BYTES))
            if facts["etag"] == found["ETag"]:
                return str(facts["sha256"])
        return None

    def _computed(self, key: str, etag: str) -> str:
        digest = hashlib.sha256()
        for piece in self.chunks(key):
            digest.update(piece)
        self.keep_digest(key, etag, digest.hexdigest())
        return digest.hexdigest()

    def _fault(self, error: ClientError) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        for kind, codes in ((_Taken, _TAKEN), (_Missing, _MISSING), (_Dropped, _DROPPED)):
            if code in codes:
                return kind()
        if code in _REFUSALS:
            return OperatorError(_REFUSALS[code].format(bucket=self.bucket))
        shown = code if code.isalnum() and len(code) <= 64 else f"HTTP {status}"
        if status in (401, 403):
            return OperatorError(f"R2_ACCESS_KEY_ID is not allowed to use bucket {self.bucket} ({shown})")
        if status == 400 and code not in ("BadDigest", "RequestTimeout", "IncompleteBody"):
            return OperatorError(f"the object store refuses R2_ENDPOINT, R2_BUCKET or the R2 keys ({shown})")
        return Unavailable(f"the object store cannot do it now ({shown})")


class S3Writer:
    """An object on its way into a bucket: one put when it is small, else parts that become visible at once."""

    def __init__(self, store: S3ObjectStore, key: str, content_type: str, overwrite: bool) -> None:
        self.key = key
        self._store = store
        self._content_type = content_type
        self._condition = {} if overwrite else {"IfNoneMatch": "*"}
        self._buffer = bytearray()
        self._digest = hashlib.sha256()
        self._size = 0
        self._upload: str | None = None
        self._parts: list[dict[str, object]] = []
        self._claims: Sequence[str] = ()
        self._stored: StoredObject | None = None
        self._turn = threading.Lock()  # a cancelled caller aborts while a thread of its still writes

    def write(self, chunk: bytes) -> None:
        with self._turn:
            self._digest.update(chunk)
            self._size += len(chunk)
            rest = memoryview(chunk)
            while rest:
                room = PART_BYTES - len(self._buffer)
                self._buffer += rest[:room]
                rest = rest[room:]
                if len(self._buffer) == PART_BYTES:
                    try:
                        self._send_part()
                    except _Dropped:
                        raise self._dropped() from None

    def commit(self) -> StoredObject:
        with self._turn:
            if self._stored is None:
                self._stored = self._commit()
            return self._stored

    def abort(self) -> None:
        with self._turn:
            self._buffer = bytearray()
            upload, self._upload = self._upload, None
            if upload is not None:
                with suppress(Gen404Error, _Dropped):  # swept later
                    self._store.ask("abort_multipart_upload", Key=self.key, UploadId=upload)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.abort()

    def _commit(self) -> StoredObject:
        stored = StoredObject(self.key, self._size, self._digest.hexdigest(), self._content_type)
        try:
            if self._upload is None:
                self._store.ask(
                    "put_object",
                    Key=self.key,
                    Body=bytes(self._buffer),
                    ContentType=self._content_type,
                    Metadata={"sha256": stored.sha256},
                    **self._condition,
                    **_md5(self._buffer),
                )
            else:
                self._end_upload(stored)
        except (_Taken, _Dropped):  # someone was faster: perhaps an earlier try of ours whose answer was lost
            present = self._store.stat(self.key)
        else:
            return stored
        if present is None:
            raise self._dropped()
        self._store.release(self._claims)
        if (present.size, present.sha256) != (stored.size, stored.sha256):
            raise ObjectExists(f"object {self.key}: its place is taken by other content, and objects are written once")
        return present

    def _end_upload(self, stored: StoredObject) -> None:
        if self._buffer:
            self._send_part()
        if self._condition:
            self._claims = self._store.claim(self.key, stored.sha256)
        etag = self._store.ask(
            "complete_multipart_upload",
            Key=self.key,
            UploadId=self._upload,
            MultipartUpload={"Parts": self._parts},
            **self._condition,
        )["ETag"]
        self._upload = None
        self._store.release(self._claims)
        self._store.keep_digest(self.key, etag, stored.sha256)

    def _dropped(self) -> Unavailable:
        return Unavailable(f"object {self.key}: its upload was dropped by the object store")

    def _send_part(self) -> None:
        if self._upload is None:
            begun = self._store.ask("create_multipart_upload", Key=self.key, ContentType=self._content_type)
            self._upload = begun["UploadId"]
        number = len(self._parts) + 1
        sent = self._store.ask(
            "upload_part",
            Key=self.key,
            UploadId=self._upload,
            PartNumber=number,
            Body=self._buffer,
            **_md5(self._buffer),
        )
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self._buffer = bytearray()


class _Broken(Unavailable):
    """An object did not arrive whole."""


class _Taken(Exception):
    """The condition of a write does not hold: an object is there."""


class _Missing(Exception):
    """No such object."""


class _Dropped(Exception):
    """No such upload: ended, or swept."""


def _facts_key(key: str) -> str:
    return f"{_FACTS}{hashlib.sha256(key.encode()).hexdigest()}.json"


def _claim_key(key: str, number: int) -> str:
    """Place of the first claim to a key, or of one beside those of dead writers."""
    return f"{_CLAIMS}{hashlib.sha256(key.encode()).hexdigest()}.{number}"


def _now(answer: dict[str, Any]) -> datetime:
    """Time of an answer by the server's clock."""
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    return parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)


def _md5(data: bytes | bytearray) -> dict[str, str]:
    return {"ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}

"""The contract of every object store, run over each; then what is particular to the local folder and to S3."""

import hashlib
import logging
import random
import signal
import subprocess
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any

import dagster as dg
import pytest

from gen404_dagster.errors import Gen404Error, OperatorError, Unavailable
from gen404_dagster.resources.configured import StoreResource, build_resources, open_store
from gen404_dagster.resources.object_store import (
    CHUNK_BYTES,
    LocalObjectStore,
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    StoredObject,
    s3,
)
from gen404_dagster.resources.object_store.s3 import S3ObjectStore, TunedS3Resource, open_s3
from gen404_dagster.settings import load_settings
from tests.resources.seaweed import ACCESS_KEY_ID, SECRET_ACCESS_KEY, Seaweed, unfinished_uploads
from tests.resources.wire import Wire, wire_to
from tests.waiting import wait_for

GLB = "model/gltf-binary"
KEY = "rounds/7/5ABC/submitted/p1.glb"


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return LocalObjectStore(tmp_path / "store", "https://cdn.example.org/objects/")
    server: Seaweed = request.getfixturevalue("s3_server")
    return server.store("https://cdn.example.org/objects/")


@pytest.mark.parametrize("size", [0, 1, 1024**2, 3 * 1024**2 + 7])
def test_what_is_put_is_read(store: ObjectStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    stored = store.put(KEY, data, GLB)
    assert stored == StoredObject(KEY, size, hashlib.sha256(data).hexdigest(), GLB)
    assert store.read(KEY) == b"".join(store.chunks(KEY, 100_000)) == data
    assert store.stat(KEY) == stored
    assert store.exists(KEY)


def test_what_is_not_there_is_said_so(store: ObjectStore) -> None:
    store.put("rounds/7/a.glb", b"1", GLB)
    for key in (KEY, "rounds", "rounds/7", "rounds/7/a.glb/below"):
        assert store.stat(key) is None
        assert not store.exists(key)
        with pytest.raises(ObjectMissing, match=key):
            store.read(key)
        with pytest.raises(ObjectMissing, match=key):
            store.chunks(key)


def test_objects_are_written_once(store: ObjectStore) -> None:
    first = store.put(KEY, b"one", GLB)
    assert store.put(KEY, b"one", GLB) == first
    with pytest.raises(ObjectExists, match=KEY):
        store.put(KEY, b"two", GLB)
    with pytest.raises(ObjectExists, match=KEY), store.writer(KEY, GLB) as sink:
        sink.write(b"two")
    assert store.read(KEY) == b"one"
    assert store.stat(KEY) == first


def test_replacing_is_asked_for(store: ObjectStore) -> None:
    store.put(KEY, b"one", GLB)
    replaced = store.put(KEY, b"two!", "image/png", overwrite=True)
    assert store.read(KEY) == b"two!"
    assert store.stat(KEY) == replaced == StoredObject(KEY, 4, hashlib.sha256(b"two!").hexdigest(), "image/png")


def test_a_writer_shows_its_object_when_it_is_whole(store: ObjectStore) -> None:
    with store.writer(KEY, GLB) as sink:
        sink.write(b"first ")
        assert not store.exists(KEY)
        assert list(store.list()) == []
        sink.write(b"second")
    assert store.read(KEY) == b"first second"
    assert sink.commit() == store.stat(KEY) == StoredObject(KEY, 12, hashlib.sha256(b"first second").hexdigest(), GLB)


def test_a_writer_that_fails_leaves_nothing(store: ObjectStore) -> None:
    with pytest.raises(ZeroDivisionError), store.writer(KEY, GLB) as sink:
        sink.write(b"half" * (1 // 0))
    sink.abort()
    other = store.writer(KEY, GLB)
    other.write(b"half")
    other.abort()
    assert store.stat(KEY) is None
    assert list(store.list()) == []
    assert store.put(KEY, b"whole", GLB).size == 5


def test_racing_writers_agree_on_one_object(store: ObjectStore) -> None:
    def put(number: int) -> bytes | None:
        data = b"%d" % (number % 4) * 100_000
        try:
            store.put(KEY, data, GLB)
        except ObjectExists:
            return None
        return data

    with ThreadPoolExecutor(8) as pool:
        winners = {data for data in pool.map(put, range(32)) if data is not None}
    assert winners == {store.read(KEY)}
    stat = store.stat(KEY)
    assert stat is not None
    assert stat.sha256 == hashlib.sha256(store.read(KEY)).hexdigest()


def test_keys_are_listed_in_order_by_prefix(store: ObjectStore) -> None:
    for key in ("rounds/10/b.glb", "rounds/1/a.png", "rounds/1/a.glb", "judge/x.json"):
        store.put(key, b"x", GLB)
    assert list(store.list()) == ["judge/x.json", "rounds/1/a.glb", "rounds/1/a.png", "rounds/10/b.glb"]
    assert list(store.list("rounds/1/")) == ["rounds/1/a.glb", "rounds/1/a.png"]
    assert list(store.list("rounds/1")) == ["rounds/1/a.glb", "rounds/1/a.png", "rounds/10/b.glb"]
    assert list(store.list("rounds/1/a.g")) == ["rounds/1/a.glb"]
    assert list(store.list("nothing/")) == []


@pytest.mark.parametrize("key", [KEY, "judge/a b+c%20.json", "rounds/1/é/ü?#.png"])
def test_addresses_lead_back_to_keys(store: ObjectStore, key: str) -> None:
    url = store.url(key)
    assert " " not in url
    assert "?" not in url
    assert store.key_of(url) == key


def test_foreign_addresses_have_no_key(store: ObjectStore) -> None:
    base = store.url("x").removesuffix("/x")
    for url in [
        "",
        base,
        f"{base}/",
        "https://elsewhere.org/x",
        f"{base}.evil.org/x",
        f"{base}/../x",
        f"{base}/%2e%2e/x",
    ]:
        assert store.key_of(url) is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/x",
        "../x",
        "a/../x",
        "a//b",
        "a/",
        "./a",
        "a\\b",
        "a\nb",
        "a\0b",
        ".partial/x",
        "a/.facts",
        "x" * 300,
        "a/" * 600,
    ],
)
def test_bad_keys_are_refused(store: ObjectStore, key: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: store.put(key, b"x", GLB),
        lambda: store.writer(key, GLB),
        lambda: store.read(key),
        lambda: store.chunks(key),
        lambda: store.stat(key),
        lambda: store.exists(key),
        lambda: store.url(key),
    ]
    for use in uses:
        with pytest.raises(OperatorError, match="no key") as caught:
            use()
        assert len(str(caught.value)) < 300


def test_what_is_deleted_is_gone_and_may_be_written_again(store: ObjectStore) -> None:
    store.put(KEY, b"one", GLB)
    store.delete(KEY)
    store.delete(KEY)
    assert store.stat(KEY) is None
    assert list(store.list()) == []
    assert store.put(KEY, b"two", GLB) == store.stat(KEY)


def test_a_key_below_an_object_is_refused_or_apart(store: ObjectStore) -> None:
    store.put("a", b"file", GLB)
    try:
        store.put("a/b", b"below", GLB)
    except Gen404Error:
        assert not store.exists("a/b")
    assert store.read("a") == b"file"


# The local folder


def open_local(folder: Path) -> LocalObjectStore:
    return LocalObjectStore(folder, "http://127.0.0.1:1")


def test_facts_that_are_lost_or_of_another_file_are_computed_again(tmp_path: Path) -> None:
    store = open_local(tmp_path)
    stored = store.put("a.png", b"one", "image/png")
    (tmp_path / ".facts" / "a.png.json").unlink()
    assert store.stat("a.png") == stored
    assert (tmp_path / ".facts" / "a.png.json").exists()
    (tmp_path / "a.png").write_bytes(b"two")  # as a person would, behind the store's back
    assert store.stat("a.png") == StoredObject("a.png", 3, hashlib.sha256(b"two").hexdigest(), "image/png")
    for broken in ("", "[]", "{}", '{"file": 1}'):
        (tmp_path / ".facts" / "a.png.json").write_text(broken)
        assert store.stat("a.png") == StoredObject("a.png", 3, hashlib.sha256(b"two").hexdigest(), "image/png")


WRITER = """
import sys
from pathlib import Path
from gen404_dagster.resources.object_store import LocalObjectStore

store = LocalObjectStore(Path(sys.argv[1]), "http://127.0.0.1:1")
with store.writer("whole.glb", "x") as sink:
    sink.write(b"whole")
with store.writer("half.glb", "x") as sink:
    sink.write(b"x" * 5_000_000)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_nothing_visible_and_is_swept(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        store = open_local(tmp_path)  # opening sweeps, but not what a live writer holds
        assert len(list(tmp_path.glob(".partial/*.part"))) == 1
        writer.send_signal(signal.SIGKILL)
    assert list(store.list()) == ["whole.glb"]
    assert not store.exists("half.glb")
    assert list(open_local(tmp_path).list()) == ["whole.glb"]
    assert not list(tmp_path.glob(".partial/*"))


BUSY_WRITER = """
import sys
from pathlib import Path
from gen404_dagster.resources.object_store import LocalObjectStore

store = LocalObjectStore(Path(sys.argv[1]), "http://127.0.0.1:1")
for turn in range(10**6):
    store.put("same.bin", b"%07d" % turn * 20_000, "x", overwrite=True)
    store.put(f"{sys.argv[2]}/{turn}.bin", b"%07d" % turn * 2_000, "x")
    print(turn, flush=True)
"""


def test_objects_are_whole_at_any_moment_of_killed_writers(tmp_path: Path) -> None:
    dice = random.Random(3)
    store = open_local(tmp_path / "store")
    for name in "abc":
        with (tmp_path / name).open("w") as out:
            writer = subprocess.Popen([sys.executable, "-c", BUSY_WRITER, str(store.root), name], stdout=out)
        wait_for(lambda told=tmp_path / name: told.stat().st_size > 0)  # type: ignore[misc]
        time.sleep(dice.uniform(0, 0.2))
        writer.kill()
        writer.wait()
        said = (tmp_path / name).read_text().split("\n")[:-1]
        for turn in said:
            assert store.read(f"{name}/{turn}.bin") == b"%07d" % int(turn) * 2_000
        for key in store.list():
            data = store.read(key)
            assert len(data) in (14_000, 140_000)
            assert data == data[:7] * (len(data) // 7)
            stat = store.stat(key)
            assert stat is not None
            assert stat.sha256 == hashlib.sha256(data).hexdigest()
    assert store.exists("same.bin")


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="file cannot be used"):
        open_local(tmp_path / "file")


def test_a_full_disk_is_an_outage_and_leaves_nothing(tmp_path: Path) -> None:
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from pathlib import Path; from gen404_dagster.errors import Unavailable;"
        "from gen404_dagster.resources.object_store import LocalObjectStore;"
        "store = LocalObjectStore(Path(sys.argv[1]), 'http://x')\n"
        "try: store.put('a.bin', b'x' * 200_000, 'x')\n"
        "except Unavailable as error: print(error, list(store.list()), len(list(Path(sys.argv[1]).glob('.partial/*'))))"
    )
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", limited, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert said.stderr == ""
    assert "cannot be written: File too large [] 0" in said.stdout


# S3

PART = s3.PART_BYTES


@pytest.fixture
def bucket(s3_server: Seaweed) -> S3ObjectStore:
    return s3_server.store()


def open_through(s3_server: Seaweed, wire: Wire, bucket: S3ObjectStore) -> S3ObjectStore:
    endpoint = f"http://127.0.0.1:{wire.port}"
    return open_s3(endpoint, ACCESS_KEY_ID, SECRET_ACCESS_KEY, bucket.bucket, bucket.base_url)


@pytest.mark.parametrize("size", [PART - 1, PART, PART + 1, 2 * PART + 7])
def test_a_large_object_goes_in_parts(bucket: S3ObjectStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with bucket.writer(KEY, GLB) as sink:
        for at in range(0, size, 1_000_003):
            sink.write(data[at : at + 1_000_003])
    assert bucket.stat(KEY) == sink.commit() == StoredObject(KEY, size, hashlib.sha256(data).hexdigest(), GLB)
    assert bucket.read(KEY) == data
    assert list(bucket.list()) == [KEY]
    assert unfinished_uploads(bucket) == []


def test_a_large_object_is_written_once_too(bucket: S3ObjectStore) -> None:
    first, second = (random.Random(seed).randbytes(PART + 1) for seed in (1, 2))
    late = bucket.writer(KEY, GLB)
    late.write(second)  # begun before the first was there
    stored = bucket.put(KEY, first, GLB)
    with pytest.raises(ObjectExists, match=KEY):
        late.commit()
    late.abort()
    assert bucket.put(KEY, first, GLB) == stored
    with pytest.raises(ObjectExists, match=KEY):
        bucket.put(KEY, b"small", GLB)
    assert bucket.read(KEY) == first
    assert unfinished_uploads(bucket) == []
    replaced = bucket.put(KEY, second, "image/png", overwrite=True)
    assert bucket.stat(KEY) == replaced == StoredObject(KEY, PART + 1, hashlib.sha256(second).hexdigest(), "image/png")


@pytest.mark.parametrize("round_", range(6))
def test_racing_writers_of_parts_agree_on_one_object(bucket: S3ObjectStore, round_: int) -> None:
    together = Barrier(6)

    def put(number: int) -> int | None:
        try:
            with bucket.writer(KEY, GLB) as sink:
                sink.write(bytes([number % 3]) * (PART + 10))
                together.wait()
        except ObjectExists:
            return None
        return number % 3

    with ThreadPoolExecutor(6) as pool:
        winners = {kind for kind in pool.map(put, range(6)) if kind is not None}
    assert winners == {bucket.read(KEY)[0]}
    assert unfinished_uploads(bucket) == claims(bucket) == []


def test_the_claim_of_a_dead_writer_is_waited_for_and_then_taken(
    bucket: S3ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (random.Random(seed).randbytes(PART + 1) for seed in (1, 2))
    bucket.claim(KEY, hashlib.sha256(first).hexdigest())  # and killed before it ended its upload
    monkeypatch.setattr(s3, "CLAIM_WAIT_SECONDS", 0.5)
    with pytest.raises(Unavailable, match=f"{KEY}: another writer is about to store it"):
        bucket.put(KEY, second, GLB)
    assert bucket.stat(KEY) is None
    assert len(claims(bucket)) == 1
    stored = bucket.put(KEY, first, GLB)  # the same writer, started again
    assert bucket.stat(KEY) == stored
    assert claims(bucket) == []

    bucket.delete(KEY)
    bucket.claim(KEY, hashlib.sha256(first).hexdigest())
    monkeypatch.setattr(s3, "CLAIM_SECONDS", -1)  # as old as that
    assert bucket.put(KEY, second, GLB).sha256 == hashlib.sha256(second).hexdigest()
    assert bucket.read(KEY) == second
    assert claims(bucket) == unfinished_uploads(bucket) == []


def test_of_the_writers_that_follow_a_dead_one_one_is_next(s3_server: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    class Aged(S3ObjectStore):
        """Every first claim is an hour old."""

        def ask(self, operation: str, **parameters: object) -> dict[str, Any]:
            answer = super().ask(operation, **parameters)
            if operation == "get_object" and str(parameters["Key"]).endswith(".0"):
                answer["LastModified"] -= timedelta(hours=1)
            return answer

    monkeypatch.setattr(s3, "CLAIM_WAIT_SECONDS", 0.3)
    bucket = Aged(s3_server.client, s3_server.make_bucket(), "https://cdn.test")
    together = Barrier(6)

    def is_next(key: str, number: int) -> bool:
        together.wait()
        try:
            bucket.claim(key, f"content {number}")
        except Unavailable:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        for turn in range(3):
            key = f"{turn}.glb"
            bucket.claim(key, "content of the dead")
            assert sum(pool.map(is_next, [key] * 6, range(6))) == 1


def claims(bucket: S3ObjectStore) -> list[str]:
    return [entry["Key"] for entry in bucket.ask("list_objects_v2", Prefix=".claims/").get("Contents", ())]


def test_a_lost_digest_is_computed_again_and_one_of_other_content_is_not_believed(bucket: S3ObjectStore) -> None:
    data = random.Random(4).randbytes(PART + 1)
    stored = bucket.put(KEY, data, GLB)
    facts = s3._facts_key(KEY)
    bucket.ask("delete_object", Key=facts)  # as when a writer is killed before it has written them
    assert bucket.stat(KEY) == stored
    assert bucket.ask("head_object", Key=facts)["ContentLength"] > 100
    for wrong in (b"", b"[]", b"{}", b'{"etag": "x", "sha256": "y"}', b"\xff"):
        bucket.ask("put_object", Key=facts, Body=wrong)
        assert bucket.stat(KEY) == stored
        assert bucket.read(KEY) == data


def test_an_object_that_somebody_else_stored_has_a_digest(bucket: S3ObjectStore) -> None:
    bucket.ask("put_object", Key=KEY, Body=b"by hand", ContentType=GLB)
    assert bucket.stat(KEY) == StoredObject(KEY, 7, hashlib.sha256(b"by hand").hexdigest(), GLB)
    assert bucket.read(KEY) == b"by hand"


def test_all_pages_are_listed(bucket: S3ObjectStore) -> None:
    client = TunedS3Resource(
        endpoint_url=bucket._client.meta.endpoint_url,
        region_name="auto",
        aws_access_key_id=ACCESS_KEY_ID,
        aws_secret_access_key=SECRET_ACCESS_KEY,
    ).get_client()
    small_pages = "provide-client-params.s3.ListObjectsV2"
    client.meta.events.register(small_pages, lambda params, **_: params | {"MaxKeys": 2})
    paged = S3ObjectStore(client, bucket.bucket, bucket.base_url)
    keys = [f"rounds/{n}/{name}.glb" for n in (1, 10, 2) for name in "ab"] + ["rounds/1.png", "rounds/1-x"]
    for key in keys:
        paged.put(key, b"x", GLB)
    assert list(paged.list()) == sorted(keys)
    assert list(paged.list("rounds/1/")) == ["rounds/1/a.glb", "rounds/1/b.glb"]


S3_WRITER = """
import sys
from gen404_dagster.resources.object_store.s3 import PART_BYTES, open_s3

store = open_s3(*sys.argv[1:], "https://cdn.test")
with store.writer("half.glb", "x") as sink:
    sink.write(bytes(PART_BYTES + 1))
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_writer_left_in_s3_is_invisible_and_swept_when_old(
    s3_server: Seaweed, bucket: S3ObjectStore
) -> None:
    arguments = [s3_server.endpoint, ACCESS_KEY_ID, SECRET_ACCESS_KEY, bucket.bucket]
    with subprocess.Popen(
        [sys.executable, "-c", S3_WRITER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.kill()
    bucket.sweep()  # it may still be written
    assert unfinished_uploads(bucket) == ["half.glb"]
    assert list(bucket.list()) == []
    assert not bucket.exists("half.glb")
    S3ObjectStore(bucket._client, bucket.bucket, bucket.base_url, abandoned_after=timedelta(0))
    assert unfinished_uploads(bucket) == []
    assert bucket.put("half.glb", b"whole", GLB).size == 5


def test_an_upload_that_is_swept_while_it_goes_on_is_an_outage(bucket: S3ObjectStore) -> None:
    late = bucket.writer(KEY, GLB)
    late.write(bytes(PART))
    bucket.sweep(timedelta(0))
    with pytest.raises(Unavailable, match=f"object {KEY}: its upload was dropped by the object store"):
        late.write(bytes(PART))
    late.abort()
    late = bucket.writer(KEY, GLB)
    late.write(bytes(PART))
    bucket.sweep(timedelta(0))
    with pytest.raises(Unavailable, match="its upload was dropped"):
        late.commit()
    late.abort()
    assert bucket.stat(KEY) is None


@pytest.mark.parametrize("lost", [b"PUT ", b"POST "], ids=["a put", "the end of an upload"])
def test_an_answer_that_is_lost_costs_nothing(s3_server: Seaweed, bucket: S3ObjectStore, lost: bytes) -> None:
    """The request was carried out, its answer never came: the next try finds its own object there."""
    data = random.Random(5).randbytes(1000 if lost == b"PUT " else PART + 1)
    with wire_to(s3_server.endpoint) as wire:
        store = open_through(s3_server, wire, bucket)
        wire.lose_answer_to = lambda request: request.startswith(lost) and b"?uploads" not in request
        stored = store.put(KEY, data, GLB)
        assert wire.lost == 1
    assert bucket.stat(KEY) == stored
    assert bucket.read(KEY) == data


def test_damage_on_the_way_in_is_refused(s3_server: Seaweed, bucket: S3ObjectStore) -> None:
    data = b"a" * 5000 + b"needle" + b"a" * 5000
    with wire_to(s3_server.endpoint) as wire:
        store = open_through(s3_server, wire, bucket)
        wire.change_request = lambda piece: piece.replace(b"needle", b"noodle")
        with pytest.raises(Unavailable, match="BadDigest"):
            store.put(KEY, data, GLB)
        large = store.writer("large.glb", GLB)
        with pytest.raises(Unavailable, match="BadDigest"):
            large.write(data + bytes(PART))
        large.abort()
    assert list(bucket.list()) == []
    assert unfinished_uploads(bucket) == []


def test_damage_on_the_way_out_is_noticed(s3_server: Seaweed, bucket: S3ObjectStore) -> None:
    small, large = b"a" * 500 + b"needle", bytes(PART) + b"needle"
    for key, data in (("small.glb", small), ("large.glb", large)):
        bucket.put(key, data, GLB)
    with wire_to(s3_server.endpoint) as wire:
        store = open_through(s3_server, wire, bucket)
        wire.change_answer = lambda piece: piece.replace(b"needle", b"noodle")
        for key in ("small.glb", "large.glb"):
            with pytest.raises(Unavailable, match=f"{key}: arrived damaged"):
                store.read(key)
            pieces = store.chunks(key)
            with pytest.raises(Unavailable, match="arrived damaged"):
                list(pieces)


def test_a_connection_that_breaks_is_tried_again(s3_server: Seaweed, bucket: S3ObjectStore) -> None:
    data = random.Random(6).randbytes(300_000)
    with wire_to(s3_server.endpoint) as wire:
        store = open_through(s3_server, wire, bucket)
        wire.cut_after = [50_000, 0, 100]
        assert store.put(KEY, data, GLB).size == 300_000
        assert wire.cut_after == []
        wire.cut_answer_after = [100_000]
        assert store.read(KEY) == data
        assert wire.cut_answer_after == []


FAULTS: list[tuple[dict[str, str], type[Gen404Error], str]] = [
    ({"R2_BUCKET": "not-there"}, OperatorError, "R2_BUCKET: the object store has no bucket not-there"),
    ({"R2_BUCKET": "No Bucket!"}, OperatorError, "R2_BUCKET: No Bucket! is no name of a bucket"),
    ({"R2_ACCESS_KEY_ID": "stranger-id"}, OperatorError, "R2_ACCESS_KEY_ID: the object store does not know this key"),
    (
        {"R2_SECRET_ACCESS_KEY": "wrong-secret"},
        OperatorError,
        "R2_SECRET_ACCESS_KEY does not belong to R2_ACCESS_KEY_ID",
    ),
    ({"R2_ENDPOINT": "nonsense"}, OperatorError, "R2_ENDPOINT is not an address"),
    ({"R2_ENDPOINT": "http://127.0.0.1:9"}, Unavailable, "the object store at R2_ENDPOINT does not answer"),
    ({"R2_SECRET_ACCESS_KEY": ""}, OperatorError, "GEN404_STORE=s3 needs R2_SECRET_ACCESS_KEY$"),
    ({"R2_BUCKET": "", "CDN_URL": ""}, OperatorError, "GEN404_STORE=s3 needs R2_BUCKET, CDN_URL$"),
]


@pytest.mark.parametrize(("wrong", "kind", "said"), FAULTS)
def test_what_is_wrong_with_the_settings_is_named_and_no_secret_is(
    s3_server: Seaweed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: dict[str, str],
    kind: type[Gen404Error],
    said: str,
) -> None:
    right = {
        "GEN404_STORE": "s3",
        "R2_ENDPOINT": s3_server.endpoint,
        "R2_ACCESS_KEY_ID": ACCESS_KEY_ID,
        "R2_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
        "R2_BUCKET": s3_server.make_bucket(),
        "CDN_URL": "https://cdn.test",
    }
    for name, value in (right | wrong).items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.INFO)
    with pytest.raises(kind, match=said) as caught:
        open_store(load_settings())
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert SECRET_ACCESS_KEY not in told
    assert "wrong-secret" not in told


def test_the_configured_store_shows_no_secret(s3_server: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3_server.make_bucket()
    values = (s3_server.endpoint, ACCESS_KEY_ID, SECRET_ACCESS_KEY, bucket, "https://cdn.test")
    names = ("R2_ENDPOINT", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_BUCKET", "CDN_URL")
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GEN404_STORE", "s3")
    configuration = load_settings()
    opened = open_store(configuration)
    opened.put(KEY, b"x", GLB)
    resource = build_resources(configuration)["store"]

    @dg.asset
    def stored(store: StoreResource) -> None:
        assert SECRET_ACCESS_KEY not in repr(store)
        assert store.get().read(KEY) == b"x"

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([stored], resources={"store": resource}, instance=instance)
        events = "".join(repr(event) for event in instance.all_logs(result.run_id))
    assert result.success
    for shown in (repr(configuration), repr(resource), repr(opened), events):
        assert SECRET_ACCESS_KEY not in shown


def test_memory_is_bounded_however_large_the_object(bucket: S3ObjectStore) -> None:
    piece = bytes(CHUNK_BYTES)
    tracemalloc.start()
    try:
        with bucket.writer(KEY, GLB) as sink:
            for _ in range(48):
                sink.write(piece)
        assert sum(map(len, bucket.chunks(KEY))) == 48 * CHUNK_BYTES
        assert tracemalloc.get_traced_memory()[1] < 3 * PART
    finally:
        tracemalloc.stop()

"""The contract of every object store, run over each; then what is particular to the local folder."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gen404_dagster.errors import Gen404Error, OperatorError
from gen404_dagster.resources.object_store import (
    LocalObjectStore,
    ObjectExists,
    ObjectMissing,
    ObjectStore,
    StoredObject,
)

GLB = "model/gltf-binary"
KEY = "rounds/7/5ABC/submitted/p1.glb"


def local(folder: Path) -> ObjectStore:
    return LocalObjectStore(folder / "store", "https://cdn.example.org/objects/")


STORES: dict[str, Callable[[Path], ObjectStore]] = {"local": local}


@pytest.fixture(params=list(STORES.values()), ids=list(STORES))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    opened: ObjectStore = request.param(tmp_path)
    return opened


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
        time.sleep(0.35 + dice.uniform(0, 0.2))
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

"""What is read from an SPZ, what is refused and why, and that nothing else can come of a stranger's bytes."""

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpu_kernels.errors import UnreadableModel
from gpu_kernels.splats import Splats
from gpu_kernels.spz import load_spz, write_spz
from tests.gpu_kernels.splat_files import assert_same, make_splats

Version = Literal[2, 3]
Container = Literal["zstd", "gzip"]
SPLATS = make_splats(5)


def header(
    count: int, version: int = 2, degree: int = 0, bits: int = 12, flags: int = 0, magic: bytes = b"NGSP"
) -> bytes:
    return struct.pack("<4sIIBBBB", magic, version, count, degree, bits, flags, 0)


def unpack(data: bytes) -> bytes:
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else zstandard.decompress(data)


PAYLOAD = unpack(write_spz(SPLATS))
both = pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])


def rotation_matrices(quaternions: NDArray[np.float32]) -> NDArray[np.float64]:
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).astype(np.float64).T
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def opaqueness(splats: Splats) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-splats.opacities))


# --- what is read ---


@settings(max_examples=60)
@given(
    count=st.integers(2, 40),
    seed=st.integers(0, 1000),
    version=st.sampled_from([2, 3]),
    container=st.sampled_from(["zstd", "gzip"]),
)
def test_what_is_written_is_read_back_to_a_step(count: int, seed: int, version: Version, container: Container) -> None:
    splats = make_splats(count, seed)
    data = write_spz(splats, version, container)
    assert write_spz(splats, version, container) == data
    read = load_spz(data)
    half = 0.5001  # of a step
    np.testing.assert_allclose(read.positions, splats.positions, rtol=0, atol=half / 4096)
    np.testing.assert_allclose(read.log_scales, splats.log_scales, rtol=0, atol=half / 16)
    np.testing.assert_allclose(read.colours, splats.colours, rtol=0, atol=half / (255 * 0.15))
    np.testing.assert_allclose(opaqueness(read), opaqueness(splats), rtol=0, atol=half / 255)
    # Version 2 finds w from the others: where it is small, their steps weigh most.
    error = np.abs(rotation_matrices(read.rotations) - rotation_matrices(splats.rotations)).max()
    assert error < (0.2 if version == 2 else 0.0035)


def test_versions_and_containers_hold_the_same() -> None:
    for version in (2, 3):
        assert_same(load_spz(write_spz(SPLATS, version, "zstd")), load_spz(write_spz(SPLATS, version, "gzip")))
    two, three = load_spz(write_spz(SPLATS, 2)), load_spz(write_spz(SPLATS, 3))
    np.testing.assert_array_equal(two.positions, three.positions)
    np.testing.assert_array_equal(two.opacities, three.opacities)


def test_every_byte_is_decoded_after_the_specification() -> None:
    """256 splats of which splat n has the byte n everywhere but in its position."""
    n = np.arange(256, dtype=np.uint8)
    whole = np.arange(-384, 384, dtype="<i4").reshape(256, 3) * 21845
    positions = whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    rest = b"".join(np.repeat(n, times).tobytes() for times in (1, 3, 3, 3))
    splats = load_spz(gzip.compress(header(256, bits=20) + positions + rest))
    np.testing.assert_array_equal(splats.positions, whole / 2**20)
    np.testing.assert_allclose(opaqueness(splats), n / 255, rtol=0, atol=1e-7)
    assert (splats.opacities[0], splats.opacities[255]) == (-np.inf, np.inf)
    np.testing.assert_allclose(splats.colours[:, 1], (n / 255 - 0.5) / 0.15, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(splats.log_scales[:, 2], n / 16 - 10)
    x = n / 127.5 - 1
    np.testing.assert_allclose(splats.rotations[:, 1:], np.stack([x, x, x], axis=1), atol=1e-7)
    np.testing.assert_allclose(splats.rotations[:, 0], np.sqrt(np.maximum(0, 1 - 3 * x * x)), atol=1e-6)


@pytest.mark.parametrize(
    ("word", "wxyz"),
    [
        (3 << 30, (1, 0, 0, 0)),
        (0, (0, 1, 0, 0)),
        (1 << 30, (0, 0, 1, 0)),
        (2 << 30 | 511, (np.sqrt(0.5), 0, 0, np.sqrt(0.5))),  # the lowest bits hold the last of x, y, z, w
        (3 << 30 | 511 << 20, (np.sqrt(0.5), np.sqrt(0.5), 0, 0)),
        (3 << 30 | 1023 << 10, (np.sqrt(0.5), 0, -np.sqrt(0.5), 0)),  # bit 9 is the sign
        (511 << 20 | 511 << 10 | 511, (np.sqrt(0.5), 0, np.sqrt(0.5), np.sqrt(0.5))),  # too long: nothing is left for x
    ],
)
def test_rotations_of_version_3_are_decoded_after_the_specification(word: int, wxyz: tuple[float, ...]) -> None:
    body = b"".join(bytes(9) if n == 0 else b"\1" * 9 for n in range(2)) + bytes(2 * 7) + struct.pack("<II", word, word)
    splats = load_spz(gzip.compress(header(2, version=3) + body))
    np.testing.assert_allclose(splats.rotations[0], wxyz, atol=1e-6)


@both
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_higher_harmonics_are_skipped(degree: int, pack: Callable[[bytes], bytes]) -> None:
    extra = b"\x7f" * (5 * 3 * ((degree + 1) ** 2 - 1))
    assert_same(load_spz(pack(header(5, degree=degree) + PAYLOAD[16:] + extra)), load_spz(write_spz(SPLATS)))


def test_large_coordinates_are_written_with_fewer_fractional_bits() -> None:
    positions = np.array([[0, 0, 0], [5000, 1, 1], [1, 1, -8_000_000]], np.float32)
    three = make_splats(3)
    splats = Splats(positions, three.log_scales, three.rotations, three.opacities, three.colours)
    np.testing.assert_array_equal(load_spz(write_spz(splats)).positions, positions)
    splats = Splats(positions * 10, three.log_scales, three.rotations, three.opacities, three.colours)
    with pytest.raises(ValueError, match="coordinates reach 8e"):
        write_spz(splats)


def test_any_buffer_is_read() -> None:
    for container in ("zstd", "gzip"):
        data = write_spz(SPLATS, 2, container)
        assert_same(load_spz(bytearray(data)), load_spz(data))
        assert_same(load_spz(memoryview(b"x" + data)[1:]), load_spz(data))


@pytest.mark.shared
def test_both_forms_of_the_sample_hold_the_same(shared: Path) -> None:
    folder = shared / "samples" / "splat"
    splats = load_spz((folder / "robocop_404zstd.spz").read_bytes())
    assert_same(splats, load_spz((folder / "robocop_gzip.spz").read_bytes()))
    assert len(splats.positions) == 267_776
    assert np.abs(splats.positions).max() < 0.5
    assert unpack(write_spz(splats)) == unpack((folder / "robocop_404zstd.spz").read_bytes())


# --- what is refused, and why ---

REFUSED: dict[str, tuple[bytes, str]] = {
    "other": (b"something else that is long enough", "not an SPZ file: the compressed"),
    "empty": (b"", "truncated: the stream ends within the header"),
    "magic": (header(5, magic=b"PLYX") + PAYLOAD[16:], "not an SPZ file: the compressed"),
    "version 1": (header(5, version=1) + PAYLOAD[16:], "SPZ version 1, only 2 and 3"),
    "version 4": (header(5, version=4) + PAYLOAD[16:], "SPZ version 4, only 2 and 3"),
    "degree": (header(5, degree=9) + PAYLOAD[16:], "harmonics of degree 9"),
    "bits": (header(5, bits=200) + PAYLOAD[16:], "200 fractional bits"),
    "extensions": (header(5, flags=2) + PAYLOAD[16:], "uses SPZ extensions"),
    "none": (header(0), "no splats"),
    "millions": (header(5_000_001) + PAYLOAD[16:], "5000001 splats, at most"),
    "too few bytes": (header(6) + PAYLOAD[16:], "truncated: the stream ends within"),
    "too few harmonics": (header(5, degree=3) + PAYLOAD[16:], "truncated: the stream ends within the spherical"),
    "too many bytes": (header(4) + PAYLOAD[16:], "holds more than its header declares"),
    "one centre": (header(5) + bytes(5 * 19), "all splats have the same centre"),
}


@both
@pytest.mark.parametrize(("payload", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_names_its_reason(payload: bytes, reason: str, pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(UnreadableModel, match=reason):
        load_spz(pack(payload))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an SPZ file"),
        (PAYLOAD, "not an SPZ file"),
        (b"\x1f\x8b" + bytes(50), "broken compressed stream"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 50, "broken compressed stream"),
        (write_spz(SPLATS, 2, "gzip")[:-9], "broken compressed stream: Compressed file ended"),
        (write_spz(SPLATS, 2, "gzip")[:-8] + bytes(8), "broken compressed stream: CRC"),
        (write_spz(SPLATS, 2, "zstd")[:-9], "truncated"),
    ],
)
def test_broken_streams_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableModel, match=reason):
        load_spz(data)


@pytest.mark.parametrize("container", ["gzip", "zstd"])
@pytest.mark.parametrize("head", [b"", header(10), header(10, degree=3)], ids=["zeros", "ten", "ten and harmonics"])
def test_a_bomb_costs_no_memory(head: bytes, container: str) -> None:
    """A stream of 300 MB of zeros is read as far as its header declares."""
    if container == "gzip":
        data = gzip.compress(head) + gzip.compress(bytes(100_000_000), 1) * 3
    else:
        packer = zstandard.ZstdCompressor().compressobj()
        data = packer.compress(head) + b"".join(packer.compress(bytes(10_000_000)) for _ in range(30)) + packer.flush()
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableModel, match=r"not an SPZ file|more than its header"):
            load_spz(data)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_giant_zstd_window_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(UnreadableModel, match=r"broken compressed stream.*too much memory"):
        load_spz(packer.compress(PAYLOAD) + packer.flush())


# --- anything at all ---

SEEDS = [write_spz(SPLATS, version, container) for version in (2, 3) for container in ("zstd", "gzip")]
EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4)


def edited(data: bytes, edits: list[tuple[float, bytes, int]]) -> bytes:
    for place, new, removed in edits:
        at = int(place * len(data))
        data = data[:at] + new + data[at + removed :]
    return data


def read_or_refuse(data: bytes) -> None:
    refusal = ""
    try:
        assert np.isfinite(load_spz(data).rotations).all()
    except UnreadableModel as error:
        refusal = str(error)
    assert "\n" not in refusal


@settings(max_examples=300)
@given(seed=st.sampled_from(SEEDS), edits=EDITS)
def test_any_changed_stream_is_read_or_refused(seed: bytes, edits: list[tuple[float, bytes, int]]) -> None:
    read_or_refuse(edited(seed, edits))


@settings(max_examples=300)
@given(seed=st.sampled_from(SEEDS), edits=EDITS, head=st.binary(max_size=8))
def test_any_changed_payload_is_read_or_refused(
    seed: bytes, edits: list[tuple[float, bytes, int]], head: bytes
) -> None:
    read_or_refuse(zstandard.compress(edited(unpack(seed), edits)))
    read_or_refuse(gzip.compress(PAYLOAD[:8] + head + PAYLOAD[8 + len(head) :]))

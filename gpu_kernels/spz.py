"""SPZ files of Gaussian splats: bytes to `Splats` and back.

Belongs here: the two containers (404's Zstandard, Niantic's gzip), versions 2 and 3 of what is in them, and every reason
to refuse a file. The bytes come from a stranger: a stream is decompressed only as far as its header's count, which is
bounded, says.
Does not: the logistic and exponential activations (the kernels), other formats (`ply`).
Source: nianticlabs/spz, README and load-spz.cc. Coordinates stay as stored: files of the subnet, in either container, have
the axes of its PLY files, and nothing in a file says otherwise (Niantic's right-up-back frame is a convention only).
"""

import gzip
import io
import struct
import zlib
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from gpu_kernels.errors import UnreadableModel
from gpu_kernels.splats import MAX_SPLATS, Floats, Splats

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
MAX_ZSTD_WINDOW = 1 << 27  # bytes; what the zstd tool allows by default, and what its highest level asks for

_HEADER = struct.Struct("<4sIIBBBB")  # magic, version, count, SH degree, fractional bits, flags, reserved
_MAGIC = b"NGSP"
_EXTENSIONS_FLAG = 2
_MAX_DEGREE = 4
_MAX_FRACTIONAL_BITS = 31
_ROTATION_BYTES = {2: 3, 3: 4}
_COLOUR_SCALE = 0.15
_CHUNK = 1 << 16

Bytes = NDArray[np.uint8]
_LEVELS = np.arange(256, dtype=np.float64)
_LOG_SCALES = (_LEVELS / 16 - 10).astype(np.float32)
_COLOURS = ((_LEVELS / 255 - 0.5) / _COLOUR_SCALE).astype(np.float32)
with np.errstate(divide="ignore"):
    _OPACITIES = (np.log(_LEVELS) - np.log(255 - _LEVELS)).astype(np.float32)  # logit of n / 255: -inf ... +inf


def load_spz(data: bytes | bytearray | memoryview) -> Splats:
    """Decode an SPZ of version 2 or 3 in a zstd or a gzip stream; spherical harmonics beyond degree 0 are skipped.

    An opacity of 0 or 255 becomes -inf or +inf, whose sigmoid is exactly 0 or 1.

    Raises UnreadableModel, and nothing else, for a file that is refused.
    """
    # Imported here: only SPZ files need it.
    import zstandard

    try:
        with _open(data) as stream:
            return _read(stream)
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise UnreadableModel(f"broken compressed stream: {error}") from None


def _open(data: bytes | bytearray | memoryview) -> BinaryIO:
    import zstandard

    head = bytes(memoryview(data)[:4])
    if head == ZSTD_MAGIC:
        return zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW).stream_reader(data)
    if head.startswith(GZIP_MAGIC):
        return gzip.GzipFile(fileobj=io.BytesIO(data))  # type: ignore[return-value]
    raise UnreadableModel("not an SPZ file")


def _read(stream: BinaryIO) -> Splats:
    header = _take(stream, _HEADER.size, "the header")
    magic, version, count, degree, bits, flags, _ = _HEADER.unpack(header.data)
    if magic != _MAGIC:
        raise UnreadableModel("not an SPZ file: the compressed stream holds something else")
    if version not in _ROTATION_BYTES:
        raise UnreadableModel(f"SPZ version {version}, only 2 and 3 are supported")
    if count > MAX_SPLATS:
        raise UnreadableModel(f"{count} splats, at most {MAX_SPLATS} are allowed")
    if degree > _MAX_DEGREE:
        raise UnreadableModel(f"spherical harmonics of degree {degree}, at most {_MAX_DEGREE} is defined")
    if bits > _MAX_FRACTIONAL_BITS:
        raise UnreadableModel(f"positions with {bits} fractional bits, at most {_MAX_FRACTIONAL_BITS} are defined")
    if flags & _EXTENSIONS_FLAG:
        raise UnreadableModel("uses SPZ extensions")
    positions, alphas, colours, scales, rotations = (
        _take(stream, count * width, what).reshape(count, width)
        for what, width in (
            ("positions", 9),
            ("opacities", 1),
            ("colours", 3),
            ("scales", 3),
            ("rotations", _ROTATION_BYTES[version]),
        )
    )
    _skip(stream, count * 3 * ((degree + 1) ** 2 - 1))
    return Splats(
        positions=_decode_positions(positions, bits),
        log_scales=_LOG_SCALES[scales],
        rotations=_decode_first_three(rotations) if version == 2 else _decode_smallest_three(rotations),
        opacities=_OPACITIES[alphas[:, 0]],
        colours=_COLOURS[colours],
    )


def _take(stream: BinaryIO, size: int, what: str) -> Bytes:
    """The next bytes of a stream, all of them. Memory is touched only as bytes arrive, whatever the header says."""
    block = np.empty(size, np.uint8)
    view, at = block.data, 0
    while at < size:
        got = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not got:
            raise UnreadableModel(f"truncated: the stream ends within {what}")
        at += got
    return block


def _skip(stream: BinaryIO, size: int) -> None:
    """Pass over the rest, which must have the declared size. Read, not believed: this also checks the checksums."""
    block = memoryview(bytearray(_CHUNK))
    while size:
        got = stream.readinto(block[: min(size, _CHUNK)])  # type: ignore[attr-defined]
        if not got:
            raise UnreadableModel("truncated: the stream ends within the spherical harmonics")
        size -= got
    if stream.readinto(block[:1]):  # type: ignore[attr-defined]
        raise UnreadableModel("the stream holds more than its header declares")


def _decode_positions(packed: Bytes, bits: int) -> Floats:
    """[N, 3] from little-endian 24-bit fixed point, exact in float32."""
    words = np.zeros((len(packed) * 3, 4), np.uint8)
    words[:, 1:] = packed.reshape(-1, 3)
    whole = (words.view("<i4") >> 8).reshape(-1, 3)  # the arithmetic shift extends the sign
    return np.multiply(whole, np.float32(0.5**bits), dtype=np.float32)


def _decode_first_three(packed: Bytes) -> Floats:
    """[N, 4] wxyz from x, y and z of version 2; w is what is missing to 1, and never negative."""
    rotations = np.empty((len(packed), 4), np.float32)
    xyz = rotations[:, 1:]
    np.divide(packed, np.float32(127.5), out=xyz, dtype=np.float32)
    xyz -= 1
    np.sqrt(np.maximum(1 - np.einsum("ij,ij->i", xyz, xyz), 0), out=rotations[:, 0])
    return rotations


def _decode_smallest_three(packed: Bytes) -> Floats:
    """[N, 4] wxyz from version 3: which of x, y, z, w is largest, then sign and 9 bits of each of the others in turn."""
    words = packed.view("<u4")[:, 0]
    largest = (words >> 30).astype(np.intp)
    rotations = np.empty((len(words), 4), np.float32)  # here xyzw
    rows = np.arange(len(words))
    left = np.ones(len(words), np.float32)
    for slot in range(3):  # 0: the last of the others in the order x, y, z, w, in the lowest bits
        part = words >> np.uint32(10 * slot)
        value = (part & 511).astype(np.float32) * np.float32(np.sqrt(0.5) / 511)
        value[(part & 512) != 0] *= -1
        place = np.where(largest > 2 - slot, 2 - slot, 3 - slot)
        rotations[rows, place] = value
        left -= value * value
    rotations[rows, largest] = np.sqrt(np.maximum(left, 0))
    return np.ascontiguousarray(np.roll(rotations, 1, axis=1))


def write_spz(splats: Splats, version: Literal[2, 3] = 2, container: Literal["zstd", "gzip"] = "zstd") -> bytes:
    """An SPZ without spherical harmonics beyond degree 0; equal splats give equal bytes.

    Positions keep 12 fractional bits as from other writers, fewer where coordinates are large.
    Raises ValueError for coordinates of 2^23 and more.
    """
    reach = float(np.abs(splats.positions).max())
    bits = next((bits for bits in range(12, -1, -1) if np.rint(reach * 2**bits) < 1 << 23), None)
    if bits is None:
        raise ValueError(f"coordinates reach {reach:.4g}, SPZ holds less than {1 << 23}")
    whole = np.rint(splats.positions.astype(np.float64) * 2**bits).astype("<i4")
    alphas = 255 * _sigmoid(splats.opacities.astype(np.float64))
    rotations = splats.rotations.astype(np.float64)
    # A quaternion of length 0 has no direction: it stands for no rotation.
    rotations[~rotations.any(axis=1)] = (1, 0, 0, 0)
    rotations /= np.abs(rotations).max(axis=1, keepdims=True)
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    payload = b"".join(
        (
            _HEADER.pack(_MAGIC, version, len(whole), 0, bits, 0, 0),
            whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes(),
            _to_bytes(alphas).tobytes(),
            _to_bytes((splats.colours.astype(np.float64) * _COLOUR_SCALE + 0.5) * 255).tobytes(),
            _to_bytes((splats.log_scales.astype(np.float64) + 10) * 16).tobytes(),
            (_encode_first_three(rotations) if version == 2 else _encode_smallest_three(rotations)).tobytes(),
        )
    )
    if container == "gzip":
        return gzip.compress(payload, mtime=0)
    import zstandard

    return zstandard.ZstdCompressor().compress(payload)


def _to_bytes(values: NDArray[np.float64]) -> Bytes:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -values))


def _encode_first_three(rotations: NDArray[np.float64]) -> Bytes:
    return _to_bytes(127.5 * (np.where(rotations[:, :1] < 0, -1, 1) * rotations[:, 1:] + 1))


def _encode_smallest_three(rotations: NDArray[np.float64]) -> NDArray[np.uint32]:
    xyzw = np.roll(rotations, -1, axis=1)
    largest = np.abs(xyzw).argmax(axis=1)
    rows = np.arange(len(xyzw))
    xyzw = xyzw * np.where(xyzw[rows, largest] < 0, -1, 1)[:, None]
    words = largest.astype(np.uint32)
    for slot in range(3):
        value = xyzw[rows, np.where(largest > slot, slot, slot + 1)]
        magnitude = np.floor(np.abs(value) * (511 / np.sqrt(0.5)) + 0.5).astype(np.uint32)
        words = words << 10 | (value < 0).astype(np.uint32) << 9 | magnitude
    return words.astype("<u4")

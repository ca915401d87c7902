"""Files that miners and their images make: who made it, for which round and prompt, becomes bytes.

Belongs here: the one way from a miner's skill to a GLB, used by the CDN and by the images. Does not: serving it.
"""

import struct
from typing import Literal

from gen404_dagster.simulation.chance import generator
from gen404_dagster.simulation.objects import Shaped, imitation
from gen404_dagster.simulation.reliefs import relief

Occasion = Literal["submitted", "regenerated"]


def make_model(
    simulation_seed: int,
    hotkey: str,
    skill: float,
    round_seed: int,
    stem: str,
    occasion: Occasion,
    *,
    index: int | None,
    picture: bytes = b"",
) -> Shaped:
    """A miner's model of a prompt: of the object number `index`, or of a picture that shows none we know.

    Noise belongs to (simulation, hotkey, prompt, occasion): what is regenerated never equals what was submitted.
    Raises MinerFault for a picture that cannot be decoded.
    """
    noise = (simulation_seed, hotkey, stem, occasion)
    if index is None:
        return relief(picture, skill, simulation_seed, round_seed, noise)
    return imitation(simulation_seed, index, skill, round_seed, noise)


def garbage(simulation_seed: int, hotkey: str, stem: str) -> bytes:
    """Bytes that begin like a GLB and are none."""
    return b"glTF" + generator("garbage", simulation_seed, hotkey, stem).bytes(2000)


def padded_glb(data: bytes) -> bytes:
    """The same model in other bytes: four spaces more behind the JSON chunk. What is no GLB stays as it is."""
    if len(data) < 20 or data[:4] != b"glTF" or data[16:20] != b"JSON":
        return data
    total, length = struct.unpack_from("<I", data, 8)[0] + 4, struct.unpack_from("<I", data, 12)[0] + 4
    if 20 + length - 4 > len(data) or total >= 2**32 or length >= 2**32:
        return data
    end = 20 + length - 4
    return data[:8] + struct.pack("<II", total, length) + data[16:end] + b"    " + data[end:]

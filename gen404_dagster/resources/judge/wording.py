"""What a vision-language model is told: the words, in a version that belongs to every answer, and the pictures.

Belongs here: texts and their order in a message. Does not: sending them (`openai`). Change a word, and `PROMPT_VERSION`
changes with it: kept answers to other words are not answers to these.
"""

import base64
from typing import Any

from gen404_dagster.resources.pictures import decode

PROMPT_VERSION = "1"

SYSTEM = """\
You compare 3D models with the picture they were made from. You are exact and impartial. You answer with one JSON object
and nothing else."""

INSTRUCTION = """\
Each model is shown as a grid of four views of the same object, from four sides on white; the black lines only part the
views. Judge how well each model rebuilds the object of the prompt picture. A side that the picture does not show may
look like anything that fits the object. Ignore background, lighting, size and viewpoint.

Give each model a penalty from 0 to 10:
0: the same object in shape, parts, colours and texture.
1 to 3: small deviations of proportions, details or colours.
4 to 6: clear faults: missing or additional parts, wrong colours, blurred texture, wrong style.
7 to 9: hard to recognise as the object, broken or unfinished.
10: a different object, or nothing.
Models that are about equally good get equal penalties. The order in which they are shown means nothing.

Answer as {"penalty_1": first model's, "penalty_2": second model's, "issues": the main faults of both in one or two
short sentences}."""


def messages(prompt: str, first: str, second: str) -> list[Any]:
    """A chat of system and user, with the addresses of three pictures (URLs or data URIs)."""
    parts: list[dict[str, Any]] = []
    for label, address in (("Prompt picture:", prompt), ("First model:", first), ("Second model:", second)):
        parts.append({"type": "text", "text": label})
        parts.append({"type": "image_url", "image_url": {"url": address}})
    parts.append({"type": "text", "text": INSTRUCTION})
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": parts}]


def data_uri(data: bytes) -> str:
    """A picture inside a URL; what is neither PNG nor JPEG becomes PNG, because not every server takes WebP."""
    if data.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    else:
        kind = "png"
        if not data.startswith(b"\x89PNG\r\n\x1a\n"):
            from gpu_kernels import encode_png

            data = encode_png(decode(data))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

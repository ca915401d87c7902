"""A vision-language model of some 700 KB with random weights, as the two GGUF files that llama-server loads.

    PYTHONPATH=.../gguf-py python tiny_model.py FOLDER

Belongs here: shapes, vocabulary and the few weights that are not random. Does not: anything it could know: it answers
at random, by what it is shown, and only the grammar of the JSON schema makes an answer of it. Weights that are set:
every token carries a constant (CONSTANT), by which the output prefers the end of a string, so that answers end; every
patch of a picture carries another (SEEN), by which all heads attend to pictures, so that they matter among a thousand
characters of text.
"""

import sys
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# The language model: a llama over single characters.
WIDTH, HIDDEN, LAYERS, HEADS, CONTEXT = 64, 128, 2, 4, 16384
HEAD = WIDTH // HEADS
CONSTANT, SEEN = 0, 1  # dimensions of the embedding
QUOTE = ord('"')
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "

# The eye: 112 pixels in patches of 14, pooled 4 x 4 into 4 tokens a picture.
EYE_WIDTH, EYE_HIDDEN, PATCH, SIDE = 32, 64, 14, 112


def vocabulary() -> tuple[list[bytes], list[int]]:
    """Special tokens, all 256 bytes, printable characters, the space."""
    kinds = gguf.TokenType
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % value for value in range(256))]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    characters = [*(bytes([value]) for value in range(33, 127)), "\u2581".encode()]
    return tokens + characters, [int(kind) for kind in types + [kinds.NORMAL] * len(characters)]


def write_text(path: Path, dice: np.random.Generator) -> None:
    tokens, types = vocabulary()
    bytes_and_specials = len(tokens) - 95

    def normal(*shape: int, scale: float) -> Array:
        return (dice.standard_normal(shape) * scale).astype(np.float32)

    embedding = normal(len(tokens), WIDTH, scale=1.0)
    embedding[:, CONSTANT], embedding[:, SEEN] = 6.0, 0.0
    output = normal(len(tokens), WIDTH, scale=0.5)
    digits = [tokens.index(bytes([value])) for value in b"0123456789"]
    output[digits] *= 2  # small differences between pictures decide
    output[:, CONSTANT] = 0.0
    output[:bytes_and_specials, CONSTANT] = -4.0
    output[tokens.index(bytes([QUOTE])), CONSTANT] = 14.0

    model = gguf.GGUFWriter(path, "llama")
    model.add_name("tiny-random")
    model.add_context_length(CONTEXT)
    model.add_embedding_length(WIDTH)
    model.add_block_count(LAYERS)
    model.add_feed_forward_length(HIDDEN)
    model.add_head_count(HEADS)
    model.add_head_count_kv(HEADS)
    model.add_rope_dimension_count(HEAD)
    model.add_layer_norm_rms_eps(1e-5)
    model.add_vocab_size(len(tokens))
    model.add_file_type(gguf.LlamaFileType.ALL_F32)
    model.add_tokenizer_model("llama")
    model.add_token_list(tokens)
    model.add_token_scores([0.0 if kind != gguf.TokenType.BYTE else -100.0 for kind in types])
    model.add_token_types(types)
    model.add_unk_token_id(0)
    model.add_bos_token_id(1)
    model.add_eos_token_id(2)
    model.add_add_bos_token(True)
    model.add_add_space_prefix(False)
    model.add_chat_template(TEMPLATE)
    model.add_tensor("token_embd.weight", embedding)
    model.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    model.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weight = normal(WIDTH, WIDTH, scale=0.15 if name == "attn_output" else 0.3)
            # The last pair of each head's dimensions hardly turns with the position.
            if name == "attn_q":
                weight[HEAD - 1 :: HEAD, CONSTANT] = 2.0
            elif name == "attn_k":
                weight[HEAD - 1 :: HEAD, SEEN] = 2.0
            elif name == "attn_output":
                weight[[CONSTANT, SEEN]] = 0.0
            model.add_tensor(f"blk.{layer}.{name}.weight", weight)
        model.add_tensor(f"blk.{layer}.ffn_gate.weight", normal(HIDDEN, WIDTH, scale=0.05))
        model.add_tensor(f"blk.{layer}.ffn_up.weight", normal(HIDDEN, WIDTH, scale=0.05))
        model.add_tensor(f"blk.{layer}.ffn_down.weight", normal(WIDTH, HIDDEN, scale=0.05))
        model.add_tensor(f"blk.{layer}.attn_norm.weight", np.ones(WIDTH, np.float32))
        model.add_tensor(f"blk.{layer}.ffn_norm.weight", np.ones(WIDTH, np.float32))
    _finish(model)


def write_eye(path: Path, dice: np.random.Generator) -> None:
    """The vision part, with the projector of gemma3: patches, one block, pooling, one matrix."""

    def normal(*shape: int, scale: float = 0.05) -> Array:
        return (dice.standard_normal(shape) * scale).astype(np.float32)

    model = gguf.GGUFWriter(path, "clip")
    model.add_name("tiny-random-eye")
    model.add_file_type(gguf.LlamaFileType.ALL_F32)
    model.add_bool("clip.has_vision_encoder", True)
    model.add_string("clip.projector_type", "gemma3")
    model.add_bool("clip.use_gelu", True)
    sizes = {
        "embedding_length": EYE_WIDTH,
        "feed_forward_length": EYE_HIDDEN,
        "block_count": 1,
        "projection_dim": WIDTH,
        "image_size": SIDE,
        "patch_size": PATCH,
        "attention.head_count": 2,
    }
    for name, value in sizes.items():
        model.add_uint32(f"clip.vision.{name}", value)
    model.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    model.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    model.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    patches = normal(EYE_WIDTH, 3, PATCH, PATCH, scale=0.3)
    patches -= patches.mean((1, 2, 3), keepdims=True)  # blind to the white around an object
    model.add_tensor("v.patch_embd.weight", patches)
    model.add_tensor("v.patch_embd.bias", normal(EYE_WIDTH))
    model.add_tensor("v.position_embd.weight", normal((SIDE // PATCH) ** 2, EYE_WIDTH, scale=0.5))
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        model.add_tensor(f"v.blk.0.{name}.weight", normal(EYE_WIDTH, EYE_WIDTH))
        model.add_tensor(f"v.blk.0.{name}.bias", normal(EYE_WIDTH))
    model.add_tensor("v.blk.0.ffn_up.weight", normal(EYE_HIDDEN, EYE_WIDTH))
    model.add_tensor("v.blk.0.ffn_up.bias", normal(EYE_HIDDEN))
    model.add_tensor("v.blk.0.ffn_down.weight", normal(EYE_WIDTH, EYE_HIDDEN))
    model.add_tensor("v.blk.0.ffn_down.bias", normal(EYE_WIDTH))
    for name in ("v.blk.0.ln1", "v.blk.0.ln2", "v.post_ln"):
        model.add_tensor(f"{name}.weight", np.ones(EYE_WIDTH, np.float32))
        bias = normal(EYE_WIDTH)
        bias[0] = 3.0  # through the pooling, whatever is seen
        model.add_tensor(f"{name}.bias", bias)
    projection = normal(EYE_WIDTH, WIDTH, scale=2.0)
    projection[:, [CONSTANT, SEEN]] = 0.0
    projection[0] = 0.0
    projection[0, SEEN] = 14.0
    model.add_tensor("mm.input_projection.weight", projection)
    model.add_tensor("mm.soft_emb_norm.weight", np.ones(EYE_WIDTH, np.float32))
    _finish(model)


def _finish(model: gguf.GGUFWriter) -> None:
    model.write_header_to_file()
    model.write_kv_data_to_file()
    model.write_tensors_to_file()
    model.close()


def main() -> None:
    folder = Path(sys.argv[1])
    write_text(folder / "text.gguf", np.random.default_rng(404))
    write_eye(folder / "mmproj.gguf", np.random.default_rng(405))


if __name__ == "__main__":
    main()

"""Sound small checkpoints that `tests.faults.fuzzing` breaks: plain, of every layout, GGUF."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save

from tests.checkpoint.gguf.files import STRING, array, entry, string, tensor, text, whole
from tests.checkpoint.quantised.fixtures import cases, tensors
from tests.checkpoint.quantised.hostile import SCALED, Scaled


@dataclass(frozen=True)
class Base:
    """A checkpoint as JSON and bytes."""

    config: dict[str, Any]
    header: dict[str, Any]
    data: bytes


W, H = 32, 64
WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1, "I64": 8}


def base(quantised: dict[str, Any] | None, tensors: dict[str, tuple[str, list[int]]]) -> Base:
    """Two blocks of which some weights are stored in another way."""
    every: dict[str, tuple[str, list[int]]] = {"model.embed_tokens.weight": ("F16", [16, W])}
    for block in range(2):
        home = f"model.layers.{block}"
        every[f"{home}.input_layernorm.weight"] = ("F16", [W])
        every[f"{home}.self_attn.q_proj.weight"] = ("F16", [W, W])
        if tensors:
            every |= {f"{home}.{name}": each for name, each in tensors.items()}
        else:
            every[f"{home}.mlp.up_proj.weight"] = ("F16", [H, W])
    header, data, given = {}, b"", random.Random(0)
    for name, (dtype, shape) in every.items():
        size = WIDTH[dtype]
        for each in shape:
            size *= each
        # Small halves and floats, whatever their dtype; any codes.
        high = 0x3C if dtype in ("F16", "F32", "BF16", "F8_E4M3") else 0xFF
        content = bytes(given.randrange(0, high) for _ in range(size))
        if name.endswith((".g_idx", ".weight_shape")):
            whole = [i // 16 for i in range(shape[0])] if name.endswith(".g_idx") else [H, W]
            content = b"".join(each.to_bytes(WIDTH[dtype], "little") for each in whole)
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + size],
        }
        data += content
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
        "hidden_size": W, "intermediate_size": H, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 16, "tie_word_embeddings": True,
        "max_position_embeddings": 64, "rope_theta": 1e4, "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    if quantised:
        config["quantization_config"] = quantised
    return Base(config, header, data)


UP = "mlp.up_proj"
BY_HAND = {
    "plain": base(None, {}),
    "fp8": base(
        {"quant_method": "fp8", "weight_block_size": [16, 16]},
        {f"{UP}.weight": ("F8_E4M3", [H, W]), f"{UP}.weight_scale_inv": ("F32", [4, 2])},
    ),
    "mxfp4": base(
        {"quant_method": "mxfp4"},
        {
            "mlp.experts.down_proj_blocks": ("U8", [2, H, 1, 16]),
            "mlp.experts.down_proj_scales": ("U8", [2, H, 1]),
        },
    ),
    "gptq": base(
        {"quant_method": "gptq", "bits": 4, "group_size": 16, "dynamic": {"-:.*q_proj": {}}},
        {
            f"{UP}.qweight": ("I32", [W // 8, H]),
            f"{UP}.qzeros": ("I32", [2, H // 8]),
            f"{UP}.scales": ("F16", [2, H]),
            f"{UP}.g_idx": ("I32", [W]),
        },
    ),
    "awq": base(
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"},
        {
            f"{UP}.qweight": ("I32", [W, H // 8]),
            f"{UP}.qzeros": ("I32", [2, H // 8]),
            f"{UP}.scales": ("F16", [2, H]),
        },
    ),
    "compressed-tensors": base(
        {
            "quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": {
                "targets": ["Linear", "re:.*up_proj"],
                "weights": {"num_bits": 4, "type": "int", "group_size": 16, "symmetric": True,
                            "strategy": "group"}}},
            "ignore": ["lm_head", "re:.*q_proj"],
        },
        {
            f"{UP}.weight_packed": ("I32", [H, W // 8]),
            f"{UP}.weight_scale": ("F16", [H, 2]),
            f"{UP}.weight_shape": ("I64", [2]),
        },
    ),
    "hqq": base(
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
        {
            f"{UP}.W_q": ("U8", [H // 2, W]),
            f"{UP}.scale": ("F16", [H, 1]),
            f"{UP}.zero": ("F16", [H, 1]),
        },
    ),
    "bitsandbytes": base(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {
            f"{UP}.weight": ("U8", [H * W // 2, 1]),
            f"{UP}.weight.absmax": ("F32", [H * W // 64]),
            f"{UP}.weight.quant_map": ("F32", [16]),
            f"{UP}.weight.quant_state.bitsandbytes__nf4": ("U8", [80]),
        },
    ),
}  # fmt: skip

READ = ("plain", "fp8", "mxfp4", "gptq")
"""Those that are sound in every number; the others begin as what their tools write, in outline."""


def of_a_tool(scaled: Scaled) -> Base:
    """One weight as its own tool writes it."""
    found = cases(scaled.tool)[scaled.case]
    content = save({k: t.contiguous() for k, t in tensors(found).items()}, found.get("metadata"))
    size = int.from_bytes(content[:8], "little")
    quantised = dict(found["config"])
    more = quantised.pop("", {})
    config = {"model_type": "llama", "hidden_size": 64, "quantization_config": quantised, **more}
    return Base(config, json.loads(content[8 : 8 + size]), content[8 + size :])


@dataclass(frozen=True)
class Gguf:
    """A GGUF file: what stands before the weights, and they."""

    head: bytes
    data: bytes


ROW, ALIGNED = 256, 32
BLOCKS = {
    "q8_0": (8, 272),
    "q4_k": (12, 144),
    "iq2_xxs": (16, 66),
    "mxfp4": (39, 136),
    "tq1_0": (34, 54),
}
"""Number of a type, and bytes of a row of 256 weights."""


def gguf(kind: str) -> Gguf:
    """One block, whose output projection is stored in a type."""
    number, size = BLOCKS[kind]
    sizes = {
        "context_length": 64, "embedding_length": ROW, "block_count": 1,
        "feed_forward_length": ROW, "attention.head_count": 2,
    }  # fmt: skip
    keys = [string("general.architecture", "llama")]
    keys += [whole(f"llama.{key}", value) for key, value in sizes.items()]
    keys.append(entry("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)))
    words = [b"<unk>", *(b"<0x%02X>" % byte for byte in range(6)), b"a"]
    keys += [
        string("tokenizer.ggml.model", "llama"),
        array("tokenizer.ggml.tokens", STRING, len(words), b"".join(map(text, words))),
        array("tokenizer.ggml.scores", 6, len(words), struct.pack("<8f", *range(8))),
        array("tokenizer.ggml.token_type", 5, len(words), struct.pack("<8i", 2, *[6] * 6, 1)),
        string("tokenizer.chat_template", "{{ ''.__class__.__mro__ }}"),
    ]
    whole_embedding = 8 * ROW * 4
    stored = [
        tensor("token_embd.weight", (ROW, 8), 0, 0),
        tensor("blk.0.attn_output.weight", (ROW, 8), number, whole_embedding),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(stored), len(keys)) + b"".join((*keys, *stored))
    given = random.Random(0)
    data = bytes(whole_embedding) + bytes(given.randrange(0, 0x3C) for _ in range(8 * size))
    return Gguf(head + bytes(-len(head) % ALIGNED), data)


WRITTEN = {f"{each.tool} {each.case}": of_a_tool(each) for each in SCALED}
FILES = {f"gguf {kind}": gguf(kind) for kind in BLOCKS}
BASES: dict[str, Base | Gguf] = {**BY_HAND, **WRITTEN, **FILES}
SOUND = (*READ, *WRITTEN, *FILES)
